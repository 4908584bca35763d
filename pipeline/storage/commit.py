"""The commit of a dataset. Files are named by content, and the manifest comes last.

The earlier dataset stays whole until then, and for a grace period after.

lock ─▶ write to staging ─▶ content names ─▶ audit.json, run.json ─▶ flush ─▶ manifest.json ─▶ remove unnamed files
"""

import io
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.dataset.json_text import CONTENT_XXH3, canonical_text, check_own_xxh3, parse_json, xxh3_of_content
from pipeline.dataset.manifest import MANIFEST, SPLITS, Manifest
from pipeline.errors import InputError, printable, reason_of
from pipeline.storage.local_store import STAGING, LocalStore
from pipeline.storage.lock import dataset_lock
from pipeline.storage.staged_file import StagedFile
from pipeline.storage.store import Store
from pipeline.undo import undone_by

#: In audit.json and run.json: the xxh3 of the manifest that they belong to.
OF_MANIFEST = "manifest_xxh3"
AUDIT, AUDIT_PAGE, RUN, SUPERSEDED = "audit.json", "audit.html", "run.json", "_superseded"
VOCABULARY_FOLDER, QUARANTINE_FOLDER = "vocabulary", "quarantine"
FOLDERS = (*SPLITS, VOCABULARY_FOLDER, QUARANTINE_FOLDER)
_AUDIT_REMEDY = "the dataset beside it stays readable: remove the file, or preprocess again with overwrite=true."
_S_PER_HOUR = 3600.0
# Only data files of this form are removed: the directory may hold a user's own files.
_DATA_FILE = re.compile(r"[a-z0-9_]+-(?:\d{5}-)?[0-9a-f]{16}\.parquet\Z")


@dataclass(frozen=True)
class Staging:
    """The place where the tasks of one run write; tasks carry it."""

    store: Store
    run: str
    tables: Path  # a directory that every worker sees, for tables that Spark writes and reads again

    def path(self, name: str) -> Path:
        """Return the path at which this host writes a file of the run."""
        return self.store.scratch(self.run) / name

    def seal(self, file: StagedFile, folder: str, stem: str) -> StagedFile:
        """Name a finished file by its content, and make it ready for `Store.install`."""
        return self.store.seal(file, f"{folder}/{stem}-{file.xxh3}.parquet")

    def save_array(self, name: str, array: np.ndarray) -> str:
        """Save an array for other tasks of this run, and for the driver; return its name for `load_array`."""
        content = io.BytesIO()
        np.save(content, array)
        return self.store.save(self.run, f"{name}.npy", content.getvalue())

    def load_array(self, saved: str) -> np.ndarray:
        """Load an array that another task of this run saved with `save_array`."""
        content = self.store.read(saved)
        assert content is not None, saved
        array: np.ndarray = np.load(io.BytesIO(content))
        return array


@contextmanager
def open_staging(store: Store, directory: str) -> Iterator[Staging]:
    """Open the staging of a new run, and remove it at the end of the block. Call it under the lock.

    The run's name is new each time: a worker that outlives its killed driver writes where nobody reads. `directory`
    holds Spark's tables if the store is not a local directory.
    """
    run = uuid.uuid4().hex
    opened = Staging(store, run, store.scratch(run) if isinstance(store, LocalStore) else Path(directory) / run)

    def clear() -> None:
        store.clear(run)
        shutil.rmtree(opened.tables, ignore_errors=True)

    with undone_by(clear):
        try:
            store.begin(run)
            yield opened
        finally:
            clear()


def read_finished_manifest(store: Store) -> Manifest | None:
    """Read the manifest of the finished dataset in `store`; None if there is none."""
    text = store.read(MANIFEST)
    return None if text is None else Manifest.from_json(text, f"{store.location}/{MANIFEST}")


def read_audit(store: Store) -> tuple[Mapping[str, Any], str]:
    """Read audit.json: return its content and "", or nothing and a message that says why it is not this dataset's.

    audit.json, audit.html and run.json are replaced just before the manifest. A job that is killed in between leaves
    them beside the earlier manifest, and their figures belong to another dataset. Raises InputError for damaged ones.
    """
    xxh3 = xxhash.xxh3_64_hexdigest(store.read(MANIFEST) or b"")
    found = {name: _read_json(store, name) for name in (AUDIT, RUN)}
    foreign = [name for name, content in found.items() if content.get(OF_MANIFEST, xxh3) != xxh3]
    message = (
        f"{' and '.join(foreign)} in {store.location} are not of this dataset but of a job that was to replace it and ended "
        f"before its commit (as {AUDIT_PAGE} may be, which names its manifest too); the dataset is whole: run that job again, "
        "or this dataset's with overwrite=true."
    )
    return ({}, message) if foreign else (found[AUDIT], "")


