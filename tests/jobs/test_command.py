"""The command `entirespace`: the list of jobs, help within a second's work, other forms of settings, completion of a shell."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pseudo_terminal import run_on_terminal

from jobs.command_line import parse_words, refuse_other_forms
from jobs.completion import SHELLS, completed_words, completion_script
from jobs.help_page import comments_of
from jobs.listing import CONF, JOBS, choices_of, job_named
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from training.run.settings import TrainSettings

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchrec", "pyspark", "numba")


def entirespace(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_job_is_listed_with_its_settings_and_nothing_else_is() -> None:
    launched = {
        path.stem: match[1]
        for path in (ROOT / "jobs").glob("*.py")
        if (match := re.search(r'\blaunch\("\w+", (\w+),', path.read_text()))
    }
    assert launched == {job.name: job.schema.__name__ for job in JOBS}
    assert {path.stem for path in CONF.glob("*.yaml")} == set(launched)


def test_the_overview_has_each_job_once_in_the_order_of_use() -> None:
    done = entirespace("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(r"^  (\w+)  +(\S.+)$", done.stdout, re.MULTILINE)
    assert listed == [(job.name, job.about) for job in JOBS]
    names = [job.name for job in JOBS]
    for earlier, later in (
        ("simulate", "preprocess"),
        ("preprocess", "train"),
        ("train", "evaluate"),
        ("evaluate", "score"),
    ):
        assert names.index(earlier) < names.index(later)
    assert entirespace().stdout == entirespace("help").stdout == done.stdout
    assert "Usage: entirespace inspect " in entirespace("help", "inspect").stdout
    assert "\x1b" not in done.stdout


def test_the_command_starts_the_job_and_names_the_nearest_one_for_an_unknown_word() -> None:
    job = entirespace("inspect", "data=/nowhere/at/all")
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith("error: data=/nowhere/at/all")
    unknown = entirespace("prepocess", "out=x")
    assert (unknown.returncode, unknown.stderr) == (2, "error: prepocess is not a job; did you mean preprocess?\n")
    far = entirespace("zzz\x1b[2J")
    assert (far.returncode, far.stderr) == (2, "error: zzz\\x1b[2J is not a job; entirespace --help lists the jobs.\n")
    version = entirespace("--version").stdout
    assert re.fullmatch(r"entirespace \d+\.\d+\.\d+\n", version)
    assert version.split()[1] in (ROOT / "pyproject.toml").read_text()


def test_pyproject_installs_the_command() -> None:
    import tomllib

    from jobs.__main__ import run_entirespace

    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert script == {"entirespace": f"{run_entirespace.__module__}:{run_entirespace.__name__}"}


@pytest.mark.parametrize("name", [job.name for job in JOBS])
def test_help_begins_with_what_a_first_command_needs_and_costs_less_than_a_second(name: str) -> None:
    script = (
        "import atexit, sys, runpy, time\n"
        f"atexit.register(lambda: print(time.process_time(), [name for name in {HEAVY} if name in sys.modules], file=sys.stderr))\n"
        f"sys.argv = ['x', '--help']\n"
        f"runpy.run_module('jobs.{name}', run_name='__main__')\n"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    wall_s = time.monotonic() - begun
    cpu_s, heavy = done.stderr.split(maxsplit=1)
    assert float(cpu_s) < 1.0, wall_s  # of this process alone: others may use the cores. 0.3 to 0.6 were measured
    assert "torch" not in heavy
    assert "pyspark" not in heavy
    page, job = done.stdout, job_named(name)
    usage, example, settings = (page.index(word) for word in ("Usage:", "Example:", "\nSettings"))
    assert usage < example < settings
    assert job.about in page
    assert f"entirespace {name} {job.example}" in page
    text = page[settings:].split("\n\n", 1)[1].rpartition("\n\nOptions:")[0]
    shown = yaml.safe_load(text)
    required = [line.split()[0] for line in page.partition("Required:\n")[2].partition("\n\n")[0].splitlines()]
    assert required == required_of(shown)
    comments = comments_of(job.schema)
    for key in required:
        assert page.index(f"{key}") < settings
        assert comments[key] in page[:settings]
    groups = re.findall(r"^  (\w+)=$", page, re.MULTILINE)
    assert groups == list(choices_of(name))


def required_of(settings: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += required_of(value, f"{prefix}{key}.")
        elif value == "???":
            found.append(f"{prefix}{key}")
    return found


def test_help_marks_the_file_that_is_chosen_and_shows_its_settings() -> None:
    page = entirespace("train", "model=esm2", "--help").stdout
    assert re.search(r"^    \* esm2 ", page, re.MULTILINE)
    assert re.search(r"^      esmm ", page, re.MULTILINE)
    assert "p_ctavr: daction" in page
    assert "adagrad" in page
    assert "cart_wish" not in page  # a group of another job


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        (["--out", "X"], "out=X"),
        (["--data=X"], "data=X"),
        (["-o", "X"], "out=X"),
        (["out", "X"], "out=X"),
        (["out:", "X"], "out=X"),
        (["out:X"], "out=X"),
        (["--batch-size", "5"], "plan.batch_size=5"),
        (["--embedding.dim", "5"], "embedding.dim=5"),
        (["--model", "esm2", "data=D", "--out", "a b"], "model=esm2 'out=a b'"),
        (["--out"], "out=VALUE"),
        (["--out", "--data=X"], "out=VALUE data=X"),
        (["--oout", "X"], "out=X"),
        (["--cfg", "job"], None),
    ],
)  # fmt: skip
def test_other_forms_of_a_setting_are_answered_with_the_right_one(typed: list[str], right: str | None) -> None:
    if right is None:
        refuse_other_forms(typed, TrainSettings)
        with pytest.raises(InputError, match="--cfg is not an option"):
            parse_words(typed)
        return
    with pytest.raises(InputError, match="is not how a job takes settings; write ") as caught:
        refuse_other_forms(typed, TrainSettings)
    assert str(caught.value).endswith(f"; write {right}")


def test_a_switch_is_answered_with_true_and_false() -> None:
    for typed, right in ((["--overwrite", "seed=2"], "overwrite=true"), (["--no-overwrite"], "overwrite=false")):
        with pytest.raises(InputError, match=f"write {right}$"):
            refuse_other_forms(typed, PreprocessSettings)


def test_the_right_forms_pass() -> None:
    words = [
        "out=X",
        "data=s3://b/c:d",
        "model=esm2",
        "~experiment",
        "+spark.conf={a: b}",
        "--config-dir",
        "out",
        "--help",
    ]
    refuse_other_forms([*words, "init_from=null", "embedding.dims.item_id=9"], TrainSettings)


def test_the_demo_takes_a_model_although_hydra_has_a_group_of_that_name(tmp_path: Path) -> None:
    from jobs.entry import compose
    from training.run.demo import DemoSettings, demo_commands, needs_daction

    settings = compose("demo", DemoSettings, ["model=esm2", f"out={tmp_path}", "ranks=1"])
    assert (settings.model, settings.ranks) == ("esm2", 1)
    for name, wanted in (("esmm", False), ("esm2", True), ("loan", True), ("base", False)):
        model = compose("train", TrainSettings, ["data=D", "out=R", f"model={name}"]).model
        assert needs_daction(model) == wanted
        commands = dict(demo_commands(settings, model))
        assert ("labels=cart_wish" in commands["preprocess"]) == wanted
        assert ("actions=true" in commands["simulate"]) == wanted
        assert "model=esm2" in commands["train"]
    unknown = entirespace("demo", f"out={tmp_path / 'x'}", "model=nope")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: model=nope cannot be trained by the demo. ")
    assert "esmm" in unknown.stderr
    assert not (tmp_path / "x").exists()


def completions(shell: str, line: str, folder: Path) -> list[str]:
    """Ask a shell what it would complete at the end of `line`."""
    script = folder / f"completion.{shell}"
    if not script.exists():
        script.write_text(completion_script(shell))
    if shell == "fish":
        command = f"source {script}; complete -C {line!r}"
    else:
        # Tab after `=` replaces what stands behind it, because = is among bash's COMP_WORDBREAKS.
        command = (
            f"source {script}; COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; _entirespace; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
    options = {"bash": ["--norc", "-c"], "fish": ["--no-config", "-c"]}[shell]
    done = subprocess.run([shell, *options, command], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return [entry.split("\t")[0] for entry in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_jobs_settings_and_the_files_of_groups(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "dataset").mkdir()
    assert completions(shell, "entirespace prep", tmp_path) == ["preprocess"]
    assert set(completions(shell, "entirespace ", tmp_path)) >= {job.name for job in JOBS}
    assert completions(shell, "entirespace completion z", tmp_path) == ["zsh"]
    assert "embedding.dim=" in completions(shell, "entirespace train embedding.d", tmp_path)
    assert "features=" not in completions(shell, "entirespace train data=x ", tmp_path)
    begin = "" if shell == "bash" else "model="
    found = completions(shell, "entirespace train data=x model=esm2", tmp_path)
    assert f"{begin}esm2" in found
    assert f"{begin}ple" not in found
    assert [
        word.rstrip("/").removeprefix("data=") for word in completions(shell, "entirespace train data=dat", tmp_path)
    ] == ["dataset"]


def test_zsh_completes_on_a_terminal(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    (tmp_path / "completion.zsh").write_text(completion_script("zsh"))
    # zpty runs an interactive zsh on a pseudo-terminal of its own.
    (tmp_path / "ask.zsh").write_text(
        "zmodload zsh/zpty\n"
        "zpty -b z zsh -f -i\n"
        "zpty -w z 'PS1=; autoload -Uz compinit; compinit -u -D; source ./completion.zsh; entirespace() { print -r -- \"GOT:$*:\" }'\n"
        "sleep 1\n"
        "zpty -w -n z $'entirespace prep\\t model=x\\n'\n"
        "zpty -w -n z $'entirespace train model=shared\\t\\n'\n"
        "sleep 1\n"
        "while zpty -r -t z line; do print -r -- $line; done\n"
        "zpty -d z\n"
    )
    done = subprocess.run(
        ["zsh", "-f", "ask.zsh"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env=os.environ | {"TERM": "dumb"},
    )
    assert "GOT:preprocess model=x:" in done.stdout, done
    assert "GOT:train model=shared_bottom" in done.stdout


def test_completed_values_are_those_of_the_settings_and_the_scripts_import_nothing_heavy() -> None:
    train, evaluate = completed_words(job_named("train")), completed_words(job_named("evaluate"))
    assert train["model"] == sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    assert train["embedding.dim"] == []
    assert evaluate["split"] == ["train", "validation", "test"]
    assert completed_words(job_named("preprocess"))["overwrite"] == ["true", "false"]
    with pytest.raises(InputError, match="csh is not one of bash, zsh, fish"):
        completion_script("csh")
    script = (
        "import sys; from jobs.completion import completion_script\n"
        f"for shell in {SHELLS}: completion_script(shell)\n"
        "print([name for name in ('torch', 'torchrec', 'pyspark') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_an_error_is_red_on_a_terminal_and_plain_elsewhere() -> None:
    for words in (["zzz"], ["inspect", "data=/nowhere/at/all"]):
        _, written = run_on_terminal([sys.executable, "-m", "jobs", *words], 200, {"PYTHONPATH": str(ROOT)})
        assert written.startswith("\x1b[1;31merror:\x1b[0m ")
        assert entirespace(*words).stderr.startswith("error: ")
