"""The papers' figures that jobs.reproduce fills in, as tables with charts: one row a point.

ESMM Figure 3: every system against the share of the log that it is trained on. ESM² Figure 6: dropout, layers and the
width of item_id. ESM² Figure 7: by a user's purchases. ESM² §5: what the numbers are worth. The papers print curves and
bars, and hardly a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from training.evaluation.settings import PURCHASES
from training.reproduction.tables import (
    COLUMNS_OF_ESM2,
    PAPER_TABLES,
    SOURCE_OF_ESM2,
    SOURCE_OF_ESMM,
    FigurePlace,
    PaperTable,
    TableColumn,
    TableRow,
)
from training.run.systems import ESM2, ESMM, System, system_named, systems_of

_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
_DROPOUTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_WIDTHS_OF_ITEM = (16, 32, 64, 128, 256)
#: Hidden layers by the number of layers, the logit's among them. The paper has 5, and does not print the others' widths.
_HIDDEN = {
    2: (512,),
    3: (512, 256),
    4: (512, 256, 128),
    5: (512, 256, 128, 32),
    6: (512, 256, 128, 64, 32),
    7: (512, 256, 128, 64, 32, 16),
}
_ESMM_OF_ESM2, _WITH_DACTIONS = system_named(ESM2, "ESMM"), system_named(ESM2, "ESM2")
_AUCS = COLUMNS_OF_ESM2[:2]


def varied(system: System, *words: str) -> System:
    """Return `system` with further settings, which its CTR network is given too, under a name of its own."""
    ctr = (*system.ctr, *words) if system.ctr else ()
    return replace(system, name=" ".join((system.name, *words)), settings=(*system.settings, *words), ctr=ctr)


def _rows_of_shares() -> tuple[TableRow, ...]:
    rows = []
    for system in systems_of(ESMM):
        for share in _SHARES:
            place = FigurePlace("", system.name, 100.0 * share)
            trained = system if share == 1.0 else varied(system, f"plan.share={share:g}")
            rows.append(TableRow(f"{system.name}, {share:.0%}", trained, searched_as=system, place=place))
    return tuple(rows)


def _rows_of_values(panel: str, word: str, values: Mapping[float, str], usual: float) -> list[TableRow]:
    """Return a row of ESM² for each value; the usual one is trained as Table 3 has it, so that the tables share its runs."""
    return [
        TableRow(
            f"{panel} {value:g}",
            _WITH_DACTIONS if value == usual else varied(_WITH_DACTIONS, f"{word}={text}"),
            place=FigurePlace(panel, "ESM2", value),
        )
        for value, text in values.items()
    ]


def _columns_of_parts(parts: Sequence[str]) -> tuple[TableColumn, ...]:
    return tuple(
        TableColumn(f"{task.upper()} AUC {part}", task, "auc", part=part) for task in ("cvr", "ctcvr") for part in parts
    )


_GROUPS = (*(f"[{below + 1},{high}]" for below, high in pairwise((-1, *PURCHASES))), f"({PURCHASES[-1]},∞)")

PAPER_FIGURES: Mapping[str, PaperTable] = {
    "esmm_fig3": PaperTable(
        "ESMM Figure 3: AUC in percent, by the share of the train split",
        SOURCE_OF_ESMM,
        _rows_of_shares(),
        (TableColumn("CVR AUC", "cvr", "auc", 100.0, 2), TableColumn("CTCVR AUC", "ctcvr", "auc", 100.0, 2)),
        {},
        "BASE",
        (
            "The paper samples its product data and prints curves alone. Here an epoch ends after that share of its random order "
            "(plan.share), and the test split is always the whole.",
            "The paper, in words: all but AMAN at 1 % beat BASE on CVR, and ESMM-NS and ESMM beat all others at every rate.",
            "Sampling rates are those chosen on the whole train split.",
        ),
        log_x=True,
    ),
    "esm2_fig6": PaperTable(
        "ESM² Figure 6: dropout, layers, width of item_id",
        SOURCE_OF_ESM2,
        (
            *_rows_of_values("dropout", "model.towers.dropout", {rate: f"{rate:g}" for rate in _DROPOUTS}, 0.5),
            *_rows_of_values(
                "layers",
                "model.towers.hidden",
                {count: f"[{','.join(map(str, widths))}]" for count, widths in _HIDDEN.items()},
                5,
            ),
            *_rows_of_values(
                "item width", "embedding.dims.item_id", {width: str(width) for width in _WIDTHS_OF_ITEM}, 128
            ),
        ),
        _AUCS,
        {},
        "",
        (
            "The paper, in words: dropout is best at 0.5; AUC rises from 2 to 5 layers and falls slightly beyond; it rises with the "
            "width of item_id up to 128, and 256 gives no more. It prints curves alone.",
            f"The hidden layers here: {'; '.join(f'{count}: {widths}' for count, widths in _HIDDEN.items())}. The paper prints those of 5.",
        ),
    ),
    "esm2_fig7": PaperTable(
        "ESM² Figure 7: AUC by a user's purchases in the train split",
        SOURCE_OF_ESM2,
        (TableRow("ESMM", _ESMM_OF_ESM2), TableRow("ESM2", _WITH_DACTIONS)),
        _columns_of_parts(_GROUPS),
        {},
        "ESMM",
        ("The paper, in words: the AUC of both falls as purchases rise. It prints the gains of ESM² over ESMM alone, for one task.",),
        slices=("user_purchases",),
        relative=((0.72, 0.81, 1.13, 1.3, 0.72, 0.81, 1.13, 1.3),),
    ),
    "esm2_numeric": PaperTable(
        "ESM² §5: what tanh((f − µ)/σ) of the numeric fields is worth",
        SOURCE_OF_ESM2,
        (
            TableRow("tanh", _WITH_DACTIONS),
            TableRow("buckets", _WITH_DACTIONS, "data_bucketized"),
            TableRow("without", _WITH_DACTIONS, "data_without"),
        ),
        _AUCS,
        {},
        "tanh",
        (
            "The paper says that AUC gains 0.004, and not over what: both a table of buckets and a model without the numbers are here.",
            "One log, preprocessed with features=aliccp_numeric, aliccp_bucketized and aliccp.",
        ),
    ),
}  # fmt: skip
#: Every table and figure, by the name that table= takes.
REPRODUCED: Mapping[str, PaperTable] = {**PAPER_TABLES, **PAPER_FIGURES}
