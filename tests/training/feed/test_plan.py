"""The plan against a brute-force list of all impressions."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.manifest import DatasetFile, RowGroup
from pipeline.errors import InputError
from training.feed.plan import Plan, PlanSettings, Read, permutation

Unit = tuple[int, int]  # number of the row group in the split, place in it


def files_of(sizes: Sequence[int], per_file: int = 3) -> list[DatasetFile]:
    """Files of `per_file` row groups with `sizes` impressions, half of them clicked."""
    groups = [RowGroup(rows=1, impressions=size, clicks=size // 2, conversions=0) for size in sizes]
    return [
        DatasetFile(f"part-{first}", "train", 1, "", tuple(groups[first : first + per_file]))
        for first in range(0, len(groups), per_file)
    ]


def number_of(read: Read, per_file: int = 3) -> int:
    return int(read.file.path.removeprefix("part-")) + read.row_group


def expected_steps(plan: Plan, sizes: Sequence[int], epoch: int) -> list[list[list[Unit]]]:
    """Step → lane → units, by laying out every unit of the epoch in a list."""
    order = range(len(sizes)) if plan.seed is None else permutation((plan.seed, epoch, 2**64 - 1), len(sizes)).tolist()
    sequence = [(group, place) for group in order for place in range(sizes[group])]
    count, lanes, share = len(sequence), plan.lanes, plan.batch_size // plan.lanes
    streams = [sequence[lane * count // lanes : (lane + 1) * count // lanes] for lane in range(lanes)]
    longest = max(len(stream) for stream in streams)
    return [[stream[at : at + share] for stream in streams] for at in range(0, longest, share)]


def planned_steps(plan: Plan, epoch: int, rank: int, world_size: int, start_step: int = 0) -> list[list[Unit]]:
    """What the rank gets at each step, by taking its reads strictly in the order in which they come."""
    reads = iter(plan.reads(epoch, rank, world_size, start_step))
    left: dict[int, list[Unit]] = {lane: [] for lane in plan.lanes_of(rank, world_size)}
    steps = []
    for step in range(start_step, plan.num_steps):
        batch: list[Unit] = []
        for lane, units in left.items():
            wanted = plan.lane_size(lane, step)
            while len(units) < wanted:
                read = next(reads)
                assert (read.lane, read.first_step) == (lane, step)
                assert 0 <= read.start < read.stop
                units += [(number_of(read), place) for place in range(read.start, read.stop)]
            batch += units[:wanted]
            del units[:wanted]
        steps.append(batch)
    assert next(reads, None) is None
    assert not any(left.values())
    return steps


plans = st.tuples(
    st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(0, 2**63)),
    st.integers(0, 1000),
)


@given(plans, st.floats(0.01, 1.0))
def test_a_share_is_the_beginning_of_each_epochs_order_for_every_world_size(drawn, share):
    sizes, lanes, lane_batch, seed, epoch = drawn
    plan = Plan(files_of(sizes), batch_size=lane_batch * lanes, lanes=lanes, seed=seed, share=share)
    order = range(len(sizes)) if seed is None else permutation((seed, epoch, 2**64 - 1), len(sizes)).tolist()
    whole = [(group, place) for group in order for place in range(sizes[group])]
    wanted = whole[: max(1, round(share * len(whole)))]
    for world_size in (1, lanes):
        ranks = [planned_steps(plan, epoch, rank, world_size) for rank in range(world_size)]
        assert sorted(unit for steps in ranks for step in steps for unit in step) == sorted(wanted)
        assert all(len(steps) == plan.num_steps for steps in ranks)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"plan\.share=.* is not above 0 and at most 1"):
        PlanSettings(share=share)


@given(plans)
def test_the_plan_equals_a_brute_force_layout_of_all_impressions_for_every_world_size(drawn):
    sizes, lanes, share, seed, epoch = drawn
    plan = Plan(files_of(sizes), batch_size=share * lanes, lanes=lanes, seed=seed)
    steps = expected_steps(plan, sizes, epoch)
    assert plan.num_steps == len(steps)
    assert plan.num_impressions == sum(sizes)
    for world_size in (size for size in range(1, lanes + 1) if lanes % size == 0):
        for rank in range(world_size):
            mine = [[unit for stream in step[rank::world_size] for unit in stream] for step in steps]
            assert planned_steps(plan, epoch, rank, world_size) == mine


@given(plans)
def test_every_impression_comes_once_an_epoch_and_only_the_last_step_is_short(drawn):
    sizes, lanes, share, seed, epoch = drawn
    plan = Plan(files_of(sizes), batch_size=share * lanes, lanes=lanes, seed=seed)
    steps = planned_steps(plan, epoch, 0, 1)
    seen = [unit for step in steps for unit in step]
    assert sorted(seen) == [(group, place) for group, size in enumerate(sizes) for place in range(size)]
    assert [len(step) for step in steps] == [plan.step_size(step) for step in range(plan.num_steps)]
    assert all(len(step) == plan.batch_size for step in steps[:-1])
    assert 0 < len(steps[-1]) <= plan.batch_size


@given(plans, st.data())
def test_resuming_at_a_step_gives_the_rest_of_the_epoch(drawn, data):
    sizes, lanes, share, seed, epoch = drawn
    plan = Plan(files_of(sizes), batch_size=share * lanes, lanes=lanes, seed=seed)
    step = data.draw(st.integers(0, plan.num_steps))
    assert planned_steps(plan, epoch, 0, 1, start_step=step) == planned_steps(plan, epoch, 0, 1)[step:]


@given(plans)
def test_counting_in_clicks_plans_like_counting_impressions_of_that_number(drawn):
    sizes, lanes, share, seed, epoch = drawn
    clicks = Plan(
        files_of([2 * size for size in sizes]), batch_size=share * lanes, lanes=lanes, seed=seed, unit="clicks"
    )
    assert clicks.num_impressions == sum(sizes)
    steps = expected_steps(clicks, sizes, epoch)
    assert planned_steps(clicks, epoch, 0, 1) == [[unit for stream in step for unit in stream] for step in steps]


def test_epochs_and_seeds_order_the_row_groups_differently_and_the_same_ones_alike():
    files = files_of([5] * 40)

    def order(seed: int, epoch: int) -> list[int]:
        return [number_of(read) for read in Plan(files, batch_size=5, lanes=1, seed=seed).reads(epoch, 0, 1)]

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == list(range(40))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    keys = {
        read.shuffle_key for epoch in (0, 1) for read in Plan(files, batch_size=5, lanes=1, seed=1).reads(epoch, 0, 1)
    }
    assert len(keys) == 80


def test_evaluation_reads_in_file_order_and_shuffles_no_rows():
    reads = Plan(files_of([4, 0, 4, 4]), batch_size=4, lanes=1, seed=None).reads(0, 0, 1)
    assert [number_of(read) for read in reads] == [0, 2, 3]
    assert {read.shuffle_key for read in reads} == {None}


def test_a_permutation_is_drawn_from_the_key_alone_and_every_order_is_as_likely():
    # Golden: Philox' raw output is fixed by its paper, so another NumPy must give the same order.
    assert permutation((1, 2, 3), 8).tolist() == [3, 6, 1, 2, 0, 4, 7, 5]
    first = np.bincount([permutation((1, 0, stream), 5)[0] for stream in range(5000)], minlength=5)
    assert first.min() > 850  # of 1,000 each; five standard deviations are 141


@pytest.mark.parametrize(
    ("world_size", "remedy"),
    [(16, "world_size=16 has more ranks than plan.lanes=8"), (3, "does not divide plan.lanes=8; start 1, 2, 4, 8")],
)
def test_a_world_that_does_not_fit_the_lanes_is_refused_with_those_that_do(world_size, remedy):
    plan = Plan(files_of([100]), batch_size=8, lanes=8, seed=1)
    with pytest.raises(InputError, match=remedy):
        plan.lanes_of(0, world_size)


def test_a_batch_that_does_not_divide_over_the_lanes_is_refused_with_the_nearest_that_does():
    with pytest.raises(InputError, match=r"plan.batch_size=1001 does not divide over plan.lanes=8; try 1001 → 1000"):
        PlanSettings(batch_size=1001, lanes=8)
    with pytest.raises(InputError, match="try 3 → 8"):
        Plan(files_of([100]), batch_size=3, lanes=8, seed=1)


def test_a_split_without_clicks_cannot_be_planned_in_clicks():
    with pytest.raises(InputError, match="holds no clicks"):
        Plan(files_of([1, 1]), batch_size=8, lanes=8, seed=1, unit="clicks")
