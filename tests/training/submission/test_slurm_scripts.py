"""The scripts of jobs.submit cluster=slurm run here for real, with stand-ins for Slurm's own commands (tests/clusters has Slurm itself)."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from slurm_stand_ins import StandIns
from torch.distributed.run import get_args_parser

from jobs.entry import compose
from jobs.submit import run as submit
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from training.run.settings import TrainSettings
from training.submission.plan import plan_jobs, with_absolute_paths
from training.submission.settings import SubmitSettings
from training.submission.slurm_scripts import quoted_for_sbatch, script_of

#: Every option that the scripts and the commands have, as `sbatch --help` of Slurm 22.05 spells them.
SBATCH_OPTIONS = {"job-name", "output", "open-mode", "requeue", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time",
                  "array", "gpus-per-node", "signal", "partition", "account", "qos"}  # fmt: skip
HOSTILE = [
    "a b",
    "$(touch x)",
    "`touch x`",
    "it's",
    '"',
    "*",
    "~",
    "é",
    "a;b",
    "a&b",
    "#c",
    "--x",
    "{item_id: 32}",
    "\\n",
]


@pytest.fixture
def slurm(tmp_path: Path) -> StandIns:
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    return StandIns(folder)


def settings_of(*words: str) -> SubmitSettings:
    given = [word for word in ("cluster=slurm", "out=/shared/out") if not any(w.split("=")[0] == word.split("=")[0] for w in words)]  # fmt: skip
    given += [] if any(word.startswith(("raw=", "data=")) for word in words) else ["data=/shared/dataset"]
    return with_absolute_paths(compose("submit", SubmitSettings, [*given, *words]))


def scripts_of(*words: str) -> dict[str, str]:
    settings = settings_of(*words)
    return {job.name: script_of(job, settings) for job in plan_jobs(settings)}


def torchrun_of(slurm: StandIns) -> Namespace:
    """torchrun's arguments as torchrun itself parses them."""
    words = slurm.srun_words
    start = words.index("training.distributed.launch_ranks")
    assert words[start - 1] == "-m"
    return get_args_parser().parse_args(words[start + 1 :])


def variables_of_node(slurm: StandIns, node_id: str) -> dict[str, str]:
    """What the task of a node exports before it starts torchrun, by running it with `env` in torchrun's place."""
    words = slurm.srun_words
    start = words.index("bash")
    assert words[start + 1] == "-c"
    command = ["bash", "-c", words[start + 2], words[start + 3], words[start + 4], "env"]
    done = subprocess.run(
        command, env={**slurm.environment, "SLURM_NODEID": node_id}, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("PET_"))


VARIANTS = [
    ["sizes.train.nodes=2", "score=/shared/today"],
    ["raw=/shared/raw log", "name=a name", "out=/shared/o ut", "seeds=3", "environment.modules=[cuda/12.4,gcc]"],
    ["environment.container=image.sqsh", "environment.mounts=[/shared,/a:/b]", "sizes.train.gpus=8"],
    ["environment.container=image.sif", "environment.runtime=apptainer", "environment.mounts=[/sha red]", "sizes.train.gpus=1"],
    ["table=esmm2", "table_jobs=5", "slurm.partition=gpu", "slurm.account=ads", "slurm.qos=high", "slurm.options=['--mail-type=END']"],
]  # fmt: skip


@pytest.mark.parametrize("words", VARIANTS)
def test_every_script_parses_shellcheck_finds_nothing_and_sbatch_knows_every_option(
    words: list[str], tmp_path: Path
) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert shellcheck, "pip install --no-deps -r requirements-dev.txt"
    for name, text in scripts_of(*words).items():
        path = tmp_path / f"{name}.sbatch"
        path.write_text(text)
        # SC1090: module's own files; SC2034: what the body of another stage uses; SC2054: commas of a container's mounts.
        done = subprocess.run([shellcheck, "--shell=bash", "--exclude=SC1090,SC2034,SC2054", str(path)], capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        options = re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)
        assert set(options) <= {*SBATCH_OPTIONS, "mail-type"}
        # Slurm stops reading at the first command, so an option below it would be ignored.
        first = next(number for number, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
        assert not any(line.startswith("#SBATCH") for line in text.splitlines()[first:])


def test_training_starts_one_torchrun_a_node_that_meet_on_the_first(slurm: StandIns) -> None:
    assert slurm.run(scripts_of("sizes.train.nodes=2")["train"]).returncode == 0
    words = slurm.srun_words
    assert {"--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0"} <= set(words)
    torchrun = torchrun_of(slurm)
    assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.max_restarts) == ("2", "1", 0)
    assert (torchrun.rdzv_backend, torchrun.rdzv_endpoint) == ("static", "addr-node1:24711")
    assert torchrun.rdzv_id == "4711-0"
    assert (torchrun.training_script, torchrun.training_script_args) == (
        "jobs.train",
        ["data=/shared/dataset", "out=/shared/out/run"],
    )
    assert variables_of_node(slurm, "1") == {"PET_NODE_RANK": "1", "PET_LOCAL_ADDR": "addr-node2"}
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in slurm.srun_environment
    assert slurm.srun_environment["SRUN_CPUS_PER_TASK"] == "16"
    assert slurm.calls.splitlines()[0] == "begin"
    assert slurm.calls.splitlines()[-1] == "end"


