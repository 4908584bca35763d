"""The tables that jobs.reproduce fills in: their rows, their columns, and the papers' figures beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from training.reproduction.published import (
    ESM2_TABLE_3,
    ESM2_TABLE_4,
    ESM2_TABLE_5,
    ESM2_TABLE_6,
    ESMM_TABLE_2,
    PublishedRows,
)
from training.run.systems import ESM2, ESMM, LATER, TRAIN_JOB, System, system_named, systems_of

SOURCE_OF_ESMM = "Ma et al., SIGIR 2018, arXiv 1804.07931"
SOURCE_OF_ESM2 = "Wen et al., SIGIR 2020, arXiv 1910.07099"


class FigurePlace(NamedTuple):
    """Where a row of a figure stands: on the line `series` of the chart `panel`, at `x`."""

    panel: str
    series: str
    x: float


@dataclass(frozen=True)
class TableRow:
    """A system, and the setting of jobs.reproduce that names its dataset."""

    label: str
    system: System
    data: str = "data"
    searched_as: System | None = None  # whose searched values it takes, where not its own
    place: FigurePlace | None = None  # of a figure's row


@dataclass(frozen=True)
class TableColumn:
    """A figure of metrics.json."""

    title: str
    task: str
    figure: str
    scale: float = 1.0  # 100: shown in percent
    decimals: int = 4  # as the paper prints it
    part: str = ""  # of the table's slice: the value whose figure it is; empty: of the whole split

    def key_of(self, system: System) -> str:
        """Return the name of the figure: CTCVR of a system with a CTR network beside it is `ctcvr_independent`.

        GBDT has that network's pCTR in its own pCTCVR.
        """
        with_ctr_run = self.task == "ctcvr" and system.ctr and system.job == TRAIN_JOB
        return f"{'ctcvr_independent' if with_ctr_run else self.task}_{self.figure}"

    def value_of(self, system: System, metrics: Mapping[str, Any]) -> float | None:
        """Return the figure in the column's unit; None where it is undefined."""
        if self.part:
            parts = (part for of_slice in metrics.get("slices", {}).values() for part in of_slice)
            metrics = next((part for part in parts if part["value"] == self.part), {})
        value = metrics.get(self.key_of(system))
        return None if value is None else self.scale * float(value)


@dataclass(frozen=True)
class PaperTable:
    """One table."""

    title: str
    source: str
    rows: tuple[TableRow, ...]
    columns: tuple[TableColumn, ...]
    published: PublishedRows
    reference: str  # the row that the others are compared with; of a figure, the series; empty: none is
    notes: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()  # of the evaluation
    log_x: bool = False  # of a figure
    relative: tuple[
        tuple[float, ...], ...
    ] = ()  # the paper's gains over the reference, percent: of each row, by column


def implied_rates(published: PublishedRows) -> dict[str, tuple[float, ...]]:
    """Return the share of positives, in percent, that each cut of ESM² Table 4 or 5 implies: precision · cut / recall.

    Cutting k % of one test set catches recall · positives = precision · k % · instances, so a table has one such share.
    """
    found = {}
    for name, figures in published.items():
        cuts = zip((0.1, 0.6, 1.0), figures[0::3], figures[1::3], strict=True)
        found[name] = tuple(precision.value * cut / recall.value for cut, recall, precision in cuts)
    return found


def _cut_note(number: int, published: PublishedRows) -> str:
    rates = [rate for of_row in implied_rates(published).values() for rate in of_row]
    return (
        "ESM²'s Tables 4 and 5 cannot come from one test set as defined. The top k % catch precision · k / recall of positives, "
        f"which must be one number. Table {number} implies {min(rates):.3f} to {max(rates):.3f} %. A reproduction can match its "
        "recall or its precision, not both."
    )


def _paper_rows(paper: str) -> tuple[TableRow, ...]:
    return tuple(TableRow(system.name, system) for system in systems_of(paper))


def _cut_columns(task: str) -> tuple[TableColumn, ...]:
    return tuple(
        TableColumn(f"{title} @ {cut} %", task, f"{figure}_top_{cut}pct", 100.0, 3)
        for cut in ("0.1", "0.6", "1")
        for title, figure in (("recall", "recall"), ("precision", "precision"), ("F1", "f1"))
    )


COLUMNS_OF_ESM2 = (
    TableColumn("CVR AUC", "cvr", "auc"),
    TableColumn("CTCVR AUC", "ctcvr", "auc"),
    TableColumn("CTCVR GAUC", "ctcvr", "gauc"),
)
_OWN_CTR = "GBDT, DNN and DNN-OS multiply with pCTR of a network of their own (§4.1.2)."
_WITH_DACTION = system_named(ESM2, "ESM2")

PAPER_TABLES: Mapping[str, PaperTable] = {
    "esmm2": PaperTable(
        "ESMM Table 2: AUC in percent",
        SOURCE_OF_ESMM,
        _paper_rows(ESMM),
        (TableColumn("CVR AUC", "cvr", "auc", 100.0, 2), TableColumn("CTCVR AUC", "ctcvr", "auc", 100.0, 2)),
        ESMM_TABLE_2,
        "ESMM",
        (
            "CVR: over the clicked impressions. CTCVR: over all, by pCVR of the row and pCTR of one CTR network for all rows, "
            "trained with the same seed (§3.1).",
            "The paper repeats ten times, on the first and second half of 84 million impressions of Taobao.",
        ),
    ),
    "esm2_3": PaperTable(
        "ESM² Table 3", SOURCE_OF_ESM2, _paper_rows(ESM2), COLUMNS_OF_ESM2, ESM2_TABLE_3, "ESM2", (_OWN_CTR,)
    ),
    "esm2_4": PaperTable(
        "ESM² Table 4: CVR, in percent",
        SOURCE_OF_ESM2,
        _paper_rows(ESM2),
        _cut_columns("cvr"),
        ESM2_TABLE_4,
        "ESM2",
        (
            _cut_note(4, ESM2_TABLE_4),
            "Ours cuts the clicked impressions, those of the CVR task; the paper does not name the instances that it sorts.",
            _OWN_CTR,
        ),
    ),
    "esm2_5": PaperTable(
        "ESM² Table 5: CTCVR, in percent",
        SOURCE_OF_ESM2,
        _paper_rows(ESM2),
        _cut_columns("ctcvr"),
        ESM2_TABLE_5,
        "ESM2",
        (_cut_note(5, ESM2_TABLE_5), _OWN_CTR),
    ),
    "esm2_6": PaperTable(
        "ESM² Table 6: what counts as daction",
        SOURCE_OF_ESM2,
        (
            TableRow("SCart", _WITH_DACTION, "data_cart"),
            TableRow("Wish", _WITH_DACTION, "data_wish"),
            TableRow("SCart and Wish", _WITH_DACTION),
        ),
        COLUMNS_OF_ESM2,
        ESM2_TABLE_6,
        "SCart and Wish",
    ),
    "beyond": PaperTable(
        "ESMM and what came after",
        "no paper has these rows by one protocol",
        # ESMM predicts pCTCVR itself here, as the others do.
        (TableRow("ESMM", replace(system_named(ESMM, "ESMM"), ctr=())), *_paper_rows(LATER)),
        (
            TableColumn("CTR AUC", "ctr", "auc"),
            *COLUMNS_OF_ESM2,
            TableColumn("CTCVR log loss", "ctcvr", "log_loss"),
            TableColumn("CTCVR calibration", "ctcvr", "calibration"),
        ),
        {},
        "ESMM",
    ),
}
