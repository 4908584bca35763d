"""A dataset of jobs.preprocess as other libraries want it: one row an impression, every field a dense array of integers.

Imports NumPy, pyarrow and pipeline.dataset.manifest only, so that the peers' environment can run it.
"""

# Shapes: B impressions, N bags, V values.

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.dataset.manifest import MANIFEST, DatasetFile, Manifest, ManifestField, RowGroup, load_manifest, totals_of


@dataclass(frozen=True)
class Inputs:
    """The arrays of one split."""

    features: dict[str, np.ndarray]  # field → int32 [B], or [B, width] padded with 0
    click_B: np.ndarray
    conversion_B: np.ndarray
    impression_id_B: np.ndarray


@dataclass(frozen=True)
class Bags:
    """One multi-valued field, once for each impression or once for each context row."""

    values_V: np.ndarray
    offsets_N: np.ndarray  # int64 [N + 1]
    context_of_impression_B: np.ndarray | None  # the context row of each impression; None for a field of the impression

    def lengths_B(self) -> np.ndarray:
        """Count the values of each impression."""
        lengths_N = np.diff(self.offsets_N)
        return lengths_N if self.context_of_impression_B is None else lengths_N[self.context_of_impression_B]


def subset(dataset: str, out: Path, fields: Sequence[str], num_impressions: dict[str, int]) -> Manifest:
    """Write the first row groups of each split, about `num_impressions` impressions, as a dataset with only `fields`.

    Rows stand in a pseudo-random order, so these are a sample.
    """
    manifest = load_manifest(dataset)
    files = [_first_row_groups(dataset, manifest, out, split, wanted) for split, wanted in num_impressions.items()]
    smaller = replace(
        manifest,
        fields=tuple(entry for entry in manifest.fields if entry.name in fields),
        files=tuple(files),
        totals=totals_of(files),
    )
    (out / MANIFEST).write_text(smaller.to_json())
    return smaller


def _first_row_groups(dataset: str, manifest: Manifest, out: Path, split: str, wanted: int) -> DatasetFile:
    (out / split).mkdir(parents=True)
    staged, writer = out / split / "staged", None
    counts: list[RowGroup] = []
    for file in manifest.files_of(split):
        with pq.ParquetFile(f"{dataset}/{file.path}") as parquet:
            for number, group in enumerate(file.row_groups):
                if sum(known.impressions for known in counts) >= wanted:
                    break
                table = parquet.read_row_group(number)
                if writer is None:
                    writer = pq.ParquetWriter(
                        staged, table.schema, compression="zstd", compression_level=1, use_dictionary=False
                    )
                writer.write_table(table, row_group_size=len(table))
                counts.append(group)
    assert writer is not None, "a split of a manifest has a row group"
    writer.close()
    digest = xxhash.xxh3_64_hexdigest(staged.read_bytes())
    final = staged.rename(out / split / f"part-00000-{digest}.parquet")
    return DatasetFile(str(final.relative_to(out)), split, final.stat().st_size, digest, tuple(counts))


def widths(dataset: str, pad: int) -> dict[str, int]:
    """Return the width of each multi-valued field: `pad`, or its longest bag in the train split if that is shorter."""
    manifest = load_manifest(dataset)
    table = _read(dataset, manifest, "train")
    many = [entry for entry in manifest.fields if entry.arity == "many"]
    return {entry.name: min(pad, int(bags(table, entry).lengths_B().max())) for entry in many}


def read(dataset: str, split: str, width: dict[str, int]) -> Inputs:
    """Read the arrays of `split`. A field of `width` 1 is one number: its first value, or 0 if it has none."""
    manifest = load_manifest(dataset)
    table = _read(dataset, manifest, split)
    features: dict[str, np.ndarray] = {}
    for entry in manifest.fields:
        if entry.arity == "many":
            padded_array = padded(bags(table, entry), width[entry.name])
            features[entry.name] = padded_array[:, 0].copy() if width[entry.name] == 1 else padded_array
        elif entry.scope == "impression":
            features[entry.name] = _flat(table, entry.name)
        else:
            features[entry.name] = table.column(entry.name).to_numpy()[_row_of_impression(table)]
    return Inputs(features, _flat(table, "click"), _flat(table, "conversion"), _flat(table, "impression_id"))


def kept_share(dataset: str, width: dict[str, int], all_fields: Sequence[ManifestField]) -> float:
    """Return the fraction of the train split's values in `all_fields` that padding and truncation keep."""
    manifest = load_manifest(dataset)
    table = _read(dataset, manifest, "train")
    present = {entry.name for entry in manifest.fields}
    num_impressions = len(_flat(table, "impression_id"))
    num_kept = num_values = 0
    for entry in all_fields:
        lengths_B = bags(table, entry).lengths_B() if entry.arity == "many" else np.ones(num_impressions, np.int64)
        num_values += int(lengths_B.sum())
        if entry.name in present:
            num_kept += int(np.minimum(lengths_B, width.get(entry.name, 1)).sum())
    return num_kept / num_values


def bags(table: pa.Table, entry: ManifestField) -> Bags:
    """Return the bags of a multi-valued field."""
    values_V = _flat(table, entry.name)
    if entry.scope == "impression":
        lengths_N, context_of_impression_B = _flat(table, f"{entry.name}__length"), None
    else:
        lengths_N, context_of_impression_B = _lengths(table, entry.name), _row_of_impression(table)
    return Bags(values_V, np.concatenate([[0], np.cumsum(lengths_N, dtype=np.int64)]), context_of_impression_B)


def padded(field: Bags, width: int) -> np.ndarray:
    """Return int32 [B, width]: the first `width` values of each bag, then zeros. (With int64 both peers took longer.)"""
    starts_N, lengths_N = field.offsets_N[:-1], np.minimum(np.diff(field.offsets_N), width)
    padded_bags = np.zeros((len(starts_N), width), np.int32)
    is_kept = np.arange(width) < lengths_N[:, None]
    padded_bags[is_kept] = field.values_V[(starts_N[:, None] + np.arange(width))[is_kept]]
    return padded_bags if field.context_of_impression_B is None else padded_bags[field.context_of_impression_B]


def _read(dataset: str, manifest: Manifest, split: str) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(f"{dataset}/{file.path}", partitioning=None) for file in manifest.files_of(split)
    ).combine_chunks()


def _flat(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).combine_chunks().flatten().to_numpy()


def _lengths(table: pa.Table, column: str) -> np.ndarray:
    return table.column(column).combine_chunks().value_lengths().to_numpy()


def _row_of_impression(table: pa.Table) -> np.ndarray:
    return np.repeat(np.arange(len(table)), _lengths(table, "impression_id"))
