"""The true probabilities of click, daction and conversion, calibrated to the rates asked for.

The funnel is ESM²'s: a click, then perhaps cart or wish list (a daction), then perhaps a conversion, more probable after
a daction than after none. Intercepts are fitted on a pilot sample before the first chunk is drawn.
"""

# Shapes: B impressions, A actions (none, cart, wish).

import math
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.simulate.world import INTERACTION_SCALE, Scores, SimulatedWorld, buying_score, click_parts

ACTION_NAMES = ("none", "cart", "wish")
DACTION_SLOPE = 0.5  # of the buying score in the logit of a daction; in that of a conversion it is 1


@dataclass
class RatesSettings:
    """The group `rates`: the event rates, on average over the log."""

    name: str = "published"
    click: float = 0.038871  # of impressions
    daction: float = 0.121  # of clicks
    wish: float = 0.25  # of dactions; the others are carts
    conversion: float = 0.005353  # of clicks
    cart_lift: float = 12.0  # conversions after a cart, as a multiple of those after a click alone
    wish_lift: float = 31.0  # conversions after a wish list, as such a multiple

    def __post_init__(self) -> None:
        for key in ("click", "daction", "wish", "conversion"):
            if not 0 < (value := getattr(self, key)) < 1:
                raise InputError(f"rates.{key}={value} is not a rate; give a number between 0 and 1.")
        for key in ("cart_lift", "wish_lift"):
            if not 0 < (value := getattr(self, key)) < math.inf:
                raise InputError(f"rates.{key}={value} is not a multiple of a probability; give a number above 0.")
        if (highest := max(self.conversion_probabilities())) > 0.9:
            raise InputError(
                f"rates.conversion={self.conversion} with these lifts means {highest:.2f} after the strongest action; "
                "lower rates.conversion, rates.cart_lift or rates.wish_lift until it is at most 0.9."
            )

    def action_probabilities(self) -> np.ndarray:
        """Return P(none, cart, wish | click), float64 [A]."""
        return np.array([1 - self.daction, self.daction * (1 - self.wish), self.daction * self.wish])

    def conversion_probabilities(self) -> np.ndarray:
        """Return P(conversion | click, action), float64 [A]: with these lifts, and `conversion` on average."""
        lifts = np.array([1.0, self.cart_lift, self.wish_lift])
        return self.conversion * lifts / (self.action_probabilities() @ lifts)


@dataclass(frozen=True)
class Calibration:
    """The scale and intercepts fitted to the pilot sample."""

    interaction_factor: float  # brings taste · vector to INTERACTION_SCALE
    click_intercept: float
    daction_intercept: float
    conversion_intercepts: tuple[float, ...]  # of each action
    wish: float  # of dactions
    interaction_share: float  # of the variance of the click's logit
    interaction_share_strict: float  # the same after the means of its context and of its category are taken out


@dataclass(frozen=True)
class OracleProbabilities:
    """The true probabilities of B impressions: float64 [B] unless they say otherwise."""

    p_ctr: np.ndarray
    p_daction: np.ndarray  # given click
    conversion_by_action: np.ndarray  # [A, B], given click and action
    p_wish: float  # given daction

    @property
    def p_cvr(self) -> np.ndarray:
        """P(conversion | click), float64 [B], the mean over actions."""
        cart = (1 - self.p_wish) * self.conversion_by_action[1] + self.p_wish * self.conversion_by_action[2]
        return (1 - self.p_daction) * self.conversion_by_action[0] + self.p_daction * cart


@dataclass(frozen=True)
class Labels:
    """The outcome of B impressions, each [B]."""

    click: np.ndarray  # bool
    action: np.ndarray  # place in ACTION_NAMES; none where not clicked
    conversion: np.ndarray  # bool


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + e^-logit)."""
    return 1.0 / (1.0 + np.exp(-logit))


def oracle_probabilities(world: SimulatedWorld, calibration: Calibration, scores: Scores) -> OracleProbabilities:
    """Return the true probabilities of B impressions."""
    affinity, main = click_parts(world, scores)
    interaction = calibration.interaction_factor * affinity
    buying = buying_score(world, scores, interaction)
    intercepts = np.array(calibration.conversion_intercepts)
    return OracleProbabilities(
        p_ctr=sigmoid(calibration.click_intercept + interaction + main),
        p_daction=sigmoid(calibration.daction_intercept + DACTION_SLOPE * buying),
        conversion_by_action=sigmoid(intercepts[:, None] + buying),
        p_wish=calibration.wish,
    )


def draw_labels(rng: np.random.Generator, oracle: OracleProbabilities) -> Labels:
    """Draw one outcome of every impression from its true probabilities."""
    impressions = len(oracle.p_ctr)
    click = rng.random(impressions) < oracle.p_ctr
    daction = click & (rng.random(impressions) < oracle.p_daction)
    action = np.where(daction, np.where(rng.random(impressions) < oracle.p_wish, 2, 1), 0)
    p_conversion = np.take_along_axis(oracle.conversion_by_action, action[None], axis=0)[0]
    return Labels(click, action, click & (rng.random(impressions) < p_conversion))


def calibrate(world: SimulatedWorld, rates: RatesSettings, scores: Scores, context_of: np.ndarray) -> Calibration:
    """Fit scale and intercepts to a pilot sample; `context_of` ([B]) numbers its contexts."""
    affinity, main = click_parts(world, scores)
    factor = INTERACTION_SCALE / affinity.std()
    interaction = factor * affinity
    equal_weights = np.ones(len(affinity))
    click_intercept = _intercept(interaction + main, rates.click, equal_weights)
    p_ctr = sigmoid(click_intercept + interaction + main)
    buying = buying_score(world, scores, interaction)
    daction_intercept = _intercept(DACTION_SLOPE * buying, rates.daction, p_ctr)
    p_daction = sigmoid(daction_intercept + DACTION_SLOPE * buying)
    action_weights = [p_ctr * (1 - p_daction), p_ctr * p_daction, p_ctr * p_daction]
    pairs = zip(rates.conversion_probabilities(), action_weights, strict=True)
    variance = (interaction + main).var()
    within_contexts_and_categories = _subtract_group_means(
        _subtract_group_means(interaction, context_of), scores.taxa[0]
    )
    return Calibration(
        interaction_factor=float(factor),
        click_intercept=click_intercept,
        daction_intercept=daction_intercept,
        conversion_intercepts=tuple(_intercept(buying, rate, weights) for rate, weights in pairs),
        wish=rates.wish,
        interaction_share=float(interaction.var() / variance),
        interaction_share_strict=float(within_contexts_and_categories.var() / variance),
    )


def _intercept(logits: np.ndarray, rate: float, weights: np.ndarray) -> float:
    """Find the b for which the weighted mean of sigmoid(b + logit) is `rate`, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.average(sigmoid(middle + logits), weights=weights) < rate:
            low = middle
        else:
            high = middle
    return low


def _subtract_group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Subtract from each value the mean of its group; groups are numbered from 0."""
    total = np.bincount(groups, weights=values)
    return values - (total / np.maximum(np.bincount(groups), 1))[groups]
