import json
import os
import re
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import merged, save, take_steps, tiny_settings, weights

from pipeline.errors import InputError
from training.checkpoint import files as checkpoint_files
from training.checkpoint import restore as checkpoint
from training.checkpoint import save as checkpoint_writer
from training.checkpoint.files import find_newest
from training.checkpoint.meta import META_FILE, TOWERS_FILE, Checkpoint, Position, ValidationState
from training.checkpoint.restore import restore
from training.checkpoint.save import CheckpointWriter
from training.checkpoint.settings import CheckpointSettings
from training.checkpoint.tensors import write_safetensors
from training.distributed.exchange import PerScope
from training.distributed.peer_exchange import PeerExchange
from training.distributed.settings import OptimizerSettings
from training.distributed.sharded_model import Shard, ShardedModel
from training.distributed.world import World, join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def saved(settings: TrainSettings, num_steps: int) -> Arrays:
    """Train `num_steps`, save, and give this rank's weights."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        take_steps(trainer, num_steps)
        save(trainer.run, trainer.model, Position(0, num_steps), world)
        return weights(trainer)


def restored(settings: TrainSettings, run: Path) -> Arrays:
    """This rank's weights after `run` has been restored into a fresh model."""
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        found = find_newest(run, print)
        assert found is not None
        restore(found, trainer.model)
        assert found.position == Position(0, 3)
        assert all(len(trainer.model.tower_optimizer.state[p]) == 3 for p in trainer.model.towers.parameters())
        assert trainer.model.num_updates == 3
        return weights(trainer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "data"
    write_tiny_dataset(path, num_contexts=100)
    return path


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_one_rank_saves_two_restore_and_the_other_way_round(data: Path, tmp_path: Path) -> None:
    settings = tiny_settings(data, tmp_path / "one")
    one = saved(settings, 3)
    assert {"tables/item_id", "tables/item_id/momentum1", "towers/0.context_weight"} <= one.keys()
    again = tiny_settings(data, tmp_path / "again")
    two = run_ranks(restored, 2, tmp_path / "ranks", again, tmp_path / "one")
    assert all(len(rank) < len(one) for rank in two)  # each holds a part
    assert_same(merged(two), one)

    both = merged(run_ranks(saved, 2, tmp_path / "ranks2", tiny_settings(data, tmp_path / "two"), 3))
    assert_same(restored(tiny_settings(data, tmp_path / "back"), tmp_path / "two"), both)


ALONE = World(0, 1, torch.device("cpu"))


def fake(rows: range, columns: int = 4) -> ShardedModel:
    """A world without TorchRec: rows of a table `t` that say where they belong, and one tower."""
    tower = torch.nn.ModuleList([torch.nn.Linear(2, 1)])
    weight = torch.arange(rows.start, rows.stop, dtype=torch.float32)[:, None].repeat(1, columns).contiguous()
    shard = Shard("t", rows.start, weight, {"momentum1": weight[:, 0].clone()})
    adam = torch.optim.Adam(tower.parameters())
    return ShardedModel(
        None, tower, PeerExchange(PerScope([], []), [], ALONE), [shard], adam, None, OptimizerSettings(), ALONE
    )  # type: ignore[arg-type]


def save_steps(run: Path, *steps: int, rows: range = range(10), keep: int = 2) -> None:
    for step in steps:
        save(run, fake(rows), Position(0, step), ALONE, keep)


def test_rows_are_found_by_their_numbers_however_a_table_was_cut(tmp_path: Path) -> None:
    """Three ranks' files, restored as rows 2 to 8: slices of each."""
    run = tmp_path / "run"
    save_steps(run, 1, rows=range(4))
    path = checkpoint_files.folder(run) / "step-00000001"
    for rank, rows in ((1, range(4, 7)), (2, range(7, 10))):
        write_safetensors(path / f"rank-{rank:05d}.safetensors", checkpoint.rank_tensors(fake(rows)))
    meta = Checkpoint(
        path,
        Position(0, 0),
        "",
        ("rank-00000.safetensors", "rank-00001.safetensors", "rank-00002.safetensors", TOWERS_FILE),
    )
    target = fake(range(2, 9))
    for tensor in (target.shards[0].weight, target.shards[0].optimizer["momentum1"]):
        tensor.fill_(-1)
    restore(meta, target)
    assert target.shards[0].weight[:, 3].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert target.shards[0].optimizer["momentum1"].tolist() == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "no meta", "meta cut", "staged", "other format"])
