"""The commit of a dataset: files by content, the manifest last, the earlier generation whole until then and a while after.

lock ─▶ write under a name of the run ─▶ content names ─▶ audit.json, run.json ─▶ to disk ─▶ manifest.json ─▶ sweep
"""

import io
import json
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.dataset.manifest import MANIFEST, SPLITS, Manifest
from pipeline.errors import InputError
from pipeline.storage.local_store import STAGING, LocalStore
from pipeline.storage.lock import locked
from pipeline.storage.staged_file import StagedFile
from pipeline.storage.store import Store

#: In audit.json and run.json: the xxh3 of the manifest that they belong to.
OF_MANIFEST = "manifest_xxh3"
AUDIT, AUDIT_PAGE, RUN, SUPERSEDED = "audit.json", "audit.html", "run.json", "_superseded"
VOCABULARY, QUARANTINE = "vocabulary", "quarantine"
FOLDERS = (*SPLITS, VOCABULARY, QUARANTINE)
_S_PER_HOUR = 3600.0
# Only names of our own making are ever swept: the directory may hold a user's files too.
_OURS = re.compile(r"[a-z0-9_]+-(?:\d{5}-)?[0-9a-f]{16}\.parquet\Z")


@dataclass(frozen=True)
class Staging:
    """Where the tasks of one run write; tasks carry it."""

    store: Store
    run: str
    tables: Path  # a directory that every worker sees, for what Spark itself writes in between

    def path(self, name: str) -> Path:
        """Where this host writes a file of the run."""
        return self.store.scratch(self.run) / name

    def seal(self, file: StagedFile, folder: str, stem: str) -> StagedFile:
        """Give a file that is whole the name of its content, and make it ready for `Store.install`."""
        return self.store.seal(file, f"{folder}/{stem}-{file.xxh3}.parquet")

    def save_array(self, name: str, array: np.ndarray) -> str:
        """Save an array for other tasks of this run, and for the driver; return what `load_array` finds it by."""
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
def staging(store: Store, directory: str) -> Iterator[Staging]:
    """The staging of this run, removed in the end whatever happens; call it under the lock.

    The run's name is new each time: a worker that outlived its killed driver writes where nobody looks. `directory` is
    where tables lie in between if the store is none itself.
    """
    run = uuid.uuid4().hex
    mine = Staging(store, run, store.scratch(run) if isinstance(store, LocalStore) else Path(directory) / run)
    store.begin(run)
    try:
        yield mine
    finally:
        store.clear(run)
        shutil.rmtree(mine.tables, ignore_errors=True)


def existing_manifest(store: Store) -> Manifest | None:
    """The manifest of the finished dataset in `store`, if there is one."""
    text = store.read(MANIFEST)
    return None if text is None else Manifest.from_json(text, f"{store.location}/{MANIFEST}")


def audit_of(store: Store) -> tuple[dict[str, Any], str]:
    """The content of audit.json and "", or nothing and the sentence that says why it is not this dataset's.

    audit.json, audit.html and run.json are replaced just before the manifest is: a job that is killed in between leaves
    them beside the earlier one, and the figures of two datasets would be told as one.
    """
    xxh3 = xxhash.xxh3_64_hexdigest(store.read(MANIFEST) or b"")
    found = {name: json.loads(store.read(name) or "{}") for name in (AUDIT, RUN)}
    strange = [name for name, content in found.items() if content.get(OF_MANIFEST, xxh3) != xxh3]
    sentence = (
        f"{' and '.join(strange)} in {store.location} are not of this dataset but of a job that was to replace it and ended "
        f"before its commit (as {AUDIT_PAGE} may be, which names its manifest too); the dataset is whole: run that job again, "
        "or this dataset's with overwrite=true."
    )
    return ({}, sentence) if strange else (found[AUDIT], "")


def write_json(store: Store, name: str, content: Mapping[str, Any]) -> None:
    """Replace a JSON file at once."""
    store.put(name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def publish(store: Store, manifest: Manifest, before: Manifest | None) -> None:
    """The commit: from here on the dataset is the new one. The manifest before it is kept for readers that are at it."""
    store.flush(FOLDERS)
    if before is not None:
        store.put(f"{SUPERSEDED}/{time.time():.0f}.json", before.to_json().encode())
    store.put(MANIFEST, manifest.to_json().encode())


def sweep(store: Store, grace_hours: float) -> None:
    """Remove what no manifest names: superseded manifests, data files and stagings of dead runs, once they are older
    than the grace period. Call it under the lock.
    """
    for name in unnamed(store, grace_hours):
        store.remove(name)


def unnamed(store: Store, grace_hours: float) -> list[str]:
    """The files that a sweep would remove."""
    grace_s = grace_hours * _S_PER_HOUR
    gone: list[str] = []
    kept: list[str] = []
    for name, _ in store.names(SUPERSEDED):
        superseded_at = Path(name).stem
        is_old = superseded_at.isdigit() and time.time() - int(superseded_at) >= grace_s
        (gone if is_old else kept).append(name)
    texts = {name: text for name in (MANIFEST, *kept) if (text := store.read(name)) is not None}
    named = {path for name, text in texts.items() for path in files_named(Manifest.from_json(text, name))}
    for folder in FOLDERS:
        for name, age_s in store.names(folder):
            if _OURS.match(Path(name).name) and name not in named and age_s >= grace_s:
                gone.append(name)
    return gone + [name for name, age_s in store.names(STAGING) if age_s >= grace_s]


def tidy(store: Store, grace_hours: float) -> None:
    """Sweep a finished dataset if there is anything to sweep, and nothing stands in the way: no job depends on it."""
    try:
        if unnamed(store, grace_hours):
            with locked(store):
                sweep(store, grace_hours)
    except InputError as error:
        print(f"not tidied: {error}", file=sys.stderr, flush=True)


def files_named(manifest: Manifest) -> list[str]:
    """Every file that belongs to a dataset, relative to it."""
    files = [file.path for file in manifest.files] + [field.vocabulary for field in manifest.fields if field.vocabulary]
    return files + [file["path"] for file in manifest.audit.get(QUARANTINE, ())]
