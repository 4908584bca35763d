"""A dataset in a directory: the commit renames files into it, after flushing them to disk."""

import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.atomic_files import sync_directory, write_whole
from pipeline.errors import reading, writing
from pipeline.storage.staged_file import StagedFile

STAGING = "_staging"


@dataclass(frozen=True)
class LocalStore:
    """A directory that every worker sees under this path."""

    root: Path

    @property
    def location(self) -> str:
        """The path of the directory."""
        return str(self.root)

    def begin(self, run: str) -> None:
        """Make the staging directory of this run the only one, so that tasks of dead runs find theirs gone."""
        with writing(f"out={self.location}"):
            shutil.rmtree(self.root / STAGING, ignore_errors=True)
            self.scratch(run).mkdir(parents=True)

    def scratch(self, run: str) -> Path:
        """Return a directory beside the data, so that a rename moves no bytes."""
        return self.root / STAGING / run

    def seal(self, file: StagedFile, name: str) -> StagedFile:
        """Flush the bytes to disk. The driver renames: only it knows which attempt of a task counts."""
        with writing(f"out={self.location}"), open(file.path, "rb") as stream:
            os.fsync(stream.fileno())
        return replace(file, name=name)

    def save(self, run: str, name: str, content: bytes) -> str:
        """Write the content beside the staged files."""
        path = self.scratch(run) / name
        with writing(str(path)):
            path.write_bytes(content)
        return path.relative_to(self.root).as_posix()

    def install(self, file: StagedFile) -> str:
        with writing(f"out={self.location}"):
            (self.root / file.name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file.path, self.root / file.name)
        return file.name

    def flush(self, folders: tuple[str, ...]) -> None:
        """Flush the renames to disk."""
        with writing(f"out={self.location}"):
            for path in (self.root, *(self.root / folder for folder in folders)):
                if path.is_dir():
                    sync_directory(path)

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        try:
            with reading(str(path)):
                if path.exists() and not path.is_file():  # a FIFO would be read without an end
                    raise OSError("it is not a regular file")
                return path.read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes, mode: int | None = None) -> None:
        """Write in the staging directory, where a dead file would be removed, and rename."""
        path = self.root / name
        fresh = self.root / STAGING / fresh_name(name)
        with writing(f"out={self.location}"):
            path.parent.mkdir(exist_ok=True)
            fresh.parent.mkdir(exist_ok=True)
            write_whole(path, content, partial=fresh, mode=mode)

    def names(self, folder: str) -> list[tuple[str, float]]:
        """List files and their age by the clock of this host."""
        paths = [path for path in (self.root / folder).rglob("*") if path.is_file()]
        return [(path.relative_to(self.root).as_posix(), time.time() - path.stat().st_mtime) for path in paths]

    def remove(self, name: str) -> None:
        with writing(f"out={self.location}"):
            (self.root / name).unlink(missing_ok=True)

    def clear(self, run: str) -> None:
        """Remove the scratch of the run, and the staging directory if it is empty then."""
        shutil.rmtree(self.scratch(run), ignore_errors=True)
        parent = self.root / STAGING
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def fresh_name(name: str) -> str:
    """Return the name in STAGING under which this process writes a small file before it renames it."""
    return f"{name.replace('/', '-')}-{os.getpid()}"
