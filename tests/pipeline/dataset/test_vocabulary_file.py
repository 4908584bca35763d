"""The vocabulary of a field: another file in its place is refused, whatever it holds."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline.dataset.manifest import ManifestField
from pipeline.dataset.named_files import NamedFiles
from pipeline.dataset.vocabulary_file import read_vocabulary
from pipeline.errors import InputError

IDS = np.arange(100, 120)
WHOLE = pa.table({"raw_id": IDS, "index": pa.array(range(2, 22), pa.int32()), "count": np.full(20, 9)})


def written(path: Path, table: pa.Table) -> tuple[NamedFiles, ManifestField]:
    """Write a vocabulary, and return what its manifest says of it."""
    pq.write_table(table, path / "v.parquet", use_dictionary=False)
    xxh3 = xxhash.xxh3_64_hexdigest((path / "v.parquet").read_bytes())
    entry = ManifestField("item_id", "205", "impression", "one", False, 22, "v.parquet", xxh3)
    return NamedFiles.below(path, "manifest.json", "restore it."), entry


def test_a_vocabulary_is_read_with_its_ids_in_the_order_of_the_index(tmp_path: Path) -> None:
    assert read_vocabulary(*written(tmp_path, WHOLE)).equals(WHOLE.select(["raw_id", "index"]))
    texts = pa.table({"raw_id": IDS, "index": WHOLE["index"], "text": pa.array(map(str, IDS))})
    assert read_vocabulary(*written(tmp_path, texts)) == texts


def reverse(path: Path) -> None:
    pq.write_table(WHOLE.set_column(0, "raw_id", pa.array(IDS[::-1])), path, use_dictionary=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (reverse, "has the checksum .* where manifest.json says"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "has the checksum .* where manifest.json says"),
        (lambda path: path.unlink(), "is missing, though manifest.json names it"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "a link leads out of the folder"),
    ],
)
def test_another_file_in_its_place_is_refused(tmp_path: Path, change: Callable[[Path], object], sentence: str) -> None:
    files, entry = written(tmp_path, WHOLE)
    change(tmp_path / "v.parquet")
    with pytest.raises(InputError, match=rf"v.parquet .*{sentence}.*; restore it\.$"):
        read_vocabulary(files, entry)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (WHOLE.slice(1), "has not an id for each index from 2 to 21 in order"),
        (WHOLE.drop_columns("index"), "has not the columns of a vocabulary"),
        (WHOLE.set_column(0, "raw_id", pa.array(map(str, IDS))), "has not the columns of a vocabulary"),
        (WHOLE.set_column(0, "raw_id", pa.array([None] * 20, pa.int64())), "has not an id for each index"),
        (WHOLE.set_column(1, "index", pa.array(range(21, 1, -1), pa.int32())), "has not an id for each index"),
    ],
)
def test_a_forged_vocabulary_with_its_checksum_is_refused(tmp_path: Path, table: pa.Table, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_vocabulary(*written(tmp_path, table))


def test_damaged_parquet_with_its_checksum_is_one_sentence(tmp_path: Path) -> None:
    files, entry = written(tmp_path, WHOLE)
    content = (tmp_path / "v.parquet").read_bytes()
    name = content.index(b"raw_id")  # the schema stands first in the footer
    for damaged in (content[:name] + b"\xff" + content[name + 1 :], content[:50], b"PAR1" * 20):
        (tmp_path / "v.parquet").write_bytes(damaged)
        forged = replace(entry, vocabulary_xxh3=xxhash.xxh3_64_hexdigest(damaged))
        with pytest.raises(InputError, match=r"v.parquet (cannot be read .*|has not the columns of .*); restore it\.$"):
            read_vocabulary(files, forged)
