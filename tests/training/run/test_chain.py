"""The chain's stages, their order and what is skipped, with jobs that only leave the files by which they are known."""

import json
import re
from pathlib import Path

import pytest

from jobs.entry import compose
from pipeline.errors import InputError
from training.run import stages
from training.run.chain import ChainSettings, days_table, run_chain, with_day
from training.run.stages import Ledger, Stage, identity_of, run_stages


class Jobs:
    """Stands in for the jobs: writes what each writes last, and remembers the commands."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, list[str]]] = []
        self.failing = ""

    def run(self, name: str, command: list[str]) -> None:
        if name == self.failing:
            raise InputError(f"The stage {name} ended with status 2; its own message stands above.")
        job, words = command[2], dict(word.split("=", 1) for word in command[3:])
        self.commands.append((name, command[2:]))
        content = json.dumps([job, words])
        if job == "jobs.preprocess":
            write(Path(words["out"]) / "manifest.json", content)
        elif job == "jobs.train":
            write(Path(words["out"]) / "checkpoints" / "step-00000005" / "checkpoint.json", content)
        elif job == "jobs.evaluate":
            place = f"evaluations/{words['split']}.other" if "data" in words else "."
            auc = 0.5 + len(self.commands) / 100
            write(Path(words["run"]) / place / "metrics.json", json.dumps({"ctr_auc": auc, "num_impressions": 1000}))
        else:
            write(Path(words["out"]) / "scores.json", content)

    def names(self) -> list[str]:
        found = [name for name, _ in self.commands]
        self.commands = []
        return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    found = Jobs()
    monkeypatch.setattr(stages, "run_command", found.run)
    return found


def chain(tmp_path: Path, *words: str) -> None:
    run_chain(compose("pipeline", ChainSettings, [f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", *words]))


def test_a_second_chain_does_nothing_and_a_changed_setting_input_or_output_runs_what_depends_on_it(
    tmp_path: Path, jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw" / "log.csv", "1")
    write(tmp_path / "today" / "log.csv", "1")
    words = [f"score={tmp_path / 'today'}", "train_args=ranks=2 plan.batch_size=100"]
    chain(tmp_path, *words)
    (_, train) = jobs.commands[1]
    assert train[1:] == [
        f"data={tmp_path}/out/dataset",
        f"out={tmp_path}/out/run",
        "ranks=2",
        "plan.batch_size=100",
    ]
    assert jobs.names() == ["preprocess", "train", "evaluate", "score"]
    capsys.readouterr()
    chain(tmp_path, *words)
    assert jobs.names() == []
    assert capsys.readouterr().out.count("nothing to do.") == 4
    chain(tmp_path, *words, "evaluate_args=checkpoint=best")
    assert jobs.names() == ["evaluate"]
    write(tmp_path / "today" / "log.csv", "1 and more")
    chain(tmp_path, *words, "evaluate_args=checkpoint=best")
    assert jobs.names() == ["score"]
    (tmp_path / "out" / "scores" / "scores.json").unlink()
    chain(tmp_path, *words, "evaluate_args=checkpoint=best")
    assert jobs.names() == ["score"]
    write(tmp_path / "raw" / "log.csv", "1 and more")
    chain(tmp_path, *words, "evaluate_args=checkpoint=best")
    assert jobs.names() == ["preprocess"]  # which has made the same dataset
    chain(tmp_path, *words, "evaluate_args=checkpoint=best", "preprocess_args=seed=2")
    assert jobs.names() == ["preprocess", "train", "evaluate"]


def test_days_go_on_from_one_another_and_yesterdays_run_is_evaluated_before_the_day_is_trained_on(
    tmp_path: Path, jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    days = ["2017-05-06", "2017-05-07", "2017-05-08"]
    for day in days:
        write(tmp_path / "raw" / day / "log.csv", day)
    words = [f"days=[{','.join(days)}]", "preprocess_args='source.events.boundaries=[{day},{day+1}]'"]
    chain(tmp_path, *words)
    out, commands = tmp_path / "out", dict(jobs.commands)
    names = jobs.names()
    assert names == [
        "preprocess 2017-05-06", "train 2017-05-06", "evaluate 2017-05-06",
        "preprocess 2017-05-07", "evaluate yesterday's run on 2017-05-07", "train 2017-05-07", "evaluate 2017-05-07",
        "preprocess 2017-05-08", "evaluate yesterday's run on 2017-05-08", "train 2017-05-08", "evaluate 2017-05-08",
    ]  # fmt: skip
    assert f"vocabulary.base={out}/2017-05-06/dataset" in commands["preprocess 2017-05-07"]
    assert "source.events.boundaries=[2017-05-07,2017-05-08]" in commands["preprocess 2017-05-07"]
    assert f"init_from={out}/2017-05-07/run" in commands["train 2017-05-08"]
    assert set(commands["evaluate yesterday's run on 2017-05-08"][1:]) == {
        f"run={out}/2017-05-07/run", f"data={out}/2017-05-08/dataset", "split=train",
    }  # fmt: skip
    found = json.loads((out / "days.json").read_text())["days"]
    assert [entry["day"] for entry in found] == days
    assert ["progressive" in entry for entry in found] == [False, True, True]
    assert found[2]["progressive"]["ctr_auc"] == pytest.approx(0.59)
    assert re.search(r"^2017-05-08 +1,000 +0\.5900 ", capsys.readouterr().out, re.MULTILINE)
    chain(tmp_path, *words)
    assert jobs.names() == []
    assert json.loads((out / "days.json").read_text())["days"] == found
    more = [words[0].replace("]", ",2017-05-09]"), words[1]]
    write(tmp_path / "raw" / "2017-05-09" / "log.csv", "new")
    chain(tmp_path, *more)
    assert jobs.names() == [
        "preprocess 2017-05-09",
        "evaluate yesterday's run on 2017-05-09",
        "train 2017-05-09",
        "evaluate 2017-05-09",
    ]


def test_a_stage_that_fails_or_leaves_nothing_stops_the_chain_and_what_was_done_stays_done(
    tmp_path: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw" / "log.csv", "1")
    jobs.failing = "train"
    with pytest.raises(InputError, match="The stage train ended with status 2"):
        chain(tmp_path)
    assert jobs.names() == ["preprocess"]
    jobs.failing = ""
    chain(tmp_path)
    assert jobs.names() == ["train", "evaluate"]
    monkeypatch.setattr(stages, "run_command", lambda name, command: None)
    with pytest.raises(InputError, match=r"The stage train has ended without .*/run"):
        run_stages([Stage("train", "jobs.train", ("x=1",), (), str(tmp_path / "run"))], Ledger(tmp_path))


def test_a_damaged_list_of_stages_runs_all_of_them_again(tmp_path: Path, jobs: Jobs) -> None:
    write(tmp_path / "raw" / "log.csv", "1")
    for text in ("{", "[]", '{"format_version": 1}', '{"format_version": 0, "stages": {}}'):
        write(tmp_path / "out" / "pipeline.json", text)
        chain(tmp_path)
        assert jobs.names() == ["preprocess", "train", "evaluate"]
    assert (tmp_path / "out" / "pipeline.json").stat().st_mode & 0o777 == 0o600


def test_a_place_is_told_by_what_names_its_files(tmp_path: Path) -> None:
    assert identity_of(str(tmp_path / "nothing")) == ""
    assert identity_of(str(tmp_path)) == ""
    write(tmp_path / "a" / "b.csv", "1")
    first = identity_of(str(tmp_path))
    write(tmp_path / "a" / "c.csv", "1")
    assert "" != first != identity_of(str(tmp_path))
    write(tmp_path / "checkpoints" / "step-00000007" / "checkpoint.json", "1")
    assert identity_of(str(tmp_path)).startswith("step-00000007 ")
    write(tmp_path / "manifest.json", "1")
    with_manifest = identity_of(str(tmp_path))
    write(tmp_path / "a" / "d.csv", "1")
    assert identity_of(str(tmp_path)) == with_manifest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["days=[a,a]"], "names a day twice"),
        (["days=[a/b]"], "no name of a folder"),
        (["days=['..']"], "no name of a folder"),
        (["progressive_split=all"], "progressive_split=all is not one of train, validation, test"),
        (["train_args=a 'b"], "close the quotation mark"),
        (["preprocess_args=spark.conf.spark.hadoop.fs.s3a.secret.key=abc"], "holds a secret"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose("pipeline", ChainSettings, ["raw=R", f"out={tmp_path}", *words])


def test_the_day_in_a_word_is_counted_on_where_days_are_dates() -> None:
    assert with_day("a=[{day},{day+1},{day-6}]", "2020-02-29") == "a=[2020-02-29,2020-03-01,2020-02-23]"
    assert with_day("a={day}", "monday") == "a=monday"
    with pytest.raises(InputError, match=r"needs days that are dates, and days has monday"):
        with_day("a={day+1}", "monday")


def test_the_table_of_days_leaves_out_what_is_undefined() -> None:
    lines = days_table(
        [{"day": "d1", "test": {"ctr_auc": 0.61234, "cvr_auc": None, "num_impressions": 12345}}]
    ).splitlines()
    assert lines[1].split() == ["d1", "(own,", "test)", "12,345", "0.6123", "–", "–", "–", "–", "–"]
