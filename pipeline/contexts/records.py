"""The record: one parsed line as it crosses Spark, as packed int32 words in a binary column, not as lists.

    word   0      1 2                  3 4                                    5 …
           words  id                   key of a context | offset, labels      ones, numbers, lengths, values, weights

    id       raw id of the group field (-1 missing) | sample id; 64 bits, the lower word first
    offset   of the line, from the first line of its run
    time     in a timed log an impression's timestamp, 64 bits, stands before the ones
    ones     index of each single-valued field
    numbers  float32 bits, NaN where missing, of a vector all of them; fields that read the same number share it
    lengths  number of values of each multi-valued field, in catalogue order
    values   the indices of all multi-valued fields, field by field, each in the order of the log
    weights  float32 bits of the weighted ones among them, likewise

A context line is one record. A run is the records of consecutive impressions of one context in one chunk.
Both cross Spark packed (packing.py).
"""

# Shapes: F fields of the catalogue.

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.features.fields import Catalogue, Field, NumberPlaces

#: Words of a record; a context's key and an impression's offset and labels stand at the same place.
NUM_WORDS_AT, ID_AT, KEY_AT, OFFSET_AT, LABELS_AT, HEADER, TIME_AT = 0, 1, 3, 3, 4, 5, 5
#: Bits of the word at LABELS_AT.
CLICK_LABEL, CONVERSION_LABEL, DACTION_LABEL = 1, 2, 4
NO_GROUP_ID = -1

#: The columns that cross Spark; sorted by all but the blob, they bring a context and its impressions together.
#: `bucket` is the output file (see buckets.py); `tag` is CONTEXT_TAG, RUN_TAG or, in quarantine buckets, the reason.
RECORD_SCHEMA = pa.schema(
    [
        ("bucket", pa.int32()),
        ("hash", pa.int64()),
        ("tag", pa.int8()),
        ("ordinal", pa.int32()),
        ("offset", pa.int64()),
        ("blob", pa.binary()),
    ]
)
RECORD_SPARK_SCHEMA = "bucket int, hash long, tag byte, ordinal int, offset long, blob binary"
CONTEXT_TAG, RUN_TAG = 0, 1


@dataclass(frozen=True)
class Layout:
    """The places of the fields of one scope in its records."""

    fields: tuple[Field, ...]
    one_F: np.ndarray  # int64: the field's place among the ones, -1 if it is none
    number_places: NumberPlaces  # of the numbers that come with a field's values, among all numbers
    many_F: np.ndarray  # int64: its place among the multi-valued fields, -1 if it is none
    number_of: tuple[int, ...]  # of each field that reads numbers: the place of its first one among the numbers
    is_weighted: np.ndarray  # bool: of each multi-valued field
    group: int  # number of the group field in the catalogue, -1 where the scope has none
    header: int = HEADER  # words before the ones

    @property
    def ones(self) -> list[Field]:
        """The single-valued fields that hold an id."""
        return [entry for entry in self.fields if entry.arity == "one" and not entry.reads_numbers]

    @property
    def numbers(self) -> list[Field]:
        """The fields of one number, or one vector, a line."""
        return [entry for entry in self.fields if entry.reads_numbers]

    @property
    def num_numbers(self) -> int:
        """How many numbers a record has."""
        return self.number_places.total

    @property
    def many(self) -> list[Field]:
        """The multi-valued fields."""
        return [entry for entry in self.fields if entry.arity == "many"]


def layout_of(catalogue: Catalogue, scope: str) -> Layout:
    """Lay out the records of a scope."""
    entries = catalogue.of_scope(scope)
    ones = [entry for entry in entries if entry.arity == "one" and not entry.reads_numbers]
    many = [entry for entry in entries if entry.arity == "many"]
    numbers = [entry for entry in entries if entry.reads_numbers]
    sources = [catalogue.fields.index(catalogue.source_of(entry)) for entry in numbers]
    readers = dict(zip(reversed(sources), reversed(numbers), strict=True))  # source → the first field that reads it
    number_places = catalogue.number_places([readers[source] for source in dict.fromkeys(sources)])
    is_weighted = np.array([entry.weighted for entry in many], np.bool_)
    names = [entry.name for entry in catalogue.fields]
    group = names.index(catalogue.group) if scope == "context" and catalogue.group else -1
    header = HEADER + 2 if catalogue.timed and scope == "impression" else HEADER
    one_F, many_F = (np.array(catalogue.places(chosen), np.int64) for chosen in (ones, many))
    number_of = tuple(number_places.first_F[sources].tolist())
    return Layout(entries, one_F, number_places, many_F, number_of, is_weighted, group, header)


def record_batch(columns: dict[str, np.ndarray], begin_R: np.ndarray, blob: np.ndarray) -> pa.RecordBatch:
    """Make a batch of RECORD_SCHEMA: blob r is the bytes [begin_R[r], begin_R[r + 1]) of `blob`, not copied."""
    num_rows = len(begin_R) - 1
    offsets = pa.py_buffer(begin_R.astype(np.int32))
    binary = pa.BinaryArray.from_buffers(pa.binary(), num_rows, [None, offsets, pa.py_buffer(blob)])
    fixed = RECORD_SCHEMA.names[:-1]
    arrays = [pa.array(np.ascontiguousarray(columns[name]), RECORD_SCHEMA.field(name).type) for name in fixed]
    return pa.RecordBatch.from_arrays([*arrays, binary], schema=RECORD_SCHEMA)
