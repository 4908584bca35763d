"""Asynchronous checkpoints: copied in the step, written in a thread, complete once every rank has written.

    in the step      every rank copies its tensors to buffers of its own, and training goes on; not the rows of the average
                     that snapshots alone change, and they wait for the thread
    in a thread      every rank writes its file, down to the disk
    at later steps   once all have written (the ranks agree on it with their losses), rank 0 gets sizes and checksums
    in a thread      rank 0 writes checkpoint.json and renames the folder

Of a run at an address each file goes up from the thread that wrote it, and rank 0's PUT of checkpoint.json is the commit.
No thread waits for another rank, so the collectives of all ranks stay in one order.
"""

import contextlib
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from pipeline import telemetry
from pipeline.errors import InputError
from training.checkpoint.files import commit, folder, prepare_folder
from training.checkpoint.meta import (
    AVERAGE_TOWERS_FILE,
    TOWERS_FILE,
    Checkpoint,
    LogWindow,
    Position,
    ValidationState,
    average_file,
    file_names,
    path_of,
    rank_file,
)
from training.checkpoint.remote_run import RemoteRun
from training.checkpoint.restore import rank_tensors, tensors_of, tower_tensors
from training.checkpoint.settings import CheckpointSettings
from training.checkpoint.tensors import write_safetensors
from training.distributed.sharded_model import ShardedModel
from training.distributed.weight_average import WeightAverage
from training.distributed.world import World

#: File → its size and the halves of its checksum, as `write_safetensors` returns them.
FileEntries = dict[str, list[int]]
_NO_FILE = [0, 0, 0]


@dataclass
class _PendingSave:
    whole: Checkpoint
    staging: Path
    job: "Future[FileEntries]"  # of this rank
    commits: bool = False  # else it writes


