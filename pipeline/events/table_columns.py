"""The columns of a table, from the heads and footers of all its files, before Spark starts."""

import csv
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.chunks.sources import SourceFile
from pipeline.config.tables import CSV, PARQUET, TableSettings
from pipeline.errors import READING_ERRORS, InputError, reason_of
from pipeline.events.csv_rows import header_of
from pipeline.events.parquet_rows import columns_of_schema, is_list, open_parquet, widened
from pipeline.events.text_input import TextSplit, whole_lines

_LINES_READ = 100  # of a JSON lines file, to find its columns: a row may leave some out


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table. One that not every file has is in `lacking`, with the first file without it.

    `of_file` has the columns of each file, in its order. `clashes` has the columns whose types in two files no type
    holds exactly, with a sentence each.
    """

    types: Mapping[str, pa.DataType]
    of_file: tuple[tuple[str, ...], ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)
    clashes: Mapping[str, str] = field(default_factory=dict)
    by_spark: bool = False  # Parquet that Spark's own reader reads right: one schema of types that it knows


def find_columns(key: str, files: Sequence[SourceFile], table: TableSettings) -> TableColumns:
    """Read the columns of every file. Raises InputError for a file that cannot be read as its format.

    `key` is the setting of the table: source.events.impressions.
    """
    if table.format == PARQUET:
        schemas = []
        for file in files:
            with _named_if_unreadable(key, file, table), file.open() as stream:
                schemas.append(open_parquet(stream).schema_arrow)
        return _merged(files, [columns_of_schema(schema) for schema in schemas], _spark_knows(schemas, files))
    if table.format == CSV:
        headers = [list(table.header) if table.header else _header(key, file, table) for file in files]
        found = [{name: pa.string() for name in header if name} for header in headers]
        merged = _merged(files, found, False)
        return TableColumns(merged.types, tuple(map(tuple, headers)), merged.lacking)
    heads = []
    for file in files:
        with _named_if_unreadable(key, file, table):
            heads.append(_json_columns(file, table))
    if not any(heads):
        raise InputError(f"{files[0].path} has no JSON object in its first lines; is it JSON lines, one object a line?")
    return TableColumns({name: kind for head in reversed(heads) for name, kind in head.items()})


def _merged(files: Sequence[SourceFile], found: Sequence[Mapping[str, pa.DataType]], by_spark: bool) -> TableColumns:
    types: dict[str, pa.DataType] = {}
    first: dict[str, str] = {}
    clashes: dict[str, str] = {}
    for file, columns in zip(files, found, strict=True):
        for name, kind in columns.items():
            known = types.setdefault(name, kind)
            first.setdefault(name, file.path)
            wide = widened(known, kind)
            if wide is None:
                clashes.setdefault(
                    name, f"{first[name]} has {known} in the column {name!r}, and {file.path} has {kind}"
                )
            else:
                types[name] = wide
    lacking = {
        name: next(file.path for file, columns in zip(files, found, strict=True) if name not in columns)
        for name in types
        if any(name not in columns for columns in found)
    }
    return TableColumns(types, tuple(map(tuple, found)), lacking, clashes, by_spark)


def _spark_knows(schemas: Sequence[pa.Schema], files: Sequence[SourceFile]) -> bool:
    """Tell whether Spark's own reader makes of the files what read_row_groups does: of local files with one plain schema."""
    first = schemas[0]
    is_same = all(schema.names == first.names and schema.types == first.types for schema in schemas)
    are_plain = all(file.path.startswith("/") and not file.compressed for file in files)
    return is_same and are_plain and all(map(_is_known_to_spark, first.types))


def _is_known_to_spark(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_list(kind):
        return _is_known_to_spark(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_known_to_spark(entry.type) for entry in kind)
    if pa.types.is_timestamp(kind):
        return bool(kind.unit in ("ms", "us"))
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal128(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    return bool(is_number or is_text or kind in (pa.bool_(), pa.date32())) and not pa.types.is_float16(kind)


def _header(key: str, file: SourceFile, table: TableSettings) -> list[str]:
    """Return the names in the first line of a CSV file, "" for a column that cannot be chosen: without a name of its own."""
    with _named_if_unreadable(key, file, table):
        header = header_of(TextSplit(file, 0), table)
    if not any(header):
        raise InputError(f"{file.path} has no header in its first line; name its columns: {key}.header=[NAME, …].")
    return [name if header.count(name) == 1 else "" for name in header]


@contextmanager
def _named_if_unreadable(key: str, file: SourceFile, table: TableSettings) -> Iterator[None]:
    try:
        yield
    except (*READING_ERRORS, EOFError, zlib.error, csv.Error) as error:
        raise InputError(
            f"{file.path} cannot be read as {table.format} ({reason_of(error)}); repair the file, or set "
            f"{key}.format to what it is."
        ) from error


def _json_columns(file: SourceFile, table: TableSettings) -> dict[str, pa.DataType]:
    """Return every column of the first lines with its simplest type there; lines of another type are rejected later."""
    kinds: dict[str, set[type]] = {}
    for _, line in zip(range(_LINES_READ), _lines_at_head(file, table.encoding), strict=False):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the parser rejects the line, as malformed_line
        for name, value in _object_paths(row) if isinstance(row, dict) else ():
            kinds.setdefault(name, set()).add(type(value))
    return {name: _json_type(found) for name, found in kinds.items()}


def _lines_at_head(file: SourceFile, encoding: str) -> Iterator[bytes]:
    for lines in whole_lines(TextSplit(file, 0), encoding):
        yield from lines.splitlines()


def _object_paths(row: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value with its path, the objects themselves as well."""
    for name, value in row.items():
        yield above + name, value
        if isinstance(value, dict):
            yield from _object_paths(value, f"{above}{name}.")


def _json_type(found: set[type]) -> pa.DataType:
    found = found - {type(None)}
    if not found or found - {list, dict}:
        return pa.string()
    return pa.list_(pa.string()) if list in found else pa.struct([])