def test_a_torn_checkpoint_is_never_picked_up(tmp_path: Path, harm: str) -> None:
    save_steps(tmp_path, 1, 2)
    latest = checkpoint_files.folder(tmp_path) / "step-00000002"
    victim = latest / "rank-00000.safetensors"
    content = victim.read_bytes()
    if harm == "cut":
        victim.write_bytes(content[:-1])
    elif harm == "changed":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "missing":
        victim.unlink()
    elif harm == "no meta":
        (latest / META_FILE).unlink()
    elif harm == "meta cut":
        (latest / META_FILE).write_text((latest / META_FILE).read_text()[:40])
    elif harm == "staged":
        latest.rename(latest.with_name(".step-00000002.tmp"))
    else:
        meta = json.loads((latest / META_FILE).read_text()) | {"format_version": 99}
        (latest / META_FILE).write_text(json.dumps(meta))
    said: list[str] = []
    found = find_newest(tmp_path, said.append)
    assert found is not None
    assert found.path.name == "step-00000001"
    assert len(said) == (0 if harm == "staged" else 1)
    save_steps(tmp_path, 2)  # the run comes there again
    again = find_newest(tmp_path, said.append)
    assert again is not None
    assert again.path == latest
    assert not list(checkpoint_files.folder(tmp_path).glob(".*"))


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in checkpoint_files.folder(tmp_path).iterdir()) == [
        "step-00000002",
        "step-00000003",
    ]
    assert find_newest(tmp_path / "nothing", print) is None


def test_damaged_checkpoints_do_not_count_for_keep_and_other_names_are_left_alone(tmp_path: Path) -> None:
    """A run of 40 steps whose two newest checkpoints the disk has damaged resumes at step 20, and saves at other steps."""
    save_steps(tmp_path, 10, 20, 30, 40, keep=4)
    checkpoints = checkpoint_files.folder(tmp_path)
    for step in (30, 40):
        victim = checkpoints / f"step-000000{step}" / TOWERS_FILE
        content = victim.read_bytes()
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # b"?" is the last byte of many a float
    copy = shutil.copytree(checkpoints / "step-00000020", checkpoints / "step-00000020.bak")
    (checkpoints / "step-00000007").write_text("no folder")
    said: list[str] = []
    found = checkpoint.find_on_all_ranks(tmp_path, ALONE, said.append, renames=True)
    assert found is not None
    assert found.position == Position(0, 20)
    assert [
        bool(re.search(r"towers.safetensors has the checksum \w+ where .*step-000000\d0 is damaged", line))
        for line in said[::2]
    ] == [True] * 2
    assert [re.findall(r"step-\S+ is renamed to (\S+);", line) for line in said[1::2]] == [
        ["step-00000040.damaged"], ["step-00000030.damaged"],
    ]  # fmt: skip
    save_steps(tmp_path, 25)
    found = find_newest(tmp_path, said.append)
    assert found is not None
    assert found.position == Position(0, 25)
    save_steps(tmp_path, 29)
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-00000020.bak", "step-00000025", "step-00000029", "step-00000030.damaged", "step-00000040.damaged",
    ]  # fmt: skip
    assert (copy / META_FILE).exists()
    assert len(said) == 4


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    save_steps(tmp_path, 99_999_999, 100_000_000)
    found = find_newest(tmp_path, print)
    assert found is not None
    assert found.path.name == "step-100000000"


@pytest.mark.parametrize("harm", ["a FIFO", "a folder", "a link out of the folder", "a FIFO as checkpoint.json"])
def test_a_checkpoint_names_regular_files_of_its_own_folder(tmp_path: Path, harm: str) -> None:
    save_steps(tmp_path, 1, 2)
    latest = checkpoint_files.folder(tmp_path) / "step-00000002"
    victim = latest / (META_FILE if "checkpoint.json" in harm else "rank-00000.safetensors")
    victim.rename(tmp_path / "elsewhere")
    if "FIFO" in harm:
        os.mkfifo(victim)
    elif harm == "a folder":
        victim.mkdir()
    else:
        victim.symlink_to(tmp_path / "elsewhere")
    said: list[str] = []
    found = find_newest(tmp_path, said.append)
    assert found is not None
    assert found.path.name == "step-00000001"
    assert re.search(r"(not a regular file|leads out of the folder).*step-00000002 is damaged", said[0])


