"""The behaviour graph: edges are conditional probabilities, one tower each; the chain rule makes the rest.

ESMM and ESM² are two such graphs (Ma et al., SIGIR 2018, eq. 1; Wen et al., SIGIR 2020, eq. 1–4):

    esmm:  click | impression · conversion | click
    esm2:  click | impression · daction | click · conversion | daction · conversion | click and not daction

An event is a node (`click`) or a node less others (`click and not daction`). Everything is computed from logits in
log space, and the probability *that an event does not happen* is carried beside that it does: from p itself where p
is small, and by a chain of its own where p is near 1, so that neither 1 - p nor its gradient is lost to rounding.
"""

# Shapes: B impressions. z is a logit.

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NewType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.errors import InputError
from training.model.settings import GraphSettings

_LOG_HALF = math.log(0.5)
_EVENT = r"[a-z][a-z0-9_]*(?: and not [a-z][a-z0-9_]*)*"
_QUERY = re.compile(rf"({_EVENT})(?: \| ({_EVENT}))?\Z")


class Event(NamedTuple):
    """The event that `node` happened, and none of `excluded` did."""

    node: str
    excluded: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " and not ".join((self.node, *self.excluded))


IMPRESSION = Event("impression")


class Query(NamedTuple):
    """The probability P(node | given); as an edge, one tower estimates it."""

    node: str
    given: Event

    def __str__(self) -> str:
        return f"{self.node} | {self.given}"


class Quotient(NamedTuple):
    """The quotient P(whole) / P(part) of two estimates; it may be above 1 where they are of networks of their own."""

    whole: Query
    part: Query

    def __str__(self) -> str:
        return f"{self.whole} / {self.part}"


#: A Query that a tower estimates, so that the logits have it: an edge or an entry of `heads`.
Head = NewType("Head", Query)


class Loss(NamedTuple):
    """One entry of `model.graph.losses`."""

    of: Query
    kind: str  # of training.model.losses.LOSSES
    options: dict[str, Query | float]

    @property
    def name(self) -> str:
        """The name in logs: the node, with the condition unless that is an impression, and the kind unless log_loss."""
        what = self.of.node if self.of.given == IMPRESSION else str(self.of)
        return what if self.kind == "log_loss" else f"{self.kind}({what})"


class LogOdds(NamedTuple):
    """log P(event) and log P(not event), each [B]."""

    yes: Tensor
    no: Tensor


def parse_query(statement: str, key: str) -> Query:
    """Read `node | event` or `node` (given an impression)."""
    match = _QUERY.match(" ".join(statement.split()))
    node, _, rest = match.group(1).partition(" and not ") if match else ("", "", "")
    if not match or rest:
        raise InputError(f"{key}: {statement!r} is not of the form `node | event`, as in `conversion | click`.")
    name, *excluded = (match.group(2) or "impression").split(" and not ")
    return Query(node, Event(name, tuple(excluded)))


def parse_output(statement: str, key: str) -> Query | Quotient:
    """Read a statement, or the quotient of two: `conversion / click`."""
    whole, slash, part = statement.partition("/")
    return Quotient(parse_query(whole, key), parse_query(part, key)) if slash else parse_query(whole, key)


def parse_loss(entry: Any) -> Loss:
    """Read a statement, or a mapping of `of`, `kind` and the options of that kind: statements and numbers."""
    key = "model.graph.losses"
    if isinstance(entry, str):
        return Loss(parse_query(entry, key), "log_loss", {})
    if not isinstance(entry, Mapping) or not isinstance(entry.get("of"), str):
        raise InputError(
            f"{key}: {entry!r} is neither a statement such as `conversion | click` nor a mapping with a statement as `of`."
        )
    options: dict[str, Query | float] = {}
    for name, value in entry.items():
        if name not in ("of", "kind"):
            options[str(name)] = parse_query(value, f"{key}, {name}") if isinstance(value, str) else value
    return Loss(parse_query(entry["of"], key), str(entry.get("kind", "log_loss")), options)


