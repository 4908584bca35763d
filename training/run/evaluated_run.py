"""The run that a job evaluates or reads: its folder, or a copy of what is needed of one at an address (s3://…)."""

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.errors import InputError, reading
from pipeline.locations import is_address
from pipeline.object_files import ObjectFiles, check_address
from pipeline.scratch import scratch_folder
from training.checkpoint.remote_run import RemoteRun, fetch_on_all_hosts, local_run, shared_copy
from training.checkpoint.settings import NEWEST
from training.distributed.world import World
from training.evaluation.run_files import EVALUATIONS
from training.run.journal import say


@dataclass(frozen=True)
class RunHere:
    """A run as a folder of this host, and where it is really."""

    folder: Path
    remote: RemoteRun | None = None

    def publish(self) -> None:
        """Bring what was written to the folder to the address, its figures last. Call it on rank 0."""
        if self.remote:
            self.remote.publish()


def evaluated_run(run: str, key: str, world: World, which: str = NEWEST, split: str | None = None) -> RunHere:
    """Return the run `run`, of the setting `key`, with its checkpoint `which` and the earlier result of `split`.

    Raises InputError, on every rank, for one at an address and ranks of several hosts: rank 0 evaluates the predictions of
    all of them.
    """
    if not is_address(run):
        return RunHere(Path(run))
    local_ranks = [row[0] for row in world.gather([world.local_rank])]
    if local_ranks.count(0) > 1:
        raise InputError(
            f"{key}={run} is an address, and the ranks are on {local_ranks.count(0)} hosts; evaluate on one host (ranks=N)."
        )
    copy = shared_copy(run, key, world)
    folders = ("dataset", f"predictions/{split}") if split else ("dataset",)
    fetch_on_all_hosts(copy, world, say, which, folders=folders)
    return RunHere(copy.folder, copy)


def local_result(path: str, split: str) -> Path:
    """Return the folder of a result, RUN or RUN/evaluations/NAME, or of this host's copy of one at an address."""
    run, _, name = path.rstrip("/").rpartition(f"/{EVALUATIONS}/")
    if run:
        return local_run(run, "runs", folders=[f"{EVALUATIONS}/{name}"]) / EVALUATIONS / name
    return local_run(path, "runs", folders=[f"predictions/{split}"])


def local_file(path: str, key: str = "truth") -> Path:
    """Return a file as a path of this host. Raises InputError where there is none at the address `path`."""
    if not is_address(path):
        return Path(path)
    check_address(key, path)
    folder, _, name = path.rpartition("/")
    target = scratch_folder() / uuid4().hex / name
    try:
        with reading(path):
            ObjectFiles(folder).download(name, target)
    except FileNotFoundError as error:
        raise InputError(f"{key}={path} is missing; check the address.") from error
    return target
