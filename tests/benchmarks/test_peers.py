"""The peers' arrays beside a loop over the rows of the same dataset."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_dataset import FIELDS, write_tiny_dataset

from benchmarks.peers import inputs
from pipeline.dataset.manifest import load_manifest
from training.feed.feed import Feed
from training.feed.plan import Plan


def slow_reading(dataset: Path, split: str, width: dict[str, int]) -> tuple[dict[str, list], list[int]]:
    """Every field of every impression, one value after another, and the impressions' ids."""
    features: dict[str, list] = {name: [] for name in FIELDS}
    ids: list[int] = []
    for file in load_manifest(dataset).files_of(split):
        for row in pq.read_table(dataset / file.path).to_pylist():
            at = dict.fromkeys(FIELDS, 0)
            for number, impression_id in enumerate(row["impression_id"]):
                ids.append(impression_id)
                for name, (_, scope, arity, _, _) in FIELDS.items():
                    if arity == "one":
                        features[name].append(row[name] if scope == "context" else row[name][number])
                        continue
                    bag = row[name]
                    if scope == "impression":
                        length = row[f"{name}__length"][number]
                        bag = bag[at[name] : at[name] + length]
                        at[name] += length
                    cut = (bag + [0] * width[name])[: width[name]]
                    features[name].append(cut[0] if width[name] == 1 else cut)
    return features, ids


@pytest.mark.parametrize("pad", [1, 2, 4, 100])
def test_the_padded_arrays_are_those_of_a_loop_over_the_rows(tmp_path: Path, pad: int) -> None:
    write_tiny_dataset(tmp_path, num_contexts=60)
    width = inputs.widths(str(tmp_path), pad)
    for split in ("train", "test"):
        found = inputs.read(str(tmp_path), split, width)
        wanted, ids = slow_reading(tmp_path, split, width)
        assert found.impression_id_B.tolist() == ids
        assert {name: array.tolist() for name, array in found.features.items()} == wanted


def test_a_field_is_padded_to_its_longest_bag_at_most(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path, num_contexts=60)
    longest = inputs.widths(str(tmp_path), 100)
    assert max(longest.values()) <= 6
    assert inputs.widths(str(tmp_path), 2) == {name: min(2, width) for name, width in longest.items()}


def test_longer_bags_are_cut_and_shorter_ones_filled_with_zeros() -> None:
    bags = inputs.Bags(np.array([5, 6, 7, 8]), np.array([0, 3, 3, 4]), context_of_impression_B=np.array([0, 0, 2, 1]))
    assert inputs.padded(bags, 2).tolist() == [[5, 6], [5, 6], [8, 0], [0, 0]]
    assert bags.lengths_B().tolist() == [3, 3, 1, 0]


def test_the_share_of_values_kept_is_that_of_a_count(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path, num_contexts=60)
    everything, _ = slow_reading(tmp_path, "train", dict.fromkeys(FIELDS, 99))
    lengths = {
        name: [np.count_nonzero(bag) if isinstance(bag, list) else 1 for bag in bags]
        for name, bags in everything.items()
    }
    kept = sum(min(length, 2) for name in lengths for length in lengths[name])
    share = inputs.kept_share(str(tmp_path), inputs.widths(str(tmp_path), 2), manifest.fields)
    assert share == pytest.approx(kept / sum(map(sum, lengths.values())))


def test_a_subset_is_a_dataset_of_the_first_row_groups_and_the_fields_asked_for(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path / "whole", num_contexts=120)
    smaller = inputs.subset(str(tmp_path / "whole"), tmp_path / "part", ["item_id", "user_brands"], {"train": 150})
    assert [entry.name for entry in smaller.fields] == ["user_brands", "item_id"]
    assert 150 <= smaller.totals["train"]["impressions"] < 150 + 64 + 8
    width = dict.fromkeys(("user_brands", "item_intention", "user_item_brands"), 3)
    whole = inputs.read(str(tmp_path / "whole"), "train", width)
    part = inputs.read(str(tmp_path / "part"), "train", width)
    count = len(part.click_B)
    assert part.impression_id_B.tolist() == whole.impression_id_B[:count].tolist()
    for name, array in part.features.items():
        np.testing.assert_array_equal(array, whole.features[name][:count])
    # The trainer's own feed accepts it, checksums and counts included.
    plan = Plan(smaller.files_of("train"), batch_size=16, lanes=2, seed=1)
    feed = Feed(str(tmp_path / "part"), smaller, "train", plan, rank=0, world_size=1, pooling={"user_brands": "mean"})
    fed = [impression for batch in feed.batches(0) for impression in batch.impression_id.tolist()]
    assert sorted(fed) == sorted(part.impression_id_B.tolist())
    assert manifest.totals["train"]["impressions"] > count
