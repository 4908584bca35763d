"""The world behind the simulated log: its published shapes, its true probabilities, and whether a model could see them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from jobs.entry import compose
from pipeline.kernels.auc_histogram import AucHistogram
from pipeline.simulate import published_figures as shapes
from pipeline.simulate.draw import draw_chunk
from pipeline.simulate.lines import context_keys
from pipeline.simulate.oracle import RatesSettings, calibrate, oracle_probabilities
from pipeline.simulate.run import SimulateSettings
from pipeline.simulate.world import build_world


def rates_of(name: str) -> RatesSettings:
    """conf/rates/<name>.yaml."""
    return compose("simulate", SimulateSettings, ["out=nowhere", f"rates={name}"]).rates


def test_the_knots_have_the_published_shares_and_means() -> None:
    uniform = 1 - np.random.default_rng(0).random(400_000)
    sizes, features = shapes.IMPRESSIONS_PER_CONTEXT.draw(uniform), shapes.FEATURES_PER_CONTEXT.draw(uniform)
    assert sizes.mean() == pytest.approx(57.9, rel=0.02)
    assert features.mean() == pytest.approx(518, rel=0.02)
    for at_least, share in ((2, 0.988), (100, 0.130), (200, 0.0268), (300, 0.0067)):
        assert (sizes >= at_least).mean() == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(
    ("impressions", "seed", "rates"),
    [(20_000, 3, "demo"), (100_000, 4, "published"), (1_000_000, 1, "demo"), (10_000_000, 2, "published")],
)
def test_the_click_is_as_hard_as_promised(impressions: int, seed: int, rates: str) -> None:
    """The oracle's AUC is 0.70–0.80, at least half of the logit's variance interaction, rates as asked for, CTR by size."""
    world, asked = build_world(seed, impressions, 0.5), rates_of(rates)
    chunk = draw_chunk(world, np.random.default_rng(seed), 0, 100_000)
    calibration = calibrate(world, asked, chunk.scores, chunk.context_of)
    assert calibration.interaction_share >= 0.5
    assert calibration.interaction_share_strict >= 0.5
    p_ctr, size = oracle_probabilities(world, calibration, chunk.scores).p_ctr, chunk.scores.context_size
    assert p_ctr.mean() == pytest.approx(asked.click, rel=1e-6)
    assert 0.70 <= _expected_auc(p_ctr) <= 0.80
    ctr = [p_ctr[(size >= low) & (size < high)].mean() for low, high in ((2, 10), (10, 50), (50, 1000))]
    assert ctr == sorted(ctr, reverse=True)
    if rates == "published":
        assert ctr[0] == pytest.approx(0.10, rel=0.25)
        assert p_ctr[size >= 100].mean() == pytest.approx(0.037, rel=0.08)


def _expected_auc(p: np.ndarray) -> float:
    """The AUC of probabilities p against labels drawn from them, without drawing."""
    both = np.concatenate([p, p])
    return float(roc_auc_score(np.repeat([1, 0], len(p)), both, sample_weight=np.concatenate([p, 1 - p])))


def test_the_log_reveals_the_interaction() -> None:
    """How often her list counts the item's category, against its popularity, covers 0.4 of the distance to the oracle's AUC."""
    world = build_world(1, 1_000_000, 0.5)
    chunk = draw_chunk(world, np.random.default_rng(1), 0, 100_000)
    calibration = calibrate(world, rates_of("demo"), chunk.scores, chunk.context_of)
    p_ctr = oracle_probabilities(world, calibration, chunk.scores).p_ctr
    click = np.random.default_rng(2).random(len(p_ctr)) < p_ctr
    popularity = world.tables.popularity_by_split[0][chunk.columns.taxa[0]]
    listed = np.diff(chunk.columns.entry_ends, prepend=0)[chunk.context_of]
    score = np.log(chunk.columns.shared_counts[0] + 0.5) - np.log(popularity * (listed + 5) + 0.5)
    assert roc_auc_score(click, score) - 0.5 > 0.4 * (roc_auc_score(click, p_ctr) - 0.5)


@given(st.integers(3, 10**7), st.data())
def test_an_id_block_shuffles_without_losing_a_value(size: int, data: st.DataObject) -> None:
    block = shapes.id_blocks({"one": 17, "two": size})["two"]
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    ids = block.ids(index)
    assert (block.indices(ids) == index).all()
    assert ((ids >= block.first) & (ids < block.first + size)).all()


@settings(deadline=None)  # the first example waits for the compiler
@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=50), st.integers(0, 2**64 - 1))
def test_different_counters_give_different_keys(counters: list[int], salt: int) -> None:
    made = [bytes(key).decode() for key in context_keys(np.array(counters, np.uint64), np.uint64(salt))]
    assert len(set(made)) == len(counters)
    assert all(len(key) == 16 and not set(key) - set("0123456789abcdef") for key in made)


def test_the_binned_auc_is_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 20, 50_000)
    label = rng.random(len(p)) < p
    ranks = AucHistogram()
    for part in np.array_split(np.arange(len(p)), 7):
        ranks.add(p[part], label[part])
    assert ranks.auc() == pytest.approx(roc_auc_score(label, p), abs=1e-5)
    assert AucHistogram().auc() is None
