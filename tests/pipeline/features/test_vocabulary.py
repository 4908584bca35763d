"""Counting, merging, cutting and looking up raw ids, against collections.Counter and a dict."""

import random
from collections import Counter as PlainCounter
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.lookup_table import Lookup, lookup_of
from pipeline.features.fields import Field
from pipeline.features.vocabulary import Counter, Vocabulary, keep_frequent, pairs_of, vocabularies


def values(seed: int, number: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    draw = random.Random(seed)
    ids = [draw.choice([draw.randrange(50), draw.randrange(10**6), draw.randrange(2**63)]) for _ in range(number)]
    return np.array([draw.randrange(3) for _ in ids], np.int16), np.array(ids, np.int64)


def plain(counter: Counter) -> dict[tuple[int, int], int]:
    return {(pair & 0xFFFF, raw_id): pair >> 16 for raw_id, pair in counter.pairs().tolist()}


def test_a_counter_counts_chosen_values_through_every_growth_of_its_table() -> None:
    field_V, id_V = values(1, 20_000)
    chosen_V = np.random.default_rng(1).random(len(id_V)) < 0.7
    counter = Counter()
    for part in np.array_split(np.arange(len(id_V)), 13):
        counter.add(field_V[part], id_V[part], chosen_V[part])
    pairs = zip(field_V[chosen_V].tolist(), id_V[chosen_V].tolist(), strict=True)
    assert plain(counter) == dict(PlainCounter(pairs))
    assert len(counter) == len(plain(counter))


def test_merged_parts_of_several_tasks_hold_what_one_counter_would() -> None:
    merged: dict[int, Counter] = {}
    whole = Counter()
    for seed in range(4):
        field_V, id_V = values(seed)
        task, everything = Counter(), np.ones(len(id_V), np.bool_)
        task.add(field_V, id_V, everything)
        whole.add(field_V, id_V, everything)
        for part, blob in task.parts(5):
            merged.setdefault(part, Counter()).add_pairs(pairs_of(blob))
    assert len(merged) == 5
    parts = [plain(counter) for counter in merged.values()]
    assert sum(map(len, parts)) == len(plain(whole))
    assert {pair: count for part in parts for pair, count in part.items()} == plain(whole)


def test_ids_come_by_falling_count_then_by_raw_id_and_rare_ones_are_cut_by_their_fields_minimum() -> None:
    counts = {(0, 7): 3, (0, 2): 3, (0, 9): 1, (1, 4): 1, (1, 5): 2}
    pairs = np.array([(raw_id, count << 16 | field) for (field, raw_id), count in counts.items()], np.int64)
    fields = [Field(name, name, "context", "one", False, least) for name, least in (("a", 2), ("b", 1), ("c", 1))]
    first, second, third = vocabularies(keep_frequent(pairs, fields), fields)
    assert (first.id_N.tolist(), first.count_N.tolist(), first.num_rows) == ([2, 7], [3, 3], 4)
    assert second.id_N.tolist() == [5, 4]
    assert third.num_rows == 2
    assert first.table().to_pylist()[0] == {"raw_id": 2, "index": 2, "count": 3}


@pytest.mark.parametrize("most", [1, 2, 7, None])
def test_the_most_frequent_ids_stay_whether_or_not_partitions_are_cut_first(most: int | None) -> None:
    counter = Counter()
    field_V, id_V = values(6)
    counter.add(field_V, id_V % 40, np.ones(len(id_V), np.bool_))
    fields = [Field(name, name, "context", "one", False, 2, most if name == "b" else None) for name in "abc"]
    parts = [keep_frequent(pairs_of(blob), fields) for _, blob in counter.parts(4)]
    whole = {pair: count for pair, count in plain(counter).items() if count >= 2}
    for number, found in enumerate(vocabularies(np.concatenate(parts), fields)):
        order = sorted((-count, raw_id) for (field, raw_id), count in whole.items() if field == number)
        order = order[:most] if number == 1 else order
        assert list(zip((-found.count_N).tolist(), found.id_N.tolist(), strict=True)) == order


def test_a_hashed_id_goes_where_splitmix64_says_in_every_row_but_the_reserved_ones() -> None:
    none = np.empty(0, np.int64)
    hashed, dense = Vocabulary(none, none, hash_buckets=97), Vocabulary(np.arange(5), np.ones(5, np.int64))
    lookup = lookup_of([dense, hashed, dense])
    assert hashed.num_rows == 99
    ids = [*range(1000), 2**63 - 1]
    indices = lookup.indices_of(np.ones(len(ids), np.int16), np.array(ids)).tolist()
    for raw_id, index in zip(ids, indices, strict=True):
        word = (raw_id ^ (raw_id >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        assert index == 2 + (word ^ (word >> 31)) % 97
    assert set(indices) == set(range(2, 99))
    assert lookup.indices_of(np.array([0, 2], np.int16), np.array([4, 4])).tolist() == [6, 6]


def test_lookup_finds_every_id_in_direct_and_hashed_tables_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(3)
    dense = draw.sample(range(100), 60)
    sparse = [0, 2**63 - 1, *(draw.randrange(2**62) for _ in range(500))]
    ids = [dense, sparse, []]
    lookup_of([Vocabulary(np.array(each, np.int64), np.ones(len(each), np.int64)) for each in ids]).save(tmp_path)
    lookup = Lookup.load(tmp_path)
    assert lookup.places[0, 2] == -1, "a dense field has a direct table"
    assert lookup.places[1, 2] > 0, "a sparse field has a hash table"
    for field, known in enumerate(ids):
        index = {raw_id: number + 2 for number, raw_id in enumerate(known)}
        asked = [*known, 1, 99, 10**9, 2**62 + 1, *range(100)]
        found = lookup.indices_of(np.full(len(asked), field, np.int16), np.array(asked, np.int64))
        assert found.tolist() == [index.get(raw_id, 1) for raw_id in asked]
