"""What a run keeps of its dataset, in RUN/dataset: the manifest and the vocabularies, without which rows have no ids.

With it, `init_from=RUN` and an evaluation on another day need nothing of the dataset that the run was trained on.
"""

import shutil
from pathlib import Path

import pyarrow as pa

from pipeline.atomic_files import sync_directory, write_whole
from pipeline.dataset.manifest import MANIFEST, Manifest, load_manifest
from pipeline.dataset.named_files import NamedFiles
from pipeline.errors import InputError, printable, reason_of
from training.checkpoint.meta import Checkpoint

COPY = "dataset"


def keep_dataset(run: Path, data: str, manifest: Manifest) -> None:
    """Copy the manifest and the vocabularies of `data` to RUN/dataset, unless they are there. The run is locked.

    Raises InputError where a vocabulary is not the one that the manifest names, or the copy cannot be written.
    """
    target, staging = run / COPY, run / f".{COPY}.tmp"
    if _is_copy_of(target, manifest):
        return
    named = NamedFiles.below(data, MANIFEST, "restore the file, or run jobs.preprocess again.")
    vocabularies = {entry.vocabulary: entry.vocabulary_xxh3 for entry in manifest.fields if entry.vocabulary}
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name in vocabularies:
            with named.open(name) as stream:
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as copy:
                    shutil.copyfileobj(stream, copy, 4 << 20)
        copied = NamedFiles.below(staging, f"{data}/{MANIFEST}", named.remedy)
        for name, xxh3 in vocabularies.items():
            copied.check_content(name, xxh3)
        staging.mkdir(exist_ok=True)
        write_whole(staging / MANIFEST, manifest.to_json())
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
        sync_directory(run)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"The vocabularies of data={data} cannot be copied to {target} ({printable(reason_of(error))}); make room "
            "there, or choose another out=…."
        ) from error


def dataset_of(run: Path, data: str) -> tuple[str, Manifest]:
    """Return where the manifest and the vocabularies of the dataset of `run` are, and the manifest.

    That is the copy in RUN/dataset, or `data`, where the run found it, for a run of an earlier release.
    """
    kept = run / COPY
    if not kept.exists():
        return data, load_manifest(data)
    try:
        return str(kept), load_manifest(kept)
    except InputError as error:
        raise InputError(
            f"{kept}, the copy that run={run} keeps, is damaged; delete it to use {data}. ({error})"
        ) from error


def check_dataset(found: Checkpoint, manifest: Manifest, data: str) -> None:
    """Raise InputError unless `manifest` is that of the dataset on which `found` was trained."""
    if found.manifest_xxh3 != manifest.xxh3:
        raise InputError(
            f"data={data} is not the dataset that {found.path.parent.parent} was trained on: its manifest differs, so "
            "indices may mean other ids. Give that dataset, or train a new run (out=…)."
        )


def _is_copy_of(target: Path, manifest: Manifest) -> bool:
    try:
        return load_manifest(target).to_json() == manifest.to_json()
    except InputError:
        return False
