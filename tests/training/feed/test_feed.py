"""The feed over a small dataset, against a reading of the same files row by row in Python."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from slow_reading import POOLING, assert_same, epoch_reading, feed_of, merged, plan_of, slow_reading
from tiny_dataset import write_tiny_dataset

from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from training.feed.batch import Batch
from training.feed.device_copy import map_tensors
from training.feed.feed import Feed
from training.feed.settings import FeedSettings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    path = tmp_path_factory.mktemp("dataset")
    return path, write_tiny_dataset(path, daction=True)


@pytest.mark.parametrize("seed", [5, None])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_epoch_holds_every_value_of_every_impression_once(dataset, seed, threads):
    path, manifest = dataset
    feed = feed_of(path, manifest, plan_of(manifest, seed=seed), threads=threads)
    assert_same(merged(epoch_reading(feed)), slow_reading(path, manifest))


def bytes_of(batch: Batch) -> list[Any]:
    """Everything in a batch."""
    found: list[Any] = [batch.context_id, batch.context.counts, batch.impression.counts, *batch.labels]
    map_tensors(batch, lambda tensor: found.append((tensor.dtype, tensor.shape, tensor.numpy().tobytes())))
    return found


@pytest.mark.parametrize("start_step", [0, 3])
def test_any_number_of_threads_gives_the_same_batches_bit_by_bit(dataset, start_step):
    path, manifest = dataset
    one, *others = (
        [bytes_of(batch) for batch in feed_of(path, manifest, threads=threads).batches(2, start_step)]
        for threads in (1, 2, 4)
    )
    assert len(one) > 8
    for other in others:
        assert other == one


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_goes_missing_is_told_after_the_batches_before_it(tmp_path, threads):
    manifest = write_tiny_dataset(tmp_path, num_contexts=150, row_groups_per_file=1)
    plan = plan_of(manifest, lanes=1, seed=None)
    gone = manifest.files_of("train")[-1]
    (tmp_path / gone.path).unlink()
    sizes: list[int] = []
    batches = feed_of(tmp_path, manifest, plan, threads=threads).batches(0)
    with pytest.raises(InputError, match=gone.path):
        sizes.extend(batch.num_impressions for batch in batches)
    missing = gone.row_groups[0].impressions
    assert sum(sizes) == (plan.num_impressions - missing) // plan.batch_size * plan.batch_size


def test_the_number_of_threads_follows_the_cores_of_the_rank():
    assert [FeedSettings().threads_for(cores, on_gpu=False) for cores in (1, 2, 4, 16)] == [1, 1, 1, 4]
    assert [FeedSettings().threads_for(cores, on_gpu=True) for cores in (1, 2, 4, 16)] == [1, 1, 2, 8]
    assert FeedSettings(threads=3).threads_for(64, on_gpu=True) == 3


def test_a_plan_in_clicks_feeds_the_clicked_impressions_alone(dataset):
    path, manifest = dataset
    steps = epoch_reading(feed_of(path, manifest, plan_of(manifest, unit="clicks")))
    clicked = {key: found for key, found in slow_reading(path, manifest).items() if found["click"]}
    assert_same(merged(steps), clicked)
    batch = next(feed_of(path, manifest, plan_of(manifest, unit="clicks")).batches(0))
    assert set(batch.context_of_impression.tolist()) == set(range(batch.num_contexts)), "a context without a click"


@pytest.mark.parametrize("unit", ["impressions", "clicks"])
def test_the_ranks_batches_are_together_the_batch_of_one_rank(dataset, unit):
    path, manifest = dataset
    plan = plan_of(manifest, unit=unit)
    whole = epoch_reading(feed_of(path, manifest, plan), epoch=3)
    for world_size in (2, 4):
        ranks = [
            epoch_reading(feed_of(path, manifest, plan, rank=rank, world_size=world_size), epoch=3)
            for rank in range(world_size)
        ]
        for step, of_ranks in enumerate(zip(*ranks, strict=True)):
            assert merged(list(of_ranks)) == whole[step]
            assert len(whole[step]) == plan.step_size(step)


def row_groups_read(feed: Feed, epoch: int, start_step: int = 0) -> list[tuple[str, int]]:
    """What the feed decodes in an epoch, in order."""
    found, read = [], feed._files.read

    def noted(file, row_group):
        found.append((file.path, row_group))
        return read(file, row_group)

    feed._files.read = noted
    list(feed.batches(epoch, start_step))
    feed._files.read = read
    return found


def test_a_row_group_that_lanes_share_is_decoded_once_where_one_rank_serves_them(dataset):
    path, manifest = dataset
    plan = plan_of(manifest)
    once = row_groups_read(feed_of(path, manifest, plan), 2)
    assert sorted(once) == sorted(set(once))
    assert len(once) < len(plan.reads(2, 0, 1))
    assert len(row_groups_read(feed_of(path, manifest, plan), 2, start_step=plan.num_steps - 1)) <= plan.lanes
    ranks = [row_groups_read(feed_of(path, manifest, plan, rank=rank, world_size=4), 2) for rank in range(4)]
    assert sum(map(len, ranks)) == len(plan.reads(2, 0, 1)) > len(once)


def test_resuming_gives_the_same_batches_in_the_same_order(dataset):
    path, manifest = dataset
    feed = feed_of(path, manifest)
    whole = [batch.impression_id.tolist() for batch in feed.batches(1)]
    for start_step in (0, 1, len(whole) - 1, len(whole)):
        assert [batch.impression_id.tolist() for batch in feed.batches(1, start_step)] == whole[start_step:]


def test_epochs_differ_in_order_and_batches_but_evaluation_keeps_the_order_of_the_files(dataset):
    path, manifest = dataset
    feed = feed_of(path, manifest)
    orders = [[key for batch in feed.batches(epoch) for key in batch.impression_id.tolist()] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    in_order = feed_of(path, manifest, plan_of(manifest, seed=None, lanes=1, batch_size=50))
    fed = [key for batch in in_order.batches(0) for key in batch.impression_id.tolist()]
    assert fed == list(slow_reading(path, manifest))


def test_a_subset_of_fields_comes_in_catalogue_order(dataset):
    path, manifest = dataset
    fields = ["item_id", "user_id", "user_item_brands"]
    steps = epoch_reading(feed_of(path, manifest, fields=fields), fields=["user_id", "item_id", "user_item_brands"])
    assert_same(merged(steps), slow_reading(path, manifest))
    with pytest.raises(InputError, match="no field item_idd; it has item_id"):
        feed_of(path, manifest, fields=["item_idd"])


def test_a_step_without_impressions_for_a_rank_is_an_empty_batch(dataset):
    path, manifest = dataset
    count = manifest.totals["train"]["impressions"]
    lanes = 8
    plan = plan_of(manifest, lanes=lanes, batch_size=lanes * (count // lanes))
    assert count % lanes
    assert plan.num_steps == 2
    last = [list(feed_of(path, manifest, plan, rank=rank, world_size=8).batches(0))[1] for rank in range(8)]
    assert sum(batch.num_impressions for batch in last) == count % lanes
    empty = next(batch for batch in last if batch.num_impressions == 0)
    assert empty.num_contexts == 0
    assert (len(empty.context.lengths), len(empty.impression.values), len(empty.labels["click"])) == (0, 0, 0)
    assert empty.labels.keys() == {"click", "daction", "conversion"}


def test_a_thousand_epochs_over_small_row_groups_lose_none_and_keep_the_order(tmp_path):
    manifest = write_tiny_dataset(
        tmp_path, num_contexts=14, max_impressions=2, impressions_per_row_group=3, splits={"train": 1.0}
    )
    plan = plan_of(manifest, lanes=1, batch_size=3)
    assert len(plan.reads(0, 0, 1)) >= 5
    in_order = slow_reading(tmp_path, manifest).keys()
    feed = feed_of(tmp_path, manifest, plan, fields=["user_id"], row_groups_ahead=8)
    first_orders: dict[int, list[int]] = {}
    for epoch in range(1000):
        fed = [key for batch in feed.batches(epoch % 10) for key in batch.impression_id.tolist()]
        assert sorted(fed) == sorted(in_order)
        assert fed == first_orders.setdefault(epoch % 10, fed)


def test_closing_the_feed_or_dropping_its_batches_early_ends_every_thread(dataset):
    path, manifest = dataset
    before = threading.active_count()
    feed = feed_of(path, manifest)
    batches = feed.batches(0)
    next(batches)
    feed.close()
    assert threading.active_count() == before
    with pytest.raises(AssertionError, match="the feed was closed"):
        next(batches)
    for batch in feed.batches(0):
        assert batch.num_impressions
        break
    feed.close()
    assert threading.active_count() == before


def test_the_wait_for_data_is_counted(dataset):
    path, manifest = dataset
    feed = feed_of(path, manifest)
    start_s = time.monotonic()
    list(feed.batches(0))
    assert 0 < feed.wait_s <= time.monotonic() - start_s


def test_settings_that_cannot_work_are_refused(dataset):
    path, manifest = dataset
    with pytest.raises(InputError, match=r"feed.threads=0 is below 1"):
        FeedSettings(threads=0)
    with pytest.raises(InputError, match=r"feed.verify=never is not one of checksum, size"):
        feed_of(path, manifest, verify="never")
    with pytest.raises(InputError, match=r"pooling of user_brands is 'max'; choose one of sum, mean"):
        Feed(str(path), manifest, "train", plan_of(manifest), rank=0, world_size=1, pooling={"user_brands": "max"})


def test_a_remote_address_and_a_local_path_read_the_same(dataset):
    path, manifest = dataset
    plan = plan_of(manifest)
    here = epoch_reading(feed_of(path, manifest, plan))
    there = Feed(f"file://{path}", manifest, "train", plan, rank=0, world_size=1, pooling=POOLING)
    assert epoch_reading(there) == here
