"""RUN/report.html: how a run went and how good its predictions are, on one page without scripts or outside resources.

It reads what the run left behind, log.jsonl, metrics.json and config.yaml, and draws the curves of the evaluation. If the
predictions carry the oracle of a simulated log (true_p_ctr, true_p_cvr, true_p_daction), it is drawn beside the model.
This file chooses the numbers; pipeline/html/report.html.j2 holds the words and the layout.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.atomic_files import write_whole
from pipeline.errors import with_addresses
from pipeline.html.alert import BAD, FAIR, FEW_POSITIVES, PageAlert
from pipeline.html.charts import Chart
from pipeline.html.page import render
from pipeline.release import release
from pipeline.secrets import without_secrets
from training.evaluation.calibration import ECE_BINS
from training.evaluation.curves import TaskCurves
from training.evaluation.figure_table import baseline_of, num_of
from training.evaluation.health import POSITIVES
from training.evaluation.metrics import Metrics
from training.evaluation.page_facts import facts_of_writing
from training.evaluation.report_charts import (
    calibration_chart,
    histogram_chart,
    loss_charts,
    roc_chart,
    validation_charts,
)
from training.evaluation.run_files import LogEntry, best_validation, read_log, read_validations
from training.evaluation.sorted_scores import Array

TASK_TITLES = {
    "ctr": ("CTR", "click given an impression"),
    "cvr": ("CVR", "conversion given a click, clicked impressions only"),
    "ctavr": ("CTAVR", "click and daction"),
    "ctcvr": ("CTCVR", "click and conversion, all impressions"),
    "ctcvr_independent": (
        "CTCVR by ctr_run",
        "click and conversion, all impressions; pCTR of the independent CTR network",
    ),
}

_SHARE = "share of the attainable AUC"
#: Column of the first table → the key of metrics.json, by task, and how the number is written.
_HEADLINE_COLUMNS = {
    "AUC": ("{}_auc", ".4f"),
    "oracle AUC": ("true_{}_auc", ".4f"),
    _SHARE: ("{}_auc_share", ".1%"),
    "GAUC": ("{}_gauc", ".4f"),
    "log loss": ("{}_log_loss", ".4f"),
    "calibration": ("{}_calibration", ".3f"),
    "ECE": ("{}_ece", ".2g"),
}


#: What metrics.json says besides figures.
NO_FIGURES = (
    "split",
    "undefined",
    "intervals",
    "observed_rates",
    "calibration_in_words",
    "alerts",
    "slices",
    "cvr_by_click_propensity",
    "calibrated",
    "provenance",
)


class HeadlineCell(NamedTuple):
    """One figure of a task; `text` is None where it is undefined or unknown."""

    text: str | None
    meter: float | None  # in [0, 1]; None for a figure that is no share
    interval: str = ""  # 95 %


class HeadlineRow(NamedTuple):
    """The figures of one task."""

    title: str
    meaning: str
    cells: list[HeadlineCell]
    is_baseline: bool = False  # of one probability for all impressions


class Headline(NamedTuple):
    """The first table: a row for every task, and the columns that any of them has."""

    columns: list[str]
    rows: list[HeadlineRow]


class Groups(NamedTuple):
    """How many users the GAUC of a task is a mean of."""

    title: str
    number: int
    left_out: int


class FunnelBar(NamedTuple):
    """A stage of the funnel; the shares are None where they would say nothing or divide by zero."""

    name: str
    number: int
    of_impressions: float | None
    of_clicks: float | None
    bar: float  # length in percent of the impressions'


class TrainingFacts(NamedTuple):
    """What log.jsonl says besides the loss."""

    steps: int
    impressions_per_s: float | None  # median over steps
    waiting_share: float | None  # mean over steps


class SliceTable(NamedTuple):
    """The parts of a split by one slicing."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]  # value, cells


class TaskSection(NamedTuple):
    """The charts of one task; fewer than three where one needs both classes."""

    id: str
    title: str
    meaning: str
    charts: list[Chart]


