"""The files of an event log, checked before Spark starts as far as their heads tell.

Only heads of files are read here: the columns of the first file of each table, and the header of every CSV file.
"""

import csv
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.chunks.files import stamp_of
from pipeline.chunks.sources import SourceFile, check_parts
from pipeline.config.events import CSV, JSONL, PARQUET, EventsSettings, JoinSettings
from pipeline.errors import InputError, reason_of
from pipeline.features.fields import Catalogue, Field
from pipeline.spark.paths import escape_glob

ONE, MANY = "one", "many"
#: Columns that reading adds to those of a table: the text of a row that cannot be parsed, and the file of a row.
CORRUPT, FILE = "_corrupt", "_file"
#: The status of an impression's row; any other status is the reason why the row is rejected.
GOOD_STATUS, OUTSIDE_SPLIT, IMMATURE = "good", "outside_split", "immature"
_LINES_READ = 100  # of a JSON lines file, to find its columns: a row may leave some out


@dataclass(frozen=True)
class Table:
    """One table: its files, and the type of each column (any other format than Parquet holds text)."""

    name: str  # as error messages call it: impressions, actions, joins[0]
    format: str
    files: tuple[SourceFile, ...]
    columns: Mapping[str, pa.DataType]
    parsed: str = ""  # where the rows of JSON lines are as Parquet, once they are parsed

    @property
    def addresses(self) -> tuple[str, ...]:
        """The files as Spark takes them."""
        return tuple("file:" + escape_glob(file.path) for file in self.files)


@dataclass(frozen=True)
class EventLog:
    """The tables of an event log, checked as far as the heads of their files tell."""

    impressions: Table
    actions: Table
    joins: tuple[Table, ...]

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every file once, in the order of the manifest."""
        tables = (self.impressions, self.actions, *self.joins)
        return tuple({file.ordinal: file for table in tables for file in table.files}.values())


def weights_of(column: str) -> str:
    """Name the column with the weights of a weighted field's column, one for each of its values."""
    return f"{column}__weight"


