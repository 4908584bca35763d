import mpmath
import numpy as np
import pytest
import torch
from graphs import ESMM, LABELS, probability, random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from training.model.graph import IMPRESSION, Event, Graph, Query
from training.model.losses import LOSSES, LabelledLogits, check_losses, loss_sums, part_of_global_mean
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
        sums = loss_sums(graph, dict(zip(graph.edges, (a, b), strict=True)), labels)
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
        p = probability(graph, Event(loss.of.node), IMPRESSION, logits)
        total -= mpmath.log(p if labels[loss.of.node] else 1 - p)
    return total


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.data(), st.sampled_from([torch.float64, torch.float32]))
def test_the_loss_of_a_random_graph_and_its_gradients_equal_many_digits(
    drawn: tuple[Graph, dict[Query, float]], data: st.DataObject, dtype: torch.dtype
) -> None:
    graph, logits = drawn
    label_of = {loss.of.node: data.draw(st.integers(0, 1)) for loss in graph.losses}
    z_of = {edge: torch.tensor([z], dtype=dtype, requires_grad=True) for edge, z in logits.items()}
    labels = {name: torch.tensor([label], dtype=dtype) for name, label in label_of.items()}
    total = loss_sums(graph, z_of, labels).sum()
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
    loss = loss_sums(graph, {graph.edges[0]: b}, labels).sum()
    loss.backward()
    clicked = CLICK > 0
    expected = np.where(CONVERSION > 0, np.logaddexp(0, -B), np.logaddexp(0, B))[clicked].sum()
    assert loss.item() == pytest.approx(expected)
    assert b.grad is not None
    assert (b.grad.numpy()[~clicked] == 0).all()


def test_missing_as_negative_counts_the_unclicked_as_not_converted() -> None:
    """AMAN (ESMM §3.1): the cross entropy of the network's own probability over clicked and unclicked samples alike."""
    loss = {"of": "conversion | click", "kind": "missing_as_negative"}
    graph = Graph(GraphSettings(["conversion | click"], [loss], {"p": "conversion | click"}), LABELS)
    check_losses(graph)
    b = torch.tensor(B, requires_grad=True)
    labels = {"click": torch.tensor(CLICK), "conversion": torch.tensor(CONVERSION)}
    total = loss_sums(graph, {graph.edges[0]: b}, labels).sum()
    total.backward()
    target = CLICK * CONVERSION  # -log p and -log(1 - p) of p = σ(b)
    assert total.item() == pytest.approx((target * np.logaddexp(0, -B) + (1 - target) * np.logaddexp(0, B)).sum())
    assert b.grad is not None
    np.testing.assert_allclose(b.grad.numpy(), sigmoid(B) - target, rtol=1e-6, atol=1e-12)


def test_importance_weighs_the_log_loss_of_the_clicked() -> None:
    """UNBIAS by weights: Σ over clicks of w·δ, and no loss elsewhere."""
    loss = {"of": "conversion | click", "kind": "importance"}
    graph = Graph(GraphSettings(["conversion | click"], [loss], {"p": "conversion | click"}), LABELS)
    weight = np.linspace(0.1, 3, len(B))
    b = torch.tensor(B, requires_grad=True)
    labels = {name: torch.tensor(value) for name, value in (("click", CLICK), ("conversion", CONVERSION))}
    total = loss_sums(graph, {graph.edges[0]: b}, labels | {"importance": torch.tensor(weight)}).sum()
    total.backward()
    delta = np.where(CONVERSION > 0, np.logaddexp(0, -B), np.logaddexp(0, B))
    assert total.item() == pytest.approx((CLICK * weight * delta).sum())
    assert b.grad is not None
    np.testing.assert_allclose(b.grad.numpy(), CLICK * weight * (sigmoid(B) - CONVERSION), rtol=1e-6, atol=1e-12)


def test_an_event_less_another_holds_where_only_the_first_happened() -> None:
    labels = {"click": torch.tensor([0.0, 1.0, 1.0]), "daction": torch.tensor([0.0, 0.0, 1.0])}
    batch = LabelledLogits(Graph(ESMM, LABELS), {}, labels)
    assert batch.happened(Event("click", ("daction",))).tolist() == [0, 1, 0]


def test_the_sum_of_the_ranks_gradients_is_that_of_the_global_mean() -> None:
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.5])]
    of_ranks = [part_of_global_mean(part, global_count=10) for part in parts]
    assert sum(of_ranks).item() == pytest.approx(7.5 / 10)


def test_each_loss_has_its_weight_in_the_gradient() -> None:
    sums = torch.tensor([3.0, 5.0], requires_grad=True)
    share = part_of_global_mean(sums, 10, torch.tensor([1.0, 0.25]))
    assert share.item() == pytest.approx((3 * 1.0 + 5 * 0.25) / 10)
    share.backward()
    torch.testing.assert_close(sums.grad, torch.tensor([0.1, 0.025]))


