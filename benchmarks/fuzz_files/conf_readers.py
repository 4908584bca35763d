"""Readers of configurations of the user's own: jobs.train with --config-dir, up to where its settings are known."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.global_hydra import GlobalHydra

from benchmarks.fuzz_files import damage
from benchmarks.fuzz_files.inputs import CONF
from benchmarks.fuzz_files.reading import Disagreement, Reading
from jobs.entry import launch
from jobs.output import EXIT_INPUT
from pipeline.errors import InputError
from training.run.settings import TrainSettings


def model_composed(folder: Path) -> Reading:
    """A model of the user's own, by --config-dir."""
    settings = _launched(folder, "model=mine")
    return compare_with_yaml(
        settings.model, dataclasses.asdict(_launched_plain(folder).model), folder / CONF / "model" / "mine.yaml"
    ), []


def experiment_composed(folder: Path) -> Reading:
    """An experiment of the user's own, by --config-dir."""
    settings = _launched(folder, "experiment=mine")
    return compare_with_yaml(
        settings, dataclasses.asdict(_launched_plain(folder)), folder / CONF / "experiment" / "mine.yaml"
    ), []


@functools.cache
def _launched_plain(folder: Path) -> TrainSettings:
    return _launched(folder, "model=esmm")


def _launched(folder: Path, *overrides: str) -> TrainSettings:
    """Start jobs.train by its own entry, up to where its settings are known."""
    argv, stderr, found = sys.argv, io.StringIO(), []
    sys.argv = ["jobs.train", "--config-dir", str(folder / CONF), *overrides, "data=DATA", "out=OUT"]
    os.environ[damage.SECRET] = "a-secret-value"
    marker = Path(damage.MARKER)
    GlobalHydra.instance().clear()
    try:
        with contextlib.redirect_stderr(stderr):
            launch("train", TrainSettings, found.append)
    except SystemExit as ended:
        text = stderr.getvalue()
        if ended.code != EXIT_INPUT or not text.startswith("error: "):
            raise Disagreement(f"ended with {ended.code}: {text[:200]}") from ended
        raise InputError(text.removeprefix("error: ").removesuffix("\n")) from ended
    finally:
        sys.argv = argv
        if marker.exists():
            marker.rmdir() if marker.is_dir() else marker.unlink()
            raise Disagreement("code of the configuration ran")
    if len(found) != 1:
        raise Disagreement(f"the job ran {len(found)} times")
    return found[0]


def compare_with_yaml(settings: Any, without: dict[str, Any], path: Path) -> str:
    """Compare the settings with the text of the file: its values are there, and all others are as without it."""
    found = _leaves(dataclasses.asdict(settings))
    if not path.is_file():
        raise Disagreement("the job went on without the file")
    try:
        wanted = _leaves(yaml.safe_load(path.read_text()) or {})
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Disagreement(f"read what PyYAML refuses: {str(error).splitlines()[0]}") from error
    wanted.pop("defaults", None)
    for key, value in wanted.items():
        if not key.startswith("defaults") and (key not in found or not _equal(found[key], value)):
            raise Disagreement(f"{key} is {found.get(key, 'not there')!r} where the file says {value!r}")
    plain = _leaves(without)
    for key, value in found.items():
        if plain and key not in wanted and not _equal(plain.get(key), value) and key not in _DEFAULTS:
            raise Disagreement(f"{key} is {value!r}, of which the file says nothing, and not {plain.get(key)!r}")
    return json.dumps(dataclasses.asdict(settings), sort_keys=True)


#: Of conf/model/esmm.yaml: a model that does not name them has the defaults of the dataclass.
_DEFAULTS = (
    "name",
    "train_on",
    "towers.hidden",
    "towers.dropout",
    "graph.edges",
    "graph.losses",
    "graph.outputs.p_ctr",
    "graph.outputs.p_cvr",
    "graph.outputs.p_ctcvr",
    "body",
)


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if one == other or str(one) == str(other) or (not one and not other and one in (None, {}) and other in (None, {})):
        return True
    try:  # YAML 1.1 reads 1e3 as a text, which OmegaConf reads as a number
        return float(one) == float(other) and isinstance(one, bool) == isinstance(other, bool)
    except (TypeError, ValueError, OverflowError):
        return str(one).lower() == str(other).lower()
