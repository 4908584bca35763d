"""The tallies of the writing tasks against plain counting, for any batches and any order of merging."""

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit.distinct import MAX_EXACT, Distinct
from pipeline.audit.figures import context_sizes, drift, figures, stability_index
from pipeline.audit.statistics import NumberTally, Statistics
from pipeline.features.fields import Catalogue, Field

FIELDS = Catalogue(
    (
        Field("user", "u", "context", "one", False, 1),
        Field("shops", "s", "context", "many", True, 1),
        Field("item", "i", "impression", "one", False, 1),
        Field("tags", "t", "impression", "many", False, 1),
    ),
    "user",
)


def random_contexts(seed: int, number: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def index() -> int:
        return draw.choice([0, 1, 2, 3, 4, 7, 8, 65_535, 65_536, 70_000, 2**31 - 1])

    return [
        {
            "key": draw.randrange(-(2**63), 2**63),
            "group_id": draw.choice([None, draw.randrange(5)]),
            "user": index(),
            "shops": [index() or 1 for _ in range(draw.choice([0, 0, 1, 2, 9]))],
            "impressions": [
                {
                    "click": draw.randrange(2),
                    "item": index(),
                    "tags": [index() or 1 for _ in range(draw.choice([0, 1, 3]))],
                }
                for _ in range(draw.choice([1, 2, 3, 4, 11]))
            ],
        }
        for _ in range(number)
    ]


def tallied(contexts: list[dict[str, Any]], most: int) -> Statistics:
    """The statistics of contexts cut into rows of at most `most` impressions, all in one table."""
    rows: list[dict[str, Any]] = []
    for context in contexts:
        for start in range(0, len(context["impressions"]), most):
            shown = context["impressions"][start : start + most]
            rows.append(
                {name: context[name] for name in ("key", "group_id", "user", "shops")}
                | {"click": [impression["click"] for impression in shown]}
                | {"item": [impression["item"] for impression in shown]}
                | {"tags": [tag for impression in shown for tag in impression["tags"]]}
                | {"tags__length": [len(impression["tags"]) for impression in shown]}
            )
    ints = pa.list_(pa.int32())
    kinds = {
        "group_id": pa.int64(),
        "user": pa.int32(),
        "shops": ints,
        "item": ints,
        "tags": ints,
        "tags__length": ints,
    }
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()})
    counts = np.array([[len(row["click"]), sum(row["click"]), 0, 0] for row in rows])
    statistics = Statistics()
    statistics.add(table, FIELDS, np.array([row["key"] for row in rows]), counts)
    return statistics


@pytest.mark.parametrize("most", [2, 100])
def test_values_records_sizes_and_users_are_those_of_the_contexts_however_these_are_cut(most: int) -> None:
    contexts = random_contexts(1, 200)
    found = figures(FIELDS, {"train": tallied(contexts, most)})
    impressions = [impression for context in contexts for impression in context["impressions"]]
    records = {
        "user": [[context["user"]] * (context["user"] > 0) for context in contexts],
        "shops": [context["shops"] for context in contexts],
        "item": [[impression["item"]] * (impression["item"] > 0) for impression in impressions],
        "tags": [impression["tags"] for impression in impressions],
    }
    for name, values in records.items():
        field = found["fields"][name]["train"]
        flat = [value for record in values for value in record]
        assert field["records"] == len(values)
        assert field["without"] == sum(not record for record in values)
        assert field["values"] == len(flat)
        assert field["out_of_vocabulary"] == flat.count(1)
        assert field["most"] == max(map(len, values))
        for bins, whole in ((field["index_bins"][1:], flat), (field["length_bins"], map(len, values))):
            lengths = [value.bit_length() for value in whole]
            first = 0 if bins is field["length_bins"] else 1
            assert bins == [lengths.count(bit) for bit in range(first, max(lengths) + 1)]
    sizes = [len(context["impressions"]) for context in contexts]
    shape = found["contexts"]["train"]
    assert (shape["contexts"], shape["impressions"]) == (200, sum(sizes))
    assert shape["percentiles"]["100"] == max(sizes)
    assert [(bin["from"], bin["contexts"], bin["clicks"]) for bin in shape["bins"]] == [
        (
            low,
            sum(low <= size < 2 * low for size in sizes),
            sum(
                impression["click"]
                for context in contexts
                if low <= len(context["impressions"]) < 2 * low
                for impression in context["impressions"]
            ),
        )
        for low in (1, 2, 4, 8)
    ]
    assert found["overlap"]["users"]["distinct"]["train"] == {
        "number": len({context["group_id"] for context in contexts} - {None}),
        "exact": True,
    }