def write_report(run: Path, saved: Mapping[str, Any], curves: Mapping[str, TaskCurves], target: Path) -> None:
    """Write the page of one evaluation of `run` to `target`: the content of its metrics.json, and the curves of its tasks."""
    metrics: Metrics = {name: value for name, value in saved.items() if name not in NO_FIGURES}
    reasons: Mapping[str, str] = saved.get("undefined", {})
    split = saved["split"]
    log, num_broken_lines = read_log(run / "log.jsonl")
    config = run / "config.yaml"
    tasks = [task_section(name, curves.get(name)) for name in TASK_TITLES if f"{name}_auc" in metrics]
    page = render(
        "report.html.j2",
        name=with_addresses(str(run.resolve())).rstrip("/").rpartition("/")[2],
        split=split,
        facts=report_facts(run, saved, target),
        headline=headline(metrics, saved.get("intervals", {})),
        groups=groups(metrics),
        undefined=[
            (", ".join(name for name in reasons if reasons[name] == reason), reason)
            for reason in dict.fromkeys(reasons.values())
        ],
        calibrated=saved.get("calibrated"),
        alerts=report_alerts(saved, metrics),
        calibration_in_words=saved.get("calibration_in_words", ()),
        has_oracle=any(name.startswith("true_") for name in metrics),
        ece_bins=ECE_BINS,
        funnel=funnel(metrics),
        loss_charts=loss_charts(log),
        validation_charts=validation_charts(read_validations(run / "log.jsonl")),
        training=training_facts(log),
        best=best_validation(run / "log.jsonl"),
        num_broken_lines=num_broken_lines,
        tasks=tasks,
        places=[
            ("result", "Figures"),
            ("funnel", "Funnel"),
            ("training", "Training"),
            *((task.id, task.title) for task in tasks),
            ("numbers", "All numbers"),
        ],
        metrics={str(name): json.dumps(value) for name, value in metrics.items()},
        intervals=saved.get("intervals", {}),
        slices=[slice_table(name, parts, metrics) for name, parts in saved.get("slices", {}).items()],
        by_propensity=[propensity_row(part) for part in saved.get("cvr_by_click_propensity", [])],
        provenance=saved.get("provenance", {}),
        config=config.read_text(encoding="utf-8", errors="replace") if config.exists() else None,
    )
    write_whole(target, page)


def report_facts(run: Path, saved: Mapping[str, Any], target: Path) -> list[tuple[str, str]]:
    """List what the page is about: the run, its checkpoint and dataset, when and by which command it was evaluated."""
    found: Mapping[str, Any] = saved.get("provenance", {})
    facts = [
        ("run", without_secrets(with_addresses(str(run.resolve())))),
        ("split", str(saved["split"])),
        ("checkpoint", " · ".join(str(found[key]) for key in ("checkpoint", "chosen_as", "weights") if key in found)),
        ("dataset", without_secrets(str(found.get("data", "")))),
        ("settings", str(found.get("settings_xxh3", ""))),
        ("manifest", str(found.get("manifest_xxh3", ""))),
        ("evaluated by", f"entirespace {found['version']}" if found.get("version", release()) != release() else ""),
        ("page", without_secrets(with_addresses(str(target.resolve()))) if target.parent != run else ""),
        *facts_of_writing(),
    ]
    return [(name, text) for name, text in facts if text]


def report_alerts(saved: Mapping[str, Any], metrics: Metrics) -> list[PageAlert]:
    """List what is wrong or doubtful: the alerts of the evaluation, predictions that are off, and too few positives."""
    found = []
    for alert in saved.get("alerts", ()):
        section = f"task-{alert['of']}" if f"{alert['of']}_auc" in metrics else "training"
        found.append(PageAlert(BAD, alert["text"], section))
    for task, rates in saved.get("observed_rates", {}).items():
        if rates and rates[0]["verdict"] in ("too high", "too low"):
            ratio = rates[0]["ratio"]
            text = (
                f"Calibration: p_{task} is {rates[0]['verdict']}: {ratio:.3f} times as many {POSITIVES[task]} were observed "
                f"as predicted ({rates[0]['low']:.3f} to {rates[0]['high']:.3f})."
            )
            found.append(PageAlert(FAIR, text, f"task-{task}"))
    for task in POSITIVES:
        if f"{task}_auc" in metrics and f"num_{POSITIVES[task]}" in metrics:
            _, positives = num_of(task, metrics)
            if 0 < positives < FEW_POSITIVES:
                text = f"Few positives: {positives:,} {POSITIVES[task]} decide the figures of {task}, so they are uncertain."
                found.append(PageAlert(FAIR, text, "result"))
    return found


