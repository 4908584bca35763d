"""A dataset under a prefix of an object store.

Nothing can be renamed there, so a task PUTs its file under the final name.
"""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs as pafs

from pipeline.errors import reading, writing
from pipeline.locations import open_location
from pipeline.storage.local_store import STAGING, fresh_name
from pipeline.storage.staged_file import StagedFile

_UPLOAD_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class ObjectStore:
    """An address that pyarrow opens: s3://bucket/prefix and the like."""

    location: str

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
        filesystem, root = self._open()
        with (
            writing(f"out={self.location}"),
            path.open("rb") as source,
            filesystem.open_output_stream(f"{root}/{name}") as sink,
        ):
            while block := source.read(_UPLOAD_BLOCK_BYTES):
                sink.write(block)
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
        filesystem, root = self._open()
        try:
            with reading(self.location), filesystem.open_input_file(f"{root}/{name}") as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes, mode: int | None = None) -> None:
        """PUT the content; on a file system behind an address (HDFS), write a file beside it and rename."""
        filesystem, root = self._open()
        with writing(f"out={self.location}"):
            if appears_whole(filesystem):
                with filesystem.open_output_stream(f"{root}/{name}") as sink:
                    sink.write(content)
            else:
                fresh = f"{root}/{STAGING}/{fresh_name(name)}"
                filesystem.create_dir(f"{root}/{STAGING}")
                with filesystem.open_output_stream(fresh) as sink:
                    sink.write(content)
                filesystem.move(fresh, f"{root}/{name}")

    def names(self, folder: str) -> list[tuple[str, float]]:
        """List objects and their age, by the store's time of writing and this host's clock."""
        filesystem, root = self._open()
        selector = pafs.FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True)
        with reading(self.location):
            infos = filesystem.get_file_info(selector)
        return [
            (info.path.removeprefix(f"{root}/"), time.time() - info.mtime_ns / 1e9) for info in infos if info.is_file
        ]

    def remove(self, name: str) -> None:
        filesystem, root = self._open()
        with writing(f"out={self.location}"):
            if filesystem.get_file_info(f"{root}/{name}").is_file:
                filesystem.delete_file(f"{root}/{name}")

    def clear(self, run: str) -> None:
        """Remove this host's scratch, and what the run saved in the store for its other hosts."""
        shutil.rmtree(self.scratch(run), ignore_errors=True)
        for name, _ in self.names(f"{STAGING}/{run}"):
            self.remove(name)

    def _open(self) -> tuple[pafs.FileSystem, str]:
        # pyarrow would make three requests of a small file; put off, the opening and the writing are one PUT.
        query = "?allow_delayed_open=true" if self.location.startswith("s3://") else ""
        with reading(self.location):
            filesystem, root = open_location(f"{self.location}{query}")
        return filesystem, root.rstrip("/")


def appears_whole(filesystem: pafs.FileSystem) -> bool:
    """Tell whether a file is visible only once it is whole, as objects are."""
    return filesystem.type_name in ("s3", "gcs", "abfs")
