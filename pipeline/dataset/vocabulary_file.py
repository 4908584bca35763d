"""The vocabulary of a field as a file of the dataset: raw id → index, never read without its checksum.

Another vocabulary of the same length means other ids for every row of a model: nothing else would tell.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.dataset.manifest import NUM_RESERVED_ROWS, ManifestField
from pipeline.dataset.named_files import NamedFiles
from pipeline.errors import InputError

_COLUMN_TYPES = {
    "raw_id": pa.int64(),
    "index": pa.int32(),
    "text": pa.string(),
    "last_seen": pa.int64(),
}
_OPTIONAL = ("text", "last_seen")  # where ids are texts; with vocabulary.max_age_days


def read_vocabulary(files: NamedFiles, entry: ManifestField) -> pa.Table:
    """Read raw_id, index and, where they are there, text and last_seen of the field's vocabulary, in the order of index.

    Raises InputError where the file is not the one that the manifest names, or is no such table.
    """
    name = entry.vocabulary
    with files.open(name) as stream, files.readable(name):
        content = stream.read()
    files.compare_xxh3(name, xxhash.xxh3_64_hexdigest(content), entry.vocabulary_xxh3)
    with files.readable(name):  # names of columns that are no UTF-8 are found late
        return _checked_table(pq.read_table(io.BytesIO(content)), files, entry)


def _checked_table(table: pa.Table, files: NamedFiles, entry: ManifestField) -> pa.Table:
    index_N = np.arange(NUM_RESERVED_ROWS, entry.num_rows)
    wanted = [column for column in _COLUMN_TYPES if column not in _OPTIONAL or column in table.column_names]
    if any(
        column not in table.column_names or table.schema.field(column).type != _COLUMN_TYPES[column]
        for column in wanted
    ):
        raise InputError(f"{entry.vocabulary} has not the columns of a vocabulary; {files.remedy}")
    table = table.select(wanted)
    if table["raw_id"].null_count or not np.array_equal(table["index"].to_numpy(), index_N):
        raise InputError(
            f"{entry.vocabulary} has not an id for each index from {NUM_RESERVED_ROWS} to {entry.num_rows - 1} in order, "
            f"as {files.named_by} says; {files.remedy}"
        )
    return table
