"""Intervals against a bootstrap over users that is drawn, against DeLong's formula, and against plain differences."""

import numpy as np
import pytest

from training.evaluation.calibration import mean_log_loss
from training.evaluation.intervals import Estimate, estimates_of, intervals_of
from training.evaluation.metrics import evaluate, evaluate_with_curves
from training.evaluation.ranking import auc, group_numbers, grouped_auc
from training.evaluation.sorted_scores import ByNumber, SortedScores
from training.evaluation.users import Users
from training.feed.batch import UNKNOWN_GROUP


def users_log(num_users=120, seed=0):
    """Impressions of users who differ in how often they click; two models of different noise."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rng.integers(1, 40, num_users))
    rate = np.clip(rng.beta(1.5, 6, num_users)[user] * rng.lognormal(0, 0.5, len(user)), 0, 0.95)
    label = rng.random(len(user)) < rate
    models = [
        np.clip(rate * rng.lognormal(0, s, len(user)), 1e-4, 0.99).astype(np.float32).round(3) for s in (0.3, 0.9)
    ]
    return user, label, models


def by_user(label, score, user) -> ByNumber:
    return SortedScores.of(label, score, user).by_number(int(user.max()) + 1)


def figures(label, score, user):
    return {
        "t_auc": auc(label, score),
        "t_log_loss": mean_log_loss(label, score),
        "t_calibration": float(np.log(score.sum(dtype=np.float64) / label.sum())),
        "t_gauc": grouped_auc(user, label, score).gauc,
    }


def test_what_each_user_adds_is_what_a_loop_over_pairs_counts():
    user, label, (score, _) = users_log(20)
    found = by_user(label, score, user)
    for number in range(20):
        mine = user == number
        wins = 2.0 * (score[mine & label][:, None] > score[~label]).sum()
        ties = (score[mine & label][:, None] == score[~label]).sum()
        assert found.twice_wins[number] == wins + ties
        lost = 2.0 * (score[mine & ~label][:, None] < score[label]).sum()
        assert found.twice_losses[number] == lost + (score[mine & ~label][:, None] == score[label]).sum()
        inside, own = score[mine & label][:, None], score[mine & ~label]
        assert found.twice_wins_inside[number] == 2 * (inside > own).sum() + (inside == own).sum()
        assert (found.count[number], found.positives[number]) == (mine.sum(), (mine & label).sum())
        assert found.predicted[number] == pytest.approx(score[mine].sum(dtype=np.float64))
        assert found.log_loss[number] == pytest.approx(mean_log_loss(label[mine], score[mine]) * mine.sum())


def test_the_standard_errors_are_those_of_a_bootstrap_over_users_that_is_drawn():
    user, label, models = users_log()
    num_users = int(user.max()) + 1
    rows_of = [np.flatnonzero(user == number) for number in range(num_users)]
    rng = np.random.default_rng(1)
    drawn = {name: [] for name in figures(label, models[0], user)}
    differences = {name: [] for name in drawn}
    for _ in range(600):
        chosen = rng.integers(0, num_users, num_users)
        rows = np.concatenate([rows_of[number] for number in chosen])
        again = np.repeat(np.arange(num_users), [len(rows_of[number]) for number in chosen]).astype(np.int32)
        first, second = (figures(label[rows], score[rows], again) for score in models)
        for name in drawn:
            drawn[name].append(first[name])
            differences[name].append(first[name] - second[name])
    first, second = (estimates_of("t", by_user(label, score, user), num_users) for score in models)
    for name, value in figures(label, models[0], user).items():
        assert first[name].value == pytest.approx(value, rel=1e-6), name
        assert first[name].influence.sum() == pytest.approx(0, abs=1e-9)
        assert first[name].standard_error == pytest.approx(np.std(drawn[name]), rel=0.15), name
        paired = first[name].minus(second[name])
        assert paired.standard_error == pytest.approx(np.std(differences[name]), rel=0.15), name
        # The models are alike, so a paired difference varies less than two independent ones would.
        assert paired.standard_error < np.hypot(first[name].standard_error, second[name].standard_error)


def test_with_users_of_one_impression_the_variance_of_auc_is_delongs():
    user, label, (score, _) = users_log()
    num, user = len(user), np.arange(len(user), dtype=np.int32)
    found = estimates_of("t", by_user(label, score, user), num)["t_auc"]
    wins = (score[label][:, None] > score[~label]) + 0.5 * (score[label][:, None] == score[~label])
    v10, v01 = wins.mean(1), wins.mean(0)
    # The jackknife divides by P² and N² where DeLong has P(P − 1) and N(N − 1).
    expected = v10.var() / len(v10) + v01.var() / len(v01)
    assert found.standard_error == pytest.approx(np.sqrt(expected * num / (num - 1)), rel=1e-9)


def test_an_interval_is_symmetric_or_symmetric_in_the_logarithm():
    plain = Estimate(0.7, np.array([0.01, -0.01, 0.02, -0.02]))
    low, high = plain.interval
    assert (high - 0.7) == pytest.approx(0.7 - low) == pytest.approx(1.96 * plain.standard_error, rel=1e-4)
    ratio = Estimate(np.log(1.2), plain.influence, is_log=True)
    assert ratio.interval[0] * ratio.interval[1] == pytest.approx(1.2**2)
    assert intervals_of({"x": Estimate(0.5, np.zeros(1))}) == {}  # one user says nothing of others


def test_unknown_users_count_with_their_contexts_and_without_them_by_impression():
    group = np.array([7, UNKNOWN_GROUP, 5, UNKNOWN_GROUP, UNKNOWN_GROUP, 7])
    users = Users.of(group, lambda: np.array([1, 90, 2, 30, 90, 4]))
    assert users.number_N.tolist() == [1, 3, 0, 2, 3, 1]
    assert (users.num_known, users.num_numbers, users.num_unknown) == (2, 4, 3)
    assert Users.of(group).number_N.tolist() == [1, 2, 0, 3, 4, 1]
    assert Users.of(group[[0, 2, 5]], None).number_N.tolist() == [1, 0, 1]
    assert Users.of(group[:0]).num_numbers == 0


def test_evaluation_gives_intervals_in_any_order_of_rows_and_weighs_users_by_impressions():
    user, label, (score, _) = users_log()
    columns = {"click": label.astype(np.int8), "conversion": np.zeros(len(user), np.int8), "p_ctr": score}
    columns["group_id"] = np.where(user < 3, UNKNOWN_GROUP, user * 10**12 - 5)
    found = evaluate_with_curves(columns)
    order = np.random.default_rng(3).permutation(len(user))
    shuffled = evaluate_with_curves({name: column[order] for name, column in columns.items()})
    assert (shuffled.metrics, shuffled.intervals) == (found.metrics, found.intervals)
    assert found.intervals.keys() == {"ctr_auc", "ctr_gauc", "ctr_log_loss", "ctr_calibration"}
    for name, (low, high) in found.intervals.items():
        assert low < found.metrics[name] < high, name
    sizes, aucs = [], []
    for number in range(3, int(user.max()) + 1):
        one = auc(label[user == number], score[user == number])
        if one is not None:
            sizes.append((user == number).sum())
            aucs.append(one)
    assert found.metrics["ctr_gauc_weighted"] == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
    assert found.metrics["ctr_gauc"] == pytest.approx(np.mean(aucs), abs=1e-12)
    assert "ctr_gauc_weighted" in evaluate(columns)


def test_group_numbers_ascend():
    assert group_numbers(np.array([9, -4, 9, 2**60])).tolist() == [1, 0, 1, 2]
