import mpmath
import numpy as np
import pytest
import torch
from graphs import ESMM, LABELS, probability, random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from training.model.graph import IMPRESSION, Event, Graph, Query
from training.model.losses import holds, log_loss_sums, share_of_mean
from training.model.settings import GraphSettings

CLICK = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0], np.float64)
CONVERSION = np.array([0, 0, 0, 1, 1, 0, 0, 1, 0], np.float64)
A = np.array([-40, 40, 40, 40, -40, 0.3, -1.5, 2.0, -3.0])
B = np.array([40, 40, -40, 40, -40, -2.0, 1.0, 0.1, -5.0])


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


def test_esmm_loss_and_gradients_equal_a_float64_reference_also_at_logits_of_40() -> None:
    # p = σ(a)σ(b); 1 - p = σ(-a) + σ(a)σ(-b), and d/da -log(1 - p) = σ(-a)·p/(1 - p)
    p, not_p = sigmoid(A) * sigmoid(B), sigmoid(-A) + sigmoid(A) * sigmoid(-B)
    click_loss = np.where(CLICK > 0, np.logaddexp(0, -A), np.logaddexp(0, A)).sum()
    conversion_loss = np.where(CONVERSION > 0, np.logaddexp(0, -A) + np.logaddexp(0, -B), -np.log(not_p)).sum()
    grad_a = np.where(CLICK > 0, -sigmoid(-A), sigmoid(A)) + np.where(
        CONVERSION > 0, -sigmoid(-A), sigmoid(-A) * p / not_p
    )
    grad_b = np.where(CONVERSION > 0, -sigmoid(-B), sigmoid(-B) * p / not_p)

    graph = Graph(ESMM, LABELS)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        a, b = (torch.tensor(z, dtype=dtype, requires_grad=True) for z in (A, B))
        labels = {"click": torch.tensor(CLICK, dtype=dtype), "conversion": torch.tensor(CONVERSION, dtype=dtype)}
        sums = log_loss_sums(graph, dict(zip(graph.edges, (a, b), strict=True)), labels)
        sums.sum().backward()
        np.testing.assert_allclose(sums.detach().numpy(), [click_loss, conversion_loss], rtol=tolerance)
        assert a.grad is not None
        assert b.grad is not None
        np.testing.assert_allclose(a.grad.numpy(), grad_a, rtol=20 * tolerance, atol=1e-30)
        np.testing.assert_allclose(b.grad.numpy(), grad_b, rtol=20 * tolerance, atol=1e-30)


def many_digits(graph: Graph, logits: dict[Query, float], labels: dict[str, int]) -> mpmath.mpf:
    """The sum of all losses of one impression: -log p where the node happened, -log(1 - p) where not."""
    total = mpmath.mpf(0)
    for loss in graph.losses:
        p = probability(graph, Event(loss.node), IMPRESSION, logits)
        total -= mpmath.log(p if labels[loss.node] else 1 - p)
    return total


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.data(), st.sampled_from([torch.float64, torch.float32]))
def test_the_loss_of_a_random_graph_and_its_gradients_equal_many_digits(
    drawn: tuple[Graph, dict[Query, float]], data: st.DataObject, dtype: torch.dtype
) -> None:
    graph, logits = drawn
    label_of = {loss.node: data.draw(st.integers(0, 1)) for loss in graph.losses}
    z_of = {edge: torch.tensor([z], dtype=dtype, requires_grad=True) for edge, z in logits.items()}
    labels = {name: torch.tensor([label], dtype=dtype) for name, label in label_of.items()}
    total = log_loss_sums(graph, z_of, labels).sum()
    total.backward()
    tolerance = 1e-12 if dtype == torch.float64 else 5e-6
    with mpmath.workdps(80):
        exact, step = many_digits(graph, logits, label_of), mpmath.mpf(10) ** -30
        assert total.item() == pytest.approx(float(exact), rel=tolerance, abs=1e-37)
        for edge, z in z_of.items():
            moved = {**logits, edge: mpmath.mpf(logits[edge]) + step}
            slope = float((many_digits(graph, moved, label_of) - exact) / step)
            assert z.grad is not None
            assert z.grad.item() == pytest.approx(slope, rel=20 * tolerance, abs=tolerance), str(edge)


def test_a_conditional_loss_counts_only_where_its_condition_holds() -> None:
    graph = Graph(GraphSettings(["conversion | click"], ["conversion | click"], {"p": "conversion | click"}), LABELS)
    b = torch.tensor(B, requires_grad=True)
    labels = {"click": torch.tensor(CLICK), "conversion": torch.tensor(CONVERSION)}
    loss = log_loss_sums(graph, {graph.edges[0]: b}, labels).sum()
    loss.backward()
    clicked = CLICK > 0
    expected = np.where(CONVERSION > 0, np.logaddexp(0, -B), np.logaddexp(0, B))[clicked].sum()
    assert loss.item() == pytest.approx(expected)
    assert b.grad is not None
    assert (b.grad.numpy()[~clicked] == 0).all()


def test_an_event_less_another_holds_where_only_the_first_happened() -> None:
    labels = {"click": torch.tensor([0.0, 1.0, 1.0]), "daction": torch.tensor([0.0, 0.0, 1.0])}
    assert holds(Event("click", ("daction",)), labels).tolist() == [0, 1, 0]


def test_the_sum_of_the_ranks_gradients_is_that_of_the_global_mean() -> None:
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.5])]
    shares = [share_of_mean(part, global_count=10) for part in parts]
    assert sum(shares).item() == pytest.approx(7.5 / 10)


def test_each_loss_has_its_weight_in_the_gradient() -> None:
    sums = torch.tensor([3.0, 5.0], requires_grad=True)
    share = share_of_mean(sums, 10, (1.0, 0.25))
    assert share.item() == pytest.approx((3 * 1.0 + 5 * 0.25) / 10)
    share.backward()
    torch.testing.assert_close(sums.grad, torch.tensor([0.1, 0.025]))