def test_with_c10d_the_first_node_is_the_host(slurm: StandIns) -> None:
    slurm.run(scripts_of("sizes.train.nodes=2", "slurm.rendezvous=c10d", "slurm.port=29400")["train"])
    assert (torchrun_of(slurm).rdzv_backend, torchrun_of(slurm).rdzv_endpoint) == ("c10d", "addr-node1:29400")
    assert [variables_of_node(slurm, node)["PET_RDZV_CONF"] for node in "01"] == ["is_host=true", "is_host=false"]


def test_training_on_one_node_opens_no_port(slurm: StandIns) -> None:
    slurm.run(scripts_of()["train"], HOSTS="node1")
    torchrun = torchrun_of(slurm)
    assert (torchrun.rdzv_backend, torchrun.rdzv_endpoint, torchrun.rdzv_conf) == ("c10d", "", "store_type=file")
    assert slurm.srun_environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert "PET_RDZV_CONF" not in variables_of_node(slurm, "0")


def test_gpus_and_sizes_decide_on_ranks_and_threads(slurm: StandIns) -> None:
    slurm.run(scripts_of("sizes.train.gpus=8", "sizes.train.cpus=16")["train"], SLURM_RESTART_COUNT="3")
    assert (torchrun_of(slurm).nproc_per_node, torchrun_of(slurm).rdzv_id) == ("8", "4711-3")
    assert slurm.srun_environment["OMP_NUM_THREADS"] == "2"
    slurm.run(scripts_of("sizes.train.ranks=32", "sizes.train.cpus=16")["train"])
    assert torchrun_of(slurm).nproc_per_node == "32"
    assert slurm.srun_environment["OMP_NUM_THREADS"] == "1"