class Graph:
    """A checked behaviour graph."""

    def __init__(self, settings: GraphSettings, labels: Sequence[str]) -> None:
        """Check the graph.

        Raises InputError for a malformed statement, a cycle, a node without a parent, edges into one node that do not
        add up to one event, an edge or a head that no loss trains, and a label that the dataset (`labels`) lacks.
        """
        self.edges = tuple(parse_query(text, "model.graph.edges") for text in settings.edges)
        self.losses = tuple(parse_loss(entry) for entry in settings.losses)
        self.outputs = {
            name: parse_output(text, f"model.graph.outputs.{name}") for name, text in settings.outputs.items()
        }
        if len(set(self.edges)) < len(self.edges):
            raise InputError("model.graph.edges names an edge twice; each edge has one tower.")
        if len(set(self.loss_names)) < len(self.losses):
            raise InputError(
                "model.graph.losses has the same loss twice; give it a weight in model.graph.loss_weights."
            )
        if not self.losses or not self.outputs:
            raise InputError("model.graph needs at least one entry in losses and one in outputs.")
        _check_acyclic(self.edges)
        self.heads = (*self.edges, *self._auxiliary(settings.heads))
        trained = {edge for loss in self.losses for edge in self._edges_behind(loss.of)}
        untrained = [str(edge) for edge in self.edges if edge not in trained]
        if untrained:
            raise InputError(
                f"model.graph: no loss trains the edge `{untrained[0]}`; add its node to losses or drop it."
            )
        for output in self.outputs.values():
            for query in output if isinstance(output, Quotient) else (output,):
                self._edges_behind(query)
        self._label_of = self._checked_labels(settings.labels)
        self._check_labels(labels)
        self.loss_weights = self._weights(settings.loss_weights)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The name of each loss in logs."""
        return tuple(loss.name for loss in self.losses)

    def label_of(self, node: str) -> str:
        """Return the dataset's label that says whether `node` happened."""
        return self._label_of.get(node, node)

    def into(self, node: str) -> tuple[Query, ...]:
        """Return the edges into `node`."""
        return tuple(edge for edge in self.edges if edge.node == node)

    def log_odds(self, query: Query, logit_of: Mapping[Query, Tensor]) -> LogOdds:
        """Return log P(node | given) and log P(not node | given) from the towers' logits, by the chain rule."""
        return self._node_odds(query.node, query.given, logit_of, {})

    def predict(self, logit_of: Mapping[Query, Tensor]) -> dict[str, Tensor]:
        """Return the named outputs, each [B]: probabilities, or quotients of two."""
        return {name: self._log_output(output, logit_of).exp() for name, output in self.outputs.items()}

    def _log_output(self, output: Query | Quotient, logit_of: Mapping[Query, Tensor]) -> Tensor:
        if isinstance(output, Quotient):
            return self._log_output(output.whole, logit_of) - self._log_output(output.part, logit_of)
        return self.log_odds(output, logit_of).yes

    def _node_odds(
        self, node: str, root: Event, logit_of: Mapping[Query, Tensor], known: dict[Event, LogOdds | None]
    ) -> LogOdds:
        edges = self.into(node)
        before = [self._event_odds(edge.given, root, logit_of, known) for edge in edges]
        if len(edges) == 1:
            return _chain(before[0], logit_of[edges[0]])
        # Disjoint ways in that add up to one event: p = Σ p(way)·σ(z); what is left is its complement, and each
        # way that led nowhere.
        whole = self._event_odds(self._union(edges), root, logit_of, known)
        ways = [_chain(odds, logit_of[edge]) for odds, edge in zip(before, edges, strict=True)]
        nowhere = [
            _log_probability(odds) + logsigmoid(-logit_of[edge]) for odds, edge in zip(before, edges, strict=True)
        ]
        yes = _log_sum([way.yes for way in ways])
        no = _log_sum(nowhere if whole is None else [whole.no, *nowhere])
        return LogOdds(yes, _complement(yes, no))

    def _event_odds(
        self, event: Event, root: Event, logit_of: Mapping[Query, Tensor], known: dict[Event, LogOdds | None]
    ) -> LogOdds | None:
        """Return the log odds of `event`, or None for certainty: the event is the root."""
        if event == root:
            return None
        if event not in known:
            if event.excluded:
                prefix, edge = self._split(event)
                known[event] = _chain(self._event_odds(prefix, root, logit_of, known), -logit_of[edge])
            else:
                known[event] = self._node_odds(event.node, root, logit_of, known)
        return known[event]

    def _split(self, event: Event) -> tuple[Event, Query]:
        """Return `a` and the edge `b | a` for the event `a and not b`."""
        prefix = Event(event.node, event.excluded[:-1])
        edge = Query(event.excluded[-1], prefix)
        if self.into(edge.node) != (edge,):
            raise InputError(
                f"model.graph: `{event}` needs `{edge}` as the one edge into {edge.node}; add it, or condition on "
                "another event."
            )
        return prefix, edge

    def _union(self, edges: Sequence[Query]) -> Event:
        """Return the event that the conditions of `edges` divide between them.

        {b, a and not b} is a where b has the one edge `b | a`, and so on upwards.
        """
        events = {edge.given for edge in edges}
        while len(events) > 1:
            for event in sorted(events):
                if event.excluded:
                    prefix, edge = self._split(event)
                    if (other := Event(edge.node)) in events:
                        events = (events - {event, other}) | {prefix}
                        break
            else:
                given = " and ".join(f"`{event}`" for event in sorted(events))
                raise InputError(
                    f"model.graph: the edges into {edges[0].node} come from {given}, which do not add up to one event; "
                    "their conditions must divide one event between them, as `daction` and `click and not daction` do."
                )
        return events.pop()

    def _edges_behind(self, query: Query) -> set[Query]:
        """Return the edges from `query.given` to `query.node`. Raises InputError where a way begins elsewhere."""
        behind: set[Query] = set()

        def node(name: str) -> None:
            if not self.into(name):
                what = "an impression" if query.given == IMPRESSION else f"`{query.given}`"
                raise InputError(
                    f"model.graph: `{query}` has no way from {what} to {query.node}, because no edge leads into {name}; "
                    f"add an edge `{name} | …`, or give the event that it starts from."
                )
            if len(self.into(name)) > 1:
                event(self._union(self.into(name)))
            for edge in self.into(name):
                behind.add(edge)
                event(edge.given)

        def event(given: Event) -> None:
            if given == query.given:
                return
            if given.excluded:
                prefix, edge = self._split(given)
                behind.add(edge)
                event(prefix)
            else:
                node(given.node)

        node(query.node)
        return behind

    def _auxiliary(self, names: Sequence[str]) -> list[Query]:
        """Return the heads that are no edges. Raises InputError where no loss uses one, or an option is not in the graph."""
        heads = [parse_query(name, "model.graph.heads") for name in names]
        nodes = {edge.node for edge in self.edges}
        for head in heads:
            if head.given != IMPRESSION or head.node in nodes or heads.count(head) > 1:
                raise InputError(
                    f"model.graph.heads: `{head}` must be a name that no node and no other head has, without a condition."
                )
        named = {value for loss in self.losses for value in loss.options.values() if isinstance(value, Query)}
        for head in heads:
            if head not in named:
                raise InputError(f"model.graph.heads: no loss names {head.node} in an option; drop it or use it.")
        for query in sorted(named - set(heads)):
            self._edges_behind(query)
        return heads

    def _weights(self, given: Mapping[str, float]) -> tuple[float, ...]:
        for name, weight in given.items():
            if name not in self.loss_names:
                raise InputError(
                    f"model.graph.loss_weights names {name!r}, which is no loss of the graph; it has "
                    f"{', '.join(self.loss_names)}."
                )
            if not 0.0 <= weight < math.inf:
                raise InputError(f"model.graph.loss_weights: {name}={weight} is not a finite number of 0 or more.")
        return tuple(given.get(name, 1.0) for name in self.loss_names)

    def _checked_labels(self, given: Mapping[str, str]) -> dict[str, str]:
        nodes = sorted({edge.node for edge in self.edges})
        for node in given:
            if node not in nodes:
                raise InputError(
                    f"model.graph.labels names {node!r}, which is no node of the graph; it has {', '.join(nodes)}."
                )
        return dict(given)

    def _check_labels(self, labels: Sequence[str]) -> None:
        for loss, name in zip(self.losses, self.loss_names, strict=True):
            for node in (loss.of.node, loss.of.given.node, *loss.of.given.excluded):
                label = self.label_of(node)
                if label not in labels and node != IMPRESSION.node:
                    raise InputError(
                        f"The model needs the label {label} for its loss `{name}`, and the dataset has only "
                        f"{', '.join(labels)}; preprocess the source with that label (daction: an action log), or "
                        "choose another model, for example model=esmm."
                    )


