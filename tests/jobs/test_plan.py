"""jobs.plan: what it says of tables, memory and steps is what a run of the same settings has; a remedy is one."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import take_steps, tiny_settings

from jobs.entry import compose
from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError
from training.distributed.world import join
from training.feed.plan import Plan
from training.model.entire_space import EntireSpaceModel
from training.model.graph import Graph
from training.planning.cluster import cluster_of
from training.planning.feasibility import assess
from training.planning.feasibility_page import feasibility_lines
from training.planning.memory_estimate import memory_needs, table_plans, tower_parameters
from training.planning.settings import FeasibilitySettings
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "data"
    write_tiny_dataset(path, num_contexts=60, numeric=True)
    return path


def settings_of(data: Path, *overrides: str) -> FeasibilitySettings:
    return compose("plan", FeasibilitySettings, [f"data={data}", *overrides])


def said(data: Path, *overrides: str) -> tuple[str, bool]:
    feasibility = assess(settings_of(data, *(text for text in overrides if not text.startswith("--"))))
    return "\n".join(feasibility_lines(feasibility, overrides)), feasibility.fits


def held(settings: TrainSettings) -> Arrays:
    """table → [rows, bytes of weights and optimizer state] of this rank."""
    with join(settings.world) as world:
        return {
            shard.table: np.array(
                [len(shard.weight), shard.weight.nbytes + sum(state.nbytes for state in shard.optimizer.values())]
            )
            for shard in Trainer(settings, world).model.shards
        }


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_every_rank_holds_the_rows_and_bytes_that_were_planned(data: Path, tmp_path: Path, optimizer: str) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    settings.embedding = replace(settings.embedding, dims={"item_id": 6})
    settings.optimizer.embeddings.name = optimizer
    settings.sharding = replace(settings.sharding, tables={"item_id": "row_wise", "user_brands": "data_parallel"})
    ranks = run_ranks(held, 2, tmp_path, settings)
    for table in table_plans(load_manifest(data).fields_of(stored=INDEX), settings, 2):
        for rank, found in enumerate(ranks):
            rows, num_bytes = found.get(table.field.name, (0, 0))
            assert rows == table.rows_of_rank[rank]
            gradient = rows * table.columns * 4 if table.kind == "data_parallel" else 0
            assert num_bytes == table.bytes_of_rank(rank) - gradient


def test_a_checkpoints_copy_is_as_large_as_what_the_rank_saves_and_counts_where_the_tables_lie(
    data: Path, tmp_path: Path
) -> None:
    manifest, settings = load_manifest(data), tiny_settings(data, tmp_path)
    settings.sharding = replace(settings.sharding, tables={"user_brands": "data_parallel"})
    tables = table_plans(manifest.fields_of(stored=INDEX), settings, 2)
    whole = sum(table.weight_bytes + table.state_bytes for table in tables)
    on_cpu, on_gpu = (memory_needs(tables, manifest, settings, 2, on_cpu) for on_cpu in (True, False))
    towers = tower_parameters(manifest, settings)
    average = sum(table.weight_bytes for table in tables) + 4 * towers  # all rows of these tables are frequent ones
    assert sum(on_cpu.checkpoint) == whole + 3 * 4 * towers + average
    assert on_gpu.checkpoint == on_cpu.checkpoint
    assert [more - less for more, less in zip(on_cpu.ranks, on_gpu.ranks, strict=True)] == pytest.approx(
        on_cpu.checkpoint
    )
    settings.average.kind = "none"
    without = memory_needs(tables, manifest, settings, 2, on_cpu=True)
    assert sum(without.checkpoint) == whole + 3 * 4 * towers
    assert sum(without.average) == 0
    settings.checkpoint.asynchronous = False
    assert sum(memory_needs(tables, manifest, settings, 2, on_cpu=True).checkpoint) == 0


def test_towers_are_counted_as_they_are_built(data: Path, tmp_path: Path) -> None:
    manifest, settings = load_manifest(data), tiny_settings(data, tmp_path)
    graph = Graph(settings.model.graph, list(manifest.labels))
    model = EntireSpaceModel(manifest, graph, settings.embedding, settings.model, 1)
    assert tower_parameters(manifest, settings) == sum(value.numel() for value in model.towers.parameters())


@pytest.mark.parametrize(("model", "unit"), [("esmm", "impressions"), ("base", "clicks")])
def test_the_steps_are_those_of_the_plan(data: Path, model: str, unit: str) -> None:
    plan = Plan(load_manifest(data).files_of("train"), batch_size=24, lanes=8, seed=1, unit=unit)
    text, _ = said(data, f"model={model}", "cluster=1x2xcpu", "plan.batch_size=24")
    assert f"{plan.num_steps:,} steps an epoch of {plan.num_impressions:,} {unit} at plan.batch_size=24, 12" in text


@pytest.mark.parametrize("sampling", ["model=aman", "model=oversampling"])
def test_the_steps_of_a_sampled_run_are_those_of_its_plan(data: Path, tmp_path: Path, sampling: str) -> None:
    feasibility = assess(settings_of(data, "cluster=1x1xcpu", sampling, "plan.batch_size=32"))
    given = [f"data={data}", f"out={tmp_path / 'run'}", sampling, "plan.batch_size=32", "world.device=cpu"]
    settings = compose("train", TrainSettings, given)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        assert (feasibility.units, feasibility.steps) == (trainer.plan.num_impressions, trainer.plan.num_steps)
        trainer.close()


def test_tables_of_each_heads_own_are_planned_and_adopted_by_field(data: Path) -> None:
    lines, fits = said(data, "cluster=1x2xcpu", "model=esmm_ns")
    assert fits
    assert "item_id@1" in lines
    assert not re.search(r"sharding\.tables\.\w+@", lines)


def test_48_million_users_and_23_million_items_fit_64_gpus_and_more_impressions_are_more_steps(data: Path) -> None:
    sizes = ("rows.user_id=48000000", "rows.item_id=23500000", "impressions=42300000")
    text, fits = said(data, "cluster=8x8xH100", *sizes)
    assert fits
    assert "64 ranks with 80 GB each, of which 10% stay free" in text
    assert re.search(r"user_id +48,000,000 +20 +3\.8 GB +192\.0 MB  table_wise, on rank \d+", text)
    assert "8,474 steps an epoch of 42,300,000 impressions at plan.batch_size=4992, 78 on each rank" in text
    launch = text.splitlines()[-1]
    assert "--nnodes 8" in launch
    assert launch.endswith("model=esmm plan.lanes=64 plan.batch_size=4992 out=RUN")


def test_a_table_larger_than_a_device_is_to_be_cut_by_rows_and_then_it_fits(data: Path) -> None:
    large = ("cluster=1x4xT4", "rows.user_id=150000000")
    text, fits = said(data, *large)
    assert not fits
    assert re.search(r"It does not fit: rank \d needs 24\.\d GB and has 14\.4 GB", text)
    remedy = text.splitlines()[-1].removeprefix("Remedy: ").split()
    assert remedy == ["sharding.tables.user_id=row_wise"]
    assert said(data, *large, *remedy)[1]


def test_the_launch_repeats_every_setting_of_training_that_was_given(data: Path) -> None:
    given = ("optimizer.towers.lr=0.1", "sharding.default=row_wise", "plan.batch_size=640", "keep_free=0.2")
    words = said(data, "cluster=1x4xT4", "model=base", "rows.user_id=500", *given)[0].splitlines()[-1].split()
    assert words[-6:] == [f"data={data}", "model=base", *given[:3], "out=RUN"]
    wide = said(data, "cluster=1x1xT4", "model=esmm_wide", "--config-dir=mine")[0].splitlines()[-1]
    assert wide.endswith(f"-m jobs.train data={data} model=esmm_wide --config-dir=mine out=RUN")
    cut = said(data, "cluster=8x8xT4", *given)[0].splitlines()[-1]
    assert cut.endswith("optimizer.towers.lr=0.1 sharding.default=row_wise plan.lanes=64 plan.batch_size=640 out=RUN")


def test_too_few_devices_are_told_how_many_hosts_would_do(data: Path) -> None:
    large = ("rows.user_id=150000000", "rows.item_id=150000000")
    text, fits = said(data, "cluster=1x2xT4", *large)
    assert not fits
    assert "TorchRec's planner finds no placement that fits" in text
    remedy = text.splitlines()[-1]
    assert remedy.startswith("Remedy: cluster=2x2xT4 with sharding.default=row_wise")
    assert said(data, "cluster=2x2xT4", *large, "sharding.default=row_wise")[1]
    assert not said(data, "cluster=1x2xT4", *large, "sharding.default=row_wise")[1]


def test_the_lines_that_adopt_the_planners_proposal_do_so(data: Path) -> None:
    cluster = ("cluster=1x2xA100", "rows.user_id=40000000")
    text, _ = said(data, *cluster)
    lines = text.splitlines()
    place = next(number for number, line in enumerate(lines) if "in another way; to adopt that:" in line)
    adopt = lines[place + 1].split()
    assert adopt
    assert "TorchRec's planner would place every table in the same way" in said(data, *cluster, *adopt)[0]


def test_more_of_anything_needs_more(data: Path, tmp_path: Path) -> None:
    manifest = load_manifest(data)

    def step(batch_size: int, precision: str = "fp32") -> float:
        settings = tiny_settings(data, tmp_path, batch_size=batch_size)
        settings.precision = precision
        return memory_needs([], manifest, settings, 2, on_cpu=True).step

    assert step(128) == pytest.approx(2 * step(64))
    assert step(64, "bf16") < step(64)


@pytest.mark.parametrize("words", ["8xH100", "8x8xB52", "0x8xH100", "8 x 8 x H100"])
def test_a_cluster_in_other_words_is_refused_with_the_devices_that_are_known(words: str) -> None:
    with pytest.raises(InputError, match=r"not of the form hosts x devices a host x device.*devices: H200, H100, A100"):
        cluster_of(words, 512.0, 200.0)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rows.user=5", r"rows\.user: the dataset has no table user; it has user_id"),
        ("rows.user_spend=5", r"rows\.user_spend: the dataset has no table user_spend"),
        ("rows.user_id=0", r"rows\.user_id=0 is below 1"),
        ("keep_free=1.0", r"keep_free=1\.0 is outside"),
        ("impressions=0", "impressions=0 is below 1"),
        ("host_memory_gb=0", r"host_memory_gb=0\.0 is not above 0"),
        ("optimizer.embeddings.name=lamb", "name=lamb is not one of adagrad"),
    ],
)
def test_what_cannot_be_is_refused(data: Path, override: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        assess(settings_of(data, "cluster=1x1xcpu", override))


def test_the_job_ends_with_status_2_where_it_does_not_fit(data: Path) -> None:
    command = [sys.executable, "-m", "jobs.plan", f"data={data}", "cluster=1x1xT4", "rows.item_id=500000000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "")
    assert "It does not fit" in result.stdout


def averaged(settings: TrainSettings) -> Arrays:
    """The bytes of this rank's average, and of what of it a checkpoint copies."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        take_steps(trainer, 1)
        assert trainer.average is not None
        towers = sum(value.nbytes for value in trainer.average.towers.values())
        frequent = sum(shard.weight.nbytes for shard in trainer.average.frequent if shard.saved)
        frequent += towers if world.rank == 0 else 0
        return {"found": np.array([towers + sum(shard.weight.nbytes for shard in trainer.average.shards), frequent])}


def test_every_rank_averages_the_bytes_that_were_planned(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "run")
    settings.sharding = replace(settings.sharding, tables={"item_id": "row_wise", "user_brands": "data_parallel"})
    ranks = run_ranks(averaged, 2, tmp_path, settings)
    tables = table_plans(load_manifest(data).fields_of(stored=INDEX), settings, 2)
    need = memory_needs(tables, load_manifest(data), settings, 2, on_cpu=True)
    settings.average.kind = "none"
    without = memory_needs(tables, load_manifest(data), settings, 2, on_cpu=True)
    copied = [more - less for more, less in zip(need.checkpoint, without.checkpoint, strict=True)]
    assert [list(rank["found"]) for rank in ranks] == [list(pair) for pair in zip(need.average, copied, strict=True)]
