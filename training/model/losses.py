"""Losses: pure functions over a batch's logits and labels, found by their `kind` in `LOSSES`.

An entry of `model.graph.losses` is a statement, whose kind is `log_loss`, or a mapping that gives the kind its options:

    losses: [click, {of: "conversion | click", kind: ips, propensity: click, clip: 100}]

A loss of your own is a function and a line in `LOSSES`. The function takes the batch, what the loss is of, and its
options by keyword. It returns a sum, never a mean: the denominator is the number of impressions of the *global* step
(clicks, for a plan that counts in clicks), which no rank knows from its own batch. docs/models.md has an example.
"""

# Shapes: B impressions.

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.errors import InputError
from training.feed.columns import IMPORTANCE
from training.model.graph import IMPRESSION, Event, Graph, Head, Query
from training.model.options import check_options


class LabelledLogits(NamedTuple):
    """A batch after the forward pass: what was predicted and what happened, asked by events of the graph."""

    graph: Graph
    logit_of: Mapping[Query, Tensor]  # head → [B]
    label_of: Mapping[str, Tensor]  # the dataset's label → float32 [B]

    def happened(self, event: Event) -> Tensor:
        """Return float32 [B]: 1 where the labels say that `event` happened."""
        happened_B = self.label_of[self.graph.label_of(event.node)]
        for node in event.excluded:
            happened_B = happened_B * (1.0 - self.label_of[self.graph.label_of(node)])
        return happened_B

    def log_loss(self, query: Query) -> Tensor:
        """Return [B]: -log P(node | given) where the node happened, else -log P(not node | given)."""
        odds = self.graph.log_odds(query, self.logit_of)
        return -torch.where(self.happened(Event(query.node)) > 0, odds.yes, odds.no)

    def inverse_propensity(self, propensity: Query, clip: float) -> Tensor:
        """Return [B]: 1 / P(propensity), at most `clip`, and constant for the gradient."""
        return (-self.graph.log_odds(propensity, self.logit_of).yes.detach()).exp().clamp(max=clip)

    def inverse_of_not(self, propensity: Query, clip: float) -> Tensor:
        """Return [B]: 1 / (1 - P(propensity)), at most `clip`, and constant for the gradient."""
        return (-self.graph.log_odds(propensity, self.logit_of).no.detach()).exp().clamp(max=clip)

    def probability(self, query: Query) -> Tensor:
        """Return [B]: P(query)."""
        return self.graph.log_odds(query, self.logit_of).yes.exp()


def log_loss(batch: LabelledLogits, of: Query) -> Tensor:
    """Sum the log loss of P(of) where its condition holds (ESMM eq. 3, ESM² eq. 7–11)."""
    loss_B = batch.log_loss(of)
    if of.given != IMPRESSION:
        loss_B = loss_B * batch.happened(of.given)
    return loss_B.sum()


def missing_as_negative(batch: LabelledLogits, of: Query) -> Tensor:
    """Sum the log loss of P(of) over all samples: where its condition does not hold, the node did not happen.

    All missing as negative (Pan et al., ICDM 2008), as ESMM §3.1 trains the CVR network of AMAN: on clicked impressions, and
    on unclicked ones that it draws as negatives (`model.sampling.unclicked`).
    """
    return batch.log_loss(of).sum()


def importance(batch: LabelledLogits, of: Query) -> Tensor:
    """Sum o·w·δ: the log loss δ of P(of) where its condition holds (o), by the importance weight w of the impression.

    w is min(1 / pCTR, clip) over its mean, by pCTR of an independent network (`model.sampling.by_p_ctr=weigh`): ESMM §3.1's
    UNBIAS without the variance of rejection (Zhang et al., KDD 2016, whom it follows, weigh likewise).
    """
    return (batch.log_loss(of) * batch.happened(of.given) * batch.label_of[IMPORTANCE]).sum()


def ips(batch: LabelledLogits, of: Query, *, propensity: Query, clip: float = 100.0) -> Tensor:
    """Sum o·δ / ô: the inverse propensity score of ESCM²-IPS (Wang et al., SIGIR 2022).

    o says that the condition of `of` holds (a click), δ is the log loss of P(of), and ô the `propensity` that the model
    itself predicts for o (pCTR). Where ô is right, the expectation is that of Σ δ over *all* impressions, clicked or not.
    No gradient flows through 1/ô, else the model could lower the loss by raising ô. `clip` bounds 1/ô, for its variance.
    """
    weight_B = batch.happened(of.given) * batch.inverse_propensity(propensity, clip)
    return (batch.log_loss(of) * weight_B).sum()


