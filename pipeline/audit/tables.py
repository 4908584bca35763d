"""The content of the tables of audit.html that have a row for each field, and of the one on ids in two splits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.audit.charts import index_sparkline
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import LABELS, ManifestField
from pipeline.html.charts import Sparkline

Audit = Mapping[str, Any]  # the content of audit.json

_DRIFTING = 6  # fields whose distribution is drawn
STABLE, SHIFTED = 0.1, 0.25  # the usual readings of the population stability index


class ValuesRow(NamedTuple):
    """The numbers of values of a field's records; a record is a context or an impression, as its scope says."""

    field: str
    scope: str
    mean: float | None  # None for a single-valued field
    most: int | None
    without: list[float]  # share of records without a value, for each split


class NumberRow(NamedTuple):
    """A numeric field in one split."""

    field: str
    split: str
    moments: list[float | None]  # mean, standard deviation, least, greatest
    shift: float | None  # of the mean, in standard deviations of train


class CoverageRow(NamedTuple):
    """The values of a field without a row of their own in its table."""

    field: str
    num_rows: int
    unknown: list[float | None]  # share of values, for each split; None where it has no value


class FieldRow(NamedTuple):
    """All that the audit says of one field; a cell with a number for each split is one list."""

    values: ValuesRow
    kind: str  # categorical, multi-valued, of a context
    spark: Sparkline | None  # of a categorical field: shares of known values along its vocabulary, by split
    num_rows: int | None  # of its table; None for numbers
    unknown: list[float | None]
    drift: "list[DriftCell]"  # of every split but train
    drift_unit: str  # σ for the mean of numbers; "" for the index of a categorical field
    aucs: "list[LeakageCell | None]"  # by label; None where the label was not evaluated

    @property
    def most_missing(self) -> float:
        """The largest share of records without a value."""
        return max(self.values.without)

    @property
    def most_unknown(self) -> float | None:
        """The largest share out of vocabulary."""
        return max((share for share in self.unknown if share is not None), default=None)

    @property
    def most_drift(self) -> float | None:
        """The largest drift, whatever its sign."""
        return max((abs(cell.psi) for cell in self.drift), default=None)


class FieldTable(NamedTuple):
    """The fields, those that drift most first."""

    splits: list[str]
    others: list[str]  # compared with train
    labels: list[tuple[str, float]]  # (label, largest standard error of its AUCs)
    rows: list[FieldRow]
    stable: float
    shifted: float


class DriftCell(NamedTuple):
    """A population stability index, and how it is usually read: good, fair or bad."""

    psi: float
    reading: str


class LeakageCell(NamedTuple):
    """The AUC of one field alone for one label."""

    auc: float
    by: str  # the evidence that ranks best: "values" or another
    is_leak: bool


class LeakageTable(NamedTuple):
    """The AUC of each field alone for each label, the highest first."""

    columns: list[tuple[str, float]]  # (label, largest standard error of its column)
    rows: list[tuple[str, list[LeakageCell]]]
    too_few: list[str]  # labels with too few positives or negatives to be evaluated
    threshold: float
    sample: Mapping[str, Any]


class OverlapRow(NamedTuple):
    """Distinct users or contexts of a split, and those that are in another split too."""

    what: str
    split: str
    counts: list[Mapping[str, Any]]  # for each split: number, exact; its own is that of all


