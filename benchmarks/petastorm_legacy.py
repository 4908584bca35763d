"""What Petastorm 0.13.1's own test-suite needs and today's packages have removed or this machine lacks.

For the suite's own processes alone, which benchmarks/petastorm_suite.py starts: there these names are added to numpy
and pyarrow themselves, since the test modules import them from there. The trainer needs none of them; what it needs is
in training/feed/petastorm_reader.py, which touches neither package.

- `np.unicode_`, `np.string_`, `np.float`, `np.in1d` and Python's `inspect.getargspec`, renamed or removed;
- pyarrow's file systems before pyarrow.fs, here over fsspec, whose methods have the same names;
- `ParquetDataset`, `ParquetDatasetPiece` and `PartitionSet` as pyarrow had them before 15, written anew in as much as
  the suite uses: hive partitions, `_metadata` and `_common_metadata`, filters on partitions;
- a stand-in for each package that is not installed (TensorFlow, torchvision, s3fs, gcsfs), whose use skips the test.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import types
import unittest
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem as FsspecLocalFileSystem

#: Modules that the suite imports and can do without, by package.
OPTIONAL = {
    "tensorflow": ("tensorflow", "tensorflow.compat", "tensorflow.compat.v1"),
    "s3fs": ("s3fs",),
    "gcsfs": ("gcsfs",),
    "torchvision": ("torchvision",),
}

# fmt: off
_HDFS_METHODS = [
    "cat", "chmod", "chown", "delete", "df", "disk_usage", "download", "exists", "get_capacity", "get_space_used",
    "info", "ls", "mkdir", "open", "rename", "rm", "upload",
]
# fmt: on


class LocalFileSystem:
    """pyarrow.LocalFileSystem as it was. Not a subclass of fsspec's, whose classes hold locks and do not pickle."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(FsspecLocalFileSystem(), name)


class HadoopFileSystem:
    """pyarrow.hdfs.HadoopFileSystem's method names; petastorm's client replaces every one of them."""


def _hdfs_method(name: str) -> Callable[..., None]:
    def method(self: HadoopFileSystem, *_args: Any, **_kwargs: Any) -> None:
        raise NotImplementedError(name)

    method.__name__ = name  # petastorm asks for it
    return method


for _name in _HDFS_METHODS:
    setattr(HadoopFileSystem, _name, _hdfs_method(_name))


def _connect(host: str, *_args: Any, **_kwargs: Any) -> None:
    raise OSError(f"There is no HDFS here to find {host} in.")


class PartitionSet:
    """One level of hive partitions: its name, and its values in order of appearance."""

    def __init__(self, name: str, keys: Iterable[str] = ()) -> None:
        self.name = name
        self.keys = list(keys)

    def index(self, key: str) -> int:
        """Return the number of `key`, adding it if it is new."""
        if key not in self.keys:
            self.keys.append(key)
        return self.keys.index(key)

    @property
    def dictionary(self) -> pa.Array:
        """The values: int64 where all of them are integers, else strings."""
        try:
            return pa.array([int(key) for key in self.keys])
        except ValueError:
            return pa.array(self.keys, pa.string())


class ParquetPartitions:
    """The levels of a dataset's hive partitions, outermost first."""

    def __init__(self) -> None:
        self.levels: list[PartitionSet] = []

    @property
    def partition_names(self) -> set[str]:
        """The names of all levels."""
        return {level.name for level in self.levels}

    def level(self, depth: int, name: str) -> PartitionSet:
        """Return the level at `depth`, making it if it is new."""
        if depth == len(self.levels):
            self.levels.append(PartitionSet(name))
        return self.levels[depth]

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, depth: int) -> PartitionSet:
        return self.levels[depth]


class ParquetDatasetPiece:
    """A Parquet file, or one row group of it, with the partition that its path says."""

    def __init__(
        self,
        path: str,
        open_file_func: Callable[..., Any] = open,
        row_group: int | None = None,
        partition_keys: Iterable[tuple[str, int]] = (),
    ) -> None:
        self.path = path
        self.row_group = row_group
        self.partition_keys = list(partition_keys)
        self._open = open_file_func

    def get_metadata(self) -> pq.FileMetaData:
        """Read the footer of the file."""
        with self._open(self.path, mode="rb") as file:
            return pq.read_metadata(file)

    def read(self, columns: Iterable[str], partitions: ParquetPartitions | None) -> pa.Table:
        """Read the columns asked for, and every partition's."""
        with self._open(self.path, mode="rb") as file, pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(self.row_group, columns=list(columns), use_threads=False)
        for depth, (name, number) in enumerate(self.partition_keys):
            assert partitions is not None, "a piece with partition keys comes from a dataset with partitions"
            indices = pa.array(np.full(len(table), number, np.int32))
            values = pa.DictionaryArray.from_arrays(indices, partitions[depth].dictionary)
            table = table.append_column(name, values)
        return table


