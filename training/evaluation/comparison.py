"""Several runs on the same impressions, side by side: each figure, and whether its difference from the first run's is luck.

A difference is tested in pairs: each user's influence on one figure is subtracted from that on the other
(`training.evaluation.intervals`). p is two-sided and of a normal distribution. It is not corrected for how many
differences are looked at. It tells two trained models apart, and says nothing of other seeds of their training.
"""

# Shapes: N impressions.

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import InputError
from training.evaluation.health import is_collapsed
from training.evaluation.intervals import Estimate, estimates_of
from training.evaluation.metrics import tasks
from training.evaluation.prediction_files import PredictionFiles
from training.evaluation.ranking import is_finite, pieces_of
from training.evaluation.report import NO_FIGURES, TASK_TITLES
from training.evaluation.run_files import EVALUATIONS
from training.evaluation.sorted_scores import Array, SortedScores
from training.evaluation.users import Users

#: The order of the figures of a task; others stand behind these.
_LEADING_FIGURES = ("auc", "gauc", "gauc_weighted", "log_loss", "calibration", "ece")
_NOT_NOTED = "unknown"


class ComparedResult(NamedTuple):
    """One evaluation, as it is compared."""

    name: str
    figures: dict[str, float | int | None]
    estimates: dict[str, Estimate]
    provenance: Mapping[str, Any]
    is_collapsed: bool
    alerts: list[str]
    rows: tuple[int, int, int, int]  # impressions, clicks, conversions, and a hash of which
    num_users: int


class Difference(NamedTuple):
    """A figure of a run less that of the first run; for calibration, the quotient."""

    value: float
    low: float  # 95 % interval
    high: float
    p: float
    is_quotient: bool = False


class Cell(NamedTuple):
    """A figure of a run; without a difference for the first run, and for figures that have no interval."""

    value: float | int | None
    difference: Difference | None


class Comparison(NamedTuple):
    """What the page shows."""

    results: list[ComparedResult]
    rows: list[tuple[str, list[Cell]]]  # figure, its value in each run


def read_result(path: str, split: str) -> ComparedResult:
    """Read an evaluation: of a run, RUN, or in a place of its own, RUN/evaluations/NAME.

    Raises InputError if it has no predictions or figures of `split`.
    """
    folder = Path(path)
    is_place = folder.parent.name == EVALUATIONS
    run = folder.parent.parent if is_place else folder
    remedy = f"write them with: python -m jobs.evaluate run={run} split={split}"
    predictions = PredictionFiles(folder / "predictions" if is_place else folder / "predictions" / split, remedy)
    saved = _read_figures(folder / ("metrics.json" if is_place else f"metrics.{split}.json"), split, remedy)
    users = Users.of(predictions["group_id"], predictions.contexts)
    return ComparedResult(
        name=f"{run.resolve().name}/{folder.name}" if is_place else folder.resolve().name,
        figures={name: value for name, value in saved.items() if name not in NO_FIGURES},
        estimates=_estimates(predictions, users),
        provenance=saved.get("provenance", {}),
        is_collapsed=is_collapsed(saved),
        alerts=[str(alert["text"]) for alert in saved.get("alerts", ())],
        rows=_identify_rows(predictions),
        num_users=users.num_known,
    )


def compare(results: Sequence[ComparedResult]) -> Comparison:
    """Compare every result with the first one. Raises InputError unless all are of the same impressions and labels."""
    first = results[0]
    for other in results[1:]:
        if other.rows != first.rows:
            counts = [f"{one.name} has {one.rows[0]:,} with {one.rows[1]:,} clicks" for one in (first, other)]
            raise InputError(
                f"{first.name} and {other.name} are not evaluated on the same impressions ({', '.join(counts)}, and "
                "other ids or labels); evaluate both on one split of one dataset: jobs.evaluate run=… data=…"
            )
    names = sorted({name for one in results for name in one.figures}, key=_place_among_figures)
    shown = [name for name in names if not name.startswith(("num_", "true_"))]
    return Comparison(list(results), [(name, [_cell(name, one, first) for one in results]) for name in shown])


def difference_of(estimate: Estimate, other: Estimate) -> Difference:
    """Return `estimate` less `other`, or their quotient where they are logarithms, with its interval and p."""
    found = estimate.minus(other)
    error = found.standard_error
    if error > 0:
        p = math.erfc(abs(found.value) / error / math.sqrt(2))
    else:  # the same predictions for every user; NaN for a single user
        p = 1.0 if found.value == 0 else math.nan if math.isnan(error) else 0.0
    value = math.exp(found.value) if found.is_log else found.value
    return Difference(value, *found.interval, p, found.is_log)


