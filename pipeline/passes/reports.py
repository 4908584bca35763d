"""The reports that tasks return to the driver: one of each file that they wrote, as JSON in a row."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.audit.tally import Tally
from pipeline.dataset.manifest import RowGroup
from pipeline.storage.parquet_files import Examples
from pipeline.storage.staged_file import StagedFile

#: Rows of the second pass and of the quarantine pass: a JSON object for each file written.
REPORT = "report binary"
_REPORT_SCHEMA = pa.schema([("report", pa.binary())])


@dataclass(frozen=True)
class DataReport:
    """The report of one partition of a split: its data file, if it had rows, and what was counted there."""

    split: str
    number: int  # of the file in its split
    file: StagedFile | None
    row_groups: tuple[RowGroup, ...]
    tally: Tally
    statistics: dict[str, Any]  # see Statistics.report
    rejects: str  # the name of the rejected lines for `Staging.load_array`; "" where there are none
    num_rejects: tuple[int, ...]  # of each source, by ordinal

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"tally": self.tally.to_json()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "DataReport":
        """Parse what `to_json` wrote."""
        return cls(
            raw["split"],
            raw["number"],
            StagedFile(**raw["file"]) if raw["file"] else None,
            tuple(RowGroup(**group) for group in raw["row_groups"]),
            Tally.from_json(raw["tally"]),
            raw["statistics"],
            raw["rejects"],
            tuple(raw["num_rejects"]),
        )


@dataclass(frozen=True)
class QuarantineReport:
    """The report of one quarantine file: how many lines it holds, and the first of each reason."""

    number: int  # among the files of its pass
    file: StagedFile
    num_lines: int
    examples: Examples

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "QuarantineReport":
        """Parse what `asdict` made of a report."""
        return cls(**raw | {"file": StagedFile(**raw["file"])})


@dataclass(frozen=True)
class ScanReport:
    """What the tasks that read a log counted, where its only pass reads it."""

    tally: Tally
    fingerprints: tuple[tuple[int, int, int], ...]  # (ordinal, start, fingerprint) of each input split

    def to_json(self) -> dict[str, Any]:
        return {"tally": self.tally.to_json(), "fingerprints": list(self.fingerprints)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "ScanReport":
        """Parse what `to_json` wrote."""
        splits = tuple((ordinal, start, fingerprint) for ordinal, start, fingerprint in raw["fingerprints"])
        return cls(Tally.from_json(raw["tally"]), splits)

    @classmethod
    def sum_of(cls, reports: Iterable["ScanReport"]) -> "ScanReport":
        """Merge the reports of all tasks."""
        tally = Tally()
        splits: list[tuple[int, int, int]] = []
        for report in reports:
            tally.merge(report.tally)
            splits += report.fingerprints
        return cls(tally, tuple(splits))


def report_row(report: DataReport | QuarantineReport | ScanReport) -> pa.RecordBatch:
    """Put a report into a row of REPORT."""
    if isinstance(report, QuarantineReport):
        raw = {"quarantine": asdict(report)}
    else:
        raw = {"data" if isinstance(report, DataReport) else "scan": report.to_json()}
    return pa.RecordBatch.from_arrays([pa.array([json.dumps(raw).encode()], pa.binary())], schema=_REPORT_SCHEMA)


def reports_of(table: pa.Table) -> tuple[list[DataReport], list[QuarantineReport]]:
    """Parse rows of REPORT: the data files as they come, the quarantine files by number."""
    raws = [json.loads(report.as_py()) for report in table.column("report")]
    data = [DataReport.from_json(raw["data"]) for raw in raws if "data" in raw]
    quarantine = [QuarantineReport.from_json(raw["quarantine"]) for raw in raws if "quarantine" in raw]
    return data, sorted(quarantine, key=lambda report: report.number)


def scans_of(table: pa.Table) -> ScanReport:
    """Parse rows of REPORT: what the tasks of a pass counted."""
    raws = [json.loads(report.as_py()) for report in table.column("report")]
    return ScanReport.sum_of(ScanReport.from_json(raw["scan"]) for raw in raws if "scan" in raw)


def attempt_name() -> str:
    """Return a name that no other attempt of any task has."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return f"{context.taskAttemptId() if context else 0}-{os.getpid()}"
