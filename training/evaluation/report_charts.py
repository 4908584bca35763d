"""The report's charts: loss against step; ROC, calibration and predicted probabilities of one task."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.html.charts import Axis, Series, figure
from training.evaluation.calibration import ECE_BINS, calibration_curve
from training.evaluation.ranking import Array, roc_curve

HISTOGRAM_BINS = 40
#: A curve is drawn through at most this many means of neighbouring steps.
LOSS_POINTS = 300


def loss_figure(log: Sequence[Mapping[str, float]], num_broken_lines: int = 0) -> str:
    """The loss and each node's part of it against the step, as means of neighbouring steps."""
    broken = f" Lines of log.jsonl that could not be read: {num_broken_lines}." if num_broken_lines else ""
    if not log:
        return f'<p class="note">The run has no logged steps.{broken}</p>'
    names = sorted({name for entry in log for name in entry if name.startswith("loss_")})
    step = np.array([entry["step"] for entry in log], dtype=np.float64)
    figures = []
    for title, keys in (("Loss", ["loss"]), ("Loss by node", names)):
        lines = []
        for number, key in enumerate(keys):
            value = np.array([entry.get(key, np.nan) for entry in log], dtype=np.float64)
            lines.append(Series(key.removeprefix("loss_"), *_thinned(step, value), color=number % 4))
        if lines:
            said = f"{title} against training step, from {step[0]:.0f} to {step[-1]:.0f}"
            figures.append(figure(title, said, Axis("step", step[0]), Axis("log loss per impression"), lines))
    last = log[-1]
    facts = [f"{int(last['step']):,} steps"]
    if "impressions_per_s" in last:
        facts.append(
            f"{np.median([entry.get('impressions_per_s', np.nan) for entry in log]):,.0f} impressions/s (median)"
        )
    if "waiting_share" in last:
        facts.append(
            f"{np.nanmean([entry.get('waiting_share', np.nan) for entry in log]):.1%} of the time waiting for data"
        )
    return f'<div class="figures">{"".join(figures)}</div><p class="note">{"; ".join(facts)}.{broken}</p>'


def _thinned(step: Array, value: Array) -> tuple[Array, Array]:
    pieces = min(LOSS_POINTS, len(step))
    return (
        np.array([piece.mean() for piece in np.array_split(step, pieces)]),
        np.array([piece.mean() for piece in np.array_split(value, pieces)]),
    )


def roc_figure(title: str, label: Array, score: Array, true_score: Array | None) -> str:
    """The model's ROC curve, that of the true probabilities if known, and the diagonal; "" without both classes."""
    curve = roc_curve(label, score)
    if curve is None:
        return ""
    lines = [Series("chance", [0, 1], [0, 1], "dashed")]
    ceiling = roc_curve(label, true_score) if true_score is not None else None
    if ceiling is not None:
        lines.append(Series("true probabilities", ceiling.false_positive_rate, ceiling.true_positive_rate, color=1))
    lines.append(Series("model", curve.false_positive_rate, curve.true_positive_rate, color=0))
    said = f"ROC curve of {title}: true against false positive rate"
    axes = Axis("false positive rate", 0, 1), Axis("true positive rate", 0, 1)
    return figure(f"{title} · ROC", said, *axes, lines)


def calibration_figure(title: str, label: Array, score: Array) -> str:
    """Share of positives against mean prediction in bins of equal mass, both on logarithmic axes; "" without positives."""
    curve = calibration_curve(label, score, ECE_BINS)
    shown = (curve.observed > 0) & (curve.predicted > 0)
    if not shown.any():
        return ""
    predicted, observed = curve.predicted[shown], curve.observed[shown]
    low, high = min(predicted.min(), observed.min()) / 1.3, max(predicted.max(), observed.max()) * 1.3
    lines = [Series("perfect", [low, high], [low, high], "dashed"), Series("model", predicted, observed, "points", 0)]
    unseen = f"; {int((~shown).sum())} bins without positives not shown" if not shown.all() else ""
    said = f"Calibration of {title}: share of positives against predicted probability, {ECE_BINS} bins of equal mass{unseen}"
    axes = Axis("predicted (logarithmic)", low, high, log=True), Axis("observed (logarithmic)", low, high, log=True)
    return figure(f"{title} · calibration{unseen}", said, *axes, lines)


def histogram_figure(title: str, label: Array, score: Array) -> str:
    """Predicted probability of positives and of negatives, each as shares of its class, on a logarithmic axis."""
    positive = score[score > 0]
    if len(positive) == 0:
        return ""
    low, high = float(positive.min()), float(positive.max())
    edges = np.geomspace(low * 0.99, max(high * 1.01, low * 1.5), HISTOGRAM_BINS + 1)
    lines = []
    for name, color, members in (("negatives", 1, score[label == 0]), ("positives", 0, score[label == 1])):
        if len(members):
            count, _ = np.histogram(np.maximum(members, edges[0]), edges)
            lines.append(Series(f"{name} ({len(members):,})", edges, count / len(members), "steps", color))
    said = f"Histogram of the predicted probability of {title}, for positives and negatives"
    x_axis = Axis("predicted probability (logarithmic)", edges[0], edges[-1], log=True)
    return figure(f"{title} · predictions", said, x_axis, Axis("share of the class", 0), lines)
