"""Sampled epochs against a reading of the same files row by row, and against the papers' words in NumPy."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reading import assert_same, bags_of, feed_of, plan_of, slow_reading
from tiny_dataset import FIELDS, write_tiny_dataset

from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError
from training.feed.feed import Feed
from training.feed.plan import SAMPLE_BITS, Draw, Plan
from training.feed.sampling import ClickedPCtr, Sampler, expected_by_counts
from training.feed.settings import SamplingSettings
from training.model.settings import ModelSettings

ONE = 1 << SAMPLE_BITS
AMAN, OVERSAMPLING = SamplingSettings(unclicked=0.3), SamplingSettings(unclicked=0.0, converted=3.0)
BOTH = SamplingSettings(unclicked=0.25, clicked=1.5, converted=2.75)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    path = tmp_path_factory.mktemp("sampled")
    return path, write_tiny_dataset(path)


def sampled_plan(manifest: Manifest, sampling: SamplingSettings, **settings: Any) -> Plan:
    groups = [group for file in manifest.files_of("train") for group in file.row_groups]
    expected = [expected_by_counts(sampling, one.impressions, one.clicks, one.conversions) for one in groups]
    return plan_of(manifest, unit="samples", expected=expected, **settings)


def sampled_feed(path: Path, manifest: Manifest, sampling: SamplingSettings, seed: int = 5, **settings: Any) -> Feed:
    plan = sampled_plan(manifest, sampling, seed=seed)
    return feed_of(path, manifest, plan, sampler=Sampler(sampling, seed), **settings)


def drawn(feed: Feed, epoch: int = 0, start_step: int = 0) -> list[list[int]]:
    return [batch.impression_id.tolist() for batch in feed.batches(epoch, start_step)]


def copies_in(steps: list[list[int]]) -> Counter[int]:
    return Counter(impression_id for step in steps for impression_id in step)


def by_label(path: Path, manifest: Manifest) -> dict[str, set[int]]:
    """The impressions of the train split, read row by row: without a click, clicked alone, converted."""
    found: dict[str, set[int]] = {"unclicked": set(), "clicked": set(), "converted": set()}
    for impression_id, row in slow_reading(path, manifest).items():
        found["converted" if row["conversion"] else "clicked" if row["click"] else "unclicked"].add(impression_id)
    return found


def test_aman_has_every_clicked_impression_once_and_its_share_of_the_others_without_repetition(dataset):
    path, manifest = dataset
    labels, copies = by_label(path, manifest), copies_in(drawn(sampled_feed(path, manifest, AMAN)))
    assert set(copies.values()) == {1}
    assert labels["clicked"] | labels["converted"] <= set(copies)
    negatives = set(copies) & labels["unclicked"]
    assert len(negatives) == round(0.3 * len(labels["unclicked"]))


def test_oversampling_copies_the_converted_and_leaves_the_unclicked_out(dataset):
    path, manifest = dataset
    labels, copies = by_label(path, manifest), copies_in(drawn(sampled_feed(path, manifest, OVERSAMPLING)))
    assert copies == Counter(dict.fromkeys(labels["clicked"], 1) | dict.fromkeys(labels["converted"], 3))


def test_a_batch_holds_the_number_of_samples_asked_for_and_a_context_once(dataset):
    path, manifest = dataset
    feed, plan = sampled_feed(path, manifest, OVERSAMPLING), sampled_plan(manifest, OVERSAMPLING)
    batches = list(feed.batches(0))
    assert [batch.num_impressions for batch in batches] == [plan.step_size(step) for step in range(plan.num_steps)]
    assert {batch.num_impressions for batch in batches[:-1]} == {plan.batch_size}
    assert plan.num_impressions == sum(batch.num_impressions for batch in batches)
    for batch in batches:  # a context stands twice only where a lane's part ends in it
        assert batch.num_contexts - len(set(batch.context_id)) <= 2 * plan.lanes
        assert set(batch.context_of_impression.tolist()) == set(range(batch.num_contexts))


def test_every_copy_of_an_impression_has_all_of_its_values(dataset):
    """Copies are as many values again: their arrays have room for them."""
    path, manifest = dataset
    expected, names = slow_reading(path, manifest), {scope: [] for scope in ("context", "impression")}
    for name, (_, scope, *_) in FIELDS.items():
        names[scope].append(name)
    for batch in sampled_feed(path, manifest, SamplingSettings(unclicked=0.5, clicked=7.0, converted=9.0)).batches(2):
        contexts = bags_of(batch.context, names["context"], batch.num_contexts)
        impressions = bags_of(batch.impression, names["impression"], batch.num_impressions)
        rows = zip(batch.impression_id.tolist(), batch.context_of_impression.tolist(), impressions, strict=True)
        for place, (impression_id, context, impression) in enumerate(rows):
            labels = {label: int(values[place]) for label, values in batch.labels.items()}
            assert_same({0: {**labels, **contexts[context], **impression}}, {0: expected[impression_id]})


@pytest.mark.parametrize("sampling", [AMAN, OVERSAMPLING, BOTH], ids=["aman", "oversampling", "both"])
def test_the_ranks_samples_are_together_those_of_one_rank_and_resuming_gives_the_rest(dataset, sampling):
    path, manifest = dataset
    whole = drawn(sampled_feed(path, manifest, sampling), epoch=3)
    for world_size in (2, 4):
        ranks = [
            drawn(sampled_feed(path, manifest, sampling, rank=rank, world_size=world_size), epoch=3)
            for rank in range(world_size)
        ]
        for step, of_ranks in enumerate(zip(*ranks, strict=True)):
            assert sorted(itertools.chain(*of_ranks)) == sorted(whole[step])
    for start_step in (1, len(whole) - 1):
        assert drawn(sampled_feed(path, manifest, sampling), epoch=3, start_step=start_step) == whole[start_step:]


def test_epochs_and_seeds_draw_other_negatives_and_the_number_of_threads_the_same(dataset):
    path, manifest = dataset
    first = copies_in(drawn(sampled_feed(path, manifest, AMAN)))
    assert copies_in(drawn(sampled_feed(path, manifest, AMAN, threads=2))) == first
    assert copies_in(drawn(sampled_feed(path, manifest, AMAN), epoch=1)) != first
    assert copies_in(drawn(sampled_feed(path, manifest, AMAN, seed=6))) != first


def order_of(ids: list[int], epoch: int, seed: int) -> list[int]:
    """The impressions in the order of splitmix64 of id + salt, by Python's integers."""
    word = (1 << 64) - 1
    salt = (2 * xxhash.xxh3_64_intdigest(f"samples/{epoch}".encode(), seed) + 1) * 0x9E3779B97F4A7C15

    def mixed(number: int) -> int:
        number &= word
        number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & word
        number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & word
        return number ^ (number >> 31)

    return sorted(range(len(ids)), key=lambda place: mixed(ids[place] + salt))