def headline(metrics: Metrics, intervals: Mapping[str, Sequence[float]] | None = None) -> Headline:
    """List the figures of every evaluated task, each above those of one probability for all impressions.

    CVR over all impressions follows where the oracle is known.
    """
    named = [(name, *titles) for name, titles in TASK_TITLES.items() if f"{name}_auc" in metrics]
    if "cvr_all_auc" in metrics:
        named.append(("cvr_all", "CVR, all impressions", "expected under the true probabilities, clicked or not"))
    columns = [
        column
        for column, (key, _) in _HEADLINE_COLUMNS.items()
        if any(key.format(name) in metrics for name, *_ in named)
    ]

    def cell(name: str, column: str) -> HeadlineCell:
        key, form = _HEADLINE_COLUMNS[column]
        value = metrics.get(key.format(name))
        if value is None:
            return HeadlineCell(None, None)
        bounds = (intervals or {}).get(key.format(name))
        interval = f"{format(bounds[0], form)} to {format(bounds[1], form)}" if bounds else ""
        return HeadlineCell(format(value, form), min(max(value, 0.0), 1.0) if column == _SHARE else None, interval)

    rows = []
    for name, title, meaning in named:
        rows.append(HeadlineRow(title, meaning, [cell(name, column) for column in columns]))
        baseline = baseline_of(name, metrics) if name in POSITIVES else None
        if baseline:
            figures = {
                "AUC": 0.5,
                "GAUC": 0.5,
                _SHARE: 0.0,
                "log loss": baseline.log_loss,
                "calibration": 1.0,
                "ECE": 0.0,
            }
            cells = [
                HeadlineCell(format(figures[column], _HEADLINE_COLUMNS[column][1]) if column in figures else None, None)
                for column in columns
            ]
            rows.append(HeadlineRow(f"always {baseline.rate:.4g}", "one probability for all", cells, is_baseline=True))
    return Headline(columns, rows)


def groups(metrics: Metrics) -> list[Groups]:
    """Count the users behind each GAUC."""
    return [
        Groups(title, int(metrics[f"{name}_gauc_groups"] or 0), int(metrics[f"{name}_gauc_groups_left_out"] or 0))
        for name, (title, _) in TASK_TITLES.items()
        if f"{name}_gauc_groups" in metrics
    ]


def funnel(metrics: Metrics) -> list[FunnelBar]:
    """Count impressions, clicks, dactions and conversions, each with its rates."""
    names = [name for name in ("impressions", "clicks", "dactions", "conversions") if f"num_{name}" in metrics]
    numbers = {name: int(metrics[f"num_{name}"] or 0) for name in names}
    impressions, clicks = numbers["impressions"], numbers["clicks"]
    return [
        FunnelBar(
            name,
            number,
            number / impressions if name != "impressions" and impressions else None,
            number / clicks if name in ("dactions", "conversions") and clicks else None,
            100 * number / max(impressions, 1),
        )
        for name, number in numbers.items()
    ]


def training_facts(log: Sequence[LogEntry]) -> TrainingFacts | None:
    """Sum up the logged steps; None without any."""
    if not log:
        return None

    def logged(name: str) -> Array:
        return np.array([entry.get(name, np.nan) for entry in log], dtype=np.float64)

    last = log[-1]
    return TrainingFacts(
        int(last["step"]),
        float(np.median(logged("impressions_per_s"))) if "impressions_per_s" in last else None,
        float(np.nanmean(logged("waiting_share"))) if "waiting_share" in last else None,
    )


def slice_table(name: str, parts: Sequence[Mapping[str, Any]], metrics: Metrics) -> SliceTable:
    """Lay out the parts of a slicing: impressions, then AUC and calibration of each task."""
    tasks = [(task, title) for task, (title, _) in TASK_TITLES.items() if f"{task}_auc" in metrics]
    columns = [f"{title} {what}" for _, title in tasks for what in ("positives", "AUC", "calibration")]
    forms = (("num_positives", ","), ("auc", ".4f"), ("calibration", ".3f"))
    rows = []
    for part in parts:
        cells = [_text(part.get(f"{task}_{key}"), form) for task, _ in tasks for key, form in forms]
        rows.append((str(part["value"]), [f"{part['num_impressions']:,}", *cells]))
    return SliceTable(name, ["impressions", *columns], rows)


def propensity_row(part: Mapping[str, Any]) -> list[str]:
    """Format one tenth of `cvr_by_click_propensity`."""
    forms = {"num_impressions": ",", "true_ctr": ".3%", "true_cvr": ".3%", "predicted_cvr": ".3%", "calibration": ".3f"}
    forms |= {"log_loss": ".4f", "true_log_loss": ".4f", "auc": ".4f", "true_auc": ".4f"}
    return [_text(part.get(name), form) for name, form in forms.items()]


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def task_section(name: str, curves: TaskCurves | None) -> TaskSection:
    """Draw ROC curve, calibration and histogram of one task; nothing for one whose predictions are not finite."""
    title, meaning = TASK_TITLES[name]
    if curves is None:
        return TaskSection(f"task-{name}", title, meaning, [])
    charts = [
        roc_chart(title, curves.roc, curves.oracle_roc),
        calibration_chart(title, curves.calibration),
        histogram_chart(title, curves.histogram),
    ]
    return TaskSection(f"task-{name}", title, meaning, [chart for chart in charts if chart])