class CheckpointWriter:
    """The writer of one run's checkpoints, one at a time.

    It keeps buffers for all that this rank saves but the average of rare rows, unless `settings.asynchronous` is off. All
    ranks make the same calls; InputError is raised on all of them where one cannot write. The end of the block waits for the
    pending checkpoint.
    """

    def __init__(
        self,
        run: Path,
        model: ShardedModel,
        manifest_xxh3: str,
        world: World,
        settings: CheckpointSettings,
        average: WeightAverage | None = None,
        remote: RemoteRun | None = None,
    ) -> None:
        self._remote = remote
        self._run, self._model, self._manifest_xxh3 = run, model, manifest_xxh3
        self._world, self._settings, self._average = world, settings, average
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._buffers: dict[str, Tensor] = {}
        self._underway: _PendingSave | None = None
        self._is_prepared = False

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, InputError):  # on all ranks; complete what was saved before it
            with contextlib.suppress(InputError):
                self.finish()
        self._thread.shutdown(wait=error is None)

    def save(
        self,
        position: Position,
        total_steps: int,
        validation: ValidationState | None,
        window: LogWindow | None = None,
    ) -> None:
        """Start to write the state after `total_steps` steps; wait for the pending checkpoint first.

        `window`, of rank 0, is what the log has no entry of yet.
        """
        self.finish()
        final = path_of(self._run, total_steps)
        staging = folder(self._run) / f".{final.name}.tmp"
        self._prepare_folder_once(final)
        average = self._average if self._average and self._average.state else None
        files = {rank_file(self._world.rank): rank_tensors(self._model)}
        if self._world.rank == 0:
            files[TOWERS_FILE] = tower_tensors(self._model)
            if average:
                files[AVERAGE_TOWERS_FILE] = dict(average.towers)
        if average:
            files[average_file(self._world.rank)] = tensors_of(average.frequent)
        if self._settings.asynchronous:
            files = {name: self._copied(name, tensors) for name, tensors in files.items()}
        if average:
            files[average_file(self._world.rank)] |= tensors_of(average.others)
        names = tuple(file_names(self._world.size, average is not None))
        state = average.state if average else None
        whole = Checkpoint(final, position, self._manifest_xxh3, names, validation, window, state)
        self._underway = _PendingSave(whole, staging, self._thread.submit(self._write_all, staging, final, files))
        if not self._settings.asynchronous:
            self.finish()

    @property
    def is_underway(self) -> bool:
        """A checkpoint is pending."""
        return self._underway is not None

    @property
    def is_ready(self) -> bool:
        """This rank's thread has done its part of the pending checkpoint."""
        return self._underway is not None and self._underway.job.done()

    def wait_until_written(self) -> None:
        """Wait until this rank's thread has written the average: call it before a snapshot, and before `in_place`."""
        if self._underway and not self._underway.commits:
            wait([self._underway.job])

    def advance(self) -> None:
        """Take the pending checkpoint one stage further; wait for the threads of all ranks."""
        underway = self._underway
        assert underway is not None
        mine = self._agreed(underway)
        if underway.commits:
            self._underway = None
            telemetry.set_figures({"checkpoint_timestamp_seconds": time.time()}, force=True)
            return
        gathered = self._world.gather(
            [number for name in _may_write(self._world.rank) for number in mine.get(name, _NO_FILE)]
        )
        underway.commits, underway.job = True, Future()
        if self._world.rank:
            underway.job.set_result({})
            return
        entries: FileEntries = {}
        for rank, numbers in enumerate(gathered):
            of_rank = zip(_may_write(rank), zip(*[iter(numbers)] * len(_NO_FILE), strict=True), strict=True)
            entries |= {name: list(entry) for name, entry in of_rank if name in underway.whole.files and any(entry)}
        underway.job = self._thread.submit(self._commit, underway, entries)

    def finish(self) -> None:
        """Wait until the pending checkpoint is complete."""
        while self._underway:
            self.advance()

    def _agreed(self, underway: _PendingSave) -> FileEntries:
        """Wait for this rank's job and return its result. If one failed, raise InputError on all ranks and delete the files."""
        error, written = None, {}
        try:
            written = underway.job.result()
        except OSError as found:
            error = self._cannot_write(underway.whole.path, found)
        except InputError as found:
            error = found
        try:
            self._world.agree(error)  # by now no rank writes any more
        except InputError:
            self._underway = None
            if self._world.rank == 0:
                shutil.rmtree(underway.staging, ignore_errors=True)  # what is left of it would keep the disk full
            raise
        return written

    def _write_all(self, staging: Path, final: Path, files: Mapping[str, Mapping[str, Tensor]]) -> FileEntries:
        staging.mkdir(parents=True, exist_ok=True)
        entries = {}
        for name, tensors in files.items():
            entries[name] = write_safetensors(staging / name, tensors)
            if self._remote:
                self._remote.put_file(staging / name, final)
        return entries

    def _commit(self, underway: _PendingSave, entries: Mapping[str, list[int]]) -> FileEntries:
        args = underway.whole, self._world.size, entries, self._settings.keep
        if self._remote:
            self._remote.commit(*args)
            shutil.rmtree(underway.staging, ignore_errors=True)
        else:
            commit(underway.staging, *args)
        return {}

    def _prepare_folder_once(self, final: Path) -> None:
        if self._is_prepared:
            return
        with self._world.agreeing():
            try:
                if self._world.local_rank == 0 if self._remote else self._world.rank == 0:
                    prepare_folder(final.parent)
                if self._remote and self._world.rank == 0:
                    self._remote.prepare(final)
            except OSError as error:
                raise self._cannot_write(final, error) from error
        self._is_prepared = True

    def _cannot_write(self, path: Path, error: OSError) -> InputError:
        remedy = "wait until its store answers" if self._remote and error.errno is None else "free some space"
        return InputError(
            f"The checkpoint {path} cannot be written ({error}); {remedy} and run the same command again: it resumes "
            "from the last complete checkpoint."
        )

    def _copied(self, file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy `tensors` to memory that no training step touches; it is pinned if they are on a GPU."""
        copies = {}
        for name, tensor in tensors.items():
            key = f"{file}/{name}"
            if key not in self._buffers:
                on_gpu = tensor.device.type == "cuda"
                self._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            copies[name] = self._buffers[key].copy_(tensor, non_blocking=True)
        if self._world.device.type == "cuda":
            torch.cuda.synchronize()
        return copies


def _may_write(rank: int) -> list[str]:
    """List the files that `rank` writes to a checkpoint, in the order in which it reports them; some may be absent."""
    return [rank_file(rank), average_file(rank), TOWERS_FILE, AVERAGE_TOWERS_FILE]
