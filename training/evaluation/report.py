"""RUN/report.html: one page, no script, no outside resource, that shows how a run went and how its predictions did.

It reads only what the run left behind: log.jsonl, metrics.json, predictions/<split>/*.parquet and config.yaml. Where the
predictions carry the true probabilities of a simulated log (true_p_ctr, true_p_cvr, true_p_daction), these are drawn beside.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic_files import write_whole
from pipeline.dataset.manifest import LABELS
from pipeline.errors import InputError
from pipeline.html.frame import details, note, page, percent, section
from training.evaluation.calibration import ECE_BINS
from training.evaluation.metrics import Metrics, Task, tasks, true_probabilities
from training.evaluation.ranking import Array
from training.evaluation.report_charts import calibration_figure, histogram_figure, loss_figure, roc_figure

TASK_TITLES = {
    "ctr": ("CTR", "click given an impression"),
    "cvr": ("CVR", "conversion given a click, clicked impressions only"),
    "ctavr": ("CTAVR", "click and daction"),
    "ctcvr": ("CTCVR", "click and conversion, all impressions"),
}


def write_report(run: Path, split: str) -> Path:
    """Write `run`/report.html for the predictions of `split` and return its path.

    Raises InputError where the run has no predictions or no metrics of that split.
    """
    metrics = read_metrics(run, split)
    predictions = read_predictions(run, split)
    log, num_broken_lines = read_log(run / "log.jsonl")
    config = run / "config.yaml"
    sections = [
        section("Result", headline_table(metrics), _truth_note(metrics)),
        section("Funnel", _funnel(metrics, split)),
        section("Training", loss_figure(log, num_broken_lines)),
        *(section(*task_section(task, predictions)) for task in tasks(predictions)),
        section("All figures", details("every number of metrics.json", _figures_table(metrics))),
    ]
    if config.exists():
        settings = f"<pre>{escape(config.read_text(encoding='utf-8', errors='replace'))}</pre>"
        sections.append(section("Configuration", details("config.yaml", settings)))
    name = run.resolve().name
    target = run / "report.html"
    write_whole(target, page(name, f"{name} · {split}", f"predictions of split {split}", sections))
    return target


def read_metrics(run: Path, split: str) -> Metrics:
    """The metrics of `split`: metrics.<split>.json, or metrics.json where that is not there."""
    for path in (run / f"metrics.{split}.json", run / "metrics.json"):
        if path.exists():
            try:
                metrics = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{path} is not JSON ({error}); {_remedy(run, split)}") from error
            if metrics.pop("split", split) == split:
                return metrics
    raise InputError(f"run={run} has no metrics of split={split}; {_remedy(run, split)}")


def read_predictions(run: Path, split: str) -> dict[str, Array]:
    """The labels and probabilities of every impression of `split`, by column."""
    files = sorted((run / "predictions" / split).glob("*.parquet"))
    if not files:
        raise InputError(f"run={run} has no predictions of split={split}; {_remedy(run, split)}")
    try:
        names = pq.read_schema(files[0]).names
        wanted = [name for name in names if name in LABELS or name.startswith(("p_", "true_p_"))]
        table = pa.concat_tables([pq.read_table(file, columns=wanted) for file in files])
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"The predictions in {files[0].parent} cannot be read ({error}); {_remedy(run, split)}"
        ) from error
    return {name: table.column(name).to_numpy() for name in wanted}


def _remedy(run: Path, split: str) -> str:
    return f"write them with: python -m jobs.evaluate run={run} split={split}"


def read_log(path: Path) -> tuple[list[dict[str, float]], int]:
    """The steps of log.jsonl in order, a step logged twice (after a resume) by its later line, and how many lines were broken."""
    steps: dict[int, dict[str, float]] = {}
    num_broken = 0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            if "loss" in entry:
                steps[int(entry["step"])] = entry
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            num_broken += 1
    return [steps[step] for step in sorted(steps)], num_broken


def headline_table(metrics: Metrics) -> str:
    """A row per task that was judged, and one for CVR over all impressions where the truth is known."""
    columns = ["AUC", "truth’s AUC", "share covered", "GAUC", "log loss", "calibration", "ECE"]
    patterns = ["{}_auc", "true_{}_auc", "{}_auc_share", "{}_gauc", "{}_log_loss", "{}_calibration", "{}_ece"]
    rows = [
        (title, meaning, [pattern.format(name) for pattern in patterns])
        for name, (title, meaning) in TASK_TITLES.items()
        if f"{name}_auc" in metrics
    ]
    if "cvr_all_auc" in metrics:
        meaning = "expected under the true probabilities, clicked or not"
        rows.append(("CVR, all impressions", meaning, [pattern.format("cvr_all") for pattern in patterns]))
    used = [place for place in range(len(columns)) if any(keys[place] in metrics for *_, keys in rows)]
    head = "".join(f"<th scope=col>{columns[place]}</th>" for place in used)
    body = "".join(
        f"<tr><th scope=row>{title}<small>{meaning}</small></th>"
        + "".join(f"<td>{_cell(columns[place], metrics.get(keys[place]))}</td>" for place in used)
        + "</tr>"
        for title, meaning, keys in rows
    )
    return f'<div class="scroll"><table class="headline"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return '<span class="none" title="undefined or not known">–</span>'
    if column == "share covered":
        return f'{value:.1%}<meter min="0" max="1" value="{min(max(value, 0.0), 1.0):.4f}"></meter>'
    return f"{value:.3f}" if column == "calibration" else f"{value:.2g}" if column == "ECE" else f"{value:.4f}"


def _truth_note(metrics: Metrics) -> str:
    text = f"AUC and GAUC count ties one half; calibration is predicted over observed, ECE has {ECE_BINS} bins of equal mass. "
    if "ctr_gauc_groups" in metrics or "cvr_gauc_groups" in metrics:
        counts = ", ".join(
            f"{title} {metrics[f'{name}_gauc_groups']:,} ({metrics[f'{name}_gauc_groups_left_out']:,} left out)"
            for name, (title, _) in TASK_TITLES.items()
            if f"{name}_gauc_groups" in metrics
        )
        text += f"GAUC gives every user with both classes weight 1: {counts}. "
    if any(name.startswith("true_") for name in metrics):
        text += "The share covered is (AUC − 0.5) / (AUC of the true probabilities − 0.5)."
    return note(text)


def _funnel(metrics: Metrics, split: str) -> str:
    """Impressions, clicks, dactions and conversions of `split`, each with its rates."""
    names = [name for name in ("impressions", "clicks", "dactions", "conversions") if f"num_{name}" in metrics]
    counts = [int(metrics[f"num_{name}"] or 0) for name in names]
    rows = []
    for name, count in zip(names, counts, strict=True):
        # Bars by logarithm: on real logs one conversion faces five thousand impressions.
        width = 100 * np.log1p(count) / max(np.log1p(counts[0]), 1e-9)
        of_clicks = (
            f"{percent(count / counts[1])} of clicks" if name in ("dactions", "conversions") and counts[1] else ""
        )
        share = "" if name == "impressions" or not counts[0] else f"{percent(count / counts[0])} of impressions"
        rows.append(
            f"<tr><th scope=row>{name}</th><td>{count:,}</td><td>{share}</td><td>{of_clicks}</td>"
            f'<td class="bar"><i style="width:{width:.1f}%"></i></td></tr>'
        )
    drawn = f'<div class="scroll"><table class="funnel"><tbody>{"".join(rows)}</tbody></table></div>'
    return drawn + note(f"Split {escape(split)}; the bars are on a logarithmic scale.")


def task_section(task: Task, predictions: Mapping[str, Array]) -> tuple[str, str]:
    """The heading and the three charts of one task: ROC, calibration, histogram."""
    rows = predictions["click"].astype(bool) if task.clicked_only else slice(None)
    label, score = task.label_N[rows], predictions[task.score][rows]
    true = _true_columns(predictions)
    true_score = true[task.score][rows] if task.score in true else None
    title, meaning = TASK_TITLES[task.name]
    charts = [roc_figure(title, label, score, true_score), calibration_figure(title, label, score)]
    charts.append(histogram_figure(title, label, score))
    drawn = [chart for chart in charts if chart]
    left_out = "" if len(drawn) == 3 else note("A chart that needs both classes is left out.")
    return f"{title}: {meaning}", f'<div class="figures">{"".join(drawn)}</div>{left_out}'


def _true_columns(predictions: Mapping[str, Array]) -> dict[str, Array]:
    true = {name.removeprefix("true_"): value for name, value in predictions.items() if name.startswith("true_p_")}
    return true_probabilities(predictions, true) if {"p_ctr", "p_cvr"} <= set(true) else {}


def _figures_table(metrics: Metrics) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(str(name))}</th><td>{escape(json.dumps(value))}</td></tr>"
        for name, value in metrics.items()
    )
    return f'<table class="every"><tbody>{rows}</tbody></table>'