CLIP = 4.0
#: o, r, z and pCTR of the references below: 1 / pCTR is clipped for some impressions and not for others.
PROPENSITY = sigmoid(A)


def counterfactual(kind: str, **more: object) -> Graph:
    """ESMM with the loss `kind` of conversion | click."""
    loss = {"of": "conversion | click", "kind": kind, "propensity": "click", **more}
    heads = [str(more["imputation"])] if "imputation" in more else []
    graph = Graph(GraphSettings(ESMM.edges, ["click", loss], ESMM.outputs, heads=heads), LABELS)
    check_losses(graph)
    return graph


def value_and_gradients(graph: Graph, *logits: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """The second loss of `graph`, and its gradient at the logits of each head (0 for one that it does not reach)."""
    leaves = [torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in logits]
    labels = {"click": torch.tensor(CLICK), "conversion": torch.tensor(CONVERSION)}
    total = loss_sums(graph, dict(zip(graph.heads, leaves, strict=True)), labels)[1]
    total.backward()
    return total.item(), [np.zeros(len(A)) if leaf.grad is None else leaf.grad.numpy() for leaf in leaves]


def test_ips_weighs_the_clicked_by_one_over_pctr_clipped_and_sends_no_gradient_into_pctr() -> None:
    weight = CLICK * np.minimum(1 / PROPENSITY, CLIP)  # ESCM²-IPS: o·δ/ô
    delta = np.where(CONVERSION > 0, np.logaddexp(0, -B), np.logaddexp(0, B))
    value, (grad_a, grad_b) = value_and_gradients(counterfactual("ips", clip=CLIP), A, B)
    assert value == pytest.approx((weight * delta).sum(), rel=1e-12)
    assert (grad_a == 0).all()
    np.testing.assert_allclose(grad_b, weight * (sigmoid(B) - CONVERSION), rtol=1e-9, atol=1e-14)
    assert 0 < (1 / PROPENSITY[CLICK > 0] > CLIP).sum() < CLICK.sum()


def test_dr_adds_the_imputed_error_everywhere_and_its_own_error_where_clicked() -> None:
    imputed_z = np.linspace(-3, 3, len(A))
    imputed, weight = np.logaddexp(0, imputed_z), CLICK * np.minimum(1 / PROPENSITY, CLIP)
    delta = np.where(CONVERSION > 0, np.logaddexp(0, -B), np.logaddexp(0, B))
    error = delta - imputed
    graph = counterfactual("dr", clip=CLIP, imputation="conversion_error")
    value, (grad_a, grad_b, grad_imputed) = value_and_gradients(graph, A, B, imputed_z)
    assert value == pytest.approx((imputed + weight * error + weight * error**2).sum(), rel=1e-12)
    assert (grad_a == 0).all()
    outer = weight * (1 + 2 * error)  # dL/dδ; dL/dδ̂ is 1 less this
    np.testing.assert_allclose(grad_b, outer * (sigmoid(B) - CONVERSION), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(grad_imputed, (1 - outer) * sigmoid(imputed_z), rtol=1e-9, atol=1e-14)


def test_dcmt_learns_where_clicked_and_in_the_counterfactual_where_not_under_a_soft_constraint() -> None:
    """Zhu et al., ICDE 2023: o·e(r, r̂)/ô + (1 − o)·e(1 − r, r̂*)/(1 − ô) + λ·|1 − (r̂ + r̂*)|."""
    twin_z, prior = np.linspace(-2, 3, len(A)), 0.25
    loss = {"of": "conversion | click", "kind": "dcmt", "propensity": "click", "counterfactual": "twin"}
    graph = Graph(
        GraphSettings(ESMM.edges, ["click", loss | {"clip": CLIP, "prior": prior}], ESMM.outputs, heads=["twin"]),
        LABELS,
    )
    check_losses(graph)
    there = CLICK * np.minimum(1 / PROPENSITY, CLIP)
    elsewhere = (1 - CLICK) * np.minimum(1 / sigmoid(-A), CLIP)
    factual = np.where(CONVERSION > 0, np.logaddexp(0, -B), np.logaddexp(0, B))
    counterfactual = np.where(CONVERSION > 0, np.logaddexp(0, twin_z), np.logaddexp(0, -twin_z))  # its label is 1 - r
    gap = 1 - (sigmoid(B) + sigmoid(twin_z))
    value, (grad_a, grad_b, grad_twin) = value_and_gradients(graph, A, B, twin_z)
    expected = there * factual + elsewhere * counterfactual + prior * np.abs(gap)
    assert value == pytest.approx(expected.sum(), rel=1e-9)
    assert (grad_a == 0).all()
    slope = -prior * np.sign(gap)
    np.testing.assert_allclose(
        grad_b, there * (sigmoid(B) - CONVERSION) + slope * sigmoid(B) * sigmoid(-B), rtol=1e-6, atol=1e-12
    )
    np.testing.assert_allclose(
        grad_twin,
        elsewhere * (sigmoid(twin_z) - (1 - CONVERSION)) + slope * sigmoid(twin_z) * sigmoid(-twin_z),
        rtol=1e-6,
        atol=1e-12,
    )


def test_the_calibrator_costs_what_a_conversion_is_likelier_than_its_click() -> None:
    """AITM (Xi et al., KDD 2021): Σ max(p_conversion − p_click, 0)."""
    loss = {"of": "conversion", "kind": "calibrator", "before": "click"}
    edges = ["click | impression", "conversion | impression"]
    graph = Graph(GraphSettings(edges, ["click", loss, "conversion"], {"p": "click"}), LABELS)
    check_losses(graph)
    assert graph.loss_names == ("click", "calibrator(conversion)", "conversion")
    value, (grad_a, grad_b) = value_and_gradients(graph, A, B)
    above = (sigmoid(B) > sigmoid(A)).astype(float)
    assert 0 < above.sum() < len(A)
    assert value == pytest.approx(np.maximum(sigmoid(B) - sigmoid(A), 0).sum(), rel=1e-9)
    np.testing.assert_allclose(grad_a, -above * sigmoid(A) * sigmoid(-A), rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(grad_b, above * sigmoid(B) * sigmoid(-B), rtol=1e-6, atol=1e-15)


def test_ips_with_the_true_propensity_expects_the_loss_over_all_impressions_and_the_clicked_alone_do_not() -> None:
    """Clicks drawn many times: Σ o·δ/p comes to Σ δ, whereas the mean over the clicked is that of other impressions."""
    rng = np.random.default_rng(1)
    z_click, z_conversion = rng.normal(-1, 1, 40), rng.normal(0, 1, 40)
    z_conversion += z_click  # who clicks more converts more: selection bias
    converts = (rng.random(40) < sigmoid(z_conversion)).astype(np.float64)  # also without a click, as in do(click)
    draws = 20000
    clicks = (rng.random((draws, 40)) < sigmoid(z_click)).astype(np.float64)
    graph = counterfactual("ips", clip=1e9)
    logits = [torch.tensor(np.tile(z, draws)) for z in (z_click, z_conversion)]
    labels = {"click": torch.tensor(clicks.ravel()), "conversion": torch.tensor(np.tile(converts, draws))}
    found = loss_sums(graph, dict(zip(graph.heads, logits, strict=True)), labels)[1].item() / draws
    everywhere = np.where(converts > 0, np.logaddexp(0, -z_conversion), np.logaddexp(0, z_conversion)).sum()
    naive = LOSSES["log_loss"](
        LabelledLogits(graph, dict(zip(graph.heads, logits, strict=True)), labels), graph.edges[1]
    )
    assert found == pytest.approx(everywhere, rel=0.02)
    assert abs(naive.item() / clicks.sum() * 40 - everywhere) > 0.03 * everywhere


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"of": "conversion | click", "kind": "tips", "propensity": "click"},
            "kind=tips is not one of log_loss, missing_as_negative, importance, ips, dr, dcmt, calibrator",
        ),
        ({"of": "conversion | click", "kind": "ips"}, "the option propensity is missing; it takes propensity, clip"),
        ({"of": "conversion | click", "kind": "ips", "propensity": "click", "clap": 1}, "clap is not an option"),
        (
            {"of": "conversion | click", "kind": "ips", "propensity": "click", "clip": 0},
            "clip=0 is not a number above 0",
        ),
        (
            {"of": "conversion | click", "kind": "ips", "propensity": "click", "clip": "click"},
            "clip=click | impression is not a number",
        ),
        ({"of": "conversion | click", "kind": "ips", "propensity": 3}, "propensity=3 is not a statement"),
        ({"of": "conversion", "kind": "ips", "propensity": "click"}, "a propensity is that of a condition"),
        ({"of": "conversion", "clip": 3}, "clip is not an option; it takes none"),
        ("conversion | click", "the same loss twice"),
        (
            {"of": "conversion | click", "kind": "dr", "propensity": "click", "imputation": "conversion"},
            "imputation=conversion | impression is not a head",
        ),
        ({"kind": "ips"}, "neither a statement such as"),
        (3, "neither a statement such as"),
    ],
)
def test_a_loss_that_does_not_fit_its_kind_is_refused(loss: object, message: str) -> None:
    settings = GraphSettings(ESMM.edges, ["click", "conversion | click", loss], ESMM.outputs)
    with pytest.raises(InputError) as refused:
        check_losses(Graph(settings, LABELS))
    assert message in str(refused.value)


def test_a_head_that_no_loss_names_and_one_that_is_a_node_are_refused() -> None:
    for head, message in (
        ("conversion_error", "no loss names conversion_error"),
        ("click", "must be a name that no node"),
    ):
        with pytest.raises(InputError, match=message):
            Graph(GraphSettings(ESMM.edges, ESMM.losses, ESMM.outputs, heads=[head]), LABELS)
