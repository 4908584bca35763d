"""Mistakes on the command line: one sentence on stderr, status 2, before Spark starts."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_log import small_log

from jobs.command_line import ready_for_hydra
from jobs.entry import _stop, compose, imports_not_collected, launch
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError, TryAgainError
from pipeline.preprocess import preprocess
from training.run.settings import TrainSettings


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"JAVA_HOME": "/nowhere", "PATH": "/nowhere"}  # Spark could not start
    command = [sys.executable, "-m", "jobs.preprocess", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["source.path=RAW"], "error: out is not set and has no default; give it on the command line as out=VALUE."),
        (["source.path=RAW", "out=OUT", "sead=2"], "error: sead is not a setting of this job; did you mean seed?"),
        (["source.path=/nowhere", "out=OUT"], "error: source.path=/nowhere does not exist; give the directory"),
        (["source.path=/nowhere", "out=OUT", "features.fields.user_id.hash_buckets=9"], "error: source.path=/nowhere"),
        (["source.path=RAW", "out=OUT", "features.fields.user_id.hash_bucket=9"],
         "error: features.fields.user_id.hash_bucket is not a setting of this job"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_status_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    raw = small_log().write(tmp_path / "raw")
    result = job(*(argument.replace("RAW", str(raw)).replace("OUT", str(tmp_path / "out")) for argument in arguments))
    assert result.returncode == 2
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=two", "seed: Value 'two'"),
        ("split.validation=1.5", r"split.validation=1.5 is not a share in \[0, 1\)"),
        ("checks.bad_label=keep", "checks.bad_label=keep is not one of quarantine, fail"),
        ("rows.max_impressions=0", "rows.max_impressions=0 is below 1"),
        ("labels.daction=[cart,cart]", "names an action twice"),
        ("source.name=events", "source.name=events and source.events do not go together"),
        ("source.name=kafka", "source.name=kafka is not a known layout; choose aliccp or events"),
        ("features.group=item_id", "features.group=item_id is not a categorical context field"),
    ],
)
def test_a_setting_outside_its_rule_stops_before_spark(
    tmp_path: Path, preprocess_settings: Callable[..., PreprocessSettings], override: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        preprocess(preprocess_settings(small_log().write(tmp_path / "raw"), tmp_path / "out", override))
    assert not (tmp_path / "out").exists()


def test_help_lists_every_setting_and_starts_nothing() -> None:
    result = job("--help")
    assert result.returncode == 0
    for key in (
        "impressions_per_row_group: 16384",
        "duplicate_impression: quarantine",
        "master: local[2]",
        "127_14",
    ):
        assert key in result.stdout


def test_a_text_is_taken_as_it_is_typed() -> None:
    assert ready_for_hydra(["spark.master=local[4]", "spark.master='local[4]'", "seed=3"], PreprocessSettings) == [
        "spark.master='local[4]'",
        "spark.master='local[4]'",
        "seed=3",
    ]
    for text in (
        "2026_11_28",
        "1.10",
        "true",
        "a,b",
        "größe/ü",
        "a b",
        "it's",
        "back\\",
        "x=y",
        "(1)",
        "{a}",
        "1e3",
        "a: b",
    ):
        found = compose("train", TrainSettings, [f"data={text}", "out=y", f"init_from={text}"])
        assert (found.data, found.init_from) == (text, text)
    assert compose("train", TrainSettings, ["data=x", "out=y", "init_from=null"]).init_from is None


def test_a_setting_by_name_may_name_what_no_file_names() -> None:
    typed_in = ["embedding.dims.item_id=128", "embedding.dim=8", "sharding.tables.a=row_wise", "model=esmm"]
    assert ready_for_hydra(typed_in, TrainSettings) == [
        "++embedding.dims.item_id=128",
        "embedding.dim=8",
        "++sharding.tables.a=row_wise",
        "model=esmm",
    ]
    typed_in = ["features.fields.item_id.max_ids=9", "source.events.names.application=[apply]", "source.path=RAW"]
    assert ready_for_hydra(typed_in, PreprocessSettings) == [
        f"++{typed_in[0]}",
        f"++{typed_in[1]}",
        "source.path='RAW'",
    ]
    command = [sys.executable, "-m", "jobs.train", "data=/nowhere", "out=/nowhere", "embedding.dims.item_id=128"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, "data=/nowhere does not exist" in result.stderr) == (2, True)


def test_a_field_that_no_yaml_file_has_is_added_as_one_mapping() -> None:
    field = "+features.fields.price={raw_id: '9', scope: impression, kind: bucketized, boundaries: [1, 5]}"
    found = compose("preprocess", PreprocessSettings, ["source.path=x", "out=y", field]).features.fields["price"]
    assert (found.raw_id, found.kind, found.boundaries) == ("9", "bucketized", [1.0, 5.0])


def test_settings_of_a_group_that_may_be_left_out_are_settings_where_it_is_chosen() -> None:
    command = ["source=events", "source.path=x", "out=y", "features=shop", "source.events.boundaries=[0,1,2,3]"]
    found = compose("preprocess", PreprocessSettings, [*command, "source.events.actions_end=7"]).source.events
    assert found is not None
    assert (found.actions_end, found.context_window_s, found.actions.path) == ("7", 1800, "actions")
    with pytest.raises(
        InputError, match=r"is a setting of source\.events, which this command does not choose; give source=events too"
    ):
        compose("preprocess", PreprocessSettings, ["source.path=x", "out=y", "source.events.actions_end=7"])


def test_an_error_message_is_printed_with_control_characters_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _stop("data=\x1b[2J\nerror: nothing\u202e is not there", speaks=True, status=2)
    assert capsys.readouterr().err == "error: data=\\x1b[2J\\nerror: nothing\\u202e is not there\n"


@pytest.mark.parametrize(("error", "status"), [(InputError("a file"), 2), (TryAgainError("a rank was lost"), 75)])
def test_a_lost_rank_has_another_status_than_a_mistake(
    error: InputError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_settings: TrainSettings) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["train", "data=d", "out=o"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit, match=str(status)):
        launch("train", TrainSettings, run)
    assert capsys.readouterr().err == f"error: {error}\n"


def test_no_collection_scans_what_is_imported() -> None:
    frozen = gc.get_freeze_count()
    try:
        with imports_not_collected():
            was_enabled = gc.isenabled()
        assert not was_enabled
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("ending", "status"), [("pass", 0), ("sys.exit(75)", 75), ("sys.exit('no')", 1), ("1 / 0", 1)])
def test_a_rank_ends_with_its_status_and_its_exit_handlers_but_does_not_finalize_python(
    ending: str, status: int
) -> None:
    """A finalizer of the garbage collector would run in a finalization: it stands for the threads of gloo."""
    script = f"""
import atexit, sys
from jobs.entry import exit_without_finalization
class Finalized:
    def __del__(self):
        print("finalized", flush=True)
kept = Finalized()
atexit.register(print, "handler")
with exit_without_finalization():
    print("work")
    {ending}
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout.split() == ["work", "handler"] + ["finalized"] * (ending == "1 / 0")
    assert ("ZeroDivisionError" in ended.stderr) == (ending == "1 / 0")
    assert (ended.stderr == "no\n") == ("no" in ending)
