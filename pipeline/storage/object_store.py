"""A dataset under a prefix of an object store.

Nothing can be renamed there, so a task PUTs its file under the final name.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import reading, writing
from pipeline.object_files import ObjectFiles
from pipeline.storage.local_store import STAGING
from pipeline.storage.staged_file import StagedFile


@dataclass(frozen=True)
class ObjectStore:
    """An address that pyarrow opens: s3://bucket/prefix and the like."""

    location: str

    @property
    def _files(self) -> ObjectFiles:
        return ObjectFiles(self.location)

    def begin(self, run: str) -> None:
        """Do nothing. A prefix need not be created; other runs' files stay: without a lock they may be in use."""

    def scratch(self, run: str) -> Path:
        """Make a directory of this host, in Spark's scratch space if there is one.

        Spark empties it when the executor ends.
        """
        spark_dirs = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
        path = Path(spark_dirs or tempfile.gettempdir()) / f"entirespace-{run}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def seal(self, file: StagedFile, name: str) -> StagedFile:
        """Upload the file under its final name. Attempts of one task PUT the same bytes there, in any order."""
        path = Path(file.path)
        with writing(f"out={self.location}"):
            self._files.upload(path, name)
        path.unlink()
        return replace(file, path="", name=name)

    def save(self, run: str, name: str, content: bytes) -> str:
        """Upload the content: no host sees the scratch of another."""
        saved = f"{STAGING}/{run}/{name}"
        self.put(saved, content)
        return saved

    def install(self, file: StagedFile) -> str:
        """Do nothing: the task has already uploaded the file under its final name."""
        return file.name

    def flush(self, folders: tuple[str, ...]) -> None:
        """Do nothing: an object that was PUT stays."""

    def read(self, name: str) -> bytes | None:
        with reading(self.location):
            return self._files.read(name)

    def put(self, name: str, content: bytes, mode: int | None = None) -> None:
        """PUT the content; on a file system behind an address (HDFS), write a file beside it and rename."""
        with writing(f"out={self.location}"):
            self._files.put(name, content)

    def names(self, folder: str) -> list[tuple[str, float]]:
        """List objects and their age, by the store's time of writing and this host's clock."""
        with reading(self.location):
            return [(found.name, found.age_s) for found in self._files.list_files(folder)]

    def remove(self, name: str) -> None:
        with writing(f"out={self.location}"):
            self._files.remove(name)

    def clear(self, run: str) -> None:
        """Remove this host's scratch, and what the run saved in the store for its other hosts."""
        shutil.rmtree(self.scratch(run), ignore_errors=True)
        for name, _ in self.names(f"{STAGING}/{run}"):
            self.remove(name)
