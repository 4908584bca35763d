"""A run at an address (s3://bucket/run): a folder of this host stands in for it while a job works on it.

    fetch       small files come down, and of the checkpoints the one that is asked for, verified
    put_file    a rank's file of a checkpoint goes up as soon as it is written, and leaves this host
    commit      one PUT of checkpoint.json makes the checkpoint complete; none is seen before
    publish     what the job wrote besides goes up: log, settings, results; the figures of an evaluation come last

A checkpoint without checkpoint.json is none, so what a killed job leaves is not seen; the next one removes it.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa

from pipeline.errors import InputError, reading, show_as, with_addresses, writing
from pipeline.locations import is_address
from pipeline.object_files import ObjectFiles, check_address
from pipeline.object_lock import Claim
from pipeline.scratch import scratch_folder
from training.checkpoint.files import read_checkpoint
from training.checkpoint.meta import META_FILE, Checkpoint, SavedFile, meta_text, path_of, read_meta, steps_of
from training.checkpoint.settings import BEST, NEWEST, check_which

if TYPE_CHECKING:  # it loads torch, which describing a run does without
    from training.distributed.world import World

CHECKPOINTS = "checkpoints"
_COMPLETE = re.compile(rf"{CHECKPOINTS}/step-([0-9]{{8,18}})/{re.escape(META_FILE)}", re.ASCII)
_OF_STEP = re.compile(rf"{CHECKPOINTS}/step-([0-9]{{8,18}})/", re.ASCII)
_METRICS_FILE = re.compile(r"(evaluations/[^/]+/)?metrics[^/]*\.json")
_LETTERS_OF_PATH = 1024
_MOST_TRIES = 3


class RemoteRun:
    """A run at an address, and `folder`, which stands in for it on this host."""

    def __init__(self, address: str, key: str, folder: Path | None = None) -> None:
        check_address(key, address)
        self.address, self.key = address.rstrip("/"), key
        self.files = ObjectFiles(self.address)
        name = self.address.rpartition("/")[2]
        self.folder = folder or scratch_folder() / uuid4().hex / name
        with writing(str(self.folder.parent), "set TMPDIR to another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
        show_as(str(self.folder), self.address)
        self.claim = Claim()
        self._published: dict[str, tuple[int, int]] = {}  # name → size and time of the file that both sides have

    def fetch(self, folders: Iterable[str] = ("dataset",)) -> None:
        """Bring the small files of the run, and those of some of its `folders`, to this host."""
        wanted = tuple(f"{name}/" for name in folders)
        with reading(self.address):
            for found in self.files.list_files():
                is_small = "/" not in found.name and not found.name.startswith((".", "_"))
                if is_small or found.name.startswith(wanted):
                    with suppress(FileNotFoundError):  # another job has just removed it
                        self.files.download(found.name, self.folder / found.name)
                        self._published[found.name] = _stamp(self.folder / found.name)

    def publish(self) -> None:
        """Bring what is new or has changed in the folder to the address, and remove there what is gone here."""
        local = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        local = {name: path for name, path in local.items() if not _stays_here(name)}
        changed = [name for name, path in local.items() if self._published.get(name) != _stamp(path)]
        gone = [name for name in self._published if name not in local]
        figures = sorted(name for name in changed if _METRICS_FILE.fullmatch(name))
        others = sorted(set(changed) - set(figures))
        with writing(f"{self.key}={self.address}"):
            # Without its figures a result is none: nobody sees some of its files beside others of an earlier one.
            for name in figures:
                self.files.remove(name)
            for name in gone:
                self.files.remove(name)
                del self._published[name]
            for name in (*others, *figures):
                stamp = _stamp(local[name])  # before: a log that grows meanwhile is uploaded again
                self.files.upload(local[name], name)
                self._published[name] = stamp

    def complete_steps(self) -> list[int]:
        """List the steps of the complete checkpoints, the newest first."""
        with reading(self.address):
            names = (found.name for found in self.files.list_files(CHECKPOINTS))
            return sorted((int(match[1]) for name in names if (match := _COMPLETE.fullmatch(name))), reverse=True)

    def fetch_checkpoint(self, step: int) -> Checkpoint:
        """Bring a checkpoint to this host and verify it. Raises InputError where it is damaged or gone, after a second look."""
        path = path_of(self.folder, step)
        try:
            return self._fetched(path)
        except InputError as error:
            if not is_damage(error):
                raise
        return self._fetched(path)

    def _fetched(self, path: Path) -> Checkpoint:
        remedy = "it is damaged and is not used."
        with writing(str(path), "set TMPDIR to a larger disk"):
            path.mkdir(parents=True, exist_ok=True)
        try:
            self._download(path, META_FILE)
            for name in read_meta(path, remedy)[1]:
                self._download(path, name)
            return read_checkpoint(path, remedy)
        except InputError:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def _download(self, path: Path, name: str) -> None:
        whole = f"{CHECKPOINTS}/{path.name}/{name}"
        try:
            with reading(f"{self.address}/{whole}"):
                self.files.download(whole, path / name)
        except FileNotFoundError as error:
            raise InputError(f"{self.address}/{whole} is missing; it is damaged and is not used.") from error

    def fetch_newest(self, say: Callable[[str], None], renames: bool = False) -> int:
        """Bring the newest whole checkpoint to this host; return its step, -1 without one.

        Damaged ones are named to `say` and skipped. `renames` is for the job that has claimed the run: it renames their
        checkpoint.json, so that they count no longer.
        """
        for _ in range(_MOST_TRIES):
            steps = self.complete_steps()
            for step in steps:
                try:
                    self.fetch_checkpoint(step)
                    return step
                except InputError as error:
                    if not is_damage(error):
                        raise
                    if step not in self.complete_steps():
                        break  # the job that trains has just removed it, and has a newer one
                    say(str(error))
                    if renames:
                        self._set_aside(step, say)
            else:
                return -1
        raise InputError(f"{self.address}: its checkpoints are replaced faster than they are read; try again.")

    def fetch_wanted(self, which: str, say: Callable[[str], None], key: str = "checkpoint") -> None:
        """Bring what `find_checkpoint` needs to find the checkpoint `which` in the folder."""
        check_which(which, key)
        if which in (NEWEST, BEST):
            newest = self.fetch_newest(say)
            if which == BEST and newest >= 0:
                validation = read_meta(path_of(self.folder, newest), "")[0].validation
                if validation and validation.best is not None and validation.best_steps != newest:
                    self.fetch_checkpoint(validation.best_steps)
            return
        step, steps = int(which.removeprefix("step-")), self.complete_steps()
        if step not in steps:
            names = ", ".join(f"step-{one}" for one in steps) or "none"
            raise InputError(f"{key}={which}: {self.address} has no checkpoint of that step; it has {names}.")
        self.fetch_checkpoint(step)

    def drop_checkpoints(self) -> None:
        """Remove this host's copies of checkpoints."""
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def prepare(self, final: Path) -> None:
        """Take what dead jobs left out of the way of new checkpoints, `final` the first of them. The run is claimed.

        A complete checkpoint of the same step, saved before its validation, is none from here on: its files are replaced.
        """
        self.files.remove(f"{CHECKPOINTS}/{final.name}/{META_FILE}")
        names = [found.name for found in self.files.list_files(CHECKPOINTS)]
        kept = {name.rpartition("/")[0] for name in names if name.endswith((META_FILE, f"{META_FILE}.damaged"))}
        for name in names:
            if _OF_STEP.match(name) and name.rpartition("/")[0] not in kept:
                self.files.remove(name)

    def put_file(self, path: Path, final: Path) -> None:
        """Bring a file of the checkpoint `final` to the address, and remove it here."""
        self.files.upload(path, f"{CHECKPOINTS}/{final.name}/{path.name}")
        path.unlink()

    def commit(self, checkpoint: Checkpoint, world_size: int, entries: Mapping[str, list[int]], keep: int) -> None:
        """Make a checkpoint complete whose files are all there, and delete what is older than the `keep` newest.

        The log comes before it, so that no checkpoint is ahead of its log.
        """
        self.claim.check()
        self.publish()
        files = {name: SavedFile(row[0], f"{(row[1] << 32) + row[2]:016x}") for name, row in entries.items()}
        self.claim.check()
        text = meta_text(checkpoint, world_size, files)
        self.files.put(f"{CHECKPOINTS}/{checkpoint.path.name}/{META_FILE}", text.encode())
        self._delete_old(keep)

    def _delete_old(self, keep: int) -> None:
        present = self.complete_steps()
        wanted = set(present[:keep])
        for step in present[:keep]:
            wanted |= self._best_of(step)
        for step in present:
            if step not in wanted:
                name = f"{CHECKPOINTS}/{path_of(self.folder, step).name}"
                self.files.remove(f"{name}/{META_FILE}")  # first: what is left of it is no checkpoint
                self.files.remove_folder(name)

    def _best_of(self, step: int) -> set[int]:
        """Return the step of the best validation that a checkpoint knows."""
        path = self.folder / ".meta" / path_of(self.folder, step).name
        try:
            self._download(path, META_FILE)
            validation = read_meta(path, "")[0].validation
        except InputError:  # a damaged one names nothing
            return set()
        return {validation.best_steps} if validation else set()

    def _set_aside(self, step: int, say: Callable[[str], None]) -> None:
        name = f"{CHECKPOINTS}/{path_of(self.folder, step).name}/{META_FILE}"
        content = self.files.read(name)
        if content is not None:
            self.files.put(f"{name}.damaged", content)
            self.files.remove(name)
            say(
                f"{self.address}/{name} is renamed to {META_FILE}.damaged; delete its folder when you no longer need it."
            )