def markdown_of(comparison: Comparison) -> str:
    """Return the page as Markdown."""
    results = comparison.results
    lines = [
        f"# {' · '.join(one.name for one in results)}",
        "",
        f"{results[0].rows[0]:,} impressions, {results[0].rows[1]:,} clicks, {results[0].rows[2]:,} conversions, "
        f"{results[0].num_users:,} users. Differences are from {results[0].name}, with a 95 % interval and p; those of "
        "calibration are quotients.",
        "",
        f"| figure | {' | '.join(one.name for one in results)} |",
        f"|---|{'---:|' * len(results)}",
    ]
    lines += [f"| {name} | {' | '.join(cell_text(cell) for cell in cells)} |" for name, cells in comparison.rows]
    lines += ["", f"Collapsed: {collapsed_text(results)}.", ""]
    for one in results:
        lines.append(f"- {one.name}: {provenance_text(one)}")
        lines += [f"    - {alert}" for alert in one.alerts]
    return "\n".join(lines) + "\n"


def cell_text(cell: Cell) -> str:
    """Format a figure with its difference."""
    if cell.value is None:
        return "–"
    text = f"{cell.value:,}" if isinstance(cell.value, int) else f"{cell.value:.5f}"
    if cell.difference is None:
        return text
    value, low, high, p, is_quotient = cell.difference
    form = "×{:.5f}" if is_quotient else "{:+.5f}"
    star = " *" if p < 0.05 else ""
    return f"{text} ({form.format(value)} [{form.format(low)}, {form.format(high)}], p {p:.2g}{star})"


def collapsed_text(results: Sequence[ComparedResult]) -> str:
    """Say how many of the runs have collapsed, and which."""
    names = [one.name for one in results if one.is_collapsed]
    return f"{len(names)} of {len(results)}" + (f" ({', '.join(names)})" if names else "")


def provenance_text(one: ComparedResult) -> str:
    """Say where a result comes from."""
    known = {name: one.provenance.get(name, _NOT_NOTED) for name in ("checkpoint", "manifest_xxh3", "version")}
    return f"checkpoint {known['checkpoint']}, dataset {known['manifest_xxh3']}, release {known['version']}"


def _read_figures(path: Path, split: str, remedy: str) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(saved, dict) or saved.get("split", split) != split:
        raise InputError(f"{path} has no figures of split={split}; {remedy}")
    return saved


def _estimates(predictions: PredictionFiles, users: Users) -> dict[str, Estimate]:
    click_N = predictions["click"].astype(bool)
    found: dict[str, Estimate] = {}
    for task in tasks(predictions):
        score_N = predictions[task.score]
        if is_finite(score_N):
            rows = click_N if task.clicked_only else slice(None)
            scores = SortedScores.of(task.label_N[rows], score_N[rows], users.number_N[rows])
            found |= estimates_of(task.name, scores.by_number(users.num_numbers), users.num_known)
    return found


def _identify_rows(predictions: PredictionFiles) -> tuple[int, int, int, int]:
    """Count impressions, clicks and conversions, and hash which impressions have which labels, in any order of rows."""
    click_N, conversion_N = predictions["click"], predictions["conversion"]
    total, start = 0, 0
    for piece in pieces_of(predictions["impression_id"]):
        stop = start + len(piece)
        total += int(_mixed(piece, click_N[start:stop] + 2 * conversion_N[start:stop]).sum(dtype=np.uint64))
        start = stop
    converted = int((click_N.astype(bool) & conversion_N.astype(bool)).sum())
    return predictions.num_rows, int(click_N.sum(dtype=np.int64)), converted, total % (1 << 64)


def _mixed(id_N: Array, label_N: Array) -> Array:
    """Return 64 well-mixed bits of an id and its labels (the finalizer of MurmurHash3)."""
    bits_N = id_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + label_N.astype(np.uint64)
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits_N ^= bits_N >> np.uint64(33)
        bits_N *= np.uint64(multiplier)
    return bits_N ^ (bits_N >> np.uint64(33))


def _place_among_figures(name: str) -> tuple[int, int, str]:
    """Order figures by task, then as in _LEADING_FIGURES."""
    known = sorted(TASK_TITLES, key=len, reverse=True)
    task = next((task for task in known if name.startswith(f"{task}_")), "")
    figure = name.removeprefix(f"{task}_")
    place = _LEADING_FIGURES.index(figure) if figure in _LEADING_FIGURES else len(_LEADING_FIGURES)
    return (list(TASK_TITLES).index(task) if task else len(TASK_TITLES), place, name)


def _cell(name: str, one: ComparedResult, first: ComparedResult) -> Cell:
    value = one.figures.get(name)
    both = name in one.estimates and name in first.estimates
    if one is first or not both or value is None:
        return Cell(value, None)
    return Cell(value, difference_of(one.estimates[name], first.estimates[name]))