def test_whatever_a_setting_holds_arrives_as_it_was_given(slurm: StandIns, tmp_path: Path) -> None:
    out = str(tmp_path / " ".join(HOSTILE[:5]).replace("/", "-"))
    given = ["epochs=2"] + [f"log.mlflow_experiment={text}" for text in HOSTILE]
    words = [f"out={out}", f"train_args={shlex.join(given)}", f"environment.folder={tmp_path}", "name=it's $HOME"]
    words += [f"environment.variables.GLOO_SOCKET_IFNAME='{text}'" for text in ["a $(touch y)"]]
    text = scripts_of(*words, "seeds=2")["train"]
    done = slurm.run(text, SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 0, done.stderr
    expected = ["data=/shared/dataset", f"out={out}/seed-2/run", *given, "seed=2", "plan.seed=2"]
    assert torchrun_of(slurm).training_script_args == expected
    assert slurm.srun_environment["GLOO_SOCKET_IFNAME"] == "a $(touch y)"
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("text", [*HOSTILE, "/a b/%%/x-%j.log"])
def test_a_word_of_an_sbatch_line_is_taken_as_it_is(text: str) -> None:
    (read,) = shlex.split(quoted_for_sbatch(text))
    assert re.sub(r"\\(.)", r"\1", read) == text  # sbatch takes a backslash away; tests/clusters asks sbatch itself


def test_what_the_scripts_run_composes_into_settings(slurm: StandIns) -> None:
    scripts = scripts_of("raw=/shared/aliccp", "sizes.spark.cpus=12", "train_args=model=esm2")
    slurm.run(scripts["train"])
    settings = compose("train", TrainSettings, torchrun_of(slurm).training_script_args)
    assert (settings.data, settings.model.name) == ("/shared/out/dataset", "esm2")
    assert slurm.run(scripts["preprocess"]).returncode == 0
    words = slurm.srun_words
    assert words[:2] == ["--nodes=1", "--ntasks=1"]
    preprocess = compose("preprocess", PreprocessSettings, words[words.index("jobs.preprocess") + 1 :])
    assert (preprocess.spark.master, preprocess.source.path) == ("local[12]", "/shared/aliccp")


def test_a_spark_cluster_in_the_arguments_takes_the_place_of_the_local_one() -> None:
    text = scripts_of("raw=/raw", "preprocess_args=spark=standalone spark.master=spark://h:7077")["preprocess"]
    assert "local[" not in text


@pytest.mark.parametrize(
    ("status", "queued"), [(2, False), (1, False), (75, True), (128 + signal.SIGKILL, True), (130, True)]
)
def test_a_training_is_queued_again_by_how_it_ended(slurm: StandIns, status: int, queued: bool) -> None:
    done = slurm.run(scripts_of()["train"], SRUN_DOES=f"exit {status}")
    assert done.returncode == status
    assert ("scontrol requeue 4711" in slurm.calls) == queued
    assert "end" not in slurm.calls.split()


def test_a_training_does_not_queue_again_for_ever(slurm: StandIns) -> None:
    done = slurm.run(scripts_of("slurm.max_requeues=5")["train"], SRUN_DOES="exit 75", SLURM_RESTART_COUNT="5")
    assert done.returncode == 75
    assert "scontrol requeue" not in slurm.calls
    assert "slurm.max_requeues" in done.stderr


def test_the_warning_before_the_end_of_its_time_stops_a_training_and_queues_it_again(
    slurm: StandIns, tmp_path: Path
) -> None:
    script = tmp_path / "train.sbatch"
    script.write_text(scripts_of()["train"])
    environment = {**slurm.environment, "SRUN_DOES": "exec /bin/sleep 30"}
    job = subprocess.Popen(["bash", str(script)], env=environment, stderr=subprocess.PIPE, text=True)
    while not Path(f"{slurm.calls_file}.env").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=20)
    assert "scancel --signal=TERM 4711" in slurm.calls
    assert "scontrol requeue 4711" in slurm.calls
    assert "time is nearly up" in said


def test_a_finished_training_does_nothing(slurm: StandIns) -> None:
    assert slurm.run(scripts_of()["train"], BEGIN="3").returncode == 0
    assert slurm.calls == "begin\n"


def test_a_node_without_scontrol_is_an_error_and_never_localhost(slurm: StandIns) -> None:
    folder = slurm.calls_file.parent
    (folder / "scontrol").unlink()
    for name in ("bash", "env", "hostname"):
        (folder / name).symlink_to(shutil.which(name) or "")
    done = slurm.run(scripts_of("sizes.train.nodes=2")["train"], PATH=str(folder))
    assert done.returncode == 2
    assert done.stderr.startswith("error: scontrol is not on the PATH of ")
    assert not Path(f"{slurm.calls_file}.argv").exists()


def test_a_script_that_is_run_outside_of_slurm_says_how_to_submit_it(slurm: StandIns) -> None:
    del slurm.environment["SLURM_JOB_ID"]
    for text in scripts_of("raw=/raw").values():
        done = slurm.run(text)
        assert done.returncode != 0
        assert "submit this script with sbatch" in done.stderr


def test_modules_are_loaded_in_their_order_and_one_that_fails_ends_the_job(slurm: StandIns) -> None:
    text = scripts_of("environment.modules=[cuda/12.4,gcc]")["evaluate"]
    function = '() { echo "module $*" >>"$CALLS"; [[ $2 != "$WITHOUT" ]]; }'
    assert slurm.run(text, **{"BASH_FUNC_module%%": function, "WITHOUT": ""}).returncode == 0
    assert slurm.calls == "module load cuda/12.4\nmodule load gcc\n"
    assert slurm.run(text, **{"BASH_FUNC_module%%": function, "WITHOUT": "cuda/12.4"}).returncode == 2
    assert "module load gcc" not in slurm.calls.splitlines()[2:]
    if not shutil.which("modulecmd"):
        done = slurm.run(text)
        assert done.returncode == 2
        assert done.stderr.startswith("error: module is not there on ")


def test_a_container_stands_around_the_training_and_around_what_notes_it(slurm: StandIns) -> None:
    pyxis = [
        "environment.container=nvcr.io#org/image:1",
        "environment.mounts=[/shared,/a:/b]",
        "environment.folder=/tmp",
    ]
    slurm.run(scripts_of(*pyxis)["train"])
    words = slurm.srun_words
    assert "--container-image=nvcr.io#org/image:1" in words
    assert "--container-mounts=/shared:/shared,/a:/b" in words
    assert "--container-workdir=/tmp" in words
    assert words[words.index("training.distributed.launch_ranks") - 2] == "python"