def dr(batch: LabelledLogits, of: Query, *, propensity: Query, imputation: Head, clip: float = 100.0) -> Tensor:
    """Sum δ̂ + o·(δ − δ̂)/ô + o·(δ − δ̂)²/ô: the doubly robust loss of ESCM²-DR (Wang et al., SIGIR 2022).

    o, δ and ô are those of `ips`. δ̂ is the log loss that the head `imputation` expects of an impression: softplus of its
    logit, since no log loss is negative. The first two terms estimate Σ δ over all impressions, and are right where ô or
    δ̂ is. The last one trains δ̂.
    """
    imputed_B = softplus(batch.logit_of[imputation])
    weight_B = batch.happened(of.given) * batch.inverse_propensity(propensity, clip)
    error_B = batch.log_loss(of) - imputed_B
    return (imputed_B + weight_B * error_B + weight_B * error_B.square()).sum()


def dcmt(
    batch: LabelledLogits,
    of: Query,
    *,
    propensity: Query,
    counterfactual: Head,
    clip: float = 100.0,
    prior: float = 0.001,
) -> Tensor:
    """Sum o·e(r, r̂)/ô + (1 − o)·e(1 − r, r̂*)/(1 − ô) + λ·|1 − (r̂ + r̂*)|: the loss of DCMT (Zhu et al., ICDE 2023).

    o says that the condition of `of` holds (a click), ô is its `propensity` (pCTR), e the log loss, r the label and r̂ = P(of).
    r̂* is the sigmoid of the head `counterfactual`: an impression without a click is a conversion that did not happen, so in
    the counterfactual world its label is 1 − r. `prior` is λ, of the soft constraint r̂ + r̂* = 1. No gradient flows through
    the weights, and `clip` bounds them. The paper's twin towers share their hidden layers; here they share the embeddings.
    """
    clicked_B, label_B = batch.happened(of.given), batch.happened(Event(of.node))
    z_B = batch.logit_of[counterfactual]
    there_B = clicked_B * batch.inverse_propensity(propensity, clip) * batch.log_loss(of)
    elsewhere_B = (1.0 - clicked_B) * batch.inverse_of_not(propensity, clip)
    elsewhere_B = elsewhere_B * torch.where(label_B > 0, softplus(z_B), softplus(-z_B))
    constraint_B = (1.0 - (batch.probability(of) + z_B.sigmoid())).abs()
    return (there_B + elsewhere_B + prior * constraint_B).sum()


def calibrator(batch: LabelledLogits, of: Query, *, before: Query) -> Tensor:
    """Sum max(P(of) − P(before), 0): AITM's behavioral expectation calibrator (Xi et al., KDD 2021).

    Networks that predict every node of a funnel over all impressions may give a later one the larger probability; a
    conversion is no more likely than the click `before` it.
    """
    return (batch.probability(of) - batch.probability(before)).relu().sum()


#: kind → function
LOSSES: dict[str, Callable[..., Tensor]] = {
    "log_loss": log_loss,
    "missing_as_negative": missing_as_negative,
    IMPORTANCE: importance,
    "ips": ips,
    "dr": dr,
    "dcmt": dcmt,
    "calibrator": calibrator,
}


def check_losses(graph: Graph) -> None:
    """Raise InputError where a loss of `graph` has an unknown kind, or options that do not fit its function."""
    for loss in graph.losses:
        key = f"model.graph.losses, `{loss.name}`"
        if loss.kind not in LOSSES:
            raise InputError(f"{key}: kind={loss.kind} is not one of {', '.join(LOSSES)}.")
        check_options(LOSSES[loss.kind], loss.options, key, graph)
        if "propensity" in loss.options and loss.of.given == IMPRESSION:
            raise InputError(
                f"{key}: a propensity is that of a condition; give one to `of`, as in `conversion | click`."
            )


def loss_sums(graph: Graph, logit_of: Mapping[Query, Tensor], label_of: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over the batch of each loss of `graph.losses`, [number of losses]."""
    batch = LabelledLogits(graph, logit_of, label_of)
    return torch.stack([LOSSES[loss.kind](batch, loss.of, **loss.options) for loss in graph.losses])


def part_of_global_mean(sums: Tensor, global_count: int, weights: Tensor | None = None) -> Tensor:
    """Return this rank's part of the global mean loss: Σ weight · sum / global count; without weights, each is 1.

    Gradients are summed over the ranks, so the result is the gradient of the mean over the global batch, however unequal
    the ranks' batches are.
    """
    weighted = sums if weights is None else sums * weights
    return weighted.sum() / global_count
