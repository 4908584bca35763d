"""The table of an evaluation: its figures are those of metrics.json, its baseline that of scikit-learn, its width the terminal's."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from training.evaluation.figure_table import baseline_of, figure_table
from training.evaluation.metrics import evaluate_with_curves


def an_evaluation(rows: int = 4000):
    rng = np.random.default_rng(5)
    p_ctr, p_cvr = rng.beta(2, 8, rows), rng.beta(2, 6, rows)
    click = rng.random(rows) < p_ctr
    predictions = {
        "click": click.astype(np.int8),
        "conversion": (click & (rng.random(rows) < p_cvr)).astype(np.int8),
        "group_id": rng.integers(0, 90, rows),
        "p_ctr": p_ctr.astype(np.float32),
        "p_cvr": p_cvr.astype(np.float32),
        "p_ctcvr": (p_ctr * p_cvr).astype(np.float32),
    }
    return predictions, evaluate_with_curves(predictions)


def test_the_baseline_is_the_best_probability_for_all() -> None:
    predictions, evaluated = an_evaluation()
    clicked = predictions["click"] == 1
    labels = {
        "ctr": predictions["click"],
        "cvr": predictions["conversion"][clicked],
        "ctcvr": predictions["conversion"],
    }
    for task, label in labels.items():
        found = baseline_of(task, evaluated.metrics)
        assert found is not None
        assert found.rate == label.mean()
        assert found.log_loss == pytest.approx(log_loss(label, np.full(len(label), label.mean())), rel=1e-12)
    assert baseline_of("cvr", {"num_clicks": 3, "num_impressions": 9, "num_conversions": 3}) is None
    assert baseline_of("ctr", {"num_clicks": 0, "num_impressions": 0, "num_conversions": 0}) is None


def test_the_table_has_a_row_for_each_task_and_a_dash_for_what_is_undefined() -> None:
    _, evaluated = an_evaluation()
    lines = figure_table(evaluated.metrics, evaluated.intervals)
    assert [line.split()[0] for line in lines] == ["task", "CTR", "CVR", "CTCVR"]
    low, high = evaluated.intervals["ctr_auc"]
    assert lines[1].split()[1:5] == [
        f"{evaluated.metrics['num_clicks']:,}",
        f"{evaluated.metrics['ctr_auc']:.4f}",
        f"{low:.4f}–{high:.4f}",
        f"{evaluated.metrics['ctr_gauc']:.4f}",
    ]
    undefined = figure_table({**evaluated.metrics, "ctr_auc": None}, {})[1].split()
    assert undefined[2:4] == ["–", "–"]


@pytest.mark.parametrize("width", [30, 60, 80, 140])
def test_columns_that_do_not_fit_the_line_are_left_out_and_auc_never_is(width: int) -> None:
    _, evaluated = an_evaluation()
    lines = figure_table(evaluated.metrics, evaluated.intervals, width)
    assert max(map(len, lines)) <= width
    assert "AUC" in lines[0].split()
    assert ("constant" in lines[0]) == (width >= 80)
    assert (lines == figure_table(evaluated.metrics, evaluated.intervals)) == (width == 140)