def reference(expected: list[float], before: float, order: list[int]) -> list[int]:
    """Systematic sampling by a loop: one copy at each ½, 1½, … that an impression's stretch reaches."""
    copies, at, mark = [0] * len(expected), before, 0.5
    while mark <= before:
        mark += 1
    for place in order:
        at += expected[place]
        while mark <= at:
            copies[place] += 1
            mark += 1
    return copies


rates = st.integers(0, 12).map(lambda quarters: quarters / 4)  # exact in binary, so that the reference's floats are


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.tuples(rates, rates, rates), rates, st.integers(0, 9))
def test_a_draw_equals_systematic_sampling_by_a_loop(classes, copies, before, epoch):
    sampling, ids = SamplingSettings(*copies), [10 * place for place in range(len(classes))]
    label_B = {
        "click": np.array([kind > 0 for kind in classes], np.int8),
        "conversion": np.array([kind > 1 for kind in classes], np.int8),
    }
    expected = [copies[kind] for kind in classes]
    wanted = reference(expected, before, order_of(ids, epoch, 7))
    found = Sampler(sampling, 7).draw(epoch, Draw(sum(wanted), int(before * ONE)), np.array(ids), label_B).tolist()
    assert found == wanted
    counts = len(classes), sum(kind > 0 for kind in classes), sum(kind > 1 for kind in classes)
    assert expected_by_counts(sampling, *counts) == sum(expected) * ONE


def test_over_the_epochs_every_impression_comes_as_often_as_expected():
    """Equal expectations in a row group are equally likely to be drawn: 0.3 of 40 is 12 in every epoch."""
    sampler, ids = Sampler(AMAN, 1), 1_000 + np.arange(40)
    label_B = {"click": np.zeros(40, np.int8), "conversion": np.zeros(40, np.int8)}
    totals = np.zeros(40)
    for epoch in range(2000):
        copies_B = sampler.draw(epoch, Draw(12, 0), ids, label_B)
        assert copies_B.sum() == 12
        totals += copies_B
    assert np.abs(totals / 2000 - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 2000)


def clicked_p_ctr(rng: np.random.Generator, count: int) -> ClickedPCtr:
    return ClickedPCtr(1 + 3 * np.arange(count), rng.uniform(0.02, 0.9, count).astype(np.float32))


