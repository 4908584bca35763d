"""A trained model on another dataset: rows follow their raw ids into a vocabulary that changed.

A row whose id both vocabularies have keeps its weights and its optimizer's state, and the row of an id that is gone is
dropped. `init_from` gives a new id's row its initial value; an evaluation gives it the row of ids out of vocabulary.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.dataset.manifest import NUM_RESERVED_ROWS, Manifest, ManifestField, dataset_files
from pipeline.dataset.vocabulary_file import read_vocabulary
from training.checkpoint.tensors import SavedTensors
from training.distributed.sharded_model import ShardedModel
from training.model.own_tables import field_of

#: In place of a row: none, so that a new id keeps its initial value.
NO_ROW = -1


def carry_over(
    saved: SavedTensors,
    data_before: str,
    old: Manifest,
    data: str,
    new: Manifest,
    model: ShardedModel,
    row_of_new_ids: int = NO_ROW,
) -> None:
    """Fill the tables of `model` from `saved`, by raw id. `data_before` and `data` need their vocabularies only.

    Raises InputError where a vocabulary is damaged, and where a saved table is not that of the manifest `old`.
    """
    before = {entry.name: entry for entry in old.fields}
    for entry in new.fields:
        shards = [shard for shard in model.shards if field_of(shard.table) == entry.name]
        if not shards:
            continue
        source = rows_before(data_before, before[entry.name], data, entry, row_of_new_ids)
        num_rows = before[entry.name].num_rows
        for shard in shards:
            wanted = torch.from_numpy(source[shard.first_row : shard.first_row + len(shard.weight)])
            state = {} if saved.is_average else shard.optimizer
            for part, rows in {"weight": shard.weight, **state}.items():
                saved.check_like(shard.table, part, rows)
                if saved.num_rows(shard.table, part) != num_rows:
                    raise saved.damage(
                        f"it has {saved.num_rows(shard.table, part)} rows of {shard.table}/{part}, and its dataset {num_rows}"
                    )
                for first_row, block in saved.blocks(shard.table, part, 0, num_rows):
                    _take(rows, wanted, first_row, block)


def rows_before(
    data_before: str, old: ManifestField, data: str, new: ManifestField, row_of_new_ids: int = NO_ROW
) -> np.ndarray:
    """Return int64 [rows of `new`]: the row of `old` with the same raw id; reserved rows and buckets keep their numbers."""
    if not new.vocabulary:
        return np.arange(new.num_rows)
    was, is_now = _vocabulary(data_before, old), _vocabulary(data, new)
    place_of = pc.index_in(is_now["raw_id"], value_set=was["raw_id"].combine_chunks())
    index_before = was["index"].combine_chunks().take(place_of.combine_chunks())
    source = np.full(new.num_rows, row_of_new_ids, np.int64)
    source[:NUM_RESERVED_ROWS] = np.arange(NUM_RESERVED_ROWS)
    source[is_now["index"].to_numpy()] = index_before.fill_null(row_of_new_ids).to_numpy(zero_copy_only=False)
    return source


def _take(target: Tensor, source: Tensor, first_row: int, saved: Tensor) -> None:
    here = (source >= first_row) & (source < first_row + len(saved))
    chosen = here.nonzero().squeeze(1)
    target[chosen.to(target.device)] = saved[source[chosen] - first_row].to(target.device)


def _vocabulary(data: str, entry: ManifestField) -> pa.Table:
    remedy = "restore the file, or give a run and a dataset that are complete (init_from, data)."
    return read_vocabulary(dataset_files(data, remedy), entry)
