import mpmath
import pytest
import torch
from graphs import ESM2, ESMM, LABELS, probability, random_graphs
from hypothesis import given, settings

from pipeline.errors import InputError
from training.model.graph import Event, Graph, Query
from training.model.settings import GraphSettings


def tensors(logits: dict[Query, float], dtype: torch.dtype) -> dict[Query, torch.Tensor]:
    return {edge: torch.tensor([z], dtype=dtype, requires_grad=True) for edge, z in logits.items()}


def assert_equals_reference(
    graph: Graph,
    query: Query,
    logits: dict[Query, float],
    dtype: torch.dtype,
    abs_slope: float = 1e-30,
    abs_value: float = 1e-37,
) -> None:
    """log p and log(1 - p) and their gradients in every logit.

    Where two ways lead into one node, probabilities are added: a gradient is a difference that may vanish (`abs_slope`),
    and a log near 0 is that of a sum near 1, known to the last bit of 1 (`abs_value`).
    """
    tolerance = 1e-10 if dtype == torch.float64 else 5e-6
    with mpmath.workdps(80):
        step = mpmath.mpf(10) ** -30
        for side in ("yes", "no"):

            def exact(at: dict[Query, float], side: str = side) -> mpmath.mpf:
                p = probability(graph, Event(query.node), query.given, at)
                return mpmath.log(p if side == "yes" else 1 - p)

            given_logits = tensors(logits, dtype)
            value = getattr(graph.log_odds(query, given_logits), side)
            value.sum().backward()
            assert value.item() == pytest.approx(float(exact(logits)), rel=tolerance, abs=abs_value)
            for edge, z in given_logits.items():
                moved = dict(logits)
                moved[edge] = mpmath.mpf(logits[edge]) + step
                slope = float((exact(moved) - exact(logits)) / step)
                found = 0.0 if z.grad is None else z.grad.item()
                assert found == pytest.approx(slope, rel=20 * tolerance, abs=abs_slope), (str(edge), side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [-40.0, -1.5, 0.0, 40.0])
@pytest.mark.parametrize("b", [-40.0, 0.7, 40.0])
def test_esmm_is_exact_where_products_vanish_and_where_they_reach_one(dtype: torch.dtype, a: float, b: float) -> None:
    graph = Graph(ESMM, LABELS)
    logits = dict(zip(graph.edges, (a, b), strict=True))
    for query in graph.outputs.values():
        assert_equals_reference(graph, query, logits, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "z", [(0.3, -1.2, 2.0, -0.4), (40, 40, 40, 40), (-40, -40, -40, -40), (40, -40, 40, -40), (-40, 40, -40, 40)]
)
def test_esm2_is_exact_where_products_vanish_and_where_they_reach_one(dtype: torch.dtype, z: tuple[float, ...]) -> None:
    graph = Graph(ESM2, LABELS)
    logits = dict(zip(graph.edges, map(float, z), strict=True))
    for query in graph.outputs.values():
        assert_equals_reference(graph, query, logits, dtype, abs_slope=1e-6 if dtype == torch.float32 else 1e-14)


def test_esm2_is_its_paper_equations() -> None:
    graph = Graph(ESM2, LABELS)
    z = torch.tensor([0.3, -1.2, 2.0, -0.4], dtype=torch.float64)
    y1, y2, y3, y4 = torch.sigmoid(z)
    out = graph.predict(dict(zip(graph.edges, z.unsqueeze(1), strict=True)))
    torch.testing.assert_close(out["p_ctr"], y1.view(1))
    torch.testing.assert_close(out["p_ctavr"], (y1 * y2).view(1))  # eq. 2
    torch.testing.assert_close(out["p_cvr"], ((1 - y2) * y4 + y2 * y3).view(1))  # eq. 3
    torch.testing.assert_close(out["p_ctcvr"], (y1 * ((1 - y2) * y4 + y2 * y3)).view(1))  # eq. 4


@settings(max_examples=40, deadline=None)
@given(random_graphs())
def test_random_graphs_equal_the_chain_rule_in_many_digits(drawn: tuple[Graph, dict[Query, float]]) -> None:
    graph, logits = drawn
    for query in graph.outputs.values():
        assert_equals_reference(
            graph, query, logits, torch.float64, abs_slope=1e-13, abs_value=torch.finfo(torch.float64).eps
        )


