"""The tensors of a checkpoint on disk: safetensors files, written straight from memory."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bfloat16: "BF16"}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> list[int]:
    """Write a safetensors file straight from the tensors' memory, down to the disk (fsync).

    Returns its size and the halves of its xxh3. The library's own writer copies every table once, and refuses tables that
    share a buffer, as FBGEMM's do.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_64()
    with path.open("wb") as stream:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            stream.write(part)
        for tensor in tensors.values():
            memory = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            digest.update(memory)
            stream.write(memory)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
    return [size, *divmod(digest.intdigest(), 1 << 32)]
