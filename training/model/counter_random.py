"""Random numbers that are functions of what they are for, not of who draws them or when.

A table's initial values depend on (seed, table, row, column) alone, and a dropout mask (`dropout_masks`) on (seed, step,
impression, unit) alone: so neither changes with the number of ranks or the sharding, and a row that a grown vocabulary adds
later gets what it would have had. Both hash a counter with splitmix64's finalizer (Steele et al., OOPSLA 2014),
`hashing.mix`.
"""

import numpy as np
import xxhash

from pipeline.kernels.hashing import GOLDEN, mix
from pipeline.kernels.jit import nb


def stream_key(seed: int, name: str) -> int:
    """Return a 64-bit key for the stream `name` under `seed`."""
    return xxhash.xxh3_64_intdigest(name.encode(), seed & 0xFFFFFFFFFFFFFFFF)


def uniform_rows(seed: int, table: str, first_row: int, num_rows: int, num_columns: int, bound: float) -> np.ndarray:
    """Return the initial rows [first_row, first_row + num_rows) of `table`: float32, uniform in [-bound, bound).

    Column j of row i is mix(mix(key + i·golden) + j·golden), its upper 24 bits read as a fraction.
    """
    values = np.empty((num_rows, num_columns), np.float32)
    _fill_uniform(np.uint64(stream_key(seed, table)), first_row, np.float32(bound), values)
    return values


@nb.njit(nogil=True, cache=True)
def _fill_uniform(key: np.uint64, first_row: int, bound: np.float32, out_ND: np.ndarray) -> None:
    scale = np.float32(2) * bound * np.float32(2.0**-24)
    for row in range(len(out_ND)):
        first = mix(np.uint64(first_row + row) * np.uint64(GOLDEN) + key)
        out = out_ND[row]
        for column in range(len(out)):
            bits = mix(first + np.uint64(column) * np.uint64(GOLDEN)) >> np.uint64(40)
            out[column] = np.float32(bits) * scale - bound