def test_apptainer_runs_what_srun_starts(slurm: StandIns) -> None:
    words = ["environment.container=/i m.sif", "environment.runtime=apptainer", "environment.mounts=[/sha red]"]
    slurm.run(scripts_of(*words, "environment.folder=/tmp", "sizes.train.gpus=1")["train"])
    found = slurm.srun_words
    start = found.index("apptainer")
    assert found[start : start + 7] == [
        "apptainer",
        "exec",
        "--pwd=/tmp",
        "--nv",
        "--bind=/sha red",
        "/i m.sif",
        "bash",
    ]


def test_the_jobs_wait_for_one_another_and_their_logs_lie_beside_the_run(
    slurm: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PATH", "CALLS"):
        monkeypatch.setenv(name, slurm.environment[name])
    out = tmp_path / "o ut"
    submit(settings_of(f"raw={tmp_path}", f"out={out}", f"score={tmp_path}", "seeds=2"))
    folder = f"{out}/slurm"
    always = "sbatch --parsable --kill-on-invalid-dep=yes"
    assert slurm.calls.splitlines() == [
        f"{always} {folder}/preprocess.sbatch",
        f"{always} --dependency=afterok:41 {folder}/train.sbatch",
        f"{always} --dependency=aftercorr:42 {folder}/evaluate.sbatch",
        f"{always} --dependency=aftercorr:43 {folder}/score.sbatch",
    ]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"preprocess: job 41, {out}/logs/preprocess-%j.log"
    assert said[1] == f"train: job 42 after job 41, {out}/logs/train-%A_%a.log"
    assert (out / "logs").is_dir()
    assert (out / "slurm" / "train.sbatch").read_text() == scripts_of(
        f"raw={tmp_path}", f"out={out}", f"score={tmp_path}", "seeds=2"
    )["train"]


def test_where_slurm_refuses_a_job_nothing_stays_in_the_queue(
    slurm: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PATH": slurm.environment["PATH"], "CALLS": str(slurm.calls_file), "REFUSED": "42"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"train\.sbatch \(sbatch: error: invalid partition specified: x\)"):
        submit(settings_of(f"raw={tmp_path}", f"out={tmp_path / 'out'}"))
    assert slurm.calls.splitlines()[-1] == "scancel 41"


def test_a_host_without_slurm_is_an_error_and_a_dry_run_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out"
    with pytest.raises(InputError, match="needs sbatch, scontrol, scancel, which are not on the PATH"):
        submit(settings_of(f"out={out}"))
    submit(settings_of(f"out={out}", "dry_run=true"))
    assert not out.exists()
    assert "#SBATCH --job-name=entirespace-train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("name='a\nb'", "line feed"),
        ("out='/a\nb'", "line feed"),
        ("train_args='a=\"b\nc\"'", "line feed"),
        ("environment.folder='a\nb'", "line feed"),
        ("environment.variables.X='a\nb'", "line feed"),
        ("environment.variables.AWS_SECRET_ACCESS_KEY=x", "secret"),
        ("environment.modules=['a; b']", "environment.modules"),
        ("environment.runtime=docker", "runtime"),
        ("environment.mounts=[relative]", "environment.mounts"),
        ("slurm.options=['a\nb']", "line feed"),
        ("slurm.options=[constraint]", "slurm.options"),
        ("slurm.rendezvous=etcd", "slurm.rendezvous"),
        ("slurm.port=80", "slurm.port"),
        ("cluster=localhost", "cluster=localhost"),
        ("raw=/r", "one of the two"),
        ("train_args=out=/x", "train_args has out=/x"),
        ("train_args='", "train_args"),
    ],
)
def test_a_setting_that_a_script_cannot_hold_is_refused(word: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        compose("submit", SubmitSettings, ["cluster=slurm", "out=/o", "data=/d", word])
    assert says in str(refused.value)


def test_seeds_and_tables_exclude_what_would_contradict_them() -> None:
    for words in (["seeds=2", "train_args=seed=3"], ["table=esmm2", "seeds=2"], ["table=esmm2", "score=/s"]):
        with pytest.raises(InputError, match="leave"):
            settings_of(*words)


def test_a_backslash_in_out_is_refused_because_sbatch_would_read_it() -> None:
    with pytest.raises(InputError, match="backslash"):
        scripts_of(r"out=/a\b")
