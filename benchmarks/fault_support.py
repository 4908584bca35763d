"""Support for tests of faults: a reader that verifies all that it sees, and small file systems that fill up."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from pipeline.dataset.manifest import MANIFEST, Manifest, load_manifest
from pipeline.errors import InputError
from pipeline.storage.commit import files_named

_POLL_S = 0.05


class Reader:
    """A thread that reads a dataset again and again: its manifest, and every file that it names.

    `generations` are the manifests that it saw. `faults` are the files that differed from their manifest.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.polls = 0
        self.generations: list[str] = []
        self.faults: list[str] = []
        self._verified: dict[tuple[str, int, int], str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Read the dataset once."""
        self.polls += 1
        if not (self.out / MANIFEST).exists():
            return
        try:
            manifest = load_manifest(self.out)
            self._check(manifest)
        except (InputError, OSError) as error:
            self.faults.append(str(error))
            return
        if manifest.to_json() not in self.generations:
            self.generations.append(manifest.to_json())

    def _check(self, manifest: Manifest) -> None:
        expected = {file.path: (file.bytes, file.xxh3) for file in manifest.files}
        expected |= {field.vocabulary: (None, field.vocabulary_xxh3) for field in manifest.fields if field.vocabulary}
        expected |= {file["path"]: (file["bytes"], file["xxh3"]) for file in manifest.audit["quarantine"]}
        assert expected.keys() >= set(files_named(manifest)) - {""}
        for name, (num_bytes, xxh3) in expected.items():
            status = (self.out / name).stat()
            key = (name, status.st_mtime_ns, status.st_size)
            if key not in self._verified:
                self._verified[key] = xxhash.xxh3_64_hexdigest((self.out / name).read_bytes())
            if self._verified[key] != xxh3 or num_bytes not in (None, status.st_size):
                self.faults.append(f"{name} has {status.st_size} bytes and the checksum {self._verified[key]}")

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.look()


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory of `size` (as mount spells it); needs root."""
    path.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    try:
        yield path
    finally:
        for _ in range(20):  # a worker that is just ending may still have a file open there
            if subprocess.run(["umount", str(path)], capture_output=True).returncode == 0:
                break
            time.sleep(0.5)


def remount(path: Path, options: str) -> None:
    """Change a small disk: `size=8m`, `ro`."""
    _mount("-o", f"remount,{options}", str(path))


def _mount(*arguments: str) -> None:
    assert os.geteuid() == 0, "a disk of its own can be mounted by root alone"
    subprocess.run(["mount", *arguments], check=True)
