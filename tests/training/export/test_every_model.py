"""Every model of conf/model/ and random graphs, exported: the folder gives what the feed and what plain arithmetic give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import probability, random_graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_dataset import write_tiny_dataset

from jobs.entry import compose
from pipeline.dataset.lookup_table import lookup_of
from pipeline.dataset.manifest import load_manifest
from training.distributed.world import join
from training.export.folder import export_run
from training.export.samples import RawValuesOfRows
from training.export.settings import ExportSettings
from training.export.trace import graph_inputs, trace
from training.model.graph import IMPRESSION, Event, Graph, Query
from training.model.settings import ModelSettings, TowerSettings
from training.model.towers import TowerStack
from training.run.settings import TrainSettings
from training.run.trainer import Trainer
from training.serving.network import ServedNetwork
from training.serving.open_run import read_ids
from training.serving.requests import RequestEncoder

pytestmark = [pytest.mark.slow, pytest.mark.acceptance, pytest.mark.timeout(900)]
# The networks of the others are those of base, ctr and esmm.
MODELS = ("base", "ctr", "escm2_dr", "esm2", "esmm", "esmm_ns", "loan", "mmoe", "ple", "shared_bottom")
SMALL = ("plan.batch_size=64", "world.device=cpu", "embedding.dims.item_id=3", "embedding.poolings.user_brands=mean",
         "embedding.init_bound=0.8")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "data"
    write_tiny_dataset(path, num_contexts=60, numeric=True, daction=True)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_exported_and_agrees_with_the_feed(data: Path, tmp_path: Path, model: str) -> None:
    small = ["model.towers.hidden=[12,8]"] if model == "esm2" else []
    trained = compose(
        "train", TrainSettings, [f"data={data}", f"out={tmp_path / 'run'}", f"model={model}", *SMALL, *small]
    )
    with join(trained.world) as world:
        Trainer(trained, world).fit()
    formats = ["pt2", "aoti", "onnx"] if model == "loan" else ["pt2", "onnx"]
    lines = list(export_run(ExportSettings(run=str(tmp_path / "run"), out=str(tmp_path / "export"), formats=formats)))
    assert lines[-1].startswith(f"{tmp_path / 'export'}: {', '.join(formats)};")


@settings(
    max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(random_graphs(), st.integers(0, 1000))
def test_a_random_graph_gives_what_the_chain_rule_gives_in_many_digits(
    data: Path, drawn: tuple[Graph, dict[Query, float]], seed: int
) -> None:
    graph, _ = drawn
    manifest, random = load_manifest(data), np.random.default_rng(seed)
    torch.manual_seed(seed)
    tables = {
        entry.name: torch.from_numpy(random.normal(0, 1, (entry.num_rows, 4)).astype(np.float32))
        for entry in manifest.fields_of(stored="index")
    }
    widths = [
        sum(4 for _ in manifest.fields_of(scope, "index")) + manifest.num_inputs(scope)
        for scope in ("context", "impression")
    ]
    towers = TowerStack(graph.heads, widths[0], widths[1], ModelSettings(towers=TowerSettings([6])))
    pooling = {entry.name: "mean" for entry in manifest.fields}
    network = ServedNetwork(manifest.fields, pooling, tables, towers, graph, torch.float32).eval()
    encoder, values = (
        RequestEncoder(manifest, lookup_of(read_ids(str(data), manifest))),
        RawValuesOfRows(str(data), manifest),
    )
    samples = [values.made_up(random, 5) for _ in range(3)]
    encoded = encoder.encode([one.context for one in samples], [one.candidates for one in samples])
    inputs = graph_inputs(network, encoded)
    with torch.no_grad():
        context_CD, impression_BD = network._inputs("context", inputs), network._inputs("impression", inputs)
        logit_of = towers(context_CD, impression_BD, inputs["context_of_impression"], None)
        for is_portable in (False, True):
            found = trace(network, encoded, is_portable).module()(inputs)
            for name, query in graph.outputs.items():
                for place in range(15):
                    logits = {head: float(values_B[place]) for head, values_B in logit_of.items()}
                    expected = probability(graph, Event(query.node), IMPRESSION, logits)
                    assert abs(float(found[name][place]) - float(expected)) < 1e-6
