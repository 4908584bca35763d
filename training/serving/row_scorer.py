"""The model of a run for jobs.score: which one it is, told without torch, and how a worker of Spark opens it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from pipeline.locations import is_address
from pipeline.release import release
from training.checkpoint.files import find_checkpoint
from training.checkpoint.meta import META_FILE, steps_of
from training.checkpoint.remote_run import local_run, print_warning
from training.run.dataset_copy import check_dataset, dataset_of
from training.run.run_folder import load_settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


@dataclass(frozen=True)
class RowScorerOfRun:
    """Opens a checkpoint in the process that calls it; travels there by pickle."""

    run: str
    checkpoint: str  # step-N

    def __call__(self) -> "Callable[[pa.Table], dict[str, np.ndarray]]":
        """Load the model onto this CPU; one thread, for Spark starts a worker for each core."""
        import torch

        from training.serving.open_run import open_scorer

        torch.set_num_threads(1)
        return open_scorer(self.run, self.checkpoint, takes_raw_values=False).predict_table


@dataclass(frozen=True)
class DescribedRun:
    """A checkpoint of a run, and what its rows mean."""

    scorer: RowScorerOfRun
    outputs: tuple[str, ...]
    dataset: str  # the folder of the manifest and the vocabularies
    manifest: Manifest
    origin: dict[str, str]


def describe_run(run: str, which: str) -> DescribedRun:
    """Find the checkpoint `which` (newest, best, step-N) of `run`. Raises InputError without one, or for a damaged file."""
    folder = local_run(run, "run", which).resolve()
    settings = load_settings(folder)
    location, manifest = dataset_of(folder, settings.data)
    found = find_checkpoint(folder, which, print_warning)
    if found is None:
        raise InputError(f"run={run} has no whole checkpoint yet; train it to the end of an epoch first.")
    check_dataset(found, manifest, location)
    step = steps_of(found.path)
    place = run.rstrip("/") if is_address(run) else str(folder)
    origin = {
        "run": place,
        "checkpoint": found.path.name,
        "step": str(step),
        "checkpoint_xxh3": xxhash.xxh3_64_hexdigest((found.path / META_FILE).read_bytes()),
        "manifest_xxh3": found.manifest_xxh3,
        "version": release(),
    }
    outputs = tuple(settings.model.graph.outputs)
    # Workers of other hosts read the run where it is, and not this host's copy of it.
    location = location.replace(str(folder), place)
    return DescribedRun(RowScorerOfRun(place, f"step-{step}"), outputs, location, manifest, origin)
