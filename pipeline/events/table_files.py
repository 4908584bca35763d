"""Find the files of a table below source.path, on this host or in an object store: a file, a folder, or a pattern.

imp.csv.gz                          a file
imp/part-0.parquet                  a folder of files; names that begin with _ or . are left out
imp/dt=2024-05-02/hour=7/0.parquet  folders by Hive's rule: dt and hour are columns, with these texts
imp/dt=2024-05-*                    a pattern (* ? [a-z]) takes every file and folder that fits, as several days
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from pipeline.chunks.files import Entry, files_of
from pipeline.chunks.sources import ARROW_CODECS, check_parts
from pipeline.config.tables import DELTA, ICEBERG
from pipeline.errors import InputError

COMPRESSIONS = (".gz", *ARROW_CODECS)
_PATTERN = re.compile(r"[*?\[]")
_PARTITION = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Part:
    """A file of a table: its name below source.path, and what the names of its folders say of all its rows."""

    name: str
    entry: Entry
    partition: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a path leads to: files, or the folder of a Delta or Iceberg table (`lake` says which)."""

    parts: tuple[Part, ...] = ()
    lake: str = ""
    folder: str = ""


def find_root(path: str, expected: str) -> Entry:
    """Look up source.path. Raises InputError where it is no directory; `expected` says what it should hold."""
    root = files_of(path, False).entry(path)
    if root is None or not root.is_directory:
        what = "is not a directory" if root else "does not exist"
        raise InputError(f"source.path={path} {what}; give the directory that holds {expected}.")
    return root


def find_parts(root: Entry, key: str, path: str) -> Found:
    """Find the files of the table at `path` below `root`; `key` is its setting with its value.

    Raises InputError if there is nothing, if it holds what is no file, or if all files are empty.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not names or ".." in names or path.startswith("/") or "://" in path:
        raise InputError(f"{key} is no path below source.path={root.address}; give one, such as impressions.")
    chosen = _entries_at(root, key, path, names)
    for name, entry in chosen:
        if entry.is_directory and (lake := _lake_of(entry, files_of(root.address, False).children(entry.address))):
            if len(chosen) > 1:
                raise InputError(f"{key} fits {len(chosen)} folders, and {name} is a {lake} table; name one table.")
            return Found(lake=lake, folder=entry.address)
        if entry.name.endswith(".metadata.json") and not entry.is_directory and len(chosen) == 1:
            return Found(lake=ICEBERG, folder=entry.address)
    parts: list[Part] = []
    for name, entry in chosen:
        folders = name if entry.is_directory else name.rpartition("/")[0]
        parts += _parts_below(name, entry, _partition_of(folders))
    parts = [part for part in parts if part.entry.bytes]
    if not parts:
        raise InputError(f"{key} in {root.address} holds no data; a file of one row or more is needed.")
    first = set(parts[0].partition)
    for part in parts:
        if set(part.partition) != first:
            raise InputError(
                f"{part.entry.address} lies in folders of the columns {', '.join(part.partition) or 'none'}, and "
                f"{parts[0].entry.address} of {', '.join(first) or 'none'}; put every file in folders of the same columns."
            )
    return Found(tuple(parts))


def _entries_at(root: Entry, key: str, path: str, names: list[str]) -> list[tuple[str, Entry]]:
    """Return the entries that a path names: one, or all that fit a pattern, in the order of their names."""
    files = files_of(root.address, False)
    entry = files.entry(root.address, "/".join(names))
    if entry is not None:
        if entry.oddity == "a link to nothing":
            raise InputError(f"{key} in source.path={root.address} is a link to nothing; put the table there.")
        return [("/".join(names), entry)]
    if not _PATTERN.search(path):
        there = ", ".join(child.name for child in files.children(root.address)) or "nothing"
        raise InputError(f"{key} is not in source.path={root.address} (there is: {there}); correct one of the two.")
    found = [("", root)]
    for pattern in names:
        found = [
            (f"{name}/{child.name}".lstrip("/"), child)
            for name, entry in found
            if entry.is_directory
            for child in files.children(entry.address)
            if fnmatch.fnmatchcase(child.name, pattern) and not _is_hidden(child.name)
        ]
    if not found:
        raise InputError(f"{key} fits nothing in source.path={root.address}; correct one of the two.")
    return found


def _parts_below(name: str, entry: Entry, partition: dict[str, str | None]) -> Iterator[Part]:
    """Yield the files of a file or a folder. Raises InputError for a folder in it that is none of Hive's."""
    if not entry.is_directory:
        above, _, own = entry.address.rpartition("/")
        check_parts(above, {own: entry.oddity}, COMPRESSIONS)
        yield Part(name, entry, partition)
        return
    listed = files_of(entry.address, False).children(entry.address)
    if lake := _lake_of(entry, listed):
        raise InputError(f"{entry.address} is a {lake} table within a folder of files; name the table itself as path.")
    children = [child for child in listed if not _is_hidden(child.name)]
    is_partition = {child.name: child.is_directory and bool(_PARTITION.fullmatch(child.name)) for child in children}
    oddities = {
        child.name: "a directory" if child.is_directory and not is_partition[child.name] else child.oddity
        for child in children
    }
    check_parts(entry.address, oddities, COMPRESSIONS)
    for child in children:
        below = partition | _partition_of(child.name) if is_partition[child.name] else partition
        yield from _parts_below(f"{name}/{child.name}", child, below)


def _partition_of(path: str) -> dict[str, str | None]:
    """Return the columns that the names of folders give; Hive writes : and other characters as %3A."""
    found: dict[str, str | None] = {}
    for name in path.split("/"):
        if match := _PARTITION.fullmatch(name):
            column, value = map(unquote, match.groups())
            found[column] = None if value == _NO_VALUE else value
    return found


def _lake_of(folder: Entry, children: Sequence[Entry]) -> str:
    """Say which kind of table keeps its log in a folder; "" of a folder of files. Raises InputError for a Hudi table."""
    folders = {child.name: child for child in children if child.is_directory}
    if "_delta_log" in folders:
        return DELTA
    if ".hoodie" in folders:
        raise InputError(
            f"{folder.address} is a Hudi table, which is read by Spark alone: give it a name in a catalog, and that name "
            "as table=…, or write it as Parquet."
        )
    if "metadata" in folders:
        logs = files_of(folder.address, False).children(folders["metadata"].address)
        if any(log.name.endswith((".metadata.json", ".metadata.json.gz")) for log in logs):
            return ICEBERG
    return ""


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))
