"""A score is a probability, also where a model's output is a quotient."""

import numpy as np
import torch
from tiny_dataset import write_tiny_dataset

from training.model.graph import Graph
from training.model.settings import GraphSettings, ModelSettings, TowerSettings
from training.model.towers import TowerStack
from training.serving.network import ServedNetwork


def test_the_score_of_a_quotient_is_at_most_one(tmp_path):
    """Two towers without hidden layers, of which only the biases count: P(conversion) = 0.5, P(click) = 0.27."""
    manifest = write_tiny_dataset(tmp_path, num_contexts=5)
    edges = ["click | impression", "conversion | impression"]
    outputs = {"p_ctr": "click", "p_cvr": "conversion / click", "p_ctcvr": "conversion"}
    graph = Graph(GraphSettings(edges, ["click", "conversion"], outputs), ["click", "conversion"])
    towers = TowerStack(graph.heads, 1, 1, ModelSettings(towers=TowerSettings(hidden=[])))
    for (name, parameter), bias in zip(towers.named_parameters(), [0, 0, -1, 0, 0, 0], strict=True):
        torch.nn.init.constant_(parameter, bias)
        assert bias == 0 or name == "0.first_bias"
    fields = [entry for entry in manifest.fields if entry.name in ("user_id", "item_id")]
    tables = {entry.name: torch.ones(entry.num_rows, 1) for entry in fields}
    network = ServedNetwork(fields, {}, tables, towers, graph, torch.float32)
    index = torch.zeros(2, dtype=torch.int64)
    found = network({"user_id": torch.tensor([3])}, {"item_id": torch.tensor([4, 5])}, index)
    np.testing.assert_allclose(found["p_ctr"].detach(), 1 / (1 + np.e), rtol=1e-6)
    np.testing.assert_allclose(found["p_ctcvr"].detach(), 0.5, rtol=1e-6)
    assert found["p_cvr"].tolist() == [1.0, 1.0]
