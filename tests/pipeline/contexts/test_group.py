"""Grouping: batches cut anywhere, contexts cut into rows, duplicates and orphans rejected in the order of the log."""

import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from pipeline.chunks.reasons import DUPLICATE_CONTEXT, DUPLICATE_IMPRESSION, MISSING_CONTEXT
from pipeline.contexts import records
from pipeline.contexts.group import select, whole_groups
from pipeline.contexts.packing import pack_words
from pipeline.contexts.records import CONTEXT_TAG, HEADER, RUN_TAG
from pipeline.errors import InputError

Record = tuple[int, int, int, list[int]]  # hash, tag, offset, words


def context(hash_: int, offset: int) -> Record:
    return hash_, CONTEXT_TAG, offset, [HEADER, hash_, 0, 0, 0]


def run(hash_: int, offset: int, ids: Sequence[int]) -> Record:
    words = [word for number, id_ in enumerate(ids) for word in (HEADER, id_, 0, 10 * number, 0)]
    return hash_, RUN_TAG, offset, words


def batch_of(entries: Sequence[Record]) -> pa.RecordBatch:
    columns = {
        "bucket": np.zeros(len(entries), np.int32),
        "hash": np.array([entry[0] for entry in entries], np.int64),
        "tag": np.array([entry[1] for entry in entries], np.int8),
        "ordinal": np.full(len(entries), 3, np.int32),
        "offset": np.array([entry[2] for entry in entries], np.int64),
    }
    words = np.array([word for entry in entries for word in entry[3]], np.int32)
    blobs, begin_R = pack_words(words, np.cumsum([0, *(len(entry[3]) for entry in entries)]))
    return records.record_batch(columns, begin_R, blobs)


def ids_of_rows(batch: pa.RecordBatch, max_impressions: int) -> list[tuple[int, list[int]]]:
    selected = select(batch, max_impressions)
    ids = selected.word_W[selected.impressions + records.ID_AT].tolist()
    bounds = [*selected.first_N.tolist(), len(ids)]
    contexts = selected.word_W[selected.context_N + records.ID_AT].tolist()
    return [(key, ids[bounds[row] : bounds[row + 1]]) for row, key in enumerate(contexts)]


def test_a_context_is_cut_into_rows_in_the_order_of_its_impressions() -> None:
    batch = batch_of([context(1, 0), run(1, 0, [5, 6]), run(1, 50, [7, 8, 9]), context(2, 9), run(2, 99, [5])])
    assert ids_of_rows(batch, 2) == [(1, [5, 6]), (1, [7, 8]), (1, [9]), (2, [5])]


def test_later_contexts_orphans_and_repeated_ids_are_rejected_with_their_offsets() -> None:
    entries = [
        context(1, 0),
        context(1, 70),
        run(1, 100, [5, 5, 6]),
        run(1, 200, [6]),
        run(2, 300, [5, 5]),
        context(3, 9),
    ]
    selected = select(batch_of(entries), 64)
    assert selected.rejects.tolist() == [
        [3, 70, DUPLICATE_CONTEXT], [3, 110, DUPLICATE_IMPRESSION], [3, 200, DUPLICATE_IMPRESSION],
        [3, 300, MISSING_CONTEXT], [3, 310, MISSING_CONTEXT],
    ]  # fmt: skip
    assert (selected.num_contexts, selected.num_contexts_alone) == (1, 1)
    assert len(selected.impressions) == 2


@pytest.mark.parametrize("seed", range(10))
def test_batches_cut_anywhere_give_the_rows_of_one_batch(seed: int) -> None:
    draw = random.Random(seed)
    entries: list[Record] = []
    for hash_ in range(1, 30):
        entries += [context(hash_, number) for number in range(draw.choice([0, 1, 1, 1, 2]))]
        for number in range(draw.choice([0, 1, 2, 30])):
            entries.append(run(hash_, 1000 * number, [draw.randrange(200) for _ in range(draw.randrange(1, 20))]))
    cuts = sorted(draw.sample(range(len(entries)), 12))
    pieces = [entries[i:j] for i, j in zip([0, *cuts], [*cuts, len(entries)], strict=True)]
    whole = ids_of_rows(batch_of(entries), 4)
    found = [row for piece in whole_groups(batch_of(piece) for piece in pieces) for row in ids_of_rows(piece, 4)]
    assert found == whole
    expected: dict[int, list[int]] = {}
    known = {entry[0] for entry in entries if entry[1] == CONTEXT_TAG}
    for hash_, tag, _, words in entries:
        if tag == RUN_TAG and hash_ in known:
            expected.setdefault(hash_, []).extend(words[records.ID_AT :: HEADER])
    rows = [
        (hash_, list(dict.fromkeys(ids))[start : start + 4])
        for hash_, ids in expected.items()
        for start in range(0, len(dict.fromkeys(ids)), 4)
    ]
    assert whole == rows


def test_impressions_without_a_context_line_are_not_held_back() -> None:
    pieces = [batch_of([context(1, 0), run(1, 0, [5]), run(2, 9, [6])]), batch_of([run(2, 20, [7])]), batch_of([run(2, 40, [6]), context(3, 0)])]  # fmt: skip
    found = list(whole_groups(iter(pieces)))
    assert [piece.num_rows for piece in found] == [2, 1, 1, 1, 1]
    rejects = [row for piece in found for row in select(piece, 64).rejects.tolist()]
    assert rejects == [[3, offset, MISSING_CONTEXT] for offset in (9, 20, 40)]


def test_a_context_too_long_to_be_held_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.contexts.group._MOST_BYTES", 30)
    words = [HEADER, 7, 0, 0x89ABCDEF - (1 << 32), 0x01234567]
    pieces = [batch_of([(1, CONTEXT_TAG, 0, words)]), batch_of([run(1, 9, range(20))])]
    with pytest.raises(InputError, match="The context 0123456789abcdef has more impressions than"):
        list(whole_groups(iter(pieces)))
    orphans = [batch_of([run(1, 9, range(20))])] * 3
    assert len(list(whole_groups(iter(orphans)))) == 3