def test_unbias_rejects_a_click_with_its_pctr_and_the_inverse_accepts_in_proportion_to_one_over_pctr():
    p_ctr = clicked_p_ctr(np.random.default_rng(1), 50)
    ids = np.concatenate([p_ctr.impression_id_N, 3 * np.arange(20)])  # the last 20 were not clicked
    label_B = {"click": np.repeat([1, 0], [50, 20]).astype(np.int8), "conversion": np.zeros(70, np.int8)}
    rejecting = SamplingSettings(unclicked=0.0, by_p_ctr="reject")
    expected = Sampler(rejecting, 1, p_ctr).expected(ids, label_B) / ONE
    np.testing.assert_allclose(expected[:50], 1 - p_ctr.p_ctr_N.astype(float), atol=1e-7)
    assert (expected[50:] == 0).all()
    inverse = SamplingSettings(unclicked=0.0, by_p_ctr="accept_inverse", clip=10.0)
    expected = Sampler(inverse, 1, p_ctr).expected(ids, label_B) / ONE
    np.testing.assert_allclose(expected[:50], np.minimum(1 / p_ctr.p_ctr_N.astype(float), 10) / 10, atol=1e-7)
    assert expected[:50].max() == 1.0
    with pytest.raises(InputError, match="lack the clicked impression_id=0;"):
        Sampler(inverse, 1, p_ctr).expected(ids, {**label_B, "click": np.ones(70, np.int8)})


def test_over_the_epochs_a_click_is_accepted_as_often_as_its_pctr_says():
    p_ctr = clicked_p_ctr(np.random.default_rng(2), 60)
    sampler = Sampler(SamplingSettings(unclicked=0.0, by_p_ctr="reject"), 1, p_ctr)
    label_B = {"click": np.ones(60, np.int8), "conversion": np.zeros(60, np.int8)}
    planned = Draw(round(float((1 - p_ctr.p_ctr_N.astype(float)).sum())), 0)
    epochs = 3000
    totals = sum(sampler.draw(epoch, planned, p_ctr.impression_id_N, label_B) for epoch in range(epochs))
    accepted = 1 - p_ctr.p_ctr_N
    assert np.abs(totals / epochs - accepted).max() < 5 * np.sqrt(0.25 / epochs) + 1 / 60


def test_accepted_clicks_have_the_distribution_of_all_impressions_and_the_clicks_have_not():
    """What rejection sampling is for: clicks prefer large x; accepted ones average as the impressions do."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, 200_000)
    p = np.clip(0.1 * np.exp(x), 0.02, 0.9)
    clicked = np.flatnonzero(rng.random(len(x)) < p)
    p_ctr = ClickedPCtr(clicked, p[clicked].astype(np.float32))
    sampler = Sampler(SamplingSettings(unclicked=0.0, by_p_ctr="accept_inverse", clip=50.0), 1, p_ctr)
    label_B = {"click": np.ones(len(clicked), np.int8), "conversion": np.zeros(len(clicked), np.int8)}
    planned = int(np.floor(sampler.expected(clicked, label_B).sum() / ONE + 0.5))
    copies = sampler.draw(0, Draw(planned, 0), clicked, label_B)
    assert copies.max() == 1
    assert abs(x[clicked[copies > 0]].mean() - x.mean()) < 5 / np.sqrt(planned)
    assert x[clicked].mean() > 0.4
    weights = Sampler(
        SamplingSettings(by_p_ctr="weigh", clip=50.0), 1, p_ctr, np.minimum(1 / p[clicked], 50).mean()
    ).weigh(clicked, label_B["click"])
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)
    assert abs((weights * x[clicked]).mean() - x.mean()) < 0.1
    np.testing.assert_allclose(weights * np.minimum(1 / p[clicked], 50).mean(), 1 / p[clicked], rtol=1e-5)


def test_samples_other_than_planned_end_in_one_sentence():
    sampler, ids = Sampler(AMAN, 1), np.arange(40)
    label_B = {"click": np.zeros(40, np.int8), "conversion": np.zeros(40, np.int8)}
    with pytest.raises(InputError, match="gives 12 samples where 13 are planned"):
        sampler.draw(0, Draw(13, 0), ids, label_B)


def test_sampling_that_cannot_be_is_refused():
    for wrong, message in (
        ({"unclicked": -0.1}, "model.sampling.unclicked=-0.1 is not a number of copies from 0 to 1000"),
        ({"converted": float("nan")}, "model.sampling.converted=nan"),
        ({"by_p_ctr": "divide"}, "by_p_ctr=divide is not one of none, reject, accept_inverse, weigh"),
        ({"clip": 0.5}, "model.sampling.clip=0.5 is not a finite number of 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            SamplingSettings(**wrong)
    with pytest.raises(InputError, match=r"model.train_on=clicks leaves model.sampling without effect"):
        ModelSettings(train_on="clicks", sampling=OVERSAMPLING)
    assert ModelSettings(train_on="samples", sampling=SamplingSettings()).train_on == "samples"  # AMAN at 100 %
