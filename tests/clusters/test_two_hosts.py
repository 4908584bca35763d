"""Training on two hosts for real: network namespaces with a cable between them, torchrun on each, and every way to lose one."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_dataset import write_tiny_dataset

from benchmarks.network_hosts import RunOnTwoHosts, TwoHosts, rank_on
from benchmarks.torchrun_runs import kill_all

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]
TIMEOUT_S, SHORT_S = 60, 20
MOST_STARTS = 3  # a start may meet a rank of the one before that is still ending
SETTINGS = [
    "epochs=2", "plan.batch_size=64", "plan.lanes=2", "model.towers.hidden=[16,8]", "model.towers.dropout=0.2",
    "checkpoint.every_steps=4", "log.every_steps=1", "world.device=cpu",
]  # fmt: skip


def with_timeout(seconds: int) -> list[str]:
    return [*SETTINGS, f"world.timeout_s={seconds}"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    assert os.geteuid() == 0, "network namespaces are made by root"
    assert shutil.which("ip"), "apt-get install iproute2"
    with TwoHosts() as joined:
        yield joined


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hosts") / "data"
    write_tiny_dataset(path, num_contexts=300)
    return path


@pytest.fixture(scope="module")
def undisturbed(hosts: TwoHosts, data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOnTwoHosts:
    run = RunOnTwoHosts(tmp_path_factory.mktemp("undisturbed") / "run", data, with_timeout(TIMEOUT_S), hosts=hosts)
    assert run.start_until_done() == 1, said_by(run)
    return run


@pytest.fixture
def run(hosts: TwoHosts, data: Path, tmp_path: Path) -> RunOnTwoHosts:
    return RunOnTwoHosts(tmp_path / "run", data, with_timeout(TIMEOUT_S), hosts=hosts)


def said_by(run: RunOnTwoHosts) -> str:
    return "\n".join(one.stderr[-1500:] for one in run.started)


def assert_same(run: RunOnTwoHosts, undisturbed: RunOnTwoHosts) -> None:
    """Check the bits of the final checkpoint, and that each step had its impressions."""
    assert run.files() == undisturbed.files()
    assert run.batches() == undisturbed.batches()


def held_at(run: RunOnTwoHosts, step: int, disturb: Callable[[list], None]) -> list:
    """Start both hosts, and disturb them when rank 0 has taken a step; return how they ended."""
    started = run.start_both()
    assert run.reach(step, started[0]), run.output_of(0).read_text()
    disturb(started)
    return run.finish_both(started)


def test_a_killed_rank_ends_both_hosts_and_the_next_start_has_the_bits_of_an_undisturbed_run(
    run: RunOnTwoHosts, undisturbed: RunOnTwoHosts
) -> None:
    ended = held_at(run, 6, lambda started: os.kill(rank_on(started[1]), signal.SIGKILL))
    assert all(one.status for one in ended)
    assert any("Another rank ended, or did not answer" in one.stderr for one in ended)
    assert run.start_until_done() <= MOST_STARTS, said_by(run)
    assert_same(run, undisturbed)


def test_the_loss_of_the_host_that_serves_the_rendezvous_ends_the_other_one(
    run: RunOnTwoHosts, undisturbed: RunOnTwoHosts
) -> None:
    begun_s = time.monotonic()
    held_at(run, 6, lambda started: kill_all(started[0]))
    assert time.monotonic() - begun_s < 120
    assert run.start_until_done() <= MOST_STARTS, said_by(run)
    assert_same(run, undisturbed)


def test_a_cable_that_is_cut_for_less_than_the_timeout_costs_time_alone(
    run: RunOnTwoHosts, undisturbed: RunOnTwoHosts, hosts: TwoHosts
) -> None:
    def cut(started: list) -> None:
        with hosts.cut():
            time.sleep(10)

    ended = held_at(run, 6, cut)
    assert [one.status for one in ended] == [0, 0], ended
    assert_same(run, undisturbed)


def test_a_cable_that_is_cut_for_longer_than_the_timeout_ends_both_hosts_and_the_outer_retry_brings_them_back(
    run: RunOnTwoHosts, undisturbed: RunOnTwoHosts, hosts: TwoHosts
) -> None:
    run.overrides = with_timeout(SHORT_S)
    started = run.start_both()
    assert run.reach(6, started[0]), said_by(run)
    with hosts.cut():
        ended = run.finish_both(started)
    assert all(one.status for one in ended)
    assert run.start_until_done() <= MOST_STARTS, said_by(run)
    assert_same(run, undisturbed)


def test_fifty_milliseconds_and_lost_packets_change_no_bit(
    run: RunOnTwoHosts, undisturbed: RunOnTwoHosts, hosts: TwoHosts
) -> None:
    run.overrides = with_timeout(120)
    with hosts.cable(delay_s=0.05, loss=0.01):
        assert run.start_until_done() <= MOST_STARTS, said_by(run)
    assert_same(run, undisturbed)


def test_the_error_is_the_last_thing_that_both_hosts_say(run: RunOnTwoHosts) -> None:
    run.overrides = [*with_timeout(TIMEOUT_S), "plan.batch_size=-3"]
    for one in run.finish_both(run.start_both()):
        last = [line for line in one.stderr.splitlines() if line.strip("= ")][-1]
        assert "error: plan.batch_size=-3" in last, one.stderr


def test_restarts_by_torchrun_are_refused_across_hosts(run: RunOnTwoHosts) -> None:
    run.options, run.module = ["--max-restarts", "1"], "jobs.train"
    for one in run.finish_both(run.start_both()):
        assert one.status
        assert "--max-restarts=1 restarts the ranks of several hosts" in one.stderr
    assert not run.out.exists()