class ParquetDataset:
    """A directory, a file or a list of files; lists what is there when it is made."""

    def __init__(self, path_or_paths: Any, filesystem: Any = None, filters: Any = None, **_ignored: Any) -> None:
        self.paths = path_or_paths
        self.fs = filesystem if filesystem is not None else LocalFileSystem()
        self.partitions: ParquetPartitions | None = None
        self.pieces: list[ParquetDatasetPiece] = []
        self.metadata_path = self.common_metadata_path = None
        if isinstance(path_or_paths, str) and self.fs.isdir(path_or_paths):
            self.partitions = ParquetPartitions()
            self._visit(path_or_paths.rstrip("/"), ())
            self.metadata_path = self._at_root("_metadata")
            self.common_metadata_path = self._at_root("_common_metadata")
        else:
            for path in [path_or_paths] if isinstance(path_or_paths, str) else path_or_paths:
                if not self.fs.isfile(path):
                    raise OSError(f"Passed non-file path: {path}")
                self.pieces.append(ParquetDatasetPiece(path, self.fs.open))
        if filters:
            self.pieces = [piece for piece in self.pieces if self._accepts(filters, piece)]

    def _visit(self, directory: str, keys: tuple[tuple[str, int], ...]) -> None:
        for entry in sorted(self.fs.ls(directory, detail=True), key=lambda entry: entry["name"]):
            path, name = entry["name"], os.path.basename(entry["name"])
            if name.startswith(("_", ".")) or name.endswith(".crc"):
                continue
            if entry["type"] != "directory":
                self.pieces.append(ParquetDatasetPiece(path, self.fs.open, partition_keys=keys))
            elif "=" in name:
                field, value = name.split("=", 1)
                assert self.partitions is not None
                self._visit(path, (*keys, (field, self.partitions.level(len(keys), field).index(value))))
            else:
                self._visit(path, keys)

    def _at_root(self, name: str) -> str | None:
        path = f"{self.paths.rstrip('/')}/{name}"
        return path if self.fs.exists(path) else None

    def _accepts(self, filters: Any, piece: ParquetDatasetPiece) -> bool:
        """Test a piece's partition against filters in disjunctive normal form, or a single conjunction."""
        assert self.partitions is not None
        values = {
            name: self.partitions[depth].dictionary[number].as_py()
            for depth, (name, number) in enumerate(piece.partition_keys)
        }
        conjunctions = filters if isinstance(filters[0], list) else [filters]
        return any(
            all(_holds(operator, type(wanted)(values[name]), wanted) for name, operator, wanted in terms)
            for terms in conjunctions
        )

    @property
    def metadata(self) -> pq.FileMetaData | None:
        """The content of _metadata, or None."""
        return self._footer(self.metadata_path)

    @property
    def common_metadata(self) -> pq.FileMetaData | None:
        """The content of _common_metadata, or None."""
        return self._footer(self.common_metadata_path)

    def _footer(self, path: str | None) -> pq.FileMetaData | None:
        if path is None:
            return None
        with self.fs.open(path, mode="rb") as file:
            return pq.read_metadata(file)


def _holds(operator: str, value: Any, wanted: Any) -> bool:
    return {"=": value == wanted, "==": value == wanted, "!=": value != wanted}[operator]


class _Absent(type):
    """The type of anything inside a package that is not here: a class to name and look into, not to call or compare."""

    package: str

    def __getattr__(cls, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *_args: Any, **_kwargs: Any) -> None:
        raise unittest.SkipTest(f"needs {cls.package}, which is not installed")

    def __eq__(cls, _other: object) -> bool:
        raise unittest.SkipTest(f"needs {cls.package}, which is not installed")

    __hash__ = type.__hash__


class _AbsentModule(types.ModuleType):
    __path__: ClassVar[list[str]] = []
    __version__ = "2.0"  # petastorm asks TensorFlow's as it is imported

    def __reduce__(self) -> tuple[Callable[[str], types.ModuleType], tuple[str]]:
        return importlib.import_module, (self.__name__,)

    def __getattr__(self, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {"package": self.__name__.split(".")[0]})


def absent() -> Iterator[str]:
    """Return the packages of OPTIONAL that are not installed."""
    for package in OPTIONAL:
        module = sys.modules.get(package)
        if isinstance(module, _AbsentModule) or (module is None and importlib.util.find_spec(package) is None):
            yield package


def install() -> None:
    """Define the removed names in this process."""
    np.unicode_, np.string_, np.float, np.in1d = np.str_, np.bytes_, float, np.isin
    inspect.getargspec = inspect.getfullargspec
    pa.LocalFileSystem, pa.localfs = LocalFileSystem, LocalFileSystem()
    pq.ParquetDataset, pq.ParquetDatasetPiece, pq.PartitionSet = ParquetDataset, ParquetDatasetPiece, PartitionSet
    for name, attribute in (("filesystem", LocalFileSystem), ("hdfs", HadoopFileSystem)):
        module = types.ModuleType(f"pyarrow.{name}")
        setattr(module, attribute.__name__, attribute)
        sys.modules[module.__name__] = module
        setattr(pa, name, module)
    pa.hdfs.connect = _connect
    for package in list(absent()):
        for name in OPTIONAL[package]:
            sys.modules[name] = _AbsentModule(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
