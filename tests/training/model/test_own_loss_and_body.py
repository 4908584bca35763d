"""The examples of docs/models.md run as they are written."""

import re
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from graphs import ESMM, LABELS

from training.model import bodies, losses
from training.model.graph import Graph
from training.model.settings import GraphSettings, ModelSettings
from training.model.towers import TowerStack

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def example(title: str) -> tuple[str, dict[str, object]]:
    """The Python and the YAML below the heading `title`."""
    section = PAGE.split(f"### {title}\n")[1].split("\n### ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    settings = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert code is not None
    assert settings is not None
    return code.group(1), yaml.safe_load(settings.group(1))


def test_the_loss_of_the_docs_weighs_the_log_loss_by_how_wrong_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = example("A loss of your own")
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    exec(code, vars(losses) | {"LOSSES": losses.LOSSES})
    graph = Graph(GraphSettings(ESMM.edges, settings["graph"]["losses"], ESMM.outputs), LABELS)  # type: ignore[index]
    losses.check_losses(graph)
    a, b = torch.tensor([0.3, -1.0]), torch.tensor([1.0, 0.5])
    labels = {"click": torch.tensor([1.0, 0.0]), "conversion": torch.tensor([1.0, 0.0])}
    p = a.sigmoid() * b.sigmoid()
    right = torch.stack([p[0], 1 - p[1]])
    found = losses.loss_sums(graph, dict(zip(graph.heads, (a, b), strict=True)), labels)[1]
    torch.testing.assert_close(found, ((1 - right) ** 1.5 * -right.log()).sum())


def test_the_body_of_the_docs_feeds_the_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = example("A body of your own")
    monkeypatch.setattr(bodies, "BODIES", dict(bodies.BODIES))
    exec(code, vars(bodies) | {"BODIES": bodies.BODIES})
    graph, body = Graph(ESMM, LABELS), dict(settings["body"])  # type: ignore[call-overload]
    bodies.check_body(body, graph)
    stack = TowerStack(graph.heads, 5, 3, ModelSettings(body=body))
    logits = stack(torch.randn(2, 5), torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), None)
    sum(logit.square().sum() for logit in logits.values()).backward()
    assert all(parameter.grad is not None for parameter in stack.parameters())
