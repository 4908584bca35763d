"""Check that the columns that the settings name are in the tables, with types that can be what they are read as."""

from collections.abc import Sequence, Set

import pyarrow as pa

from pipeline.config.events import EventsSettings
from pipeline.config.tables import CSV
from pipeline.errors import InputError
from pipeline.events.parquet_rows import is_list
from pipeline.events.tables import (
    MANY,
    ONE,
    EventLog,
    Table,
    is_text,
    needed_action_columns,
    needed_columns,
    own_columns,
    weights_of,
)
from pipeline.features.fields import Catalogue, Field

_COLUMNS_SHOWN = 30  # in an error message


def check_actions(table: Table, settings: EventsSettings) -> None:
    """Raise InputError for a column of the actions that is not there, or has a type that it cannot be read as."""
    entry = settings.actions
    for column in (*needed_action_columns(settings), *entry.clean):
        _check_there(table, column)
        _check_number_of_values(table, column, ONE)
    _check_ids(table, [name for name in (*entry.user, *entry.item, *entry.impression) if name not in entry.clean])
    _check_time(table, entry.timestamp)


def check_impressions(log: EventLog, settings: EventsSettings, fields: Catalogue) -> None:
    """Raise InputError for a column of the impressions or a joined table that is not there, or has no type for its use."""
    entry = settings.impressions
    mapped = [
        entry.timestamp,
        *entry.user,
        *entry.id,
        *entry.where,
        *entry.clean,
        *(name for join in settings.joins for name in join.by),
    ]
    for column in mapped:
        _check_there(log.impressions, column)
    for join, table in zip(settings.joins, log.joins, strict=True):
        for column in (*own_columns(join), *join.clean):
            _check_there(table, column)
            _check_number_of_values(table, column, ONE)
        if join.asof:
            _check_time(table, join.asof)
    tables = [log.impressions, *log.joins]
    many = [(field.raw_id, MANY) for field in fields.fields if field.reads_lists]
    needed = [*needed_columns(settings, fields).items(), *many]
    owner = _owners(tables, settings, {column for column, _ in needed})
    keys = {field.raw_id: f"features.fields.{field.name}.raw_id" for field in fields.fields}
    keys |= {
        weights_of(field.raw_id): f"features.fields.{field.name} is weighted, and its weights"
        for field in fields.fields
    }
    for column, number_of_values in needed:
        if column not in owner:
            raise InputError(_missing(column, keys.get(column, log.impressions.key), tables))
        _check_there(owner[column], column)
        _check_number_of_values(owner[column], column, number_of_values)
    _check_time(log.impressions, entry.timestamp)
    ids = {*entry.user, *entry.item, *entry.id, *entry.context}
    ids |= {field.raw_id for field in fields.fields if not field.reads_numbers}
    for clean, table in zip((entry.clean, *(join.clean for join in settings.joins)), tables, strict=True):
        _check_ids(table, sorted(ids & set(table.columns) - set(clean)))  # what is cleaned is text
        for field in fields.fields:
            if field.reads_numbers and field.raw_id in table.columns:
                _check_numbers(table, field)


def _owners(tables: Sequence[Table], settings: EventsSettings, needed: Set[str]) -> dict[str, Table]:
    """Return the table of each column. Raises InputError for a needed one that two tables have."""
    owner: dict[str, Table] = {}
    for number, table in enumerate(tables):
        keys = own_columns(settings.joins[number - 1]) if number else []
        for column in table.columns:
            if column in owner and column not in keys and column in needed:
                raise InputError(
                    f"Both {owner[column].name} and {table.name} have a column {column!r}; rename one of them."
                )
            owner.setdefault(column, table)
    return owner


def _check_there(table: Table, column: str) -> None:
    if column not in table.columns:
        raise InputError(_missing(column, table.key, [table]))
    if column in table.lacking:
        having = next(file.path for file, names in zip(table.files, table.of_file, strict=True) if column in names)
        raise InputError(
            f"{table.lacking[column]} has no column {column!r}, and {having} has; every file of {table.name} needs it: "
            "write the file again with the column, or take it out of the folder."
        )
    if column in table.clashes:
        raise InputError(
            f"{table.clashes[column]}, and no type holds the values of both exactly; write it with one type in every file."
        )