@settings(max_examples=40, deadline=None)
@given(random_graphs())
def test_random_graphs_keep_to_the_chain_rule_in_float32(drawn: tuple[Graph, dict[Query, float]]) -> None:
    graph, logits = drawn
    for query in graph.outputs.values():
        assert_equals_reference(
            graph, query, logits, torch.float32, abs_slope=2e-6, abs_value=torch.finfo(torch.float32).eps
        )


def refusal(edges: list[str], losses: list[str], outputs: dict[str, str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        Graph(GraphSettings(edges, losses, outputs or {"p": losses[0]}), ["click", "conversion"])
    return str(caught.value)


def test_a_cycle_is_refused() -> None:
    told = refusal(["click | conversion", "conversion | click"], ["click"])
    assert "cycle: click → conversion → click" in told or "cycle: conversion → click → conversion" in told


def test_a_node_without_a_parent_is_refused() -> None:
    assert "no edge leads into click" in refusal(["conversion | click"], ["conversion"])


def test_a_label_that_the_dataset_lacks_is_refused() -> None:
    told = refusal(ESM2.edges, ESM2.losses)
    assert "needs the label daction" in told
    assert "only click, conversion" in told


def test_edges_that_overlap_are_refused() -> None:
    edges = ["click | impression", "conversion | click", "conversion | impression"]
    assert "do not add up to one event" in refusal(edges, ["conversion"])


def test_an_exclusion_without_its_edge_is_refused() -> None:
    told = refusal(["click | impression", "conversion | click and not daction"], ["click", "conversion"])
    assert "`click and not daction` needs `daction | click`" in told


def test_an_untrained_edge_is_refused() -> None:
    assert "no loss trains the edge `conversion | click`" in refusal(ESMM.edges, ["click"])


def test_a_malformed_statement_is_refused() -> None:
    assert "not of the form" in refusal(["click given impression"], ["click"])
    assert "not of the form" in refusal(["click and not x | impression"], ["click"])


def test_a_repeated_edge_and_an_empty_graph_are_refused() -> None:
    assert "names an edge twice" in refusal(["click | impression", "click  |  impression"], ["click"])
    with pytest.raises(InputError, match="at least one entry in losses"):
        Graph(GraphSettings(), LABELS)


def test_loss_weights_are_by_name_and_1_where_none_is_given() -> None:
    chosen = GraphSettings(["click | impression", "conversion | click"], ["click", "conversion"], {"p": "click"})
    labels = ["click", "conversion"]
    assert Graph(chosen, labels).loss_weights == (1.0, 1.0)
    chosen.loss_weights = {"conversion": 0.5}
    assert Graph(chosen, labels).loss_weights == (1.0, 0.5)
    chosen.loss_weights = {"cart": 0.5}
    with pytest.raises(
        InputError, match=r"loss_weights names 'cart', which is no loss of the graph; it has click, conv"
    ):
        Graph(chosen, labels)
    chosen.loss_weights = {"click": -1.0}
    with pytest.raises(InputError, match=r"loss_weights: click=-1\.0 is not a finite number of 0 or more"):
        Graph(chosen, labels)


DIVISION = GraphSettings(
    ["click | impression", "conversion | impression"],
    ["click", "conversion"],
    {"p_ctr": "click", "p_cvr": "conversion / click", "p_ctcvr": "conversion"},
)


def test_a_quotient_of_outputs_is_that_of_the_probabilities_and_may_be_above_one() -> None:
    graph = Graph(DIVISION, LABELS)
    z_click, z_conversion = torch.tensor([-2.0, -5.0, 3.0]), torch.tensor([-4.0, -1.0, -60.0])
    found = graph.predict(dict(zip(graph.edges, (z_click, z_conversion), strict=True)))
    p_ctr, p_ctcvr = z_click.double().sigmoid(), z_conversion.double().sigmoid()
    torch.testing.assert_close(found["p_cvr"].double(), p_ctcvr / p_ctr, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["p_ctcvr"].double(), p_ctcvr, rtol=1e-6, atol=0)
    assert (found["p_cvr"] > 1).tolist() == [False, True, False]
    assert str(graph.outputs["p_cvr"]) == "conversion | impression / click | impression"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("conversion / purchase", "no edge leads into purchase"),
        ("conversion /", "'' is not of the form"),
        ("conversion / click / click", "is not of the form"),
    ],
)
def test_a_quotient_of_what_the_graph_does_not_know_is_refused(statement: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Graph(GraphSettings(DIVISION.edges, DIVISION.losses, {"p_cvr": statement}), LABELS)
