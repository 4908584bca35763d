"""The report's charts: loss against step; ROC, calibration and predicted probabilities of one task."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.html.charts import Axis, Chart, Series, chart
from training.evaluation.calibration import ECE_BINS
from training.evaluation.curves import Histogram
from training.evaluation.sorted_scores import Array, CalibrationCurve, RocCurve

#: A curve is drawn through at most this many means of neighbouring steps.
LOSS_POINTS = 300


def loss_charts(log: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Draw the loss, and each node's part of it, against the step, as means of neighbouring steps."""
    if not log:
        return []
    names = sorted({name for entry in log for name in entry if name.startswith("loss_")})
    step = np.array([entry["step"] for entry in log], dtype=np.float64)
    drawn = []
    for title, keys in (("Loss", ["loss"]), ("Loss by node", names)):
        lines = []
        for number, key in enumerate(keys):
            value = np.array([entry.get(key, np.nan) for entry in log], dtype=np.float64)
            lines.append(Series(key.removeprefix("loss_"), *_thinned(step, value), color=number % 4))
        if lines:
            description = f"{title} against training step, from {step[0]:.0f} to {step[-1]:.0f}"
            drawn.append(chart(title, description, Axis("step", step[0]), Axis("log loss per impression"), lines))
    return drawn


def validation_charts(validations: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Draw the loss of each validation, and its AUCs, against the step; nothing for fewer than two, which make no curve."""
    names = list(dict.fromkeys(name for entry in validations for name in entry if name.startswith("validation_")))
    losses, others = ["validation_loss"], [name for name in names if name != "validation_loss"]
    drawn = []
    for title, keys, label in (("Validation loss", losses, "loss"), ("Validation AUC", others, "AUC")):
        lines = []
        for number, key in enumerate(keys):
            seen = [entry for entry in validations if key in entry]
            step, value = [entry["step"] for entry in seen], [entry[key] for entry in seen]
            if len(seen) > 1:
                name = key.removeprefix("validation_").removesuffix("_auc")
                lines.append(Series(name, step, value, "points", number % 4))
        if lines:
            description = f"{title} against training step, after each of {len(validations)} validations"
            drawn.append(chart(title, description, Axis("step"), Axis(label), lines))
    return drawn


def _thinned(step: Array, value: Array) -> tuple[Array, Array]:
    pieces = min(LOSS_POINTS, len(step))
    return (
        np.array([piece.mean() for piece in np.array_split(step, pieces)]),
        np.array([piece.mean() for piece in np.array_split(value, pieces)]),
    )


def roc_chart(title: str, curve: RocCurve | None, oracle: RocCurve | None) -> Chart | None:
    """Draw the ROC curves of the model and, if known, of the oracle, and the diagonal; None without both classes."""
    if curve is None:
        return None
    lines = [Series("chance", [0, 1], [0, 1], "dashed")]
    if oracle is not None:
        lines.append(
            Series("oracle (true probabilities)", oracle.false_positive_rate, oracle.true_positive_rate, color=1)
        )
    lines.append(Series("model", curve.false_positive_rate, curve.true_positive_rate, color=0))
    description = f"ROC curve of {title}: true against false positive rate"
    axes = Axis("false positive rate", 0, 1), Axis("true positive rate", 0, 1)
    return chart(f"{title} · ROC", description, *axes, lines)


def calibration_chart(title: str, curve: CalibrationCurve) -> Chart | None:
    """Draw the share of positives against the mean prediction in bins of equal mass; None without positives."""
    shown = (curve.observed > 0) & (curve.predicted > 0)
    if not shown.any():
        return None
    predicted, observed = curve.predicted[shown], curve.observed[shown]
    low, high = min(predicted.min(), observed.min()) / 1.3, max(predicted.max(), observed.max()) * 1.3
    lines = [Series("perfect", [low, high], [low, high], "dashed"), Series("model", predicted, observed, "points", 0)]
    unseen = f"; {int((~shown).sum())} bins without positives not shown" if not shown.all() else ""
    description = f"Calibration of {title}: share of positives against predicted probability, {ECE_BINS} bins of equal mass{unseen}"
    axes = Axis("predicted (logarithmic)", low, high, log=True), Axis("observed (logarithmic)", low, high, log=True)
    return chart(f"{title} · calibration{unseen}", description, *axes, lines)


def histogram_chart(title: str, histogram: Histogram | None) -> Chart | None:
    """Draw the predicted probabilities of positives and of negatives as shares of their class; None if all are zero."""
    if histogram is None:
        return None
    edges, lines = histogram.edges, []
    for name, color, count in (("negatives", 1, histogram.negatives), ("positives", 0, histogram.positives)):
        if total := int(count.sum()):
            lines.append(Series(f"{name} ({total:,})", edges, count / total, "steps", color))
    description = f"Histogram of the predicted probability of {title}, for positives and negatives"
    x_axis = Axis("predicted probability (logarithmic)", edges[0], edges[-1], log=True)
    return chart(f"{title} · predictions", description, x_axis, Axis("share of the class", 0), lines)
