"""A chain of jobs as subprocesses, by the commands that a user would type; what is finished and unchanged is not run again.

OUT/pipeline.json notes of each stage its command, what it read and what it wrote, by name, size and checksum. A stage is
skipped while all of that is as it was. Otherwise its job runs, which itself resumes, or refuses other settings.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from pyarrow import fs as pafs

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, reason_of, writing
from pipeline.locations import open_location
from pipeline.terminal import IN_CHAIN, styled
from training.checkpoint.files import checkpoint_paths
from training.checkpoint.meta import META_FILE

LEDGER = "pipeline.json"
_LEDGER_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One job of a chain."""

    name: str
    job: str  # jobs.preprocess
    words: tuple[str, ...]  # behind it on the command line
    inputs: tuple[str, ...]  # folders and files that it reads
    output: str  # the folder or file that says that it is done
    metrics_of: str = ""  # of an evaluation: the run whose newest metrics.json is copied to `output`

    @property
    def command(self) -> list[str]:
        """The command, for this Python."""
        return [sys.executable, "-m", self.job, *self.words]


class Ledger:
    """OUT/pipeline.json."""

    def __init__(self, out: Path) -> None:
        """Read the file if it is there; a damaged one counts as none, and all stages run again."""
        self._path = out / LEDGER
        self._entries: dict[str, Any] = {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("format_version") == _LEDGER_VERSION:
                self._entries = found["stages"]
        except (OSError, ValueError, KeyError):
            return

    def is_done(self, stage: Stage) -> bool:
        """Check that the stage ran with this command on these inputs, and that its output is still the one it wrote."""
        entry = self._entries.get(stage.name)
        return entry is not None and entry == self._entry(stage)

    def note(self, stage: Stage, inputs: Mapping[str, str]) -> None:
        """Save that the stage has run on `inputs`."""
        self._entries[stage.name] = self._entry(stage) | {"inputs": dict(inputs)}
        content = {"format_version": _LEDGER_VERSION, "stages": self._entries}
        with writing(f"out={self._path.parent}"):
            write_whole(self._path, json.dumps(content, indent=1) + "\n", mode=0o600)

    def _entry(self, stage: Stage) -> dict[str, Any]:
        return {
            "job": stage.job,
            "words": list(stage.words),
            "inputs": identities(stage.inputs),
            "output": identity_of(stage.output),
        }


def run_stages(stages: Iterable[Stage], ledger: Ledger) -> None:
    """Run each stage that is not done. Raises InputError for the first that fails; the ones before it stay done."""
    for stage in stages:
        if ledger.is_done(stage):
            print(f"{stage.name}: finished, with these settings and inputs; nothing to do.", flush=True)
            continue
        inputs = identities(stage.inputs)
        run_command(stage.name, stage.command)
        if stage.metrics_of:
            _copy_newest_metrics(Path(stage.metrics_of), Path(stage.output))
        if identity_of(stage.output) == "":
            raise InputError(f"The stage {stage.name} has ended without {stage.output}; its own message stands above.")
        ledger.note(stage, inputs)


def run_command(name: str, command: list[str]) -> None:
    """Run a stage, under a heading with its command. Raises InputError if it fails."""
    print_heading(name, command)
    started = time.monotonic()
    status = subprocess.run(command, check=False, env=os.environ | {IN_CHAIN: "1"}).returncode
    if status != 0:
        raise InputError(f"The stage {name} ended with status {status}; its own message stands above.")
    print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)


def print_heading(name: str, command: list[str]) -> None:
    """Print the name of a stage and its command, as a user would type it."""
    print(f"\n{styled(f'── {name} ──', 'bold', sys.stdout)}\n$ {shlex.join(['python', *command[1:]])}", flush=True)


def _copy_newest_metrics(run: Path, target: Path) -> None:
    """Copy the metrics.json that an evaluation of `run` has just written: each of a checkpoint, split and dataset has its own."""
    found = [*run.glob("metrics*.json"), *run.glob("evaluations/*/metrics.json")]
    if found:
        newest = max(found, key=lambda path: path.stat().st_mtime_ns)
        with writing(f"out={target.parent}"):
            write_whole(target, newest.read_text(encoding="utf-8"))


def identities(places: Iterable[str]) -> dict[str, str]:
    """Return place → `identity_of`."""
    return {place: identity_of(place) for place in places}


def identity_of(place: str) -> str:
    """Tell what is at a path or an address; "" where nothing is.

    Of a dataset, scores and a run that is the hash of the small file that names all others: manifest.json, scores.json,
    the newest checkpoint.json. Of any other folder it is the names, sizes and times of its files.
    """
    try:
        filesystem, root = open_location(place)
        root = root.rstrip("/")
        for name in ("manifest.json", "scores.json"):
            if filesystem.get_file_info(f"{root}/{name}").is_file:
                return _hash_of_file(filesystem, f"{root}/{name}")
        if filesystem.type_name == "local" and (found := checkpoint_paths(Path(root))):
            return f"{found[0].name} {_hash_of_file(filesystem, str(found[0] / META_FILE))}"
        info = filesystem.get_file_info(root)
        if info.is_file:
            return _hash_of_file(filesystem, root)
        if info.type == pafs.FileType.NotFound:
            return ""
        entries = [one for one in filesystem.get_file_info(pafs.FileSelector(root, recursive=True)) if one.is_file]
        lines = sorted(f"{one.path.removeprefix(root)} {one.size} {one.mtime_ns}" for one in entries)
        return xxhash.xxh3_64_hexdigest("\n".join(lines).encode()) if lines else ""
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place} cannot be read ({reason_of(error)}); check the path or the address.") from error


def _hash_of_file(filesystem: pafs.FileSystem, path: str) -> str:
    with filesystem.open_input_file(path) as stream:
        digest: str = xxhash.xxh3_64_hexdigest(stream.read())
    return digest
