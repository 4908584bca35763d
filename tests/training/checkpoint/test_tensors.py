import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings, weights

from pipeline.errors import InputError
from training.checkpoint.files import find_newest
from training.checkpoint.meta import META_FILE, TOWERS_FILE, Checkpoint, SavedFile, meta_text
from training.checkpoint.restore import restore
from training.distributed.world import join
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

RANK_FILE = "rank-00000.safetensors"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Checkpoint]:
    folder = tmp_path_factory.mktemp("tensors")
    write_tiny_dataset(folder / "data", num_contexts=60)
    settings = tiny_settings(folder / "data", folder / "run")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    found = find_newest(folder / "run", print)
    assert found is not None
    return settings, found


def renamed(old: str, new: str) -> Callable[[Arrays], None]:
    def change(tensors: Arrays) -> None:
        tensors[new] = tensors.pop(old)

    return change


def without(name: str) -> Callable[[Arrays], None]:
    def drop(tensors: Arrays) -> None:
        del tensors[name]

    return drop


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def put(tensors: Arrays) -> None:
        tensors[name] = np.array(change(tensors[name]), order="C")

    return put


def with_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def put(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return put


ITEMS, TOWER = "item_id/0/weight", "0.context_weight"
#: What is forged: file, change, a part of the message.
FORGED: dict[str, tuple[str, Callable[[Arrays], None], str]] = {
    "a table without a row": (RANK_FILE, renamed(ITEMS, "item_id/weight"), "has the tensor 'item_id/weight'"),
    "a negative row": (RANK_FILE, renamed(ITEMS, "item_id/-1/weight"), "has the tensor 'item_id/-1/weight'"),
    "a row in letters": (RANK_FILE, renamed(ITEMS, "item_id/zero/weight"), "has the tensor"),
    "a huge row": (RANK_FILE, renamed(ITEMS, f"item_id/{10**30}/weight"), "has the tensor"),
    "a path": (RANK_FILE, renamed(ITEMS, "../../x/0/weight"), "has the tensor"),
    "a later row": (RANK_FILE, renamed(ITEMS, "item_id/5/weight"), "row 0 of item_id/weight is in no file"),
    "another part": (RANK_FILE, renamed(ITEMS, "item_id/0/weights"), "has 0 rows of item_id/weight and the model 50"),
    "rows less": (RANK_FILE, changed(ITEMS, lambda rows: rows[:-1]), "has 49 rows of item_id/weight and the model 50"),
    "columns less": (RANK_FILE, changed(ITEMS, lambda rows: rows[:, :-1]), "item_id/weight is .* of F32 and the model's"),
    "no matrix": (RANK_FILE, changed(ITEMS, lambda rows: rows[:, :1].ravel()), "item_id/weight is .* and the model's"),
    "half precision": (RANK_FILE, changed(ITEMS, lambda rows: rows.astype(np.float16)), "is .* of F16 and the model's"),
    "double precision": (RANK_FILE, changed(ITEMS, lambda rows: rows.astype(np.float64)), "of F64 and the model's"),
    "integers": (RANK_FILE, changed(ITEMS, lambda rows: rows.view(np.int32)), "of I32 and the model's"),
    "NaN": (RANK_FILE, changed(ITEMS, with_first(np.nan)), f"{ITEMS} has a number that is not finite"),
    "infinity": (RANK_FILE, changed("item_id/0/momentum1", with_first(np.inf)), "momentum1 has a number that is not finite"),
    "a tower's NaN": (TOWERS_FILE, changed(TOWER, with_first(np.nan)), f"{TOWER} has a number that is not finite"),
    "a tower's shape": (TOWERS_FILE, changed(TOWER, np.transpose), f"{TOWER} is .* and the model's"),
    "a tower's type": (TOWERS_FILE, changed(TOWER, lambda array: array.astype(np.float64)), f"{TOWER} is .* of F64"),
    "a tower's name": (TOWERS_FILE, renamed(TOWER, "9.context_weight"), "has the tensor '9.context_weight'"),
    "a tower less": (TOWERS_FILE, without(TOWER), "is not there"),
    "a moment less": (TOWERS_FILE, without(f"adam/{TOWER}/exp_avg"), "Adam's state of 0"),
    "a strange moment": (TOWERS_FILE, renamed(f"adam/{TOWER}/exp_avg", f"adam/{TOWER}/mean"), "Adam's state of 0"),
    "steps below 0": (TOWERS_FILE, changed(f"adam/{TOWER}/step", lambda _: np.array(-3, np.float32)), "is not possible: -3 steps"),
    "half a step": (TOWERS_FILE, changed(f"adam/{TOWER}/step", lambda _: np.array(0.5, np.float32)), "is not possible: 0.5 steps"),
    "a negative square": (TOWERS_FILE, changed(f"adam/{TOWER}/exp_avg_sq", with_first(-1.0)), "or a negative square"),
}  # fmt: skip


def refused(trainer: Trainer, checkpoint: Checkpoint, told: str) -> None:
    before = weights(trainer)
    with pytest.raises(InputError, match=told) as caught:
        restore(checkpoint, trainer.model)
    assert str(checkpoint.path) in str(caught.value)
    for name, value in weights(trainer).items() if "not finite" not in told else ():  # looked at while they are read
        np.testing.assert_array_equal(value, before[name], err_msg=told)


def copied(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    path.mkdir()
    for name in checkpoint.files:
        (path / name).write_bytes((checkpoint.path / name).read_bytes())
    return Checkpoint(path, checkpoint.position, checkpoint.manifest_xxh3, checkpoint.files)


def test_a_forged_tensor_is_refused_before_the_model_is_changed(
    trained: tuple[TrainSettings, Checkpoint], tmp_path: Path
) -> None:
    settings, checkpoint = trained
    settings.out = str(tmp_path / "run")
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        for number, (file, forge, told) in enumerate(FORGED.values()):
            forged = copied(checkpoint, tmp_path / f"step-{number:08d}")
            tensors = load_file(checkpoint.path / file)
            forge(tensors)
            save_file(tensors, forged.path / file)
            refused(trainer, forged, told)
        trainer.close()


def test_a_file_twice_and_a_damaged_header_are_refused(
    trained: tuple[TrainSettings, Checkpoint], tmp_path: Path
) -> None:
    settings, checkpoint = trained
    settings.out = str(tmp_path / "run")
    twice = copied(checkpoint, tmp_path / "step-00000001")
    (twice.path / "rank-00001.safetensors").write_bytes((twice.path / RANK_FILE).read_bytes())
    names = (RANK_FILE, "rank-00001.safetensors", TOWERS_FILE)
    (twice.path / META_FILE).write_text(meta_text(twice, 2, {name: SavedFile(0, "0" * 16) for name in names}))
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        named_twice = Checkpoint(twice.path, twice.position, twice.manifest_xxh3, names)
        refused(trainer, named_twice, r"row 0 of .* is twice")
        for number, harmed in enumerate(damaged_headers((checkpoint.path / RANK_FILE).read_bytes())):
            damaged = copied(checkpoint, tmp_path / f"step-0000001{number}")
            (damaged.path / RANK_FILE).write_bytes(harmed)
            refused(trainer, damaged, rf"{re.escape(RANK_FILE)} cannot be read \(.*\); it is not as it was saved")
        trainer.close()


def damaged_headers(content: bytes) -> list[bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    rest = content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    header[ITEMS]["data_offsets"] = [2**62, 2**63]
    beyond = json.dumps(header).encode()
    return [
        b"",
        content[:6],
        struct.pack("<Q", 2**63) + content[8:],
        content[:8] + b"\xff" * length + rest,
        content[:8] + b"[" * length,
        struct.pack("<Q", len(beyond)) + beyond + rest,
    ]


def test_towers_of_different_ages_are_restored_with_the_count_of_the_oldest(
    trained: tuple[TrainSettings, Checkpoint], tmp_path: Path
) -> None:
    """A head that began later, in a run with init_from, has taken fewer steps."""
    settings, checkpoint = trained
    settings.out = str(tmp_path / "run")
    younger = copied(checkpoint, tmp_path / "step-00000001")
    tensors = load_file(checkpoint.path / TOWERS_FILE)
    steps = int(tensors[f"adam/{TOWER}/step"])
    for name in tensors:
        if name.startswith("adam/1.") and name.endswith("/step"):
            tensors[name] = np.array(1, np.float32)
    save_file(tensors, younger.path / TOWERS_FILE)
    with join(settings.world) as world:
        trainer = Trainer(settings, world)
        restore(younger, trainer.model)
        assert trainer.model.num_updates == steps > 1
        ages = {float(state["step"]) for state in trainer.model.tower_optimizer.state.values()}
        assert ages == {float(steps), 1.0}
        assert all(torch.isfinite(value).all() for value in trainer.model.towers.parameters())
        trainer.close()
