"""The true probabilities of click, daction and conversion, calibrated to the rates asked for.

The funnel is ESM²'s: a click, then perhaps cart or wish list (a daction), then perhaps a conversion, more probable after
a daction than after none. Intercepts are fitted on a pilot sample before the first chunk is drawn.
"""

# Shapes: B impressions, A actions (none, cart, wish).

from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError
from pipeline.simulate.world import INTERACTION_SCALE, Scores, SimulatedWorld, buying_score, click_parts

ACTION_NAMES = ("none", "cart", "wish")
DACTION_SLOPE = 0.5  # of the buying score in the logit of a daction; in that of a conversion it is 1


@dataclass
class RatesSettings:
    """The group `rates`: how often what happens, on average over the log."""

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
        if (highest := max(self.conversion_A())) > 0.9:
            raise InputError(
                f"rates.conversion={self.conversion} with these lifts means {highest:.2f} after the strongest action; "
                "lower rates.conversion, rates.cart_lift or rates.wish_lift until it is at most 0.9."
            )

    def action_A(self) -> np.ndarray:
        """P(none, cart, wish | click)."""
        return np.array([1 - self.daction, self.daction * (1 - self.wish), self.daction * self.wish])

    def conversion_A(self) -> np.ndarray:
        """P(conversion | click, action) for none, cart, wish: the lifts kept, the mean the rate asked for."""
        lift_A = np.array([1.0, self.cart_lift, self.wish_lift])
        return self.conversion * lift_A / (self.action_A() @ lift_A)


@dataclass(frozen=True)
class Calibration:
    """What the pilot fixed."""

    interaction_factor: float  # brings taste · vector to INTERACTION_SCALE
    click_intercept: float
    daction_intercept: float
    conversion_intercept_A: tuple[float, ...]
    wish: float  # of dactions
    interaction_share: float  # of the variance of the click's logit
    interaction_share_strict: float  # the same after the means of its context and of its category are taken out


@dataclass(frozen=True)
class Truth:
    """True probabilities, float64 [B]."""

    p_ctr: np.ndarray
    p_daction: np.ndarray  # given click
    conversion_AB: np.ndarray  # given click and action

    p_wish: float  # given daction

    @property
    def p_cvr(self) -> np.ndarray:
        """P(conversion | click), whatever the action."""
        cart = (1 - self.p_wish) * self.conversion_AB[1] + self.p_wish * self.conversion_AB[2]
        return (1 - self.p_daction) * self.conversion_AB[0] + self.p_daction * cart


@dataclass(frozen=True)
class Labels:
    """What happened, drawn from the truth (all [B])."""

    click: np.ndarray  # bool
    action: np.ndarray  # place in ACTION_NAMES; none where not clicked
    conversion: np.ndarray  # bool


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-logit)."""
    return 1.0 / (1.0 + np.exp(-logit))


def probabilities(world: SimulatedWorld, calibration: Calibration, scores: Scores) -> Truth:
    """The true probabilities of B impressions."""
    affinity_B, main_B = click_parts(world, scores)
    interaction_B = calibration.interaction_factor * affinity_B
    buying_B = buying_score(world, scores, interaction_B)
    intercept_A = np.array(calibration.conversion_intercept_A)
    return Truth(
        p_ctr=sigmoid(calibration.click_intercept + interaction_B + main_B),
        p_daction=sigmoid(calibration.daction_intercept + DACTION_SLOPE * buying_B),
        conversion_AB=sigmoid(intercept_A[:, None] + buying_B),
        p_wish=calibration.wish,
    )


def draw_labels(rng: np.random.Generator, truth: Truth) -> Labels:
    """One outcome of every impression."""
    impressions = len(truth.p_ctr)
    click_B = rng.random(impressions) < truth.p_ctr
    daction_B = click_B & (rng.random(impressions) < truth.p_daction)
    action_B = np.where(daction_B, np.where(rng.random(impressions) < truth.p_wish, 2, 1), 0)
    p_conversion_B = np.take_along_axis(truth.conversion_AB, action_B[None], axis=0)[0]
    return Labels(click_B, action_B, click_B & (rng.random(impressions) < p_conversion_B))


def calibrate(world: SimulatedWorld, rates: RatesSettings, scores: Scores, context_B: np.ndarray) -> Calibration:
    """Fit scale and intercepts to a pilot sample; `context_B` numbers its contexts."""
    affinity_B, main_B = click_parts(world, scores)
    factor = INTERACTION_SCALE / affinity_B.std()
    interaction_B = factor * affinity_B
    even_B = np.ones(len(affinity_B))
    click = _intercept(interaction_B + main_B, rates.click, even_B)
    p_ctr_B = sigmoid(click + interaction_B + main_B)
    buying_B = buying_score(world, scores, interaction_B)
    daction = _intercept(DACTION_SLOPE * buying_B, rates.daction, p_ctr_B)
    p_daction_B = sigmoid(daction + DACTION_SLOPE * buying_B)
    weight_AB = [p_ctr_B * (1 - p_daction_B), p_ctr_B * p_daction_B, p_ctr_B * p_daction_B]
    pairs = zip(rates.conversion_A(), weight_AB, strict=True)
    variance = (interaction_B + main_B).var()
    strict_B = _without_means(_without_means(interaction_B, context_B), scores.taxa_4[0])
    return Calibration(
        interaction_factor=float(factor),
        click_intercept=click,
        daction_intercept=daction,
        conversion_intercept_A=tuple(_intercept(buying_B, rate, weight_B) for rate, weight_B in pairs),
        wish=rates.wish,
        interaction_share=float(interaction_B.var() / variance),
        interaction_share_strict=float(strict_B.var() / variance),
    )


def _intercept(logit_B: np.ndarray, rate: float, weight_B: np.ndarray) -> float:
    """The b for which the weighted mean of sigmoid(b + logit) is `rate`, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.average(sigmoid(middle + logit_B), weights=weight_B) < rate:
            low = middle
        else:
            high = middle
    return low


def _without_means(value_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    total = np.bincount(group_B, weights=value_B)
    return value_B - (total / np.maximum(np.bincount(group_B), 1))[group_B]
