"""The evaluation protocol against scikit-learn, brute-force loops over pairs, and hand-made cases."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from pipeline.errors import InputError
from training.evaluation.calibration import calibration, calibration_curve, expected_calibration_error, mean_log_loss
from training.evaluation.metrics import evaluate, oracle_metrics
from training.evaluation.ranking import auc, expected_auc, group_numbers, grouped_auc, roc_curve, top_share
from training.evaluation.sorted_scores import SortedScores
from training.feed.batch import UNKNOWN_GROUP

# Scores on a coarse grid, so that ties are the rule; both signs of zero among them.
SCORES = st.sampled_from([-2.5, -0.25, -0.0, 0.0, 0.125, 0.3, 0.7, 0.7000001, 1.0])


@st.composite
def labelled_scores(draw, dtype=None):
    size = draw(st.integers(1, 40))
    dtype = dtype or draw(st.sampled_from([np.float32, np.float64]))
    score = np.array(draw(st.lists(SCORES, min_size=size, max_size=size)), dtype)
    label = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), np.int8)
    group = np.array(draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)), np.int64)
    return label, score, group


def pairwise_auc(label, score, weight=None):
    """The definition, pair by pair; `weight` makes row i a positive of weight w and a negative of weight 1 − w."""
    positive = label.astype(float) if weight is None else weight
    wins = pairs = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            pair = positive[i] * (1.0 - positive[j])
            pairs += pair
            wins += pair * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return wins / pairs if pairs else None


def logs(size=4000, seed=0, dtype=np.float32):
    """A funnel drawn from known probabilities, and a model that is a noisy copy of them."""
    rng = np.random.default_rng(seed)
    p_ctr, p_daction, p_cvr = rng.beta(2, 6, size), rng.beta(2, 4, size), rng.beta(2, 5, size)
    click = rng.random(size) < p_ctr
    labels = {
        "click": click.astype(np.int8),
        "daction": (click & (rng.random(size) < p_daction)).astype(np.int8),
        "conversion": (click & (rng.random(size) < p_cvr)).astype(np.int8),
        "group_id": rng.integers(0, 300, size) * 10**15,
        "impression_id": rng.permutation(size) + 7,
    }
    truth = {"impression_id": labels["impression_id"], "p_ctr": p_ctr, "p_daction": p_daction, "p_cvr": p_cvr}

    def noisy(probability):
        return np.clip(probability * rng.lognormal(0, 0.3, size), 1e-6, 0.999).astype(dtype).round(3)

    model = {"p_ctr": noisy(p_ctr), "p_cvr": noisy(p_cvr)}
    model["p_ctcvr"], model["p_ctavr"] = model["p_ctr"] * model["p_cvr"], noisy(p_ctr * p_daction)
    return {**labels, **model}, truth


@given(labelled_scores())
@settings(max_examples=150, deadline=None)
def test_auc_is_the_share_of_pairs_won_with_ties_at_one_half(case):
    label, score, _ = case
    expected = pairwise_auc(label, score)
    assert auc(label, score) == (None if expected is None else pytest.approx(expected, abs=1e-15))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decimals", [2, 9])
def test_auc_equals_scikit_learn_on_long_columns(dtype, decimals):
    rng = np.random.default_rng(3)
    score = rng.random(200_000).round(decimals).astype(dtype)
    label = rng.random(200_000) < score
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-13)


@given(labelled_scores())
@settings(max_examples=150, deadline=None)
def test_gauc_is_the_mean_of_each_groups_auc_and_counts_groups_of_one_class(case):
    label, score, group = case
    every = [pairwise_auc(label[group == g], score[group == g]) for g in np.unique(group)]
    judged = [value for value in every if value is not None]
    got = grouped_auc(group_numbers(group), label, score)
    assert (got.num_groups, got.num_groups_left_out) == (len(judged), len(every) - len(judged))
    assert got.gauc == (pytest.approx(np.mean(judged), abs=1e-14) if judged else None)


def test_gauc_equals_scikit_learn_group_by_group():
    rng = np.random.default_rng(5)
    group, score = rng.integers(-(2**62), 2**62, 500)[rng.integers(0, 500, 20_000)], rng.random(20_000, np.float32)
    label = rng.random(20_000) < 0.1
    loop = [
        roc_auc_score(label[group == g], score[group == g])
        for g in np.unique(group)
        if 0 < label[group == g].sum() < (group == g).sum()
    ]
    got = grouped_auc(group_numbers(group), label, score)
    assert got.gauc == pytest.approx(np.mean(loop), abs=1e-12)
    assert got.num_groups == len(loop)


@given(labelled_scores(), hnp.arrays(np.float64, 40, elements=st.sampled_from([0.0, 1e-9, 0.25, 0.5, 0.9, 1.0])))
@settings(max_examples=100, deadline=None)
def test_expected_auc_weighs_each_impression_as_p_positive_and_one_minus_p_negative(case, probability):
    _, score, _ = case
    probability = probability[: len(score)]
    expected = pairwise_auc(None, score, probability)
    assert expected_auc(probability, score) == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_expected_auc_is_the_mean_auc_of_labels_drawn_from_the_truth():
    rng = np.random.default_rng(1)
    probability = rng.beta(1, 3, 3000)
    score = probability + rng.normal(0, 0.2, 3000)
    drawn = [auc(rng.random(3000) < probability, score) for _ in range(200)]
    assert expected_auc(probability, score) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(200))


@given(labelled_scores(), st.sampled_from([0.001, 0.1, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_the_top_of_a_tied_list_counts_the_mean_over_all_orders_of_the_tie(case, share):
    label, score, _ = case
    got = top_share(label, score, share)
    if len(set(label)) < 2:
        assert got is None
        return
    taken = max(1, round(share * len(label)))
    # Worst and best order of every tie; a hypergeometric mean lies on the line between, by its share of the tie.
    rng = np.random.default_rng(0)
    hits = [label[np.lexsort((rng.random(len(label)), -score.astype(float)))][:taken].sum() for _ in range(400)]
    assert min(hits) - 1e-9 <= got.recall * label.sum() <= max(hits) + 1e-9
    assert got.recall * label.sum() == pytest.approx(np.mean(hits), abs=5 * np.std(hits) / 20 + 1e-9)
    assert got.precision == pytest.approx(got.recall * label.sum() / taken)
    if got.recall > 0:
        assert got.f1 == pytest.approx(2 * got.recall * got.precision / (got.recall + got.precision))


def test_precision_recall_and_f1_equal_scikit_learn_without_ties():
    rng = np.random.default_rng(2)
    score, label = rng.permutation(10_000) / 10_000, rng.random(10_000) < 0.02
    taken = score >= np.sort(score)[-60]
    precision, recall, f1, _ = precision_recall_fscore_support(label, taken, average="binary")
    got = top_share(label, score, 0.006)
    assert (got.precision, got.recall, got.f1) == pytest.approx((precision, recall, f1))


def test_log_loss_equals_scikit_learn_and_survives_certainty():
    rng = np.random.default_rng(4)
    probability, label = rng.random(5000).astype(np.float32), rng.integers(0, 2, 5000)
    assert mean_log_loss(label, probability) == pytest.approx(
        sklearn_log_loss(label, probability.astype(float)), rel=1e-12
    )
    certain_and_wrong = mean_log_loss(np.array([1]), np.array([0.0], np.float32))
    assert certain_and_wrong == pytest.approx(-math.log(1e-15))
    # 1 − 1e-15 is not a float64, hence the looser bound.
    assert mean_log_loss(np.array([0]), np.array([1.0], np.float32)) == pytest.approx(-math.log(1e-15), rel=0.01)


def test_pieces_of_a_long_column_add_up():
    label = np.zeros(2_500_000, np.int8)
    label[::2] = 1
    probability = np.full(2_500_000, 0.25, np.float32)
    assert mean_log_loss(label, probability) == pytest.approx(-0.5 * (math.log(0.25) + math.log(0.75)), rel=1e-12)
    assert calibration(label, probability) == pytest.approx(0.5)
    assert expected_calibration_error(label, probability) == pytest.approx(0.25)


@given(labelled_scores(dtype=np.float32), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_calibration_bins_hold_equal_mass_up_to_ties_and_ignore_the_order_of_rows(case, bins):
    label, score, _ = case
    curve = calibration_curve(label, score, bins)
    order = np.random.default_rng(0).permutation(len(score))
    shuffled = calibration_curve(label[order], score[order], bins)
    np.testing.assert_allclose(shuffled.observed, curve.observed)
    np.testing.assert_array_equal(shuffled.count, curve.count)
    # The loop: a row's bin is set by the first quantile that is not below it.
    edges = sorted({np.sort(score)[math.ceil(q * len(score) / bins) - 1] for q in range(1, bins)})
    members = {}
    for row, value in enumerate(score):
        members.setdefault(sum(edge < value for edge in edges), []).append(row)
    assert list(curve.count) == [len(members[b]) for b in sorted(members)]
    assert list(curve.observed) == pytest.approx([label[members[b]].mean() for b in sorted(members)])
    assert list(curve.predicted) == pytest.approx([score[members[b]].mean(dtype=np.float64) for b in sorted(members)])


def test_ece_of_a_model_that_is_off_by_a_tenth_everywhere_is_a_tenth():
    score = np.repeat(np.linspace(0.1, 0.8, 20), 100)
    label = np.concatenate([np.arange(100) < round(100 * (p + 0.1)) for p in np.linspace(0.1, 0.8, 20)])
    assert expected_calibration_error(label, score) == pytest.approx(0.1, abs=0.005)


@given(labelled_scores(), st.integers(4, 30))
@settings(max_examples=100, deadline=None)
def test_every_roc_point_is_a_threshold_of_the_scores_and_the_curve_rises(case, max_points):
    label, score, _ = case
    curve = roc_curve(label, score, max_points)
    if len(set(label)) < 2:
        assert curve is None
        return
    reachable = {(0.0, 0.0)} | {
        (np.mean(score[label == 0] >= t).round(9), np.mean(score[label == 1] >= t).round(9)) for t in score
    }
    points = list(zip(curve.false_positive_rate.round(9), curve.true_positive_rate.round(9), strict=True))
    assert set(points) <= reachable
    assert len(points) <= max_points
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)
    assert points == sorted(points)
    if max_points == 30 and len(set(score)) <= 9:
        area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
        assert area == pytest.approx(auc(label, score), abs=1e-12)


def test_evaluate_reports_each_task_over_its_own_impressions():
    predictions, _ = logs()
    metrics = evaluate(predictions)
    click, conversion, daction = (predictions[name].astype(bool) for name in ("click", "conversion", "daction"))
    assert metrics["num_impressions"] == 4000
    assert metrics["num_clicks"] == click.sum()
    assert metrics["num_conversions"] == conversion.sum()
    assert metrics["num_dactions"] == daction.sum()
    assert metrics["ctr_auc"] == pytest.approx(roc_auc_score(click, predictions["p_ctr"]))
    assert metrics["cvr_auc"] == pytest.approx(roc_auc_score(conversion[click], predictions["p_cvr"][click]))
    assert metrics["ctcvr_auc"] == pytest.approx(roc_auc_score(conversion, predictions["p_ctcvr"]))
    assert metrics["ctavr_auc"] == pytest.approx(roc_auc_score(daction, predictions["p_ctavr"]))
    assert metrics["cvr_log_loss"] == pytest.approx(sklearn_log_loss(conversion[click], predictions["p_cvr"][click]))
    assert metrics["cvr_calibration"] == pytest.approx(predictions["p_cvr"][click].sum() / conversion.sum(), rel=1e-5)
    assert metrics["cvr_gauc_groups"] + metrics["cvr_gauc_groups_left_out"] == len(
        np.unique(predictions["group_id"][click])
    )


def test_a_float64_column_gives_the_figures_of_its_float32_twin():
    predictions, _ = logs(dtype=np.float32)
    wide = {
        name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in predictions.items()
    }
    narrow_metrics, wide_metrics = evaluate(predictions), evaluate(wide)
    assert narrow_metrics == pytest.approx(wide_metrics, rel=1e-9)


def test_a_model_of_cvr_alone_is_judged_by_what_it_says():
    predictions, truth = logs()
    base = {name: predictions[name] for name in ("click", "conversion", "group_id", "impression_id", "p_cvr")}
    metrics = evaluate(base) | oracle_metrics(base, truth)
    assert "cvr_auc" in metrics
    assert "cvr_all_auc" in metrics
    assert not [name for name in metrics if name.startswith(("ctr_", "ctcvr_"))]


def test_impressions_of_unknown_users_are_in_no_group_and_are_counted():
    predictions, _ = logs()
    unknown = np.arange(4000) % 3 == 0
    predictions["group_id"] = np.where(unknown, UNKNOWN_GROUP, predictions["group_id"])
    metrics = evaluate(predictions)
    known = {name: value[~unknown] for name, value in predictions.items()}
    assert metrics["num_impressions_without_group"] == unknown.sum()
    assert metrics["ctr_gauc"] == evaluate(known)["ctr_gauc"]
    assert metrics["cvr_gauc"] == evaluate(known)["cvr_gauc"]


def test_a_conversion_without_a_click_is_no_conversion():
    predictions, _ = logs()
    planted = {**predictions, "conversion": np.ones(4000, np.int8)}
    clicked = {**predictions, "conversion": predictions["click"]}
    assert evaluate(planted) == evaluate(clicked)


def test_the_cuts_of_cvr_are_those_of_the_clicked_impressions():
    predictions, _ = logs()
    order = np.lexsort((predictions["impression_id"], predictions["p_cvr"]))
    predictions["p_cvr"] = np.empty(len(order))
    predictions["p_cvr"][order] = np.arange(len(order)) / len(order)  # no ties
    metrics = evaluate(predictions)
    clicked = predictions["click"].astype(bool)
    label = predictions["conversion"][clicked].astype(int)
    order = np.argsort(-predictions["p_cvr"][clicked].astype(float), kind="stable")
    for name, share in (("0.1pct", 0.001), ("0.6pct", 0.006), ("1pct", 0.01)):
        taken = max(1, round(share * len(label)))
        hits = label[order][:taken].sum()
        assert metrics[f"cvr_recall_top_{name}"] == pytest.approx(hits / label.sum())
        assert metrics[f"cvr_precision_top_{name}"] == pytest.approx(hits / taken)
        assert metrics[f"cvr_f1_top_{name}"] == pytest.approx(2 * hits / (taken + label.sum()))


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_undefined_figures_are_null_and_the_table_is_strict_json(rows):
    nothing = {
        "click": np.zeros(rows, np.int8),
        "conversion": np.zeros(rows, np.int8),
        "group_id": np.arange(rows),
        **{name: np.full(rows, 0.5, np.float32) for name in ("p_ctr", "p_cvr", "p_ctcvr")},
    }
    metrics = json.loads(json.dumps(evaluate(nothing), allow_nan=False))
    for name in ("ctr_auc", "cvr_auc", "ctcvr_gauc", "cvr_log_loss", "ctr_calibration", "ctcvr_recall_top_1pct"):
        assert metrics[name] is None, name


def test_nan_in_a_prediction_leaves_the_figures_of_its_task_undefined():
    predictions, _ = logs()
    whole = evaluate(predictions)
    predictions["p_cvr"][17] = np.nan
    found = evaluate(predictions)
    assert found.keys() == whole.keys()
    for name, value in found.items():
        assert value == (None if name.startswith("cvr_") else whole[name])


def test_the_truth_covers_all_of_its_own_distance_and_has_no_bias():
    predictions, truth = logs()
    perfect = {**predictions, "p_ctr": truth["p_ctr"], "p_cvr": truth["p_cvr"]}
    perfect["p_ctcvr"] = truth["p_ctr"] * truth["p_cvr"]
    perfect["p_ctavr"] = truth["p_ctr"] * truth["p_daction"]
    metrics = oracle_metrics(perfect, truth)
    for name in ("ctr", "cvr", "ctcvr", "ctavr", "cvr_all"):
        assert metrics[f"{name}_auc_share"] == pytest.approx(1.0)
    assert metrics["cvr_all_bias"] == pytest.approx(0.0)
    assert metrics["cvr_all_log_loss"] == pytest.approx(metrics["true_cvr_all_log_loss"])


def test_the_truth_is_matched_by_impression_id_in_whatever_order_it_comes():
    predictions, truth = logs()
    order = np.random.default_rng(8).permutation(4000)
    shuffled = {name: value[order] for name, value in truth.items()}
    aligned = {name: value for name, value in truth.items() if name != "impression_id"}
    metrics = oracle_metrics(predictions, shuffled)
    assert metrics == oracle_metrics(predictions, aligned)
    click, p_cvr, t = predictions["click"].astype(bool), predictions["p_cvr"].astype(float), truth["p_cvr"]
    expected = roc_auc_score(predictions["conversion"][click], t[click])
    assert metrics["true_cvr_auc"] == pytest.approx(expected)
    reached = roc_auc_score(predictions["conversion"][click], p_cvr[click])
    assert metrics["cvr_auc_share"] == pytest.approx((reached - 0.5) / (expected - 0.5))
    assert metrics["cvr_all_log_loss"] == pytest.approx(np.mean(-t * np.log(p_cvr) - (1 - t) * np.log(1 - p_cvr)))
    assert metrics["cvr_all_bias"] == pytest.approx(p_cvr.mean() - t.mean())
    doubled = np.concatenate([p_cvr, p_cvr])
    weighted = roc_auc_score(np.repeat([1, 0], 4000), doubled, sample_weight=np.concatenate([t, 1 - t]))
    assert metrics["cvr_all_auc"] == pytest.approx(weighted, abs=1e-12)


def test_an_impression_that_the_truth_lacks_is_named():
    predictions, truth = logs()
    lost = predictions["impression_id"][1234]
    partial = {name: value[truth["impression_id"] != lost] for name, value in truth.items()}
    with pytest.raises(InputError, match=rf"lacks 1 of 4000 impressions.*impression_id={lost};"):
        oracle_metrics(predictions, partial)


def test_sums_do_not_depend_on_the_order_of_rows_and_hold_scores_above_one():
    rng = np.random.default_rng(9)
    score = (rng.random(5000) ** 8 * np.where(rng.random(5000) < 0.01, 1e4, 1.0)).astype(np.float32)
    label = rng.random(5000) < 0.1
    order = rng.permutation(5000)
    for few in (score, np.minimum(score, 1)):
        assert calibration(label, few) == calibration(label[order], few[order])
        assert calibration(label, few) == pytest.approx(few.sum(dtype=np.float64) / label.sum(), rel=1e-12)
        found = SortedScores.of(label, few).sums()
        assert float(found[1]) == pytest.approx(few.sum(dtype=np.float64), rel=1e-12)
        assert mean_log_loss(label, few) == mean_log_loss(label[order], few[order]) == found[0].over(5000)