def _chain(before: LogOdds | None, z: Tensor) -> LogOdds:
    """Chain an event of odds `before` with one of logit z: p·σ(z), and (1 - p) + p·σ(-z)."""
    if before is None:
        return LogOdds(logsigmoid(z), logsigmoid(-z))
    yes = before.yes + logsigmoid(z)
    return LogOdds(yes, _complement(yes, torch.logaddexp(before.no, before.yes + logsigmoid(-z))))


def _complement(log_p: Tensor, chained: Tensor) -> Tensor:
    """Return log(1 - p): from p itself below one half, and `chained` above.

    Below, `chained` is right, but its gradient is the difference of two large numbers. Above, 1 - p is one.
    """
    small = log_p < _LOG_HALF
    safe = torch.where(small, log_p, _LOG_HALF)  # the branch not taken must have a finite gradient too
    return torch.where(small, torch.log1p(-safe.exp()), chained)


def _log_probability(before: LogOdds | None) -> Tensor | float:
    return 0.0 if before is None else before.yes


def _log_sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = torch.logaddexp(total, term)
    return total


def _check_acyclic(edges: Sequence[Query]) -> None:
    parents: dict[str, set[str]] = {}
    for edge in edges:
        parents.setdefault(edge.node, set()).update((edge.given.node, *edge.given.excluded))
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> None:
        if node in path:
            cycle = " → ".join(reversed((*path[path.index(node) :], node)))
            raise InputError(f"model.graph.edges has a cycle: {cycle}; an event cannot be its own cause.")
        if node not in done:
            for parent in sorted(parents.get(node, ())):
                visit(parent, (*path, node))
            done.add(node)

    for node in sorted(parents):
        visit(node, ())