def test_the_best_checkpoint_stays_beside_the_newest_and_can_be_chosen(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        validation = ValidationState(step, 0.7, best, step - best)
        save(tmp_path, fake(range(10)), Position(0, step), ALONE, keep=1, validation=validation)
    kept = sorted(path.name for path in checkpoint_files.folder(tmp_path).iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    found = [checkpoint.find_on_all_ranks(tmp_path, ALONE, print, which) for which in ("newest", "best")]
    assert [one.path.name for one in found if one] == ["step-00000004", "step-00000002"]
    assert found[0] is not None
    assert found[0].validation == ValidationState(4, 0.7, 2, 2)
    chosen = checkpoint.find_on_all_ranks(tmp_path, ALONE, print, "step-2")
    assert chosen is not None
    assert chosen.position == Position(0, 2)
    for which, told in (
        ("last", "checkpoint=last is not one of newest, best, step-N"),
        ("step-3", "checkpoint=step-3: .* no checkpoint of that step; it has step-4, step-2"),
    ):
        with pytest.raises(InputError, match=told):
            checkpoint.find_on_all_ranks(tmp_path, ALONE, print, which)
    (chosen.path / TOWERS_FILE).unlink()
    for which in ("best", "step-2"):
        with pytest.raises(
            InputError, match=f"is missing, though .*; checkpoint={which} is damaged; use checkpoint=newest"
        ):
            checkpoint.find_on_all_ranks(tmp_path, ALONE, print, which)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    files = sorted((checkpoint_files.folder(tmp_path) / "step-00000001").iterdir())
    assert [file.name for file in files] == [META_FILE, "rank-00000.safetensors", TOWERS_FILE]
    json.loads(files[0].read_text())
    for file in files[1:]:
        length = int.from_bytes(file.read_bytes()[:8], "little")
        json.loads(file.read_bytes()[8 : 8 + length])


def test_a_disk_that_is_full_gives_one_sentence_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 1)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files.os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot be written.*No space left on device.*resumes from the last complete"):
        save_steps(tmp_path, 2)
    found = find_newest(tmp_path, print)
    assert found is not None
    assert found.path.name == "step-00000001"
    assert not list(checkpoint_files.folder(tmp_path).glob(".*"))  # the torn one no longer takes space


def test_what_training_changes_while_a_checkpoint_is_written_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, write = threading.Event(), checkpoint_writer.write_safetensors

    def slow_write(path: Path, tensors: dict) -> list[int]:
        goes_on.wait()
        return write(path, tensors)

    monkeypatch.setattr(checkpoint_writer, "write_safetensors", slow_write)
    model = fake(range(10))
    with CheckpointWriter(tmp_path, model, "0" * 16, ALONE, CheckpointSettings()) as writer:
        writer.save(Position(0, 1), 1, None)
        model.shards[0].weight.fill_(-1)
        assert not writer.is_ready
        assert find_newest(tmp_path, print) is None
        goes_on.set()
        writer.save(Position(0, 2), 2, None)  # waits for the first
        first = find_newest(tmp_path, print)
        assert first is not None
        restore(first, target := fake(range(10)))
        assert target.shards[0].weight[:, 0].tolist() == list(range(10))
    second = find_newest(tmp_path, print)
    assert second is not None
    restore(second, target)
    assert target.shards[0].weight.unique().tolist() == [-1]


def stopped_by_the_disk(settings: TrainSettings) -> Arrays:
    """Rank 1 cannot write files as long as its part of a checkpoint."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        if world.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(InputError) as caught:
            trainer.fit()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return {"told": np.array(str(caught.value)), "steps": np.array(trainer.steps_done)}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_rank_that_cannot_write_ends_all_ranks_in_one_sentence(
    data: Path, tmp_path: Path, asynchronous: bool
) -> None:
    settings = tiny_settings(data, tmp_path / "run", batch_size=32)
    settings.checkpoint = CheckpointSettings(every_steps=2, asynchronous=asynchronous)
    ranks = run_ranks(stopped_by_the_disk, 2, tmp_path / "ranks", settings)
    told = {str(rank["told"]) for rank in ranks}
    assert len(told) == 1
    assert re.search(r"step-00000002 cannot be written .*File too large.*resumes from the last complete", told.pop())
    assert len({int(rank["steps"]) for rank in ranks}) == 1
    assert not list(checkpoint_files.folder(tmp_path / "run").iterdir())


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    found = find_newest(tmp_path, print)
    assert found is not None
    with pytest.raises(InputError, match="has 10 rows of t/weight and the model 12"):
        restore(found, fake(range(12)))
    with pytest.raises(InputError, match=r"t/weight is \[10, 4\] of F32 and the model's is \[10, 8\]"):
        restore(found, fake(range(10), columns=8))