def is_damage(error: InputError) -> bool:
    """Tell a file that is missing, cut or changed from one that could not be read this time."""
    cause = error.__cause__
    return not isinstance(cause, OSError | pa.ArrowException) or isinstance(cause, FileNotFoundError)


def _stays_here(name: str) -> bool:
    """Tell what `publish` leaves out: checkpoints, which are committed, and hidden files: locks and what is half written."""
    return name.startswith(f"{CHECKPOINTS}/") or any(part.startswith(".") for part in name.split("/"))


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def shared_copy(address: str, key: str, world: "World") -> RemoteRun:
    """Make one folder on each host for a run at an address; every rank returns it, the ranks of a host the same one.

    Raises InputError, on every rank, where one cannot make it.
    """
    mine: RemoteRun | None = None
    with world.agreeing():
        if world.local_rank == 0:
            mine = RemoteRun(address, key)
            if len(str(mine.folder).encode()) > _LETTERS_OF_PATH:
                raise InputError(
                    f"{mine.folder} is longer than {_LETTERS_OF_PATH} bytes; set TMPDIR to a shorter path."
                )
    text = str(mine.folder).encode() if mine else b""
    rows = world.gather(list(text.ljust(_LETTERS_OF_PATH, b"\0")))
    of_host = bytes(rows[world.rank - world.local_rank]).rstrip(b"\0").decode()
    return mine or RemoteRun(address, key, Path(of_host))