def test_files_merge_in_any_order_to_what_one_file_would_tell() -> None:
    parts = [random_contexts(seed, 40) for seed in range(3)]
    whole = figures(FIELDS, {"train": tallied([context for part in parts for context in part], 3)})
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = Statistics()
        for number in order:
            kept: dict[str, np.ndarray] = {}
            report = tallied(parts[number], 3).report(
                lambda what, array, kept=kept: kept.setdefault(what, array) is array and what
            )
            merged.merge(Statistics.of_report(report, kept.__getitem__))
        assert figures(FIELDS, {"train": merged}) == whole


def test_numbers_merge_to_the_mean_and_deviation_of_all_of_them() -> None:
    values = np.random.default_rng(2).normal(1e4, 3, 1000).astype(np.float32)
    merged = NumberTally()
    for part in np.split(values, [0, 1, 400, 977]):
        tally = NumberTally()
        tally.add(pa.array([*part.tolist(), None], pa.float32()))
        merged.merge(NumberTally.from_json(tally.to_json()))
    assert (merged.values, merged.missing) == (1000, 5)
    assert merged.mean_std == pytest.approx((values.astype(float).mean(), values.astype(float).std()), rel=1e-12)
    assert (merged.low, merged.high) == (values.min(), values.max())


def test_percentiles_are_sizes_that_so_many_of_a_hundred_contexts_do_not_exceed() -> None:
    sizes = [1] * 50 + [2] * 40 + [5] * 9 + [300]
    found = context_sizes({size: np.array([sizes.count(size), 0, 0, 0]) for size in set(sizes)})
    assert found["percentiles"] == {"50": 1, "90": 2, "99": 5, "100": 300}
    assert found["mean"] == pytest.approx(sum(sizes) / 100)


def test_drift_is_nothing_between_equal_shares_and_the_index_of_the_textbook_between_others() -> None:
    assert stability_index(np.array([0, 100, 300]), np.array([0, 1000, 3000])) == pytest.approx(0, abs=1e-4)
    big = stability_index(np.array([1_000_000, 1_000_000]), np.array([3_000_000, 1_000_000]))
    assert big == pytest.approx(0.25 * np.log(1.5) - 0.25 * np.log(0.5), rel=1e-4)
    one, other = NumberTally(), NumberTally()
    one.add(pa.array([-1, 3, -1, 3], pa.float32()))  # mean 1, standard deviation 2
    other.add(pa.array([4, None, 4], pa.float32()))
    assert drift("price", {"train": Statistics({"price": one}), "test": Statistics({"price": other})}) == {"test": 1.5}


def test_distinct_ids_are_exact_up_to_the_bound_and_within_its_error_above() -> None:
    few, more, many = Distinct(), Distinct(), Distinct()
    for start in range(0, MAX_EXACT - 1, 1000):
        few.add(np.repeat(np.arange(start, min(start + 1000, MAX_EXACT - 1)), 2))
    assert few.count().to_json() == {"number": MAX_EXACT - 1, "exact": True}
    more.add(np.arange(MAX_EXACT - 1001, 2 * MAX_EXACT - 2002))
    assert few.common(more).to_json() == {"number": 1000, "exact": True}
    for start in range(0, 1_000_000, 100_000):
        part = Distinct()
        part.add(np.arange(start, start + 100_000))
        many.merge(part)
    assert not many.count().is_exact
    assert many.count().number == pytest.approx(1_000_000, rel=0.03)
    others = Distinct()
    others.add(np.arange(700_000, 1_700_000))
    assert many.common(others).number == pytest.approx(300_000, rel=0.05)
