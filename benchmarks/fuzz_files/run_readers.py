"""Readers of a run: its checkpoints in a model, as jobs.train and jobs.evaluate restore them, and its config.yaml."""

import contextlib
import dataclasses
import functools
import io
import json
from pathlib import Path

import xxhash

from benchmarks.fuzz_files import inputs
from benchmarks.fuzz_files.conf_readers import compare_with_yaml
from benchmarks.fuzz_files.inputs import RUN, TODAY
from benchmarks.fuzz_files.reading import Reading, digest_of
from pipeline.dataset.manifest import load_manifest
from training.checkpoint import restore as checkpoint
from training.checkpoint.files import find_checkpoint
from training.checkpoint.files import folder as checkpoints_of
from training.checkpoint.meta import META_FILE
from training.distributed.sharded_model import ShardedModel
from training.distributed.world import World, join
from training.run.build import build_model, check_settings
from training.run.continuation import continue_from
from training.run.run_folder import CONFIG, load_settings, write_config


def resumed(folder: Path) -> Reading:
    """The newest checkpoint in a model, as jobs.train resumes it."""
    return _restored(folder, "newest")


def best_restored(folder: Path) -> Reading:
    """The best checkpoint in a model, as jobs.evaluate restores it."""
    return _restored(folder, "best")


def _restored(folder: Path, which: str) -> Reading:
    model, said = _model(folder), []
    found = find_checkpoint(folder / RUN, which, said.append)
    if found is None:
        return "no checkpoint", said
    _clear(model)
    checkpoint.restore(found, model)
    return f"{found.path.name} {found.position} {found.validation} {_state_of(model)}", said


def initialized(folder: Path) -> Reading:
    """init_from: the run's weights in a model of today's dataset."""
    model, world, printed = _model(folder), _world(), io.StringIO()
    settings = inputs.train_settings_of(folder)
    settings.data, settings.out, settings.init_from = str(folder / TODAY), str(folder / "next"), str(folder / RUN)
    _clear(model)
    with contextlib.redirect_stderr(printed):
        manifest = load_manifest(folder / TODAY)
        graph = check_settings(settings, manifest, world.device)
        continue_from(folder / RUN, settings, manifest, graph, model, world)
    return _state_of(model), printed.getvalue().splitlines()


def _clear(model: ShardedModel) -> None:
    model.num_updates = -1
    model.tower_optimizer.state.clear()
    for tensor in (*checkpoint.rank_tensors(model).values(), *(value.detach() for value in model.towers.parameters())):
        tensor.fill_(-7)


def _state_of(model: ShardedModel) -> str:
    return digest_of([model.num_updates, {**checkpoint.rank_tensors(model), **checkpoint.tower_tensors(model)}])


def continued(folder: Path) -> Reading:
    """config.yaml, as the same command resumes the run: it is compared with the command, and written again."""
    write_config(folder / RUN, inputs.train_settings_of(folder))
    return json.dumps(dataclasses.asdict(load_settings(folder / RUN)), sort_keys=True), []


def evaluated(folder: Path) -> Reading:
    """config.yaml, as jobs.evaluate takes the settings of the run: they are what its text says."""
    settings = load_settings(folder / RUN)
    return compare_with_yaml(settings, {}, (folder / RUN / CONFIG)), []


@functools.cache
def _world() -> World:
    entered = _STACK.enter_context(join(inputs.train_settings_of(Path()).world))
    return entered


_STACK = contextlib.ExitStack()


@functools.cache
def _model(folder: Path) -> ShardedModel:
    """Build a model of the run's shape; today's dataset is never damaged."""
    settings, manifest = inputs.train_settings_of(folder), load_manifest(folder / TODAY)
    return build_model(settings, manifest, check_settings(settings, manifest, _world().device), _world())


def forge_checkpoint(folder: Path, file: Path) -> None:
    """Put size and checksum of a damaged file of a checkpoint into its checkpoint.json."""
    if file.is_file() and not file.is_symlink():
        path = file.with_name(META_FILE)
        meta = json.loads(path.read_text())
        content = file.read_bytes()
        meta["files"][file.name] = {"bytes": len(content), "xxh3": xxhash.xxh3_64_hexdigest(content)}
        del meta["content_xxh3"]
        meta["content_xxh3"] = xxhash.xxh3_64_hexdigest(json.dumps(meta, indent=1, sort_keys=True).encode())
        path.write_text(json.dumps(meta))


def drop_newest_checkpoint(folder: Path) -> None:
    """Leave the checkpoints before the newest."""
    newest = max(checkpoints_of(folder / RUN).glob("step-*"))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