def find_log(path: str, settings: EventsSettings, fields: Catalogue, needs_labels: bool = True) -> EventLog:
    """Find the tables below `path`; of a log that `needs_labels` not, without its actions.

    Raises InputError for a missing file or column, or a column of the wrong type.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise InputError(
            f"source.path={path} {what}; give the directory that holds {settings.impressions.path} and "
            f"{settings.actions.path} (source.events.impressions.path, source.events.actions.path)."
        )
    impressions = _find_table(root, "impressions", settings.impressions.path, settings.impressions.format, 0)
    actions = Table("actions", PARQUET, (), {})
    if needs_labels:
        actions = _find_table(root, "actions", settings.actions.path, settings.actions.format, len(impressions.files))
    if [file.path for file in actions.files] == [file.path for file in impressions.files]:
        actions = replace(actions, files=impressions.files)  # one table with all events
    log = EventLog(impressions, actions, ())
    for number, join in enumerate(settings.joins):
        table = _find_table(root, f"joins[{number}]", join.path, join.format, len(log.files))
        log = EventLog(impressions, actions, (*log.joins, table))
    if needs_labels:
        _check_actions(actions, settings)
    _check_impressions(log, settings, fields)
    return log


def join_key(join: JoinSettings) -> list[str]:
    """Return the key columns of a joined table, by its own names."""
    return join.key or join.by


def needed_columns(settings: EventsSettings, fields: Catalogue) -> dict[str, str]:
    """Return column → ONE or MANY values, for every column that is read of the impressions or a joined table."""
    entry = settings.impressions
    singles = [entry.timestamp, *entry.user, *entry.item, *entry.id, *entry.context, *entry.where]
    singles += [entry.click] if entry.click else []
    singles += [column for join in settings.joins for column in join.by]
    needed = dict.fromkeys(singles, ONE)
    for field in fields.fields:
        needed.setdefault(field.raw_id, MANY if field.reads_lists else ONE)
        if field.weighted:
            needed.setdefault(weights_of(field.raw_id), MANY)
    return needed


def needed_action_columns(settings: EventsSettings) -> dict[str, str]:
    """Return column → ONE, for every column that is read of the actions."""
    entry = settings.actions
    columns = [entry.timestamp, *entry.user, *entry.item, entry.action, *entry.impression, *entry.where]
    return dict.fromkeys(columns, ONE)


def _check_actions(table: Table, settings: EventsSettings) -> None:
    for column in needed_action_columns(settings):
        if column not in table.columns:
            raise InputError(_missing(column, "source.events.actions", [table]))
    entry = settings.actions
    _check_ids(table, [*entry.user, *entry.item, *entry.impression])


def _check_impressions(log: EventLog, settings: EventsSettings, fields: Catalogue) -> None:
    own = log.impressions.columns
    entry = settings.impressions
    mapped = [
        entry.timestamp,
        *entry.user,
        *entry.id,
        *entry.where,
        *(column for join in settings.joins for column in join.by),
    ]
    for column in mapped:
        if column not in own:
            raise InputError(_missing(column, "source.events.impressions", [log.impressions]))
    for number, (join, table) in enumerate(zip(settings.joins, log.joins, strict=True)):
        for column in join_key(join):
            if column not in table.columns:
                raise InputError(_missing(column, f"source.events.joins[{number}]", [table]))
    tables = [log.impressions, *log.joins]
    owner: dict[str, Table] = {}
    for number, table in enumerate(tables):
        keys = join_key(settings.joins[number - 1]) if number else []
        for column in table.columns:
            if column in owner and column not in keys:
                raise InputError(
                    f"Both {owner[column].name} and {table.name} have a column {column!r}; rename one of them."
                )
            owner.setdefault(column, table)
    owners = {field.raw_id: f"features.fields.{field.name}.raw_id" for field in fields.fields}
    owners |= {
        weights_of(field.raw_id): f"features.fields.{field.name} is weighted, and its weights"
        for field in fields.fields
    }
    many = [(field.raw_id, MANY) for field in fields.fields if field.reads_lists]
    for column, number_of_values in (*needed_columns(settings, fields).items(), *many):
        if column not in owner:
            raise InputError(_missing(column, owners.get(column, "source.events.impressions"), tables))
        kind = owner[column].columns[column]
        if number_of_values == ONE and pa.types.is_nested(kind):
            raise InputError(f"{owner[column].name} has {kind} in the column {column!r}, where one value is needed.")
        if number_of_values == MANY and not (_is_list(kind) or is_text(kind)):
            raise InputError(
                f"{owner[column].name} has {kind} in the column {column!r}, where many values are needed: "
                "a list, or text with source.events.list_separator between them."
            )
    ids = {*entry.user, *entry.item, *entry.id, *entry.context}
    ids |= {field.raw_id for field in fields.fields if not field.reads_numbers}
    for table in tables:
        _check_ids(table, sorted(ids & set(table.columns)))
        for field in fields.fields:
            if field.reads_numbers and field.raw_id in table.columns:
                _check_numbers(table, field)


def _check_ids(table: Table, columns: Sequence[str]) -> None:
    for column in columns:
        kind = table.columns[column]
        kind = kind.value_type if _is_list(kind) else kind
        if not (pa.types.is_integer(kind) or is_text(kind)):
            raise InputError(
                f"{table.name} has {kind} in the column {column!r}, which is read as ids: integers or text are "
                "ids; cast the column (pandas makes floats of integers with missing values)."
            )


def _check_numbers(table: Table, field: Field) -> None:
    kind = table.columns[field.raw_id]
    number = kind.value_type if field.reads_lists and _is_list(kind) else kind
    is_number = pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_decimal(number)
    if _is_list(number) or not (is_number or is_text(number)):
        raise InputError(
            f"{table.name} has {kind} in the column {field.raw_id!r}, which is read as numbers: integers, floats, "
            "decimals or their text are numbers; cast the column."
        )
    if isinstance(kind, pa.FixedSizeListType) and kind.list_size != field.num_numbers:
        raise InputError(
            f"{table.name} has lists of {kind.list_size} in the column {field.raw_id!r}, and features.fields.{field.name}.width="
            f"{field.num_numbers}; give the width of the column."
        )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column of this type, or of lists of it, holds text."""
    kind = kind.value_type if _is_list(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _missing(column: str, key: str, tables: Sequence[Table]) -> str:
    there = "; ".join(f"{table.name}: {', '.join(table.columns)}" for table in tables)
    return f"{key} names the column {column!r}, which is not there ({there}); name one of these."


def _find_table(root: Path, name: str, relative: str, form: str, first_ordinal: int) -> Table:
    path = root / relative
    key = f"source.events.{name}.path={relative}"
    if path.is_symlink() and not path.exists():
        raise InputError(f"{key} in source.path={root} is a link to nothing; put the table there.")
    if not path.exists():
        there = ", ".join(sorted(entry.name for entry in root.iterdir())) or "nothing"
        raise InputError(f"{key} is not in source.path={root} (there is: {there}); correct one of the two.")
    parts = _parts(path) if path.is_dir() else [path]
    if not path.is_dir():
        check_parts(str(root), {relative: _oddity_of(path)})
    parts = [part for part in parts if part.stat().st_size]
    if not parts:
        raise InputError(f"{key} in {root} holds no data; a file of one row or more is needed.")
    files = tuple(
        SourceFile(first_ordinal + number, part.relative_to(root).as_posix(), str(part.resolve()), part.stat().st_size,
                   name, "", part.suffix == ".gz", stamp_of(part.stat()))
        for number, part in enumerate(parts)
    )  # fmt: skip
    columns = _file_columns(name, files, form)
    for column in (CORRUPT, FILE):
        if column in columns:
            raise InputError(
                f"{name} has a column {column!r}, which is a name that reading adds to its columns; rename it."
            )
    return Table(name, form, files, columns)


def _parts(directory: Path) -> list[Path]:
    """List the files of a directory but Hadoop's hidden ones. Raises InputError for a folder, as partitionBy makes."""
    parts = sorted(path for path in directory.iterdir() if not path.name.startswith(("_", ".")))
    check_parts(str(directory), {part.name: _oddity_of(part) for part in parts})
    return parts


def _oddity_of(path: Path) -> str:
    """Say what a path is if it is no file; "" of a file."""
    if path.is_file():
        return ""
    return "a directory" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"


def _file_columns(name: str, files: Sequence[SourceFile], form: str) -> dict[str, pa.DataType]:
    """Return the columns of the first file; of Parquet and CSV, the head of every file is read."""
    if form == JSONL:
        with _named_if_unreadable(name, files[0], form):
            return _json_columns(files[0])
    found: list[dict[str, pa.DataType]] = []
    for file in files:
        with _named_if_unreadable(name, file, form):
            if form == PARQUET:
                found.append({field.name: field.type for field in pq.read_schema(file.path)})
            else:
                assert form == CSV
                found.append(dict.fromkeys(_header(file), pa.string()))
        if form == CSV and list(found[-1]) != list(found[0]):
            raise InputError(
                f"{file.path} has the columns {', '.join(found[-1])}, and {files[0].path} has {', '.join(found[0])}; "
                "the files of a table need one header."
            )
    return found[0]


@contextmanager
def _named_if_unreadable(name: str, file: SourceFile, form: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException, csv.Error) as error:
        raise InputError(
            f"{file.path} cannot be read as {form} ({reason_of(error)}); repair the file, or set "
            f"source.events.{name}.format to what it is."
        ) from error


def _header(file: SourceFile) -> list[str]:
    with _open_text(file) as stream:
        header = next(csv.reader(stream))
    if len(set(header)) != len(header) or not all(header):
        raise InputError(f"{file.path} has the header {','.join(header)}; its columns need names, each one of its own.")
    return header


def _json_columns(file: SourceFile) -> dict[str, pa.DataType]:
    """Return every column of the first lines with its simplest type there; lines of another type are rejected later."""
    kinds: dict[str, set[type]] = {}
    with _open_text(file, errors="replace") as stream:
        for _, line in zip(range(_LINES_READ), stream, strict=False):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the parser rejects the line, as malformed_line
            for name, value in row.items() if isinstance(row, dict) else ():
                kinds.setdefault(name, set()).add(type(value))
    if not kinds:
        raise InputError(f"{file.path} has no JSON object in its first lines; is it JSON lines, one object a line?")
    return {name: _json_type(found) for name, found in kinds.items()}


def _json_type(found: set[type]) -> pa.DataType:
    found = found - {type(None)}
    if not found or found - {list, dict}:
        return pa.string()
    return pa.list_(pa.string()) if list in found else pa.struct([])


@contextmanager
def _open_text(file: SourceFile, errors: str = "strict") -> Iterator[TextIO]:
    with file.open() as stream, TextIOWrapper(stream, encoding="utf-8-sig", newline="", errors=errors) as text:
        yield text
