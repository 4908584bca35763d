"""Behaviour graphs for tests: those of both papers, random ones, and their probabilities by the chain rule in many digits."""

import mpmath
from hypothesis import strategies as st

from training.model.graph import IMPRESSION, Event, Graph, Query
from training.model.settings import GraphSettings

ESMM = GraphSettings(
    ["click | impression", "conversion | click"],
    ["click", "conversion"],
    {"p_ctr": "click", "p_cvr": "conversion | click", "p_ctcvr": "conversion"},
)


ESM2 = GraphSettings(
    ["click | impression", "daction | click", "conversion | daction", "conversion | click and not daction"],
    ["click", "daction", "conversion"],
    {"p_ctr": "click", "p_ctavr": "daction", "p_cvr": "conversion | click", "p_ctcvr": "conversion"},
)


LABELS = ["click", "daction", "conversion"]


def sigmoid(z: float) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-mpmath.mpf(z)))


def probability(graph: Graph, event: Event, root: Event, logits: dict[Query, float]) -> mpmath.mpf:
    """Apply the chain rule, plainly, in numbers of 80 digits."""
    if event == root:
        return mpmath.mpf(1)
    if event.excluded:
        rest, last = Event(event.node, event.excluded[:-1]), event.excluded[-1]
        return probability(graph, rest, root, logits) * (1 - sigmoid(logits[Query(last, rest)]))
    return sum(
        probability(graph, edge.given, root, logits) * sigmoid(logits[edge])
        for edge in graph.edges
        if edge.node == event.node
    )


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[Graph, dict[Query, float]]:
    """Draw a graph: a node depends on one event, or on `b` and `a and not b`, or on the three parts that a second cut makes."""
    edges: list[Query] = []
    events = [IMPRESSION]
    cuts: list[list[Event]] = []  # events that together are one event
    for number in range(draw(st.integers(1, 5))):
        node = "abcde"[number]
        if cuts and draw(st.booleans()):
            edges += [Query(node, event) for event in draw(st.sampled_from(cuts))]
        else:
            before = draw(st.sampled_from(events))
            edges.append(Query(node, before))
            parts = [Event(node), Event(before.node, (*before.excluded, node))]
            if before != IMPRESSION:
                cuts += [
                    [*(part for part in cut if part != before), *parts] for cut in [[before], *cuts] if before in cut
                ]
                events.append(parts[1])
        events.append(Event(node))
    nodes = sorted({edge.node for edge in edges})
    graph = Graph(GraphSettings([str(edge) for edge in edges], nodes, {f"p_{node}": node for node in nodes}), nodes)
    return graph, {edge: draw(st.floats(-40, 40, width=32)) for edge in graph.edges}
