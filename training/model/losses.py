"""The loss: a log loss at each supervised node of the behaviour graph (ESMM eq. 3, ESM² eq. 7–11, weights 1)."""

# Shapes: B impressions.

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.model.graph import IMPRESSION, Event, Graph, Query


def holds(event: Event, label_B: Mapping[str, Tensor]) -> Tensor:
    """float32 [B]: 1 where the labels of the nodes say that `event` happened."""
    happened = label_B[event.node]
    for node in event.excluded:
        happened = happened * (1.0 - label_B[node])
    return happened


def log_loss_sums(graph: Graph, logit_of: Mapping[Query, Tensor], label_B: Mapping[str, Tensor]) -> Tensor:
    """The sum over the batch of each loss of `graph.losses`, [number of losses].

    Sums, not means: the denominator is the number of impressions of the *global* step (clicks, for a plan that
    counts in clicks), which no rank knows from its own batch.
    """
    nodes = {node for loss in graph.losses for node in (loss.node, loss.given.node, *loss.given.excluded)}
    happened_B = {node: label_B[graph.label_of(node)] for node in nodes - {IMPRESSION.node}}
    sums = []
    for query in graph.losses:
        odds = graph.log_odds(query, logit_of)
        label = happened_B[query.node]
        loss_B = -torch.where(label > 0, odds.yes, odds.no)
        if query.given != IMPRESSION:
            loss_B = loss_B * holds(query.given, happened_B)
        sums.append(loss_B.sum())
    return torch.stack(sums)


def share_of_mean(sums: Tensor, global_count: int, weights: Sequence[float] | None = None) -> Tensor:
    """What this rank takes the gradient of: Σ weight · sum / global count; the weights are 1 where none are given.

    Gradients are summed over the ranks, so theirs is that of the mean over the global batch, however unequal the ranks'
    shares are.
    """
    weighted = sums if weights is None else sums * sums.new_tensor(weights)
    return weighted.sum() / global_count
