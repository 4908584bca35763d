"""A batch: C contexts, B impressions, and the index from each impression to its context.

A context is stored, read, looked up and multiplied once, however many of its impressions the batch holds
(DESIGN §2), so the two scopes stay apart until the towers' first layer has been applied to each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Bags:
    """The embedding lookups of all F fields of one scope, for N contexts or impressions.

    The layout is that of TorchRec's KeyedJaggedTensor.
    """

    values: Tensor  # int32 [V], rows of the tables, field-major: all values of field 0, then those of field 1, …
    lengths: Tensor  # int32 [F * N], field-major
    weights: Tensor  # float32 [V]; the pooling is already in them (mean: w / sum of |w| over the bag)
    counts: tuple[int, ...] | None = None  # V of each field, on the host; None: not counted yet

    def counts_of(self, num_fields: int) -> list[int]:
        """Return the number of values of each field; without `counts`, a device is waited for."""
        if self.counts is not None:
            return list(self.counts)
        return self.lengths.view(num_fields, -1).sum(1).tolist() if num_fields else []


@dataclass
class Batch:
    """One rank's batch of one step: B impressions of C contexts."""

    context: Bags  # N = C
    impression: Bags  # N = B
    #: float32 [C, D], numeric fields before dense ones: tanh((v - µ)/σ) of a number, (v - µ)/σ of a vector, 0 where missing
    context_numeric: Tensor
    impression_numeric: Tensor  # float32 [B, D]
    context_of_impression: Tensor  # int64 [B], in [0, C), non-decreasing: a context's impressions stand together
    labels: dict[str, Tensor]  # click, conversion, and daction where the dataset has it: float32 [B]
    impression_id: Tensor  # int64 [B]
    group_id: Tensor  # int64 [C]; UNKNOWN_GROUP where missing
    context_id: list[str]  # [C], the key as logged
    block: Tensor | None = (
        None  # uint8: the memory of which all tensors are parts, where a GPU is to copy it (device_copy)
    )

    @property
    def num_contexts(self) -> int:
        return len(self.context_id)

    @property
    def num_impressions(self) -> int:
        return len(self.impression_id)


#: The group_id of a context whose user is unknown.
UNKNOWN_GROUP = torch.iinfo(torch.int64).min
