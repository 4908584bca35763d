"""Which files are a Delta or an Iceberg table, at one version: its log says it, a listing of the folder does not.

The files are read as Parquet by their names and types in the table (parquet_rows), without Spark and without jars. What
these files alone do not say is refused: deletion vectors, delete files, columns that were renamed.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.chunks.files import files_of
from pipeline.config.tables import DELTA, ICEBERG
from pipeline.errors import InputError, reason_of
from pipeline.events.table_files import Part
from pipeline.locations import is_address

_METADATA = re.compile(r"v?(\d+)(-.*)?\.metadata\.json")
_FIELD_ID = b"PARQUET:field_id"
#: Features of a Delta table that change how its files are read; others concern writers.
_DELTA_FEATURES = {
    "deletionVectors": "rows deleted by deletion vectors",
    "columnMapping": "columns mapped to other names",
}
_BY_CATALOG = "or read it through Spark, with the jars of its format and a catalog: table=NAME in place of path"


@dataclass(frozen=True)
class LakeTable:
    """The files of a table at a version, and its columns."""

    version: str
    parts: tuple[Part, ...]
    schema: pa.Schema


def open_lake_table(kind: str, folder: str, key: str, as_of: str | None, root: str) -> LakeTable:
    """Open the table in `folder` at the version or snapshot `as_of`, or the newest.

    `key` is the table's setting with its value. Raises InputError where the reader is not installed, or the table
    cannot be read by its files alone.
    """
    if as_of is not None and not re.fullmatch(r"[0-9]{1,19}", as_of):
        raise InputError(
            f"{key}: as_of={as_of} is no version of a Delta table nor snapshot of an Iceberg table; give its number."
        )
    found = (_open_delta if kind == DELTA else _open_iceberg)(folder, key, as_of, root)
    if not found.parts:
        raise InputError(
            f"{key} is a table of {kind} without a row at version {found.version}; a row or more is needed."
        )
    return found


@contextmanager
def _opening(kind: str, key: str, package: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"{key} is a table of {kind}, and the package {package} that reads its log is not here; pip install {package}, "
            f"{_BY_CATALOG}."
        ) from error
    except Exception as error:  # each package has exceptions of its own
        raise InputError(
            f"{key} is a table of {kind} that cannot be opened ({reason_of(error)}); repair it, {_BY_CATALOG}."
        ) from error


def _open_delta(folder: str, key: str, as_of: str | None, root: str) -> LakeTable:
    with _opening(DELTA, key, "deltalake"):
        from deltalake import DeltaTable

        table = DeltaTable(folder, version=None if as_of is None else int(as_of))
        protocol = table.protocol()
        features = set(protocol.reader_features or ())
        mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
        features -= {"columnMapping"} if mapping == "none" else set()
        features |= {"columnMapping"} if mapping != "none" else set()
        for feature, what in _DELTA_FEATURES.items():
            if feature in features:
                raise InputError(
                    f"{key} is a table of {DELTA} that may have {what} ({feature}); rewrite it without, {_BY_CATALOG}."
                )
        names = table.metadata().partition_columns
        actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
        parts = [
            _part(
                root,
                _below_folder(folder, unquote(action["path"])),
                action["size_bytes"],
                {name: _partition_text(action.get(f"partition.{name}")) for name in names},
            )
            for action in sorted(actions, key=lambda action: str(action["path"]))
        ]
        return LakeTable(str(table.version()), tuple(parts), pa.schema(table.schema()))


def _open_iceberg(folder: str, key: str, as_of: str | None, root: str) -> LakeTable:
    with _opening(ICEBERG, key, "pyiceberg"):
        from pyiceberg.table import StaticTable

        table = StaticTable.from_metadata(_newest_metadata(folder, key))
        scan = table.scan(snapshot_id=None if as_of is None else int(as_of))
        snapshot = scan.snapshot()
        if snapshot is None:
            raise InputError(f"{key} is a table of {ICEBERG} without a snapshot; write rows to it first.")
        schema = scan.projection()
        if filled := [entry.name for entry in schema.fields if entry.initial_default is not None]:
            raise InputError(
                f"{key} is a table of {ICEBERG} whose column {filled[0]} has a default for older files; rewrite its files, "
                f"{_BY_CATALOG}."
            )
        copied = {
            entry.source_id
            for spec in table.metadata.partition_specs
            for entry in spec.fields
            if str(entry.transform) == "identity"
        }
        parts = []
        for task in sorted(scan.plan_files(), key=lambda task: str(task.file.file_path)):
            if task.delete_files:
                raise InputError(
                    f"{key} is a table of {ICEBERG} with rows deleted by delete files; rewrite its data files (compaction), "
                    f"{_BY_CATALOG}."
                )
            part = _part(root, task.file.file_path, task.file.file_size_in_bytes, {})
            _check_file_columns(part, {entry.field_id: entry.name for entry in schema.fields}, copied, key)
            parts.append(part)
        return LakeTable(str(snapshot.snapshot_id), tuple(parts), schema.as_arrow())


def _newest_metadata(folder: str, key: str) -> str:
    """Find the newest metadata file of an Iceberg table; the hint of a Hadoop catalog counts."""
    if folder.endswith(".metadata.json"):
        return _with_scheme(folder)
    files = files_of(folder, False)
    children = files.children(f"{folder}/metadata")
    if hint := next((child for child in children if child.name == "version-hint.text"), None):
        with files.open(hint.address) as stream:
            version = stream.read(100).decode().strip()
        children = [child for child in children if child.name in (f"v{version}.metadata.json", version)]
    numbered = [(int(found[1]), child) for child in children if (found := _METADATA.fullmatch(child.name))]
    if not numbered:
        raise InputError(f"{key} has no metadata.json that is named by its version; give the path of the file itself.")
    newest = max(number for number, _ in numbered)
    last = [child for number, child in numbered if number == newest]
    if len(last) > 1:
        names = " and ".join(child.name for child in last)
        raise InputError(
            f"{key} has two newest metadata files, {names}, and only its catalog knows which one counts; give the path of "
            "the file itself (…/metadata/….metadata.json)."
        )
    return _with_scheme(last[0].address)


def _with_scheme(address: str) -> str:
    return address if is_address(address) else f"file://{address}"


def _check_file_columns(part: Part, names: Mapping[int, str], copied: set[int], key: str) -> None:
    """Raise InputError for a file whose columns have other names than in the table, or lack one that its partition has."""
    with files_of(part.entry.address, False).open(part.entry.address) as stream:
        found = {entry.name: entry for entry in pq.read_schema(stream)}
    ids = {int((entry.metadata or {}).get(_FIELD_ID, -1)): name for name, entry in found.items()}
    for number, name in names.items():
        if ids.get(number, name) != name:
            raise InputError(
                f"{part.entry.address} has the column {name!r} of {key} under its earlier name {ids[number]!r}; rewrite its "
                f"data files, {_BY_CATALOG}."
            )
        is_other = name in found and int((found[name].metadata or {}).get(_FIELD_ID, number)) != number
        if is_other or (number in copied and name not in found):
            raise InputError(
                f"{part.entry.address} does not hold the column {name!r} of {key} itself; rewrite its data files, {_BY_CATALOG}."
            )


def _below_folder(folder: str, path: str) -> str:
    return path if is_address(path) or path.startswith("/") else f"{folder}/{path}"


def _part(root: str, address: str, num_bytes: int, partition: Mapping[str, str | None]) -> Part:
    path = unquote(address.removeprefix("file://")) if address.startswith("file:///") else address
    entry = files_of(path, False).entry(path)
    if entry is None or entry.bytes != num_bytes:
        there = "is not there" if entry is None else f"has {entry.bytes} bytes, not {num_bytes}"
        raise InputError(
            f"{path} {there}, and the log of its table names it; restore the file, or choose a newer version."
        )
    return Part(entry.address.removeprefix(f"{root}/"), entry, partition)


def _partition_text(value: Any) -> str | None:
    """Return a value of a partition as text, which is cast to the column's type again."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
