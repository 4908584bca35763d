"""Pages decoded without pyarrow's column reader hold what pyarrow reads from them, and damaged ones end in an error."""

import dataclasses
import io
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.parquet_files import PARQUET_OPTIONS
from training.feed.column_reader import DamagedColumn
from training.feed.parquet_pages import ColumnPages, PlainColumn, plain_columns

INT32S = st.integers(-(2**31), 2**31 - 1)
KINDS: dict[str, tuple[pa.DataType, bool, st.SearchStrategy[Any]]] = {
    "numbers": (pa.int32(), False, INT32S),
    "numbers or null": (pa.int64(), True, st.none() | st.integers(-(2**63), 2**63 - 1)),
    "texts": (pa.string(), False, st.text(max_size=5)),
    "lists": (pa.list_(pa.field("element", pa.int32(), nullable=False)), False, st.lists(INT32S, max_size=40)),
    "small lists": (pa.list_(pa.field("element", pa.int8(), nullable=False)), False, st.lists(st.just(1), max_size=2)),
    "weights": (
        pa.list_(pa.field("element", pa.float32(), nullable=False)),
        False,
        st.lists(st.floats(width=32, allow_nan=False), max_size=9),
    ),
}


def written(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, **(PARQUET_OPTIONS | options)) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def opened(content: bytes) -> dict[str, PlainColumn]:
    stream = pa.BufferReader(content)
    return plain_columns(stream, pq.ParquetFile(stream).metadata)


def chunk_of(content: bytes, column: PlainColumn, row_group: int = 0) -> ColumnPages:
    start, stop = column.byte_ranges[row_group]
    return ColumnPages(pa.py_buffer(content[start:stop]), column.form, column.level_counts[row_group])


def rows_of(chunk: ColumnPages, num_rows: int) -> list[Any]:
    """The rows as Python values."""
    if chunk.form.dtype == np.uint8:
        return chunk.texts(num_rows)
    values, offsets = chunk.lists(num_rows)
    assert len(offsets) == num_rows + 1
    assert offsets[0] == 0
    rows = [values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
    return rows if chunk.form.is_list else [row[0] if row else None for row in rows]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), page_rows=st.sampled_from([1, 3, 20_000]))
@settings(deadline=None, max_examples=60)  # the first example compiles
def test_every_form_of_column_gives_what_was_written_in_however_many_pages(kind, data, page_rows):
    dtype, nullable, values = KINDS[kind]
    rows = data.draw(st.lists(values, min_size=1, max_size=40))
    table = pa.table([pa.array(rows, dtype)], schema=pa.schema([pa.field("x", dtype, nullable=nullable)]))
    content = written(table, max_rows_per_page=page_rows)
    assert rows_of(chunk_of(content, opened(content)["x"]), len(rows)) == table.column("x").to_pylist()


def test_long_runs_of_long_and_of_empty_lists_and_pages_that_do_not_compress():
    random = np.random.default_rng(1)
    lengths = np.concatenate([np.zeros(3000), random.integers(0, 3, 3000), random.integers(0, 500, 300)]).astype(int)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = random.integers(-(2**31), 2**31, offsets[-1]).astype(np.int32)
    dtype = pa.list_(pa.field("element", pa.int32(), nullable=False))
    lists = pa.ListArray.from_arrays(offsets, pa.array(values), type=dtype)
    content = written(
        pa.table([lists], schema=pa.schema([pa.field("x", dtype, nullable=False)])), data_page_size=20_000
    )
    found_values, found_offsets = chunk_of(content, opened(content)["x"]).lists(len(lengths))
    np.testing.assert_array_equal(found_values, values)
    np.testing.assert_array_equal(found_offsets, offsets)


def test_columns_of_another_form_are_left_to_pyarrow():
    whole = pa.list_(pa.field("element", pa.int32(), nullable=False))
    columns = {
        "plain": (whole, False),
        "nullable_items": (pa.list_(pa.int32()), False),
        "nullable_list": (whole, True),
        "nullable_text": (pa.string(), True),
        "double": (pa.float64(), False),
    }
    rows = {"plain": [[1]], "nullable_items": [[1]], "nullable_list": [[1]], "nullable_text": ["1"], "double": [1.0]}
    schema = pa.schema([pa.field(name, kind, nullable=null) for name, (kind, null) in columns.items()])
    table = pa.table([pa.array(rows[name], schema.field(name).type) for name in columns], schema=schema)
    assert opened(written(table)).keys() == {"plain"}
    for options in ({"compression": "lz4"}, {"use_dictionary": True}, {"data_page_version": "1.0"}):
        assert opened(written(table, **options)) == {}


def small_chunks() -> list[tuple[ColumnPages, int]]:
    """A chunk of each form, and its number of rows."""
    random = np.random.default_rng(2)
    lists = [random.integers(0, 99, random.integers(0, 30)).tolist() for _ in range(60)]
    rows = {"lists": lists, "texts": [str(number) for number in range(60)]}
    rows["numbers or null"] = [None if number % 7 == 0 else number for number in range(60)]
    found = []
    for kind, values in rows.items():
        schema = pa.schema([pa.field("x", KINDS[kind][0], nullable=KINDS[kind][1])])
        content = written(pa.table([pa.array(values, KINDS[kind][0])], schema=schema), max_rows_per_page=25)
        found.append((chunk_of(content, opened(content)["x"]), 60))
    return found


def test_damaged_pages_give_an_error_or_rows_of_the_right_shape():
    random = np.random.default_rng(3)
    num_errors = num_rows_read = 0
    for chunk, num_rows in small_chunks():
        content = np.frombuffer(chunk.pages, np.uint8)
        for attempt in range(3000):
            damaged = content.copy()
            if attempt % 3 == 0:
                damaged = damaged[: random.integers(0, len(damaged))]
            else:
                places = random.integers(0, min(len(damaged), 60) if attempt % 3 == 1 else len(damaged), 2)
                damaged[places] = random.integers(0, 256, 2)
            try:
                rows = rows_of(dataclasses.replace(chunk, pages=pa.py_buffer(damaged.tobytes())), num_rows)
            except DamagedColumn:
                num_errors += 1
                continue
            assert len(rows) == num_rows
            num_rows_read += 1
    assert num_errors > num_rows_read > 0


def test_a_chunk_of_more_or_fewer_rows_is_an_error():
    for chunk, num_rows in small_chunks():
        for wrong in (num_rows - 1, num_rows + 1, 0):
            with pytest.raises(DamagedColumn, match=r"hold together|strings where"):
                rows_of(chunk, wrong)
