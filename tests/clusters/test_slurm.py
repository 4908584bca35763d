"""jobs.submit on a real Slurm: the chain on two nodes, arrays, and trainings that are killed, preempted and lose a node."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from slurm_cluster import NODES, ROOT, SlurmCluster
from tiny_dataset import write_tiny_dataset

from training.checkpoint.files import checkpoint_paths
from training.submission.slurm_scripts import quoted_for_sbatch

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

SMALL = (
    "sizes.spark.cpus=2", "sizes.spark.memory_gb=4", "sizes.train.cpus=1", "sizes.train.memory_gb=4",
    "sizes.evaluate.cpus=1", "sizes.evaluate.memory_gb=4", "sizes.table.cpus=1", "sizes.table.memory_gb=4",
    "environment.variables.GLOO_SOCKET_IFNAME=lo", f"environment.folder={ROOT}", "environment.variables.OMP_NUM_THREADS=1",
)  # fmt: skip
TRAIN = "plan.batch_size=200 validation.split=null world.timeout_s=60"
#: Of a training that goes on for about a quarter of a minute, and saves several times a second.
LONG = "epochs=100 plan.batch_size=32 model.towers.hidden=[8] checkpoint.every_steps=20 validation.split=null world.timeout_s=60"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data"
    write_tiny_dataset(path, num_contexts=150, daction=True)
    return path


def job(*words: str) -> None:
    """Run one of our jobs here."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def weights_of(run: Path) -> dict[str, bytes]:
    """Return the files of the newest checkpoint: the bits of the tables, of the towers and of the optimizers."""
    newest = checkpoint_paths(run)[0]
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}


def steps_saved(run: Path) -> int:
    """Return after how many steps of the run the newest checkpoint was saved; -1 without one."""
    found = checkpoint_paths(run)
    return int(found[0].name.removeprefix("step-")) if found else -1


def test_the_chain_goes_from_a_raw_log_to_scores_on_two_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw log", tmp_path / "out 1 %j"
    job("jobs.simulate", f"out={raw}", "impressions=3000", "rates=demo")
    words = [
        f"raw={raw}", f"out={out}", f"score={raw}", "name=ads ctr", "sizes.train.nodes=2", "slurm.rendezvous=c10d",
        f"train_args={TRAIN}", *SMALL,
    ]  # fmt: skip
    numbers = slurm.submit(*words)
    assert list(numbers) == ["preprocess", "train", "evaluate", "score"]
    slurm.wait_for(numbers["score"], "COMPLETED")
    for stage, number in numbers.items():
        found = slurm.job(number)
        assert found["JobState"] == "COMPLETED"
        assert (out / "logs" / f"{stage}-{number}.log").stat().st_size > 0
    assert slurm.job(numbers["train"])["NodeList"] == "n[1-2]"
    job("jobs.train", f"data={out / 'dataset'}", f"out={tmp_path / 'here'}", "ranks=2", *TRAIN.split())
    assert weights_of(out / "run") == weights_of(tmp_path / "here")
    predicted = pq.read_table(out / "run" / "predictions" / "test").sort_by("impression_id")
    scored = pq.ParquetDataset(out / "scores" / "scores" / "period=test", partitioning=None).read()
    of_id = dict(zip(scored["impression_id"].to_pylist(), scored["p_ctr"].to_pylist(), strict=True))
    for number, value in zip(predicted["impression_id"].to_pylist(), predicted["p_ctr"].to_pylist(), strict=True):
        assert of_id[number] == pytest.approx(value, abs=1e-6)
    assert json.loads((out / "test.json").read_text())["num_impressions"] == len(predicted)
    again = slurm.run(sys.executable, "-m", "jobs.submit", "cluster=slurm", *words)
    assert "nothing to submit" in again.stdout


