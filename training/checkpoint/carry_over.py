"""A trained model on a new dataset (`init_from=RUN`): rows follow their raw ids into a vocabulary that changed.

A row whose id both vocabularies have keeps its weights and its optimizer's state. A new id's row keeps its initial value,
and the row of an id that is gone is dropped. The towers and their optimizer are taken over.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.dataset.manifest import MANIFEST, NUM_RESERVED_ROWS, Manifest, ManifestField
from pipeline.dataset.named_files import NamedFiles
from pipeline.dataset.vocabulary_file import read_vocabulary
from pipeline.errors import InputError
from training.distributed.sharded_model import ShardedModel


def carry_over(
    checkpoint: Path,
    files: Sequence[str],
    data_before: str,
    old: Manifest,
    data: str,
    new: Manifest,
    model: ShardedModel,
) -> dict[str, Tensor]:
    """Fill the tables of `model` from `checkpoint`, by raw id, and return the saved state of the towers.

    Raises InputError where a file cannot be read.
    """
    tables_before = {entry.name: entry for entry in old.fields}
    try:
        readers = [safe_open(checkpoint / name, framework="pt") for name in files]
        saved = {key: reader for reader in readers for key in reader.keys()}  # noqa: SIM118
        for entry in new.fields:
            shards = [shard for shard in model.shards if shard.table == entry.name]
            if not shards:
                continue
            source = rows_before(data_before, tables_before[entry.name], data, entry)
            for shard in shards:
                wanted = torch.from_numpy(source[shard.first_row : shard.first_row + len(shard.weight)])
                for part, rows in {"weight": shard.weight, **shard.optimizer}.items():
                    for key, reader in saved.items():
                        table, _, rest = key.partition("/")
                        first_row, _, kind = rest.partition("/")
                        if (table, kind) == (entry.name, part):
                            _take(rows, wanted, int(first_row), reader.get_tensor(key))
        return {key: reader.get_tensor(key) for key, reader in saved.items() if key.split("/")[0] not in tables_before}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"init_from: {checkpoint} or a vocabulary cannot be read ({error}); give a run whose checkpoint and dataset are complete."
        ) from error


def rows_before(data_before: str, old: ManifestField, data: str, new: ManifestField) -> np.ndarray:
    """Return int64 [rows of `new`]: the row of `old` with the same raw id, or -1; reserved rows and buckets keep their numbers."""
    if not new.vocabulary:
        return np.arange(new.num_rows)
    was, is_now = _vocabulary(data_before, old), _vocabulary(data, new)
    place_of = pc.index_in(is_now["raw_id"], value_set=was["raw_id"].combine_chunks())
    index_before = was["index"].combine_chunks().take(place_of.combine_chunks())
    source = np.full(new.num_rows, -1, np.int64)
    source[:NUM_RESERVED_ROWS] = np.arange(NUM_RESERVED_ROWS)
    source[is_now["index"].to_numpy()] = index_before.fill_null(-1).to_numpy(zero_copy_only=False)
    return source


def _take(target: Tensor, source: Tensor, first_row: int, saved: Tensor) -> None:
    here = (source >= first_row) & (source < first_row + len(saved))
    chosen = here.nonzero().squeeze(1)
    target[chosen.to(target.device)] = saved[source[chosen] - first_row].to(target.device)


def _vocabulary(data: str, entry: ManifestField) -> pa.Table:
    remedy = "restore the file, or give a run and a dataset that are complete (init_from, data)."
    return read_vocabulary(NamedFiles.below(data, f"{data.rstrip('/')}/{MANIFEST}", remedy), entry)