def value_rows(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> list[ValuesRow]:
    """Count the values of each field, over all splits, and the records without one, in each."""
    rows = []
    for field in fields:
        by_split = [audit["fields"][field.name][split] for split in splits]
        records, values = sum(found["records"] for found in by_split), sum(found["values"] for found in by_split)
        is_many = field.arity == "many"
        mean = values / records if is_many and records else None
        most = max(found.get("most", 1) for found in by_split) if is_many else None
        without = [found["without"] / found["records"] for found in by_split]
        rows.append(ValuesRow(field.name, field.scope, mean, most, without))
    return rows


def number_rows(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> list[NumberRow]:
    """Describe each numeric field in each split."""
    rows = []
    for field in fields:
        for split in splits:
            found = audit["fields"][field.name][split]
            moments = [found.get(name) for name in ("mean", "std", "min", "max")]
            rows.append(NumberRow(field.name, split, moments, audit["drift"][field.name].get(split)))
    return rows


def coverage_rows(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> list[CoverageRow]:
    """Give the share of values out of vocabulary; a hashed field has a row for every value, and is left out."""
    rows = []
    for field in fields:
        if not field.hash_buckets:
            by_split = [audit["fields"][field.name][split] for split in splits]
            unknown = [found["out_of_vocabulary"] / found["values"] if found["values"] else None for found in by_split]
            rows.append(CoverageRow(field.name, field.num_rows, unknown))
    return rows


def drifting(audit: Audit, fields: Sequence[ManifestField]) -> list[str]:
    """Name the fields that drift most, in whichever split."""
    highest = {field.name: max(audit["drift"][field.name].values(), default=0.0) for field in fields}
    return sorted(highest, key=lambda name: -highest[name])[:_DRIFTING]


def leakage_table(audit: Audit, fields: Sequence[ManifestField]) -> LeakageTable | None:
    """Rank the fields by how well each alone predicts any label; None if no label could be evaluated."""
    found = audit["leakage"]
    known = [label for label in LABELS if label in found["labels"]]
    labels = [label for label in known if found["labels"][label]["judged"]]
    if not labels:
        return None
    leaks = {(pair["field"], pair["label"]) for pair in found["named"]}

    def cell(name: str, label: str) -> LeakageCell:
        numbers = found["auc"][name][label]
        return LeakageCell(numbers["auc"], numbers["by"], (name, label) in leaks)

    def best(name: str) -> float:
        return max(float(found["auc"][name][label]["auc"]) for label in labels)

    names = sorted((field.name for field in fields), key=lambda name: -best(name))
    return LeakageTable(
        [(label, max(found["auc"][name][label]["error"] for name in names)) for label in labels],
        [(name, [cell(name, label) for label in labels]) for name in names],
        [label for label in known if label not in labels],
        found["threshold"],
        found["sample"],
    )


def field_table(audit: Audit, fields: Sequence[ManifestField], splits: Sequence[str]) -> FieldTable:
    """Merge what the audit says of each field into one row."""
    others = [split for split in splits if split != "train"] if "train" in splits else []
    leaks = leakage_table(audit, fields)
    aucs = dict(leaks.rows) if leaks else {}
    coverage = {
        row.field: row for row in coverage_rows(audit, [field for field in fields if field.stored == INDEX], splits)
    }
    rows = []
    for field, values in zip(fields, value_rows(audit, fields, splits), strict=True):
        is_index = field.stored == INDEX
        found = audit["drift"][field.name]
        rows.append(
            FieldRow(
                values,
                " · ".join([field.kind, *["multi-valued"] * (field.arity == "many"), f"of each {field.scope}"]),
                index_sparkline(audit, field.name, splits) if is_index else None,
                field.num_rows if is_index else None,
                coverage[field.name].unknown if field.name in coverage else [],
                [_drift_cell(found[split], is_index) for split in others if split in found],
                "" if is_index else " σ",
                list(aucs.get(field.name, [])),
            )
        )
    rows.sort(key=lambda row: -(row.most_drift if row.most_drift is not None else -1.0))
    return FieldTable(list(splits), others, leaks.columns if leaks else [], rows, STABLE, SHIFTED)


def _drift_cell(number: float, is_index: bool) -> DriftCell:
    size = abs(number)
    return DriftCell(number, "bad" if size >= SHIFTED else "fair" if size >= STABLE and is_index else "good")


def overlap_rows(audit: Audit, splits: Sequence[str]) -> list[OverlapRow]:
    """Count distinct users and contexts: of each split on the diagonal, common to two beside it."""

    def count(what: str, split: str, other: str) -> Mapping[str, Any]:
        found = audit["overlap"][what]
        if split == other:
            counted: Mapping[str, Any] = found["distinct"][split]
        else:  # a pair of splits is named in one order
            counted = found["common"].get(f"{split} {other}") or found["common"][f"{other} {split}"]
        return counted

    return [
        OverlapRow(what, split, [count(what, split, other) for other in splits])
        for what in ("users", "contexts")
        for split in splits
    ]
