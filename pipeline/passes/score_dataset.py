"""Score a split of a dataset: each task reads one file, row group by row group. Nothing crosses Spark but reports.

A dataset with other vocabularies than the model's, such as the next day's, is read by raw id: its indices become those of
the model's vocabularies, and an id that the model does not know is out of vocabulary.
"""

# Shapes: N rows of the dataset's table of a field.

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.tally import Tally
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.lookup_table import lookup_of
from pipeline.dataset.manifest import (
    MISSING,
    OUT_OF_VOCABULARY,
    DatasetFile,
    Manifest,
    dataset_files,
    field_differences,
    load_manifest,
)
from pipeline.dataset.schema import check_types, schema_of
from pipeline.errors import InputError
from pipeline.features.base_vocabulary import vocabularies_of
from pipeline.passes.input import numbers_in
from pipeline.passes.reports import REPORT, DataReport, attempt_name, report_row, reports_of
from pipeline.passes.score_log import ROWS_PER_SCORE_GROUP, counts_of
from pipeline.passes.scorer import TrainedModel, opened, score_schema, scores_of
from pipeline.spark import running
from pipeline.spark.running import Batches
from pipeline.storage.commit import Staging
from pipeline.storage.parquet_files import PartWriter
from pipeline.storage.scores import SCORES_FOLDER

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SAME_AS_MODEL = ("raw_id", "scope", "arity", "weighted", "kind", "hash_buckets", "parameters")
_ROWS_REMEDY = "run jobs.preprocess again."


@dataclass(frozen=True)
class ScoredDataset:
    """A split of a dataset, and whether its indices are those of the model."""

    location: str
    manifest: Manifest
    split: str
    has_same_indices: bool

    @classmethod
    def of(cls, location: str, split: str, model: TrainedModel) -> "ScoredDataset":
        """Read the manifest of `location`. Raises InputError where its fields are not those of the model, or it lacks the split."""
        manifest = load_manifest(location)
        manifest.files_of(split)
        if found := field_differences(model.manifest.fields, manifest.fields, _SAME_AS_MODEL):
            raise InputError(
                f"data={location} has other fields than the dataset that the model was trained on: {'; '.join(found)}; "
                "give a dataset with the same features."
            )
        return cls(location, manifest, split, manifest.xxh3 == model.manifest.xxh3)

    @property
    def files(self) -> tuple[DatasetFile, ...]:
        """The files of the split."""
        return self.manifest.files_of(self.split)

    @property
    def timed(self) -> bool:
        """Whether its impressions have timestamps: those of an event log."""
        source = self.manifest.settings.get("source", {})
        return isinstance(source, dict) and source.get("name") == "events"


def score_dataset(
    spark: "SparkSession", scored: ScoredDataset, model: TrainedModel, most: int, staging: Staging
) -> list[DataReport]:
    """Run the tasks; return the report of each file, in the order of the manifest."""
    maps = {} if scored.has_same_indices else index_maps(scored, model)

    def save(directory: Path) -> list[Path]:
        paths = [directory / f"index_map_{name}.npy" for name in maps]
        for path, map_N in zip(paths, maps.values(), strict=True):
            np.save(path, map_N)
        return paths

    with running.share_files(spark, save) as tables:
        tasks = DatasetTasks(scored, scored.files, tuple(maps), tables, model, most, staging)
        frame = running.number_partitions(spark, len(tasks.files)).mapInArrow(tasks.score, REPORT)
        reports, _ = reports_of(running.collect(frame, "scoring the dataset", len(tasks.files), "files"))
    return sorted(reports, key=lambda report: report.number)


def index_maps(scored: ScoredDataset, model: TrainedModel) -> dict[str, np.ndarray]:
    """Return field → int32 [N]: the model's index for each index of the dataset, by raw id."""
    theirs = vocabularies_of(dataset_files(scored.location), scored.manifest.fields)
    lookup = lookup_of(vocabularies_of(dataset_files(model.dataset), model.manifest.fields))
    maps = {}
    for number, (entry, vocabulary) in enumerate(zip(scored.manifest.fields, theirs, strict=True)):
        if entry.vocabulary:
            found = lookup.indices_of(np.full(len(vocabulary.id_N), number, np.int16), vocabulary.id_N)
            maps[entry.name] = np.r_[np.int32(MISSING), np.int32(OUT_OF_VOCABULARY), found]
    return maps