def read_run(store: Store) -> Mapping[str, Any]:
    """Read run.json; return nothing if there is none. Raises InputError for a damaged one."""
    return _read_json(store, RUN)


@contextmanager
def audit_figures(store: Store) -> Iterator[None]:
    """Raise InputError where the block meets a figure that audit.json cannot have: one without a checksum of itself may."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{store.location}/{AUDIT} is damaged ({reason_of(error)}); {_AUDIT_REMEDY}") from error


def _read_json(store: Store, name: str) -> Mapping[str, Any]:
    """Read a file that `write_json` wrote; return nothing if there is none."""
    where = f"{store.location}/{name}"
    try:
        text = store.read(name)
    except InputError as error:
        if name != RUN or not isinstance(error.__cause__, PermissionError):
            raise
        text = None  # it holds settings, and only the user who made the dataset may read it
    found = {} if text is None else parse_json(text, where, _AUDIT_REMEDY)
    if not isinstance(found, dict) or (text is not None and not found):
        raise InputError(f"{where} is damaged (it is no JSON object with figures); {_AUDIT_REMEDY}")
    check_own_xxh3(found, where, _AUDIT_REMEDY)
    return found


def write_json(store: Store, name: str, content: Mapping[str, Any], mode: int | None = None) -> None:
    """Replace a JSON file atomically; `mode` is its mode where the store has modes. It has a checksum of itself."""
    store.put(name, canonical_text({**content, CONTENT_XXH3: xxh3_of_content(content)}).encode(), mode)


def publish(store: Store, manifest: Manifest, before: Manifest | None) -> None:
    """Commit: replace the manifest, after flushing all that it names. The manifest `before` is kept for its readers."""
    store.flush(FOLDERS)
    if before is not None:
        store.put(f"{SUPERSEDED}/{time.time():.0f}.json", before.to_json().encode())
    store.put(MANIFEST, manifest.to_json().encode())


def remove_unnamed_files(store: Store, grace_hours: float) -> None:
    """Remove superseded manifests, data files that no manifest names, and the staging of dead runs.

    They must be older than the grace period. Call it under the lock. An InputError is only printed: no job depends on it,
    and a superseded manifest that is damaged may name any file.
    """
    remove_files(store, lambda: unnamed_files(store, grace_hours))


def remove_files(store: Store, listed: Callable[[], Iterable[str]]) -> None:
    """Remove the files that `listed` lists. An InputError is only printed."""
    try:
        for name in listed():
            store.remove(name)
    except InputError as error:
        _say_unnamed_files_stay(error)


def unnamed_files(store: Store, grace_hours: float) -> list[str]:
    """List the files that `remove_unnamed_files` would remove."""

    def named(texts: Mapping[str, bytes]) -> Iterable[str]:
        return (path for name, text in texts.items() for path in files_named(Manifest.from_json(text, name)))

    return unnamed_data_files(store, grace_hours, MANIFEST, FOLDERS, named)


def unnamed_data_files(
    store: Store,
    grace_hours: float,
    newest: str,
    folders: Iterable[str],
    named_by: Callable[[Mapping[str, bytes]], Iterable[str]],
) -> list[str]:
    """List old superseded lists of files, data files in `folders` that no list names, and the staging of dead runs.

    `newest` is the list that counts; `named_by` returns the files that some lists name, given as name → text.
    """
    grace_s = grace_hours * _S_PER_HOUR
    gone: list[str] = []
    kept: list[str] = []
    for name, _ in store.names(SUPERSEDED):
        superseded_at = Path(name).stem
        is_old = superseded_at.isdigit() and time.time() - int(superseded_at) >= grace_s
        (gone if is_old else kept).append(name)
    named = set(named_by({name: text for name in (newest, *kept) if (text := store.read(name)) is not None}))
    for folder in folders:
        for name, age_s in store.names(folder):
            if _DATA_FILE.match(Path(name).name) and name not in named and age_s >= grace_s:
                gone.append(name)
    return gone + [name for name, age_s in store.names(STAGING) if age_s >= grace_s]


def clean_up(store: Store, grace_hours: float) -> None:
    """Remove the unnamed files of a finished dataset, if there are any.

    An InputError is only printed: no job depends on it.
    """
    try:
        if unnamed_files(store, grace_hours):
            with dataset_lock(store):
                remove_unnamed_files(store, grace_hours)
    except InputError as error:
        _say_unnamed_files_stay(error)


def _say_unnamed_files_stay(error: InputError) -> None:
    print(f"unnamed files stay: {printable(str(error))}", file=sys.stderr, flush=True)


def files_named(manifest: Manifest) -> list[str]:
    """List every file that belongs to a dataset, relative to it."""
    files = [file.path for file in manifest.files] + [field.vocabulary for field in manifest.fields if field.vocabulary]
    return files + [file["path"] for file in manifest.audit.get(QUARANTINE_FOLDER, ())]