def test_a_training_that_is_killed_preempted_out_of_time_and_loses_a_node_ends_with_the_bits_of_an_undisturbed_one(
    slurm: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    job("jobs.train", f"data={data}", f"out={tmp_path / 'undisturbed'}", "ranks=2", *LONG.split())
    out = tmp_path / "out"
    numbers = slurm.submit(f"data={data}", f"out={out}", "sizes.train.nodes=2", f"train_args={LONG}", *SMALL)
    number, run = numbers["train"], out / "run"
    slurm.wait_until(lambda: steps_saved(run) > 0, 120, "checkpoint")

    os.kill(slurm.ranks_of(run)[0], signal.SIGKILL)
    slurm.wait_until(lambda: slurm.job(number)["Restarts"] == "1", 60, "restart after a killed rank")
    at = goes_on(slurm, run, number)

    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    ).stdout.strip()
    slurm.wait_for(urgent, "COMPLETED")
    slurm.wait_until(lambda: slurm.job(number)["Restarts"] == "2", 60, "restart after a preemption")
    at = goes_on(slurm, run, number)

    slurm.run("scancel", "--batch", "--signal=USR1", number)  # what --signal=B:USR1@300 sends
    slurm.wait_until(lambda: slurm.job(number)["Restarts"] == "3", 60, "restart before the end of its time")
    at = goes_on(slurm, run, number)
    assert "The time is nearly up" in (out / "logs" / f"train-{number}.log").read_text()

    slurm.kill_node("n2")
    slurm.wait_until(lambda: slurm.job(number)["Restarts"] == "4", 120, "restart after a lost node")
    slurm.start_node("n2")
    assert goes_on(slurm, run, number) >= at

    slurm.wait_for(numbers["evaluate"], "COMPLETED")
    assert slurm.job(number)["JobState"] == "COMPLETED"
    assert weights_of(run) == weights_of(tmp_path / "undisturbed")
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def goes_on(slurm: SlurmCluster, run: Path, number: str) -> int:
    """Wait until the job trains again, and has saved a checkpoint since; return the step that it had before."""
    before = steps_saved(run)
    slurm.wait_until(lambda: steps_saved(run) > before, 120, f"checkpoint after step {before}")
    assert slurm.job(number)["JobState"] == "RUNNING", slurm.report()
    return before


def test_a_stage_that_fails_is_not_tried_again_and_cancels_what_depends_on_it(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    numbers = slurm.submit(f"data={tmp_path / 'nothing'}", f"out={tmp_path / 'out'}", f"score={tmp_path}", *SMALL)
    slurm.wait_for(numbers["score"], "CANCELLED")
    assert slurm.job(numbers["evaluate"])["JobState"] == "CANCELLED"
    found = slurm.job(numbers["train"])
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "2:0", "0")
    log = (tmp_path / "out" / "logs" / f"train-{numbers['train']}.log").read_text().splitlines()
    assert any(line.startswith("error: ") and "nothing" in line for line in log[-4:]), log


def test_two_seeds_are_an_array_of_which_each_is_evaluated_by_itself(
    slurm: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    numbers = slurm.submit(f"data={data}", f"out={tmp_path}", "seeds=2", "train_args=plan.batch_size=64", *SMALL)
    slurm.wait_for(numbers["evaluate"], "COMPLETED")
    assert len(slurm.tasks(numbers["train"])) == 2
    one, other = (weights_of(tmp_path / f"seed-{seed}" / "run") for seed in (1, 2))
    assert one != other
    assert all((tmp_path / f"seed-{seed}" / "test.json").exists() for seed in (1, 2))
    assert not slurm.submit(f"data={data}", f"out={tmp_path}", "seeds=2", "train_args=plan.batch_size=64", *SMALL)


def test_an_array_of_five_jobs_trains_the_five_seeds_of_a_papers_table(
    slurm: SlurmCluster, data: Path, tmp_path: Path
) -> None:
    words = ["table=esm2_3", "table_jobs=5", "table_args=seeds=5 systems=[ESMM] train_args='plan.batch_size=64'"]
    numbers = slurm.submit(f"data={data}", f"out={tmp_path}", *words, *SMALL)
    slurm.wait_for(numbers["table"], "COMPLETED")
    assert len(slurm.tasks(numbers["table"])) == 5
    page = (tmp_path / "tables" / "tables" / "esm2_3.md").read_text()
    assert "ESMM" in page
    runs = [path.parent for path in (tmp_path / "tables" / "runs").rglob("test.json")]
    assert sorted(path.name for path in runs) == [f"seed-{seed}" for seed in range(1, 6)]
    said = [path.read_text() for path in (tmp_path / "logs").glob("table-*.log")]
    trained = [text.count("$ python -m jobs.train ") for text in said]
    assert sum(trained) == 5, "each seed is trained by one job of the array"
    assert sum(count > 0 for count in trained) > 1, trained


@pytest.mark.parametrize("name", ["a b", "$(touch x)", "it's", '"', "#c", "a\\b", "--x", "é", "*"])
def test_sbatch_takes_a_quoted_word_as_it_is(slurm: SlurmCluster, tmp_path: Path, name: str) -> None:
    script = tmp_path / "job.sbatch"
    words = "\n".join(
        f"#SBATCH {quoted_for_sbatch(word)}" for word in (f"--job-name={name}", "--output=/dev/null", "--hold")
    )
    script.write_text(f"#!/bin/bash\n{words}\ntrue\n")
    number = slurm.run("sbatch", "--parsable", str(script)).stdout.strip()
    assert slurm.run("squeue", "--noheader", f"--jobs={number}", "--format=%j").stdout == f"{name}\n"
    slurm.run("scancel", number)


def test_both_nodes_have_one_hostname_and_names_of_their_own(slurm: SlurmCluster) -> None:
    done = slurm.run("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", "echo $(hostname) $SLURMD_NODENAME")
    names = dict(reversed(line.split()) for line in done.stdout.splitlines())
    assert set(names) == set(NODES)
    assert len(set(names.values())) == 1
