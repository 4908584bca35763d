"""jobs.reproduce: the papers' figures, what is planned and what is finished, and tables of tiny figures against NumPy and SciPy."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from browser import CHROMIUM, assert_nothing_overflows
from fake_jobs import FakeJobs, settings_of
from scipy.stats import ttest_rel
from tiny_dataset import write_tiny_dataset

from pipeline.errors import InputError
from pipeline.file_lock import exclusive_lock
from training.reproduction.figures import REPRODUCED
from training.reproduction.page import FilledRow, FilledTable, markdown_of_table, write_table
from training.reproduction.published import ESM2_TABLE_4, ESM2_TABLE_5, ESMM_TABLE_2
from training.reproduction.run import reproduce
from training.reproduction.search import candidates_of, choose_best
from training.reproduction.seeds import paired_difference, summarize_seeds
from training.reproduction.shared_work import TRIAL_LOCK, run_trials
from training.reproduction.tables import PAPER_TABLES, implied_rates
from training.reproduction.trials import Trial, Trials, read_cost, run_trial
from training.run import stages
from training.run.systems import ESMM, system_named


def test_the_papers_own_sums_hold_for_the_figures_typed_from_them() -> None:
    esmm, base = ESMM_TABLE_2["ESMM"], ESMM_TABLE_2["BASE"]
    gains = [round(one.value - other.value, 2) for one, other in zip(esmm, base, strict=True)]
    assert gains == [2.56, 3.25]  # ESMM §3.3, in words
    for table in (ESM2_TABLE_4, ESM2_TABLE_5):
        for figures in table.values():
            for recall, precision, f1 in zip(figures[0::3], figures[1::3], figures[2::3], strict=True):
                harmonic = 2 * recall.value * precision.value / (recall.value + precision.value)
                assert harmonic == pytest.approx(f1.value, abs=0.0014)


def test_one_table_of_cuts_implies_several_shares_of_positives() -> None:
    assert implied_rates(ESM2_TABLE_4)["GBDT"] == pytest.approx((0.3274, 0.3636, 0.2696), abs=1e-4)
    assert implied_rates(ESM2_TABLE_5)["ESM2"] == pytest.approx((0.0237, 0.0902, 0.0685), abs=1e-4)
    assert "0.024 to 0.090 %" in PAPER_TABLES["esm2_5"].notes[0]
    assert "0.270 to 0.374 %" in PAPER_TABLES["esm2_4"].notes[0]


def test_every_published_row_and_figure_has_its_place_in_a_table() -> None:
    for table in REPRODUCED.values():
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels)
        series = {row.place.series for row in table.rows if row.place}
        assert table.reference in ({*labels, *series} | {""})
        assert all(len(gains) == len(table.columns) for gains in table.relative)
        assert set(table.published) <= set(labels)
        assert all(len(figures) == len(table.columns) for figures in table.published.values())


def test_mean_deviation_and_paired_test_are_those_of_numpy_and_scipy() -> None:
    random = np.random.default_rng(3)
    for num in (2, 3, 5, 10):
        one, other = random.normal(0.6, 0.01, num), random.normal(0.61, 0.01, num)
        summary = summarize_seeds(one.tolist())
        assert summary.mean == pytest.approx(one.mean())
        assert summary.std == pytest.approx(one.std(ddof=1))
        found = paired_difference(one.tolist(), other.tolist())
        assert found.mean == pytest.approx((one - other).mean())
        assert found.p == pytest.approx(ttest_rel(one, other).pvalue, rel=1e-9)


def test_what_a_single_seed_or_an_undefined_figure_cannot_tell_is_not_told() -> None:
    assert summarize_seeds([0.5]) == (0.5, None, 1)
    assert summarize_seeds([None, 0.5, 0.7, None])[2] == 2
    assert summarize_seeds([None]) == (None, None, 0)
    assert paired_difference([0.5], [0.25]) == (0.25, None, 1)
    assert paired_difference([None, 0.5, 0.75], [0.5, 0.5, 0.5])[2] == 2
    assert paired_difference([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert paired_difference([None], [0.5]) == (None, None, 0)


def test_every_combination_is_a_candidate_and_the_best_on_validation_is_chosen() -> None:
    aman, base = system_named(ESMM, "AMAN"), system_named(ESMM, "BASE")
    assert candidates_of(base, []) == [()]
    assert candidates_of(base, [0.001]) == [("optimizer.towers.lr=0.001",)]
    assert len(candidates_of(aman, [0.001, 0.01])) == 8
    words = candidates_of(aman, [])
    assert words[0] == ("model.sampling.unclicked=0.1",)
    assert choose_best("AMAN", "cvr_auc", dict(zip(words, [0.5, None, 0.7, 0.7], strict=True))) == words[2]
    with pytest.raises(InputError, match="undefined on validation"):
        choose_best("AMAN", "cvr_auc", dict.fromkeys(words))


def test_a_stopped_table_goes_on_where_it_was_and_a_finished_one_runs_nothing(
    data: Path, tmp_path: Path, fake: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(data, tmp_path / "out", "seeds=2", "systems=[AMAN,UNBIAS,ESMM]", "train_args=epochs=3")
    fake.fails_at = 9
    with pytest.raises(InputError, match="status 2"):
        reproduce(settings)
    capsys.readouterr()
    fake.fails_at = -1
    reproduce(settings)
    num = len(fake.commands)
    assert len({tuple(command) for command in fake.commands}) == num, "no command ran twice"
    trained = [command for command in fake.commands if command[0] == "jobs.train"]
    # AMAN: four candidates with seed 1, and the best with seed 2; UNBIAS, ESMM and the CTR network with two seeds.
    assert len(trained) == 4 + 1 + 2 + 2 + 2
    # A CTR network that three rows take predicts the splits that UNBIAS trains on, before UNBIAS does.
    first_unbias = next(number for number, command in enumerate(fake.commands) if "model=unbias" in command)
    before = [command for command in fake.commands[:first_unbias] if command[0] == "jobs.evaluate"]
    assert [command[2] for command in before if "esmm-ctr" in command[1]] == ["split=train", "split=validation"] * 2
    assert all("epochs=3" in command for command in trained)
    tested = [command for command in fake.commands if "split=test" in command]
    assert len(tested) == 6, "the test split is read once for each run of the table, and not by the search"
    assert all(any(word.startswith("ctr_run=") for word in command) for command in tested)
    unbias = [command for command in trained if "model=unbias" in command]
    assert all(any(word.startswith("ctr_run=") for word in command) for command in unbias)
    capsys.readouterr()
    reproduce(settings)
    assert len(fake.commands) == num
    assert "8 runs, 8 finished, 0 to do." in capsys.readouterr().out
    text = (tmp_path / "out" / "tables" / "esmm2.md").read_text()
    assert "| AMAN | 52.50 ± 0.00 | 65.21 ± 0.59 |" in text
    commands = text.partition("UNBIAS:\n")[2]
    for words in ("model=ctr seed=1", "split=train", "model=unbias seed=1", "split=test"):
        assert words in commands, "the commands begin with those of the CTR network"
    search = json.loads((tmp_path / "out" / "tables" / "search-esmm-aman.json").read_text())
    assert search["chosen"] == ["model.sampling.unclicked=0.5"]


def test_a_plan_names_what_is_missing_and_runs_nothing(
    data: Path, tmp_path: Path, fake: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    reproduce(settings_of(data, out, "seeds=1", "systems=[BASE]"))
    num = len(fake.commands)
    reproduce(settings_of(data, out, "seeds=2", "systems=[BASE,AMAN]", "only_plan=true"))
    assert len(fake.commands) == num
    said = capsys.readouterr().out
    assert "AMAN: the search on validation: 4 runs, 0 finished, 4 to do." in said
    # Two CTR networks, two of BASE, two of AMAN; a CTR network and a BASE are there.
    assert "table=esmm2: 6 runs, 2 finished, 4 to do." in said
    assert "esmm-base seed 2: train, test.ctr.json" in said


def test_what_a_run_cost_is_added_over_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stages.Stage("train", "jobs.train", (), (), str(tmp_path / "trial" / "made"))
    trial = Trial(system_named(ESMM, "BASE"), (), 1, tmp_path / "trial", (stage,))
    monkeypatch.setattr(stages, "run_command", lambda *_: None)
    with pytest.raises(InputError, match="has ended without"):
        run_trial(trial)
    first = read_cost(trial)["wall_s"]
    assert first > 0
    (tmp_path / "trial" / "made").write_text("x")
    run_trial(trial)
    assert read_cost(trial)["wall_s"] > first


def test_two_commands_divide_the_trials_and_wait_for_each_other(
    data: Path, tmp_path: Path, fake: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = Trials(settings_of(data, tmp_path / "out"), str(data))
    here, there = (trials.tested(system_named(ESMM, "ESMM"), (), seed) for seed in (1, 2))
    there.folder.mkdir(parents=True)
    with exclusive_lock(there.folder / TRIAL_LOCK):  # the other command is at it
        working = Thread(target=run_trials, args=([here, there], 0.01))
        working.start()
        said = ""
        while working.is_alive() and "another command is running it" not in said:
            time.sleep(0.01)
            said += capsys.readouterr().out
        assert working.is_alive(), "it waits"
        assert not here.missing, "what is free is taken"
        assert len(there.missing) == 2
        run_trial(there)
    working.join(10)
    assert not working.is_alive()
    assert len(fake.commands) == len({tuple(command) for command in fake.commands}) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table=esm2_3", "systems=[ESM2]"], "no label daction"),
        (["table=esm2_6", "systems=[Wish]"], "needs data_wish=DATASET"),
        (["table=esm2_numeric", "systems=[buckets]"], "needs data_bucketized=DATASET"),
        (["table=esm3"], "table=esm3 is not one of esmm2"),
        (["seeds=0"], "seeds=0 is not from 1"),
        (["systems=[GBDT]"], "no row of table=esmm2"),
        (["systems=[BASE,BASE]"], "names one twice"),
        (["learning_rates=[0.1,-1]"], "learning_rates has -1"),
        (["learning_rates=[0.1,0.1]"], "has one twice"),
        (["train_args=seed=3"], "train_args has seed=3"),
        (["train_args='\"'"], "close the quotation mark"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_before_anything_runs(
    words: list[str], said: str, data: Path, tmp_path: Path, fake: FakeJobs
) -> None:
    with pytest.raises(InputError, match="(?s)" + said.replace("[", r"\[")) as refused:
        reproduce(settings_of(data, tmp_path / "out", *words))
    assert "\n" not in str(refused.value)
    assert not fake.commands


def test_what_counts_as_daction_is_compared_on_one_log(tmp_path: Path, fake: FakeJobs) -> None:
    paths = {name: tmp_path / name for name in ("data", "data_cart", "data_wish", "other")}
    for name, path in paths.items():
        write_tiny_dataset(path, num_contexts=70 if name == "other" else 60, daction=True)
    words = ["table=esm2_6", "seeds=1", f"data_cart={paths['data_cart']}"]
    reproduce(settings_of(paths["data"], tmp_path / "out", *words, f"data_wish={paths['data_wish']}"))
    trained = [command[1] for command in fake.commands if command[0] == "jobs.train"]
    assert trained == [f"data={paths[name]}" for name in ("data_cart", "data_wish", "data")]
    folders = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert folders == ["cart-esm2-esm2", "esm2-esm2", "wish-esm2-esm2"]
    with pytest.raises(InputError, match="test splits differ"):
        reproduce(settings_of(paths["data"], tmp_path / "out", *words, f"data_wish={paths['other']}"))


def test_a_dataset_without_validation_cannot_choose_rates(tmp_path: Path, fake: FakeJobs) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=60, splits={"train": 0.8, "test": 0.2})
    with pytest.raises(InputError, match="no validation split, on which the rates of AMAN"):
        reproduce(settings_of(tmp_path / "data", tmp_path / "out"))
    assert not fake.commands


def test_without_xgboost_the_row_is_named_at_the_start(
    data: Path, tmp_path: Path, fake: FakeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(InputError, match="leave GBDT out"):
        reproduce(settings_of(data, tmp_path / "out", "table=esm2_3"))
    assert not fake.commands


def test_a_table_has_ours_beside_the_papers_and_counts_collapsed_runs(tmp_path: Path) -> None:
    table = PAPER_TABLES["esmm2"]
    random = np.random.default_rng(5)
    auc_by_label = {label: random.uniform(0.5, 0.7, (3, 2)) for label in ("BASE", "ESMM", "UNBIAS, weighted")}
    rows = []
    for label, figures in auc_by_label.items():
        metrics = [
            {"cvr_auc": cvr, "ctcvr_independent_auc": ctcvr, "ctcvr_auc": 0.1, "alerts": [], "num_impressions": 1000}
            | {"num_clicks": 10, "num_conversions": 2}
            for cvr, ctcvr in figures
        ]
        metrics[1]["alerts"] = [{"kind": "one_value", "of": "cvr", "text": "…"}] if label == "BASE" else []
        row = next(row for row in table.rows if row.label == label)
        costs = ({"wall_s": 10.0, "cpu_s": 20.0},) * 3
        rows.append(FilledRow(row, (), (("jobs.train", "out=<b>"),), tuple(metrics), costs))
    filled = FilledTable(table, rows, "DATA")
    figures, differences, runs = filled.sections()
    base, esmm = 100 * auc_by_label["BASE"], 100 * auc_by_label["ESMM"]
    cells = figures.rows[0]
    assert cells[1] == f"{base[:, 0].mean():.2f} ± {base[:, 0].std(ddof=1):.2f}"
    assert cells[2] == "66.00 ± 0.37"
    assert cells[3] == f"{base[:, 1].mean():.2f} ± {base[:, 1].std(ddof=1):.2f}"
    assert figures.rows[2][2] == "–"
    p = ttest_rel(base[:, 0], esmm[:, 0]).pvalue
    assert differences.rows[0][1].startswith(f"{(base - esmm)[:, 0].mean():+.2f} (p {p:.2g}")
    assert differences.rows[0][1].endswith("; paper -2.56")
    assert runs.rows[0][1:6] == ["3", "1", "–", "10", "20"]
    paths = write_table(filled, tmp_path, "esmm2")
    assert [path.suffix for path in paths] == [".md", ".html", ".json"]
    assert paths[0].read_text() == markdown_of_table(filled)
    page = paths[1].read_text()
    if CHROMIUM:
        assert_nothing_overflows(paths[1], tmp_path)
    assert "out=&lt;b&gt;" in page
    assert cells[1] in page
    saved = json.loads(paths[2].read_text())
    assert saved["rows"][0]["figures"]["cvr_auc"]["values"] == pytest.approx(base[:, 0].tolist())
    assert saved["rows"][0]["collapsed"] == [False, True, False]


def test_commands_that_end_together_all_write_the_whole_table(tmp_path: Path) -> None:
    row = PAPER_TABLES["esmm2"].rows[-1]
    metrics = {"alerts": [], "num_impressions": 9, "num_clicks": 3, "num_conversions": 1}
    filled = FilledTable(
        PAPER_TABLES["esmm2"], [FilledRow(row, (), ((),), (metrics,), ({"wall_s": 1.0, "cpu_s": 1.0},))], "DATA"
    )
    with ThreadPoolExecutor(8) as pool:
        written = [
            future.result() for future in [pool.submit(write_table, filled, tmp_path, "esmm2") for _ in range(80)]
        ]
    assert {path.read_text() for paths in written for path in paths if path.suffix == ".md"} == {
        markdown_of_table(filled)
    }
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["esmm2.html", "esmm2.json", "esmm2.md"]
