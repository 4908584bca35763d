import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from pipeline.errors import InputError
from training.checkpoint.meta import (
    META_FILE,
    TOWERS_FILE,
    Checkpoint,
    Position,
    SavedFile,
    ValidationState,
    file_names,
    meta_text,
    path_of,
    read_meta,
)
from training.distributed.settings import AverageState

STATE = ValidationState(10, 0.7, 8, 1)
AVERAGE = AverageState(3.0, 2, 10, 9)
FILES = {name: SavedFile(8, "0" * 16) for name in ("rank-00000.safetensors", "rank-00001.safetensors", TOWERS_FILE)}
FILES_WITH_AVERAGE = {name: SavedFile(8, "0" * 16) for name in file_names(2, has_average=True)}


def saved(run: Path) -> Path:
    """A checkpoint.json of two ranks, in the third epoch of four steps each."""
    path = path_of(run, 10)
    path.mkdir(parents=True)
    checkpoint = Checkpoint(path, Position(2, 2), "ab" * 8, tuple(sorted(FILES)), STATE)
    (path / META_FILE).write_text(meta_text(checkpoint, 2, FILES))
    return path


def test_what_is_written_is_read_and_so_is_what_the_first_releases_wrote(tmp_path: Path) -> None:
    path = saved(tmp_path)
    expected = (Checkpoint(path, Position(2, 2), "ab" * 8, tuple(sorted(FILES)), STATE), FILES)
    assert read_meta(path, "") == expected
    raw = json.loads((path / META_FILE).read_text())
    assert raw.pop("content_xxh3")
    assert raw.pop("total_steps") == 10
    (path / META_FILE).write_text(json.dumps(raw))
    assert read_meta(path, "") == expected


def test_an_average_is_described_and_has_a_file_for_each_of_the_others(tmp_path: Path) -> None:
    path = saved(tmp_path)
    names = tuple(sorted(FILES_WITH_AVERAGE))
    checkpoint = Checkpoint(path, Position(2, 2), "ab" * 8, names, STATE, average=AVERAGE)
    (path / META_FILE).write_text(meta_text(checkpoint, 2, FILES_WITH_AVERAGE))
    assert read_meta(path, "") == (checkpoint, FILES_WITH_AVERAGE)
    for state in (
        replace(AVERAGE, since=10),
        replace(AVERAGE, since=-1),
        replace(AVERAGE, steps=9),
        replace(AVERAGE, snapshot=2),
        replace(AVERAGE, snapshot=11),
        replace(AVERAGE, power=-1.0),
        None,
    ):
        (path / META_FILE).write_text(meta_text(replace(checkpoint, average=state), 2, FILES_WITH_AVERAGE))
        with pytest.raises(InputError, match=r"checkpoint\.json: .*; use another\.\Z"):
            read_meta(path, "use another.")
    (path / META_FILE).write_text(meta_text(checkpoint, 2, FILES))
    with pytest.raises(InputError, match="it names 3 files"):
        read_meta(path, "use another.")


def with_value(*keys: str, value: Any) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


CHANGES = {
    "an epoch too many": with_value("position", "epoch", value=3),
    "another step": with_value("position", "step", value=3),
    "a step beyond the epoch": with_value("position", value={"epoch": 2, "step": 4}),
    "a negative epoch": with_value("position", "epoch", value=-2),
    "no number": with_value("position", "step", value="2"),
    "a truth value": with_value("position", "step", value=True),
    "a fraction": with_value("position", "step", value=2.0),
    "no position": with_value("position", value=None),
    "more in the position": with_value("position", "lane", value=1),
    "no key": lambda raw: raw.pop("judged"),
    "a negative count": with_value("judged", "num_worse", value=-1),
    "a validation to come": with_value("judged", "total_steps", value=11),
    "a best one to come": with_value("judged", "best_steps", value=11),
    "a best text": with_value("judged", "best", value="0.7"),
    "another dataset's hash": with_value("manifest_xxh3", value="ab"),
    "no ranks": with_value("world_size", value=0),
    "a rank more": with_value("world_size", value=3),
    "a negative size": with_value("files", TOWERS_FILE, "bytes", value=-8),
    "no checksum": with_value("files", TOWERS_FILE, "xxh3", value=None),
    "a file twice": lambda raw: raw["files"].update({"./" + TOWERS_FILE: raw["files"].pop("rank-00001.safetensors")}),
    "a file elsewhere": lambda raw: raw["files"].update({"../" + TOWERS_FILE: raw["files"].pop(TOWERS_FILE)}),
    "files as a list": with_value("files", value=[TOWERS_FILE]),
    "another format": with_value("format_version", value=2),
}


@pytest.mark.parametrize("is_signed", [True, False], ids=["with its checksum", "of the first releases"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_value_that_cannot_be_is_refused_with_its_place(tmp_path: Path, change: str, is_signed: bool) -> None:
    """Also where the checksum was computed anew: it protects from accidents, the rules from the rest."""
    path = saved(tmp_path)
    raw = json.loads((path / META_FILE).read_text())
    CHANGES[change](raw)
    del raw["content_xxh3"]
    if is_signed:
        raw["content_xxh3"] = xxhash.xxh3_64_hexdigest(json.dumps(raw, indent=1, sort_keys=True).encode())
    else:
        del raw["total_steps"]
    (path / META_FILE).write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"step-00000010/checkpoint\.json: .*; use another\.\Z"):
        read_meta(path, "use another.")


@pytest.mark.parametrize("text", ["", "[1, 2", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}', "null", "\0", "\ud800"])
def test_what_is_no_json_of_a_checkpoint_is_refused(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path)
    (path / META_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"checkpoint\.json.*; use another\.\Z"):
        read_meta(path, "use another.")


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content, expected = (path / META_FILE).read_bytes(), read_meta(path, "")
    num_refused, num_flips = 0, 0
    for place in range(len(content)):
        for bit in {0, 5, place % 8}:  # the case of a letter and the last digit among them
            num_flips += 1
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            (path / META_FILE).write_bytes(changed)
            try:
                assert read_meta(path, "") == expected  # white space
            except InputError:
                num_refused += 1
    assert num_refused > 0.8 * num_flips


def test_a_copy_under_another_step_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.rename(path.with_name("step-00000014"))
    with pytest.raises(InputError, match="it is of step 10, and its folder is step-00000014"):
        read_meta(path.with_name("step-00000014"), "")
