"""Records: where a context goes, what its words say, and which partition Spark sends it to."""

import numpy as np
import pytest
from raw_log import context_line, impression_line, key_of

from pipeline.aliccp.reader import ChunkReader
from pipeline.chunks.sources import CONTEXT, SKELETON, InputSplit, SourceFile
from pipeline.config.features import FeaturesSettings, FieldSettings
from pipeline.contexts import records
from pipeline.contexts.buckets import buckets_of
from pipeline.contexts.encode import encode
from pipeline.contexts.packing import unpack_words
from pipeline.dataset.lookup_table import lookup_of
from pipeline.features.fields import catalogue
from pipeline.features.vocabulary import Vocabulary
from pipeline.kernels.hashing import order_hashes, splits_of

FIELDS = catalogue(
    FeaturesSettings(
        {
            "user": FieldSettings("101", "context"),
            "brands": FieldSettings("127", "context", "many", True),
            "item": FieldSettings("205", "impression"),
            "intention": FieldSettings("210", "impression", "many"),
            "cross": FieldSettings("702", "impression", "many", True),
        },
        group="user",
    ),
    1,
)
VOCABULARIES = [
    Vocabulary(np.array(ids, np.int64), np.ones(len(ids), np.int64)) for ids in ([9], [7, 8], [5], [], [1, 2])
]


def encoded(
    tmp_path: object, table: str, lines: list[bytes], actions: np.ndarray | None = None
) -> list[dict[str, object]]:
    path = f"{tmp_path}/log"
    with open(path, "wb") as stream:
        stream.write(b"\n".join([*lines, b""]))
    source = SourceFile(4, "log", path, 1 << 20, table, "train", False)
    reader = ChunkReader(FIELDS, 0.0, 1, False, False, 1 << 20)
    layout = records.layout_of(FIELDS, "context" if table == CONTEXT else "impression")
    buckets = buckets_of((10, 0, 0), 1, 100, 1)
    (chunk,) = reader.read(InputSplit(source, 0, 1 << 20))
    batches = encode(chunk, layout, lookup_of(VOCABULARIES), buckets, actions)
    return [row for batch in batches for row in batch.to_pylist()]


def words(row: dict[str, object]) -> list[int]:
    blob = np.frombuffer(row["blob"], np.uint8)  # type: ignore[call-overload]
    return unpack_words(blob, np.array([0, len(blob)]))[0].tolist()


def test_a_context_record_holds_its_group_key_lengths_values_and_weights(tmp_path: object) -> None:
    features = [("127", 8, "0.5"), ("101", 9, "1"), ("127", 6, "2"), ("127", 7, "4")]
    (row,) = encoded(tmp_path, CONTEXT, [context_line("00000001ffffffff", features)])
    bits = np.array([0.5, 2, 4], np.float32).view(np.int32).tolist()
    assert words(row) == [13, 9, 0, -1, 1, 2, 3, 3, 1, 2, *bits]
    assert (row["tag"], row["ordinal"], row["offset"]) == (records.CONTEXT_TAG, 4, 0)


def test_impressions_of_a_context_become_one_run_however_they_interleave(tmp_path: object) -> None:
    lines = [
        impression_line(11, 1, 1, key_of(2), [("205", 5, "1")]),
        impression_line(12, 0, 1, key_of(1), [("702", 2, "1"), ("210", 3, "1"), ("702", 1, "2")]),
        impression_line(13, 1, 0, key_of(2), []),
    ]
    rows = {row["offset"]: words(row) for row in encoded(tmp_path, SKELETON, lines, np.array([12, 13]))}
    second = len(lines[0]) + 1
    third = second + len(lines[1]) + 1
    bits = np.array([1, 2], np.float32).view(np.int32).tolist()
    clicked = records.CLICK_LABEL
    assert rows == {
        0: [
            8,
            11,
            0,
            0,
            clicked | records.CONVERSION_LABEL,
            2,
            0,
            0,
            8,
            13,
            0,
            third,
            clicked | records.DACTION_LABEL,
            0,
            0,
            0,
        ],
        second: [13, 12, 0, 0, 0, 0, 1, 2, 1, 3, 2, *bits],
    }


def test_a_rejected_line_crosses_whole(tmp_path: object) -> None:
    rows = encoded(tmp_path, CONTEXT, [b"broken\r"])
    assert [(row["blob"], row["tag"], row["offset"]) for row in rows] == [(b"broken\r", 1, 0)]


def test_the_files_of_a_split_cut_its_order_into_ranges() -> None:
    keys = np.random.default_rng(1).integers(-(2**63), 2**63, 5000)
    buckets = buckets_of((950, 3, 0), 1, 100, seed=5)
    assert buckets.num_files == (10, 1, 1)
    bucket_N, hash_N = buckets.of_contexts(keys, np.zeros(len(keys), np.int64))
    places = np.array([buckets.file_of(key)[1] for key in bucket_N])
    assert (np.diff(places[np.argsort(hash_N)]) >= 0).all()
    assert np.bincount(places).min() > 300


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_validation_is_its_part_of_the_keys_and_independent_of_the_order(fraction: float) -> None:
    keys = np.arange(20_000)
    held_out = splits_of(keys, False, fraction, seed=3) == 1
    assert abs(held_out.mean() - fraction) < 0.01
    if fraction:
        assert abs(order_hashes(keys, 3)[held_out].astype(float).mean() / 2**64 - 0.5) < 0.02
    assert (splits_of(keys, True, fraction, seed=3) == 2).all()