@dataclass(frozen=True)
class DatasetTasks:
    """The tasks: each scores the files with its numbers."""

    scored: ScoredDataset
    files: tuple[DatasetFile, ...]
    mapped: tuple[str, ...]  # the fields whose indices are not the model's
    tables: Callable[[], Path]  # where this host has the maps
    model: TrainedModel
    most: int  # impressions that the model is given at once
    staging: Staging

    def score(self, batches: Batches) -> Batches:
        """Score the files of a task's rows → the report of each."""
        for number in numbers_in(batches):
            yield report_row(self._score_file(number))

    def _score_file(self, number: int) -> DataReport:
        timed = self.scored.timed
        schema, scorer = score_schema(self.model, timed), opened(self.model.open)
        path = self.staging.path(f"scores-{number:05d}-{attempt_name()}")
        writer = PartWriter(path, schema, ROWS_PER_SCORE_GROUP, False)
        tally = Tally()
        for rows in self._row_groups(self.files[number], timed):
            for scores in scores_of(rows, scorer, schema, self.most):
                writer.add(scores, counts_of(scores))
        file = writer.finish()
        assert file is not None, "a file of a dataset has rows"
        sealed = self.staging.seal(file, SCORES_FOLDER, f"part-{number:05d}")
        return DataReport(self.scored.split, number, sealed, tuple(writer.row_groups), tally, {}, "", ())

    def _row_groups(self, file: DatasetFile, timed: bool) -> Iterator[pa.Table]:
        """Yield the rows of each row group, with the model's indices. Raises InputError for a file that is not the manifest's."""
        named = dataset_files(self.scored.location)
        wanted = schema_of(self.scored.manifest.fields, [], timed)
        named.check_size(file.path, file.bytes)
        maps = {name: np.load(self.tables() / f"index_map_{name}.npy", mmap_mode="r") for name in self.mapped}
        with named.open(file.path) as stream:
            with named.readable(file.path):
                parquet = pq.ParquetFile(stream)
            check_types(parquet.schema_arrow, {entry.name: entry.type for entry in wanted}, file.path)
            if parquet.num_row_groups != len(file.row_groups):
                raise _not_as_promised(file.path, f"{parquet.num_row_groups} row groups", str(len(file.row_groups)))
            for group, promised in enumerate(file.row_groups):
                with named.readable(file.path):
                    rows = parquet.read_row_group(group, columns=wanted.names).combine_chunks()
                found = len(rows["impression_id"].combine_chunks().flatten()) if rows.num_rows else 0
                if (rows.num_rows, found) != (promised.rows, promised.impressions):
                    counts = f"{promised.rows} rows of {promised.impressions} impressions"
                    raise _not_as_promised(
                        f"{file.path}, row group {group}", f"{rows.num_rows} rows of {found} impressions", counts
                    )
                yield self._with_indices_of_model(rows.select(wanted.names), maps, file.path)

    def _with_indices_of_model(self, rows: pa.Table, maps: dict[str, np.ndarray], where: str) -> pa.Table:
        for entry in self.scored.manifest.fields:
            if entry.stored != INDEX or entry.name not in maps:
                continue
            place = rows.schema.get_field_index(entry.name)
            column = rows.column(place).combine_chunks()
            column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            is_list = pa.types.is_list(column.type)
            index_V = (column.flatten() if is_list else column).to_numpy(zero_copy_only=False)
            map_N = maps[entry.name]
            if len(index_V) and not 0 <= index_V.min() <= index_V.max() < len(map_N):
                raise InputError(
                    f"{where}, column {entry.name}: an index outside 0 to {len(map_N) - 1}; {_ROWS_REMEDY}"
                )
            mapped = pa.array(map_N[index_V], pa.int32())
            if is_list:
                offsets = pa.array(column.offsets.to_numpy() - column.offsets[0].as_py(), pa.int32())
                mapped = pa.ListArray.from_arrays(offsets, mapped, type=column.type)
            rows = rows.set_column(place, rows.schema.field(place), mapped)
        return rows


def _not_as_promised(where: str, found: str, promised: str) -> InputError:
    return InputError(f"{where} has {found} where the manifest says {promised}; {_ROWS_REMEDY}")
