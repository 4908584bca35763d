"""jobs.compare: runs side by side, tested in pairs against draws; what cannot be compared is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, assert_nothing_overflows
from sklearn.metrics import roc_auc_score

from jobs.compare import CompareSettings, run
from pipeline.errors import InputError
from training.evaluation.comparison import compare, difference_of, markdown_of, read_result
from training.evaluation.intervals import Estimate
from training.evaluation.metrics import evaluate_with_curves


def truth(seed=0, num_users=150):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rng.integers(2, 60, num_users))
    p_ctr = np.clip(rng.beta(2, 8, num_users)[user] * rng.lognormal(0, 0.5, len(user)), 0.001, 0.9)
    click = rng.random(len(user)) < p_ctr
    return {
        "impression_id": np.arange(len(user)) + 10,
        "context_id": [f"c{number // 7}" for number in range(len(user))],
        "group_id": pa.array(user, mask=user < 4),
        "click": click.astype(np.int8),
        "conversion": (click & (rng.random(len(user)) < 0.3)).astype(np.int8),
    }, p_ctr


def write_run(folder: Path, noise: float, seed: int, reverse: bool = False, alerts: tuple[str, ...] = ()) -> Path:
    columns, p_ctr = truth()
    score = np.clip(p_ctr * np.random.default_rng(seed).lognormal(0, noise, len(p_ctr)), 0, 0.99).astype(np.float32)
    table = pa.table({**columns, "p_ctr": score})
    if reverse:  # two ranks write in another order
        table = table.take(np.arange(len(score))[::-1])
    (folder / "predictions/test").mkdir(parents=True)
    half = table.num_rows // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, folder / f"predictions/test/part-{number:05d}.parquet")
    in_memory = {name: table.column(name).to_numpy() for name in ("click", "conversion", "p_ctr")}
    figures = evaluate_with_curves(in_memory).metrics
    kinds = [{"kind": "one_value", "of": "ctr", "text": text} for text in alerts]
    saved = {
        "split": "test",
        **figures,
        "alerts": kinds,
        "provenance": {"checkpoint": "step-00000009", "version": "1.2"},
    }
    (folder / "metrics.test.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    return {
        "good": write_run(tmp_path / "good", 0.2, 1),
        "near": write_run(tmp_path / "near", 0.22, 2, reverse=True),
        "bad": write_run(tmp_path / "bad", 1.5, 3, alerts=("p_ctr says one value.",)),
    }


def test_a_difference_is_that_of_the_figures_and_its_interval_that_of_a_bootstrap_over_users(runs) -> None:
    results = [read_result(str(path), "test") for path in runs.values()]
    comparison = compare(results)
    cells = dict(comparison.rows)["ctr_auc"]
    columns, _ = truth()
    tables = [pq.read_table(path / "predictions/test").sort_by("impression_id") for path in runs.values()]
    scores = [table.column("p_ctr").to_numpy() for table in tables]
    aucs = [roc_auc_score(columns["click"], score) for score in scores]
    assert [cell.value for cell in cells] == pytest.approx(aucs, abs=1e-12)
    assert cells[0].difference is None
    group = columns["group_id"].to_pylist()
    # An impression of an unknown user counts with its context.
    unit = np.unique([context if user is None else f"u{user}" for user, context in zip(group, columns["context_id"], strict=True)],
                     return_inverse=True)[1]  # fmt: skip
    rows_of = [np.flatnonzero(unit == number) for number in range(unit.max() + 1)]
    rng, drawn = np.random.default_rng(5), {1: [], 2: []}
    for _ in range(400):
        rows = np.concatenate([rows_of[number] for number in rng.integers(0, len(rows_of), len(rows_of))])
        again = [roc_auc_score(columns["click"][rows], score[rows]) for score in scores]
        for other in drawn:
            drawn[other].append(again[other] - again[0])
    for other, values in drawn.items():
        found = cells[other].difference
        assert found.value == pytest.approx(aucs[other] - aucs[0], abs=1e-12)
        assert (found.high - found.low) / 3.92 == pytest.approx(np.std(values), rel=0.2)
    assert cells[1].difference.p > 1e-3 > cells[2].difference.p


def test_the_page_names_figures_differences_collapsed_runs_and_provenance(runs, tmp_path, capsys) -> None:
    run(CompareSettings([str(path) for path in runs.values()], out=str(tmp_path / "pages" / "page")))
    shown = capsys.readouterr().out
    text, html = ((tmp_path / f"pages/page.{kind}").read_text() for kind in ("md", "html"))
    assert text in shown
    assert "| figure | good | near | bad |" in text
    assert "Collapsed: 1 of 3 (bad)." in text
    for wanted in ("ctr_auc", "p_ctr says one value.", "checkpoint step-00000009", "release 1.2", "near"):
        assert wanted in text, wanted
        assert wanted in html, wanted
    assert "<script" not in html
    assert "<dt>written</dt>" in html
    if CHROMIUM:
        assert_nothing_overflows(tmp_path / "pages/page.html", tmp_path)
    (row,) = [line for line in text.splitlines() if line.startswith("| ctr_auc ")]
    assert row.count(", p ") == 2
    assert row.rstrip(" |").endswith("*)")
    (row,) = [line for line in text.splitlines() if line.startswith("| ctr_calibration ")]
    rates = [float(cell.split("(")[0]) for cell in row.split("|")[2:5]]
    assert f"×{rates[1] / rates[0]:.3f}" in row  # a quotient


def test_results_in_places_of_their_own_are_compared_too(runs, tmp_path) -> None:
    place = tmp_path / "good" / "evaluations" / "test.step-00000003"
    place.mkdir(parents=True)
    (runs["near"] / "predictions/test").rename(place / "predictions")
    (runs["near"] / "metrics.test.json").rename(place / "metrics.json")
    found = [read_result(str(path), "test") for path in (runs["good"], place)]
    assert [one.name for one in found] == ["good", "good/test.step-00000003"]
    assert "good/test.step-00000003" in markdown_of(compare(found))


def test_other_impressions_or_other_labels_are_refused(runs, tmp_path) -> None:
    file = next((runs["bad"] / "predictions/test").glob("part-00001*"))
    table = pq.read_table(file)
    click = table.column("click").to_numpy().copy()
    where = int(np.flatnonzero(click == 0)[0]), int(np.flatnonzero(click == 1)[0])
    click[list(where)] = 1, 0  # the counts stay
    changed = table.set_column(table.column_names.index("click"), "click", pa.array(click))
    pq.write_table(changed, file)
    with pytest.raises(InputError, match="good and bad are not evaluated on the same impressions"):
        compare([read_result(str(runs[name]), "test") for name in ("good", "bad")])
    pq.write_table(table.slice(3), file)
    with pytest.raises(InputError, match=r"good has 4,\d+ with .* clicks, bad has 4,\d+ with"):
        compare([read_result(str(runs[name]), "test") for name in ("good", "bad")])


def test_what_is_not_evaluated_is_refused_with_the_command(runs, tmp_path) -> None:
    with pytest.raises(InputError, match=r"write them with: python -m jobs\.evaluate run=\S+good split=validation"):
        read_result(str(runs["good"]), "validation")
    (runs["good"] / "metrics.test.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.test\.json cannot be read"):
        read_result(str(runs["good"]), "test")
    for settings, said in (({"runs": ["a"]}, "fewer than two"), ({"runs": ["a", "a"]}, "names one twice"),
                           ({"runs": ["a", "b"], "split": "tset"}, "split=tset is not one of")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            CompareSettings(**settings)


def test_equal_predictions_do_not_differ_and_one_user_says_nothing() -> None:
    same = Estimate(0.7, np.array([0.1, -0.1]))
    assert difference_of(same, same).p == 1.0
    assert np.isnan(difference_of(Estimate(0.7, np.zeros(1)), Estimate(0.6, np.zeros(1))).p)
    apart = difference_of(Estimate(0.7, np.array([0.01, -0.01])), Estimate(0.6, np.zeros(2)))
    assert apart.value == pytest.approx(0.1)
    assert apart.p == pytest.approx(5.7e-7, rel=0.02)  # z = 0.1 / (0.01 · √(2 · 2)) = 5
