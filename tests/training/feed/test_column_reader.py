"""Our decoder of pages and pyarrow's reader are one interface, and give the same values of every column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from damaged_files import error_of, first_table, with_table
from slow_reading import POOLING, assert_same, epoch_reading, feed_of, merged, slow_reading
from tiny_dataset import write_tiny_dataset

from pipeline.dataset.kinds import NUMBER
from pipeline.dataset.manifest import LABELS, Manifest
from pipeline.errors import InputError
from training.feed.column_reader import PyarrowColumn
from training.feed.columns import Columns
from training.feed.dataset_files import DatasetFiles
from training.feed.parquet_pages import ColumnPages

DECODERS = ("pages", "pyarrow")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    path = tmp_path_factory.mktemp("decoders") / "data"
    return path, write_tiny_dataset(path, num_contexts=60, numeric=True, daction=True)


def test_both_decoders_give_the_same_values_of_every_column(dataset: tuple[Path, Manifest]) -> None:
    path, manifest = dataset
    columns = Columns(manifest.fields, POOLING, LABELS)
    file = manifest.files_of("train")[0]
    read = {decoder: DatasetFiles(str(path), columns, "size", decoder).read(file, 0) for decoder in DECODERS}
    assert {type(column) for column in read["pyarrow"].columns.values()} == {PyarrowColumn}
    of_pages = [name for name, column in read["pages"].columns.items() if isinstance(column, ColumnPages)]
    assert set(columns.types()) - set(of_pages) == {"item_price"}  # its items may be null: left to pyarrow
    numeric = {entry.name for entry in manifest.fields if entry.stored == NUMBER}
    for name, kind in columns.types().items():
        ours, theirs = (read[decoder].columns[name] for decoder in DECODERS)
        num_rows = read["pages"].num_rows
        if name == "context_id":
            assert ours.texts(num_rows) == theirs.texts(num_rows)
            continue
        if name in numeric or not str(kind).startswith("list"):
            found = [column.numbers(num_rows, -1) for column in (ours, theirs)]
        else:
            found = [column.lists(num_rows) for column in (ours, theirs)]
            assert ours.most_values() == theirs.most_values() or len(found[0].values) < ours.most_values()
        for mine, other in zip(*found, strict=True):
            assert (mine is None) == (other is None), name
            if mine is not None:
                assert mine.dtype == other.dtype or name in LABELS, name  # Parquet stores an int8 as an INT32
                np.testing.assert_array_equal(mine, other, err_msg=name)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_string_that_is_no_utf_8_is_a_damaged_column(tmp_path: Path, decoder: str) -> None:
    manifest = write_tiny_dataset(tmp_path, num_contexts=20)
    table = first_table(tmp_path, manifest)
    raw = pa.array([b"\xff"] * len(table), pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    field = table.schema.field("context_id")
    forged = with_table(tmp_path, manifest, table.set_column(0, field, texts), compression="zstd", use_dictionary=False)
    message = error_of(tmp_path, forged, decoder=decoder)
    assert "column context_id: " in message
    assert "'utf-8' codec can't decode byte 0xff" in message


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_epoch_of_either_decoder_is_what_stands_in_the_files(dataset: tuple[Path, Manifest], decoder: str) -> None:
    path, manifest = dataset
    assert_same(merged(epoch_reading(feed_of(path, manifest, decoder=decoder))), slow_reading(path, manifest))


def test_the_batches_of_both_decoders_are_equal_bit_for_bit(dataset: tuple[Path, Manifest]) -> None:
    path, manifest = dataset
    both = [list(feed_of(path, manifest, decoder=decoder).batches(0)) for decoder in DECODERS]
    for ours, theirs in zip(*both, strict=True):
        assert ours.context_id == theirs.context_id
        for scope in ("context", "impression"):
            for part in ("values", "lengths", "weights"):
                assert torch.equal(getattr(getattr(ours, scope), part), getattr(getattr(theirs, scope), part))
        assert torch.equal(ours.context_numeric, theirs.context_numeric)
        assert torch.equal(ours.impression_numeric, theirs.impression_numeric)
        assert torch.equal(ours.group_id, theirs.group_id)


def test_an_unknown_decoder_is_refused(dataset: tuple[Path, Manifest]) -> None:
    with pytest.raises(InputError, match=r"feed\.decoder=arrow is not one of pages, pyarrow"):
        feed_of(*dataset, decoder="arrow")