def fetch_on_all_hosts(
    copy: RemoteRun,
    world: "World",
    say: Callable[[str], None],
    which: str = NEWEST,
    *,
    folders: Sequence[str] = ("dataset",),
    renames: bool = False,
) -> None:
    """Bring the small files of a run and its checkpoint `which` to every host: rank 0 picks it, one rank of each host reads.

    Raises InputError on every rank where one cannot.
    """
    with world.agreeing():
        if world.rank == 0:
            copy.fetch(folders)
            if renames:
                copy.fetch_newest(say, renames=True)
            else:
                copy.fetch_wanted(which, say)
    steps = [steps_of(path) for path in sorted((copy.folder / CHECKPOINTS).glob("step-*"))] if world.rank == 0 else []
    chosen = [world.broadcast(steps[number] if number < len(steps) else -1) for number in range(2)]  # best and newest
    with world.agreeing():
        if world.rank and world.local_rank == 0:
            copy.fetch(folders)
            for step in chosen:
                if step >= 0:
                    copy.fetch_checkpoint(step)


def local_run(run: str, key: str, which: str | None = None, folders: Sequence[str] = ("dataset",)) -> Path:
    """Return a run as a folder of this host: the path itself, or a copy of what `which` and `folders` name at the address.

    Raises InputError where it cannot be read.
    """
    if not is_address(run):
        return Path(run)
    copy = RemoteRun(run, key)
    copy.fetch(folders)
    if which is not None:
        copy.fetch_wanted(which, print_warning)
    return copy.folder


def print_warning(message: str) -> None:
    """Print a line on stderr."""
    print(with_addresses(message), file=sys.stderr, flush=True)
