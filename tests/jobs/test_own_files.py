"""What a configuration may not do: run code, reach Hydra, hide a file of ours, or take time without bound."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.command_line import parse_words
from jobs.entry import compose
from pipeline.errors import InputError
from training.run.settings import TrainSettings

REQUIRED = ["data=/nowhere", "out=OUT"]
CODE = "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [PAYLOAD]}]}"
CALLBACKS = "{callbacks: {x: {_target_: subprocess.call, args: [touch, PAYLOAD]}}}"

#: File of --config-dir → its text, and the words that choose it.
WAYS_IN = {
    "hydra in a file": ("model/mine.yaml", f"hydra: {CALLBACKS}", ["model=mine"]),
    "hydra in an experiment": ("experiment/mine.yaml", f"# @package _global_\nhydra: {CALLBACKS}", ["experiment=mine"]),
    "the package of a file": ("model/mine.yaml", f"# @package hydra\ncallbacks: {CODE}", ["model=mine"]),
    "a package below hydra": ("model/mine.yaml", f"# @package hydra.callbacks\nx: {CODE}", ["model=mine"]),
    "a folder hydra": ("hydra/callbacks/mine.yaml", f"x: {CODE}", ["hydra/callbacks=mine"]),
    "a folder hydra by +": ("hydra/callbacks/mine.yaml", f"x: {CODE}", ["+hydra/callbacks=mine"]),
    "a launcher": ("hydra/launcher/mine.yaml", CODE, ["hydra/launcher=mine", "--multirun"]),
    "a sweeper": ("hydra/sweeper/mine.yaml", CODE, ["hydra/sweeper=mine", "-m", "seed=1,2"]),
    "hydra's own configuration": ("hydra/config.yaml", f"callbacks: {CODE}", []),
    "a defaults list": ("model/mine.yaml", "defaults: [{override /hydra/launcher: x}]", ["model=mine"]),
    "a package in a defaults list": ("model/mine.yaml", "defaults: [esmm@hydra.callbacks]", ["model=mine"]),
    "a defaults list that leads outside": ("model/mine.yaml", "defaults: [../../outside]", ["model=mine"]),
    "a defaults list with an interpolation": ("model/mine.yaml", "defaults: ['${oc.env:HOME}']", ["model=mine"]),
    "_target_ in a file": ("model/mine.yaml", f"body: {CODE}", ["model=mine"]),
    "_target_ in a list": ("model/mine.yaml", f"graph: {{losses: [{CODE}]}}", ["model=mine"]),
    "_target_ on the command line": ("model/mine.yaml", "{}", [f"+model.body={CODE}"]),
    "_target_ as a key": ("model/mine.yaml", "{}", ["+model.body._target_=os.abort"]),
    "callbacks on the command line": ("model/mine.yaml", "{}", [f"+hydra.callbacks={CODE}"]),
    "callbacks by ++": ("model/mine.yaml", "{}", [f"++hydra.callbacks.x={CODE}"]),
    "a package on the command line": ("model/mine.yaml", f"x: {CODE}", ["+model@hydra.callbacks=mine"]),
    "a global package": ("model/mine.yaml", f"x: {CODE}", ["+model@_global_.hydra.callbacks=mine"]),
    "the search path": ("model/mine.yaml", "{}", ["hydra.searchpath=[file://DIR]"]),
    "the environment": ("model/mine.yaml", "{}", ["+hydra.job.env_set={PYTHONSTARTUP: DIR}"]),
    "the folder of a run": ("model/mine.yaml", "{}", ["hydra.run.dir=DIR/written"]),
    "the subfolder": ("model/mine.yaml", "{}", ["hydra.output_subdir=DIR/written"]),
    "deleting what is ours": ("model/mine.yaml", "{}", ["~hydra.help"]),
    "a file outside of the folders": ("outside.yaml", f"x: {CODE}", ["model=../outside"]),
    "a file outside by a package": ("outside.yaml", f"x: {CODE}", ["+model@x=../../outside"]),
    "--config-path": ("train.yaml", f"hydra: {CALLBACKS}", ["--config-path=DIR"]),
    "--config-name": ("other.yaml", f"hydra: {CALLBACKS}", ["--config-name", "other"]),
    "an option of Hydra's": ("model/mine.yaml", "{}", ["--experimental-rerun", "DIR/model/mine.yaml"]),
    "an interpolation": ("model/mine.yaml", "body: {kind: '${oc.env:HOME}'}", ["model=mine"]),
    "an interpolation that is typed in": ("model/mine.yaml", "{}", ["model.body.kind=${oc.env:HOME}"]),
    "an interpolation as a choice": ("model/mine.yaml", "{}", ["model=${oc.env:HOME}"]),
    "a tag of Python's": ("model/mine.yaml", "body: !!python/object/apply:os.system ['touch PAYLOAD']", ["model=mine"]),
    "the name of a file of ours": ("model/esmm.yaml", "{}", []),
    "the name of our defaults": ("train_settings.yaml", "{}", []),
    "an experiment that is not there": ("model/mine.yaml", "{}", ["experiment=mine"]),
    "no mapping": ("model/mine.yaml", "[1, 2]", ["model=mine"]),
    "a header that is none": ("model/mine.yaml", "# @package a b c\nname: x", ["model=mine"]),
}  # fmt: skip


def launched(words: list[str]) -> TrainSettings:
    typed_in = parse_words(words)
    return compose("train", TrainSettings, typed_in.overrides, typed_in.config_dir)


@pytest.mark.parametrize("way", WAYS_IN)
def test_no_configuration_runs_code_or_reaches_hydra(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, text, words = WAYS_IN[way]
    payload, folder = tmp_path / "payload", tmp_path / "mine"
    file = folder / name
    file.parent.mkdir(parents=True)
    file.write_text(text.replace("PAYLOAD", str(payload)))
    typed_in = [word.replace("PAYLOAD", str(payload)).replace("DIR", str(folder)) for word in words]
    with pytest.raises(InputError) as refused:
        launched([*REQUIRED, "--config-dir", str(folder), *typed_in])
    assert "\n" not in str(refused.value)
    assert not payload.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


#: Text → what the sentence says.
BOMBS = {
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]": "alias",
    "a: &a [*a]": "alias",
    "a: &a {x: 1}\nb: {<<: *a}": "alias",
    "a: " + "[" * 20_000: "nested deeper than",
    "a:\n" + "".join(f"{' ' * depth}a:\n" for depth in range(1, 500)): "nested deeper than",
    "a: [" + "1," * 200_000 + "]": "more than 50000 values",
    "a: " + "x" * (2 << 20): "bytes, the bound",
    "a: " + "9" * 10_000: "no plain YAML",
    "a: 9223372036854775808": "does not fit 64 bits",
    "a: .nan": "not a finite number",
    "a: .inf": "not a finite number",
    "a: 1\na: 2": "is there twice",
    "1: 2": "is not text",
    "on: 2": "is not text",
    "a: 'x\0y'": "no plain YAML",
    'a: "x\\0y"': "not text in UTF-8",
    "a: !!binary aGk=": "no plain value",
    "a: !!set {b}": "no plain value",
    "a: [": "no plain YAML",
    "a: '": "no plain YAML",
    "defaults: 3": "defaults=3 is no list",
    "defaults: [/model: mine]": "name each other in a circle",
}


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_what_is_no_plain_yaml_is_refused_within_a_second(tmp_path: Path, text: str) -> None:
    file = tmp_path / "model" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(InputError) as refused:
        compose("train", TrainSettings, [*REQUIRED, "model=mine"], tmp_path)
    assert time.process_time() - began < 1.0
    assert BOMBS[text] in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "fifo.yaml")
    (folder / "folder.yaml").mkdir()
    (folder / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    (folder / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    for name, rule in (
        ("fifo", "regular"),
        ("folder", "directory"),
        ("dangling", "does not exist"),
        ("latin", "UTF-8"),
    ):
        with pytest.raises(InputError, match=rule):
            compose("train", TrainSettings, [*REQUIRED, f"model={name}"], tmp_path)


def test_files_of_your_own_compose_as_those_of_conf(tmp_path: Path) -> None:
    folder = tmp_path / "größe, 'x' [1]"
    (folder / "model").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "model" / "mine.yaml").write_text("defaults: [esmm, _self_]\nname: mine\ntowers: {hidden: [3]}\n")
    (folder / "experiment" / "small.yaml").write_text("# @package _global_\nembedding: {dim: 4, init_bound: 1e-3}\n")
    found = compose("train", TrainSettings, [*REQUIRED, "model=mine", "experiment=small"], folder)
    assert (found.model.name, found.model.towers.hidden, found.model.graph.losses) == (
        "mine",
        [3],
        ["click", "conversion"],
    )
    assert (found.embedding.dim, found.embedding.init_bound) == (4, 1e-3)


def test_options_may_stand_anywhere() -> None:
    for words in (["a=1", "--config-dir", "x", "b=2"], ["--config-dir=x", "a=1", "b=2"], ["a=1", "b=2", "-cd", "x"]):
        assert parse_words(words) == (["a=1", "b=2"], Path("x"), False)
    assert parse_words(["a=1", "--help"]).wants_help
    for words in (
        ["--config-dir"],
        ["--config-dir", "a=1"],
        ["--config-dir", "x", "--config-dir", "y"],
        ["--cfg", "job"],
    ):
        with pytest.raises(InputError, match="--config-dir"):
            parse_words(words)


def test_a_folder_of_settings_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        compose("train", TrainSettings, REQUIRED, tmp_path / "nowhere")


def test_a_job_refuses_without_torch_spark_or_the_comments_of_its_help() -> None:
    """The time of a refusal: what loads in seconds is not loaded, and what only --help reads is not read."""
    heavy = ("torch", "pyspark", "torchrec", "jobs.help_page")
    for name in (
        "simulate",
        "preprocess",
        "train",
        "evaluate",
        "inspect",
        "plan",
        "demo",
        "score",
        "compare",
        "export",
        "pipeline",
        "reproduce",
        "gbdt",
        "track",
    ):
        script = (
            "import atexit, sys, runpy\n"
            f"atexit.register(lambda: print([name for name in {heavy} if name in sys.modules]))\n"
            f"sys.argv = ['x', 'no_such=1']\n"
            f"runpy.run_module('jobs.{name}', run_name='__main__')\n"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout) == (2, "[]\n"), name
        assert result.stderr.startswith("error: no_such is not a setting of this job")
