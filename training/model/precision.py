"""The precision of the towers' products (the setting `precision`): inputs are narrowed, weights and sums stay wide.

tf32 narrows nothing here: a GPU rounds the factors of its products (training.distributed.devices), and a CPU takes fp32.
"""

import torch
from torch import Tensor

#: the setting `precision` → the dtype of the towers' inputs
DTYPE_OF = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def widen(x: Tensor) -> Tensor:
    """Return bfloat16 as fp32, in which gradients are summed and weights are kept; other dtypes as they are."""
    return x.float() if x.dtype == torch.bfloat16 else x