def _check_number_of_values(table: Table, column: str, number_of_values: str) -> None:
    kind = table.columns[column]
    if number_of_values == ONE and pa.types.is_nested(kind):
        below = next((name for name in table.columns if name.startswith(f"{column}.")), "")
        hint = f"; name a field of it, such as {below}" if below else ""
        raise InputError(f"{table.name} has {kind} in the column {column!r}, where one value is needed{hint}.")
    if number_of_values == MANY and not (is_list(kind) or is_text(kind)):
        raise InputError(
            f"{table.name} has {kind} in the column {column!r}, where many values are needed: "
            "a list, or text with source.events.list_separator between them."
        )


def _check_time(table: Table, column: str) -> None:
    kind = table.columns[column]
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_number or is_text(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise InputError(
            f"{table.name} has {kind} in the column {column!r}, which is read as a time: timestamps, dates, numbers and "
            "text are times; cast the column."
        )


def _check_ids(table: Table, columns: Sequence[str]) -> None:
    for column in columns:
        kind = table.columns[column]
        kind = kind.value_type if is_list(kind) else kind
        is_whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
        if not (is_whole or is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind)):
            raise InputError(
                f"{table.name} has {kind} in the column {column!r}, which is read as ids: integers, text, booleans and dates "
                "are ids; cast the column (pandas makes floats of integers with missing values)."
            )


def _check_numbers(table: Table, field: Field) -> None:
    kind = table.columns[field.raw_id]
    number = kind.value_type if field.reads_lists and is_list(kind) else kind
    is_number = pa.types.is_integer(number) or pa.types.is_floating(number) or pa.types.is_decimal(number)
    if is_list(number) or not (is_number or is_text(number)):
        raise InputError(
            f"{table.name} has {kind} in the column {field.raw_id!r}, which is read as numbers: integers, floats, "
            "decimals or their text are numbers; cast the column."
        )
    if isinstance(kind, pa.FixedSizeListType) and kind.list_size != field.num_numbers:
        raise InputError(
            f"{table.name} has lists of {kind.list_size} in the column {field.raw_id!r}, and features.fields.{field.name}.width="
            f"{field.num_numbers}; give the width of the column."
        )


def _missing(column: str, key: str, tables: Sequence[Table]) -> str:
    there = "; ".join(f"{table.name}: {_columns_listed(table)}" for table in tables)
    names = [name for table in tables for name in table.columns]
    alike = [name for name in names if _folded(name) == _folded(column)]
    remedy = (
        f"did you mean {alike[0]!r}?" if alike else next(filter(None, map(_csv_remedy, tables)), "name one of these.")
    )
    return f"{key} names the column {column!r}, which is not there ({there}); {remedy}"


def _folded(name: str) -> str:
    """Return a name without what is easily mistaken: case, blanks at its ends, user_id for user.id."""
    return name.strip().casefold().replace(".", "_")


def _columns_listed(table: Table) -> str:
    names = list(table.columns)
    more = f" and {len(names) - _COLUMNS_SHOWN} more" if len(names) > _COLUMNS_SHOWN else ""
    return ", ".join(names[:_COLUMNS_SHOWN]) + more


def _csv_remedy(table: Table) -> str:
    """Say what is wrong with the first line of a CSV file, if it shows."""
    names = table.of_file[0] if table.format == CSV and table.of_file else ()
    if table.settings.header or not names:
        return ""
    if len(names) == 1:
        for delimiter, written in (("\t", "tab"), (";", "';'"), ("|", "'|'"), ("\x01", "'\\x01'")):
            if delimiter in names[0]:
                return f"its columns may be divided otherwise: {table.key}.delimiter={written}."
    # Names that are there twice count as none.
    if names.count("") > 1 or any(name.lstrip("-").replace(".", "", 1).isdigit() for name in names):
        return f"if its first line is data, name its columns: {table.key}.header=[NAME, …]."
    return ""
