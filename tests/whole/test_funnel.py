"""A longer funnel by YAML alone: conf/model/loan.yaml, trained and evaluated on a dataset that has its labels."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_dataset import write_tiny_dataset

from jobs.entry import compose
from pipeline.errors import InputError
from training.distributed.world import join
from training.model.graph import Graph
from training.model.settings import GraphSettings
from training.run.evaluate import evaluate_split
from training.run.journal import LOG
from training.run.settings import TrainSettings
from training.run.trainer import Trainer


def loan(data: Path, out: Path, *overrides: str) -> TrainSettings:
    settings = ["model=loan", f"data={data}", f"out={out}", "world.device=cpu", "plan.batch_size=32", "epochs=3"]
    return compose("train", TrainSettings, [*settings, "log.every_steps=1", *overrides])


def test_impression_click_application_approval_is_a_yaml_file(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=120, daction=True)
    settings = loan(tmp_path / "data", tmp_path / "run")
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        evaluate_split(tmp_path / "run", settings, "test", None, world)
    first = json.loads((tmp_path / "run" / LOG).read_text().splitlines()[0])
    assert first.keys() >= {"loss_click", "loss_application", "loss_approval"}
    table = pq.read_table(tmp_path / "run" / "predictions" / "test").to_pydict()
    p_ctr, p_ctavr, p_cvr, p_ctcvr, p_approval = (
        np.array(table[name]) for name in ("p_ctr", "p_ctavr", "p_cvr", "p_ctcvr", "p_approval")
    )
    np.testing.assert_allclose(p_ctcvr, p_ctr * p_cvr, rtol=1e-5)
    np.testing.assert_allclose(p_ctcvr, p_ctavr * p_approval, rtol=1e-5)
    assert (p_ctavr <= p_ctr).all()
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"ctr_auc", "ctavr_auc", "cvr_auc", "ctcvr_auc"} <= figures.keys()
    assert figures["ctr_auc"] > 0.6


def test_a_dataset_without_applications_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=20)
    settings = loan(tmp_path / "data", tmp_path / "run")
    with join(settings.world) as world, pytest.raises(InputError) as caught:
        Trainer(settings, world)
    assert "needs the label daction for its loss `application`, and the dataset has only click, conversion" in str(
        caught.value
    )
    assert not (tmp_path / "run").exists()


def test_a_label_for_what_is_no_node_is_refused() -> None:
    chosen = GraphSettings(["click | impression"], ["click"], {"p_ctr": "click"}, labels={"aproval": "conversion"})
    with pytest.raises(InputError, match=r"labels names 'aproval', which is no node of the graph; it has click"):
        Graph(chosen, ["click", "conversion"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.graph.edges=['click | approval','application | click','approval | application']", "has a cycle: "),
        ("model.graph.edges=['click | impression','approval | application']", "no edge leads into application"),
        ("model.graph.labels={application: cart, approval: conversion}", "needs the label cart for its loss `application`"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_yaml_is_told_before_anything_is_written(tmp_path: Path, change: str, told: str) -> None:
    write_tiny_dataset(tmp_path / "data", num_contexts=20, daction=True)
    settings = loan(tmp_path / "data", tmp_path / "run", change)
    with join(settings.world) as world, pytest.raises(InputError, match=told):
        Trainer(settings, world)
    assert not (tmp_path / "run").exists()
