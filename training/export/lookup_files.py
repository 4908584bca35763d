"""Vocabularies as a service maps them: raw id → row, in .npy files that processes may map into memory and share.

vocabulary/item_id.direct.npy   int32: the row of id i is at place i, 1 (out of vocabulary) where i has none, and last
vocabulary/user_id.ids.npy      int64, sorted, for ids too far apart for that; beside it
vocabulary/user_id.rows.npy     int32: the row of each
"""

from pathlib import Path

import numpy as np

from pipeline.dataset.lookup_table import DIRECT_FACTOR
from pipeline.dataset.manifest import NUM_RESERVED_ROWS, OUT_OF_VOCABULARY

_LOOKUP_FOLDER = "vocabulary"


def save_lookup(folder: Path, name: str, id_N: np.ndarray) -> dict[str, str]:
    """Write the ids of a field, of which id_N[i] has row i + 2; return part → file."""
    (folder / _LOOKUP_FOLDER).mkdir(exist_ok=True)
    row_N = np.arange(NUM_RESERVED_ROWS, NUM_RESERVED_ROWS + len(id_N), dtype=np.int32)
    largest = int(id_N.max()) if len(id_N) else 0
    if largest < DIRECT_FACTOR * max(len(id_N), 1):
        direct = np.full(largest + 2, OUT_OF_VOCABULARY, np.int32)
        direct[id_N] = row_N
        parts = {"direct": direct}
    else:
        order = np.argsort(id_N, kind="stable")
        parts = {"ids": id_N[order], "rows": row_N[order]}
    for part, values in parts.items():
        np.save(folder / _LOOKUP_FOLDER / f"{name}.{part}.npy", values)
    return {part: f"{_LOOKUP_FOLDER}/{name}.{part}.npy" for part in parts}
