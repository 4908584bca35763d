"""Read Parquet in tasks where Spark's own reader does not serve: it knows no nanoseconds and no schemas that differ.

A column becomes what `plain_type` says: dictionaries, categories and large or fixed-size lists are plain ones, times are
microseconds, a path such as user.id is the field of a struct. Casts are exact, or the file is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.chunks.sources import SourceFile
from pipeline.errors import READING_ERRORS, InputError, reason_of

_ROWS_PER_BATCH = 50_000
_MOST_EXACT_INTEGER = 1 << 53  # of a double


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of a file; `number` is the file's place in its table."""

    source: SourceFile
    number: int
    groups: tuple[int, ...]


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type by which a column is read: of all writers and parts one."""
    if is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_date(kind):
        return pa.date32()
    if pa.types.is_uint64(kind):
        return pa.decimal128(20, 0)
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_null(kind):
        return pa.string()
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Say whether a type is a list of any kind."""
    return any(
        of(kind)
        for of in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def widened(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both exactly; None where there is none."""
    if left == right:
        return left
    if pa.types.is_null(left):
        return right
    if pa.types.is_null(right):
        return left
    if is_list(left) and is_list(right):
        if pa.types.is_null(left.value_type) or pa.types.is_null(right.value_type):
            inner = widened(left.value_type, right.value_type)
        else:
            inner = widened(plain_type(left.value_type), plain_type(right.value_type))
        return None if inner is None else pa.list_(inner)
    left, right = plain_type(left), plain_type(right)
    if left == right:
        return left
    numbers = {left, right}
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in numbers):
        return pa.float64()  # an integer beyond 2^53 is found when it is read
    if all(pa.types.is_integer(kind) or pa.types.is_decimal(kind) for kind in numbers):
        return _widened_decimal(left, right)
    if any(pa.types.is_date(kind) for kind in numbers) and any(kind == pa.timestamp("us") for kind in numbers):
        return pa.timestamp("us")
    return None


def _widened_decimal(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    kinds = [pa.decimal128(19, 0) if pa.types.is_integer(kind) else kind for kind in (left, right)]
    scale = max(kind.scale for kind in kinds)
    whole = max(kind.precision - kind.scale for kind in kinds)
    return pa.decimal128(whole + scale, scale) if whole + scale <= 38 else None


def open_parquet(stream: BinaryIO) -> pq.ParquetFile:
    """Open a file. The 96 bits that Spark and Impala write for a time are read as microseconds: as ns, they end in 2262."""
    return pq.ParquetFile(stream, coerce_int96_timestamp_unit="us")


def columns_of_schema(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the columns of a file; the fields of structs by their path, unless a column has that name."""
    found = {field.name: _without_dictionary(field.type) for field in schema}
    for field in schema:
        for path, kind in _struct_paths(field.name, field.type):
            found.setdefault(path, _without_dictionary(kind))
    return found


def _without_dictionary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if is_list(kind) and pa.types.is_dictionary(kind.value_type):
        return pa.list_(kind.value_type.value_type)
    return kind


def _struct_paths(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    if pa.types.is_struct(kind):
        for field in kind:
            path = f"{name}.{field.name}"
            yield path, field.type
            yield from _struct_paths(path, field.type)


def row_groups_of(source: SourceFile, number: int, split_bytes: int) -> list[RowGroups]:
    """Divide the row groups of a file into pieces of about `split_bytes`."""
    with source.open() as stream:
        metadata = pq.read_metadata(stream)
    found: list[RowGroups] = []
    group: list[int] = []
    size = 0
    for place in range(metadata.num_row_groups):
        group.append(place)
        size += metadata.row_group(place).total_byte_size
        if size >= split_bytes:
            found.append(RowGroups(source, number, tuple(group)))
            group, size = [], 0
    return [*found, RowGroups(source, number, tuple(group))] if group else found


def read_row_groups(piece: RowGroups, types: Mapping[str, pa.DataType]) -> Iterator[list[pa.Array]]:
    """Yield batches of the columns in `types`. Raises InputError for a file that is damaged, or a value that does not fit."""
    try:
        with piece.source.open() as stream:
            batches = open_parquet(stream).iter_batches(
                _ROWS_PER_BATCH, row_groups=list(piece.groups), columns=list(types)
            )
            for batch in batches:
                yield [_exact_column(batch, name, kind, piece.source) for name, kind in types.items()]
    except READING_ERRORS as error:
        raise InputError(
            f"{piece.source.path} cannot be read as parquet ({reason_of(error)}); repair or replace the file."
        ) from error


def _exact_column(batch: pa.RecordBatch, name: str, kind: pa.DataType, source: SourceFile) -> pa.Array:
    column = _at_path(batch, name)
    if column is None:
        return pa.nulls(batch.num_rows, kind)
    try:
        return exact_cast(column, kind)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{source.path} has a value in the column {name!r} ({column.type}) that {kind} does not hold exactly "
            f"({reason_of(error)}); write the column with one type in every file."
        ) from error


def _at_path(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """Return a column or the field of a struct; None where a file of a Delta or Iceberg table is older than it."""
    head, *below = path_in(batch.schema.names, name)
    if not head:
        return None
    column = batch.column(batch.schema.names.index(head))
    return pc.struct_field(column, below) if below else column  # null where the struct is


def path_in(columns: Sequence[str], name: str) -> list[str]:
    """Return (the column, the fields below it) that a name means: the longest column's name that it begins with; or ""."""
    parts = name.split(".")
    heads = ((".".join(parts[:length]), parts[length:]) for length in range(len(parts), 0, -1))
    return next(([head, *below] for head, below in heads if head in columns), [""])


def exact_cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast a column to a type of `plain_type`; ArrowInvalid where a value would change. Times lose what is below a microsecond."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_list(column.type) and is_list(kind):
        return _cast_list(column, kind)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        nanoseconds = column.cast(pa.int64())
        down = pc.subtract(nanoseconds, pc.if_else(pc.less(nanoseconds, 0), 999, 0))
        column = pc.divide(down, 1000).cast(pa.timestamp("us", column.type.tz))
    if pa.types.is_floating(kind) and pa.types.is_integer(column.type):
        bounds = pc.min_max(column).as_py()
        if bounds["max"] is not None and max(bounds["max"], -bounds["min"]) > _MOST_EXACT_INTEGER:
            raise pa.ArrowInvalid(f"{max(bounds['max'], -bounds['min'])} is beyond 2^53")
    return column.cast(kind)


def _cast_list(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if column.offset:
        column = column.take(pa.array(range(len(column))))
    return pa.ListArray.from_arrays(column.offsets, exact_cast(column.values, kind.value_type), mask=column.is_null())
