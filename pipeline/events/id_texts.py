"""Add the original strings of hashed ids to the vocabularies of an event log. Indices only know a hash of 63 bits.

impressions ─texts_of()─▶ text columns ─FindTexts, in tasks─▶ each text whose id has an index, once ─▶ vocabularies

This reads the text columns once more, after the vocabularies are known. A text is hashed once a batch, however often it
stands there. An id whose text is the number itself gets no text.
"""

# Shapes: N texts, each with its id.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.events import EventsSettings
from pipeline.dataset.lookup_table import Lookup
from pipeline.dataset.manifest import NUM_RESERVED_ROWS
from pipeline.dataset.raw_ids import text_id
from pipeline.events.tables import EventLog
from pipeline.features.fields import Catalogue
from pipeline.features.vocabulary import Vocabulary
from pipeline.spark import running

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_TEXT_SCHEMA = pa.schema([("field", pa.int32()), ("raw_id", pa.int64()), ("text", pa.string())])
_TEXT_SPARK_SCHEMA = "field int, raw_id long, text string"


def add_id_texts(
    spark: "SparkSession",
    log: EventLog,
    settings: EventsSettings,
    catalogue: Catalogue,
    vocabularies: Sequence[Vocabulary],
    tables: Callable[[], Path],
) -> list[Vocabulary]:
    """Return the vocabularies with the original string of each hashed id; unchanged if the log has no string ids."""
    from pipeline.events.rows import texts_of  # it imports pyspark

    frame, numbers = texts_of(spark, log, settings, catalogue)
    vocabularies = list(vocabularies)
    if not numbers:
        return vocabularies
    found = frame.mapInArrow(FindTexts(tuple(numbers), tables).find, _TEXT_SPARK_SCHEMA).distinct()
    table = running.collect(found, "texts of the ids", len(log.impressions.files), "files")
    for number in numbers:
        mine = table.filter(pc.equal(table["field"], number))
        vocabularies[number] = with_texts(vocabularies[number], mine["raw_id"].to_numpy(), mine["text"].to_pylist())
    return vocabularies


def with_texts(vocabulary: Vocabulary, id_N: np.ndarray, texts: Sequence[str]) -> Vocabulary:
    """Add the text of each id; of several texts of one hash, take the base's or the first, and print a line."""
    first = {raw_id: text for raw_id, text in zip(vocabulary.id_N.tolist(), vocabulary.texts, strict=False) if text}
    for raw_id, text in sorted(zip(id_N.tolist(), texts, strict=True)):
        if (known := first.get(raw_id)) is None:
            first[raw_id] = text
        elif known != text:
            print(f"the ids {known!r} and {text!r} have one hash, {raw_id}, and so one index.", flush=True)
    if not first:
        return vocabulary
    return replace(vocabulary, texts=tuple(first.get(raw_id) for raw_id in vocabulary.id_N.tolist()))


@dataclass(frozen=True)
class FindTexts:
    """The task: columns t<number> of texts → rows of _TEXT_SCHEMA."""

    numbers: tuple[int, ...]  # of the fields
    tables: Callable[[], Path]  # where this host has the lookup tables

    def find(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield each text whose id has an index, once a task."""
        lookup = Lookup.load(self.tables())
        seen: dict[int, dict[str, int]] = {number: {} for number in self.numbers}
        for batch in batches:
            for number in self.numbers:
                column = batch.column(f"t{number}")
                column = column.flatten() if pa.types.is_list(column.type) else column
                texts = [
                    text for text in pc.unique(column).to_pylist() if text is not None and text not in seen[number]
                ]
                ids = np.array([text_id(text) for text in texts], np.int64)
                index_N = lookup.indices_of(np.full(len(ids), number), ids)
                for place in np.flatnonzero(index_N >= NUM_RESERVED_ROWS).tolist():
                    if texts[place] != str(ids[place]):
                        seen[number][texts[place]] = int(ids[place])
        for number, found in seen.items():
            columns = [np.full(len(found), number, np.int32), list(found.values()), list(found)]
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, kind) for column, kind in zip(columns, _TEXT_SCHEMA.types, strict=True)],
                schema=_TEXT_SCHEMA,
            )
