"""Context rows with raw ids again, found from their indices: what jobs.inspect prints."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.dataset.kinds import NUMBER, STORED_KINDS, VECTOR
from pipeline.dataset.manifest import (
    LABELS,
    MISSING,
    NUM_RESERVED_ROWS,
    OUT_OF_VOCABULARY,
    DatasetFile,
    Manifest,
    ManifestField,
    dataset_files,
    load_manifest,
)
from pipeline.dataset.named_files import NamedFiles
from pipeline.dataset.schema import check_types, schema_of
from pipeline.errors import InputError, printable, reason_of

_MOST_VALUES, _MOST_IMPRESSIONS = 6, 3  # shown of a field, of a row
_NAME_WIDTH = 32
#: What formatting raises for a row whose lists do not fit each other, or whose index has no id.
_CONTRADICTIONS = (IndexError, KeyError, TypeError, OverflowError)


@dataclass(frozen=True)
class Decoder:
    """The raw ids of the indices that some rows have."""

    ids: Mapping[str, Mapping[int, int | str]]  # field → index → raw id

    def text(self, field: ManifestField, index: int) -> str:
        """Format a value as people read it."""
        if index == MISSING:
            return "missing"
        if index_text := STORED_KINDS[field.kind].index_text:
            return index_text(field.parameters, index - NUM_RESERVED_ROWS)
        if not field.vocabulary:
            return f"bucket {index - NUM_RESERVED_ROWS}"
        return "out of vocabulary" if index == OUT_OF_VOCABULARY else printable(str(self.ids[field.name][index]))


def decode_rows(dataset: str, split: str, rows: int) -> str:
    """Format the first rows of a split with raw ids and weights.

    Raises InputError where a file from which something is shown is missing, damaged, or not the one that the manifest
    names: each is compared with its checksum.
    """
    manifest = load_manifest(dataset)
    files = dataset_files(dataset, "restore the file, or run jobs.preprocess again.")
    found = _first_rows(files, manifest, manifest.files_of(split), rows)
    try:
        ids = {field.name: read_raw_ids(files, field, _indices(found, field)) for field in manifest.fields}
        rows_text = [_row(manifest, Decoder(ids), split, number, row) for number, row in enumerate(found, 1)]
    except _CONTRADICTIONS as error:
        raise InputError(
            f"data={dataset} has rows of split={split} that contradict its manifest ({type(error).__name__}: "
            f"{reason_of(error)}); {files.remedy}"
        ) from error
    return "\n\n".join(rows_text)


def _first_rows(
    files: NamedFiles, manifest: Manifest, chosen: Sequence[DatasetFile], rows: int
) -> list[dict[str, Any]]:
    labels = [label for label in LABELS if label in manifest.labels]
    wanted = {column.name: column.type for column in schema_of(manifest.fields, labels, timed=False)}
    found: list[dict[str, Any]] = []
    for file in chosen:
        files.check_size(file.path, file.bytes)
        files.check_content(file.path, file.xxh3)
        with files.open(file.path) as stream, files.readable(file.path), pq.ParquetFile(stream) as parquet:
            check_types(parquet.schema_arrow, wanted, file.path)
            for batch in parquet.iter_batches(rows):
                found += batch.slice(0, rows - len(found)).to_pylist()
                if len(found) == rows:
                    return found
    return found


def _indices(rows: Iterable[Mapping[str, Any]], field: ManifestField) -> np.ndarray:
    """Return the distinct indices of a field that have a raw id."""
    if not field.vocabulary:
        return np.empty(0, np.int64)
    values = [row[field.name] for row in rows]
    flat = [index for value in values for index in (value if isinstance(value, list) else [value])]
    return np.unique([index for index in flat if index >= NUM_RESERVED_ROWS])


def read_raw_ids(files: NamedFiles, field: ManifestField, indices: np.ndarray) -> dict[int, int | str]:
    """Map each of `indices` that has one to its raw id, or to the text that it is the hash of.

    Index i stands in row i − 2 of the vocabulary. Raises InputError where that is damaged.
    """
    if not len(indices):
        return {}
    name = field.vocabulary
    files.check_content(name, field.vocabulary_xxh3)
    found: dict[int, int | str] = {}
    first = NUM_RESERVED_ROWS
    with files.open(name) as stream, files.readable(name), pq.ParquetFile(stream) as parquet:
        for number in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(number).num_rows
            mine = indices[(indices >= first) & (indices < first + size)]
            if len(mine):
                table = parquet.read_row_group(number, ["raw_id", "text"]).take(mine - first)
                texts = table["text"].to_pylist() if "text" in table.column_names else [None] * len(mine)
                for index, raw_id, text in zip(mine.tolist(), table["raw_id"].to_pylist(), texts, strict=True):
                    found[index] = raw_id if text is None else text
            first += size
    return found


def _row(manifest: Manifest, decoder: Decoder, split: str, number: int, row: Mapping[str, Any]) -> str:
    shown = len(row["impression_id"])
    group = "missing" if row["group_id"] is None else row["group_id"]
    lines = [f"{split} row {number}: context {printable(row['context_id'])}, group_id {group}, {shown} impressions"]
    for field in manifest.fields_of("context"):
        value, weights = row[field.name], row.get(f"{field.name}__weight")
        lines.append(f"  {field.name:<{_NAME_WIDTH}}{_values_text(field, decoder, value, weights)}")
    begin = {field.name: 0 for field in manifest.fields_of("impression")}
    for place in range(min(shown, _MOST_IMPRESSIONS)):
        labels = " ".join(f"{label} {row[label][place]}" for label in LABELS if label in row)
        at = f" {_time(row['timestamp'][place])}" if "timestamp" in row else ""
        lines.append(f"  impression {row['impression_id'][place]}{at}: {labels}")
        for field in manifest.fields_of("impression"):
            start = begin[field.name]
            length = row[f"{field.name}__length"][place] if field.arity == "many" else field.num_inputs or 1
            begin[field.name] += length
            value = row[field.name][start : start + length]
            weights = row[f"{field.name}__weight"][start : start + length] if field.weighted else None
            is_list = field.arity == "many" or field.stored == VECTOR
            text = _values_text(field, decoder, value if is_list else value[0], weights)
            lines.append(f"    {field.name:<{_NAME_WIDTH - 2}}{text}")
    if shown > _MOST_IMPRESSIONS:
        lines.append(f"  … and {shown - _MOST_IMPRESSIONS} more impressions")
    return "\n".join(lines)


def _values_text(field: ManifestField, decoder: Decoder, value: Any, weights: Sequence[float] | None) -> str:
    """Format one value, or the first of many with their weights and how many there are."""
    if field.stored == NUMBER:
        return "missing" if value is None else f"{value:g}"
    if field.stored == VECTOR:
        texts = [f"{number:g}" for number in value[:_MOST_VALUES]]
        return "missing" if math.isnan(value[0]) else _shortened(texts, len(value), "numbers")
    if field.arity == "one":
        return decoder.text(field, value)
    if not value:
        return "none"
    texts = [decoder.text(field, index) for index in value[:_MOST_VALUES]]
    if weights is not None:
        texts = [f"{text} × {weight:g}" for text, weight in zip(texts, weights, strict=False)]
    return _shortened(texts, len(value), "values")


def _shortened(texts: Sequence[str], total: int, what: str) -> str:
    """Join the first of many texts, and say how many there are."""
    return ", ".join(texts) + (f", … ({total} {what})" if total > len(texts) else "")


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
