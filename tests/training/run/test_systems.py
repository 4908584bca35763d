"""The list of systems is what the papers compare: every row composes, and docs/papers.md has one line for each."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from jobs.entry import compose
from training.gbdt.settings import GbdtSettings
from training.model.bodies import check_body
from training.model.graph import Graph
from training.model.losses import check_losses
from training.run.settings import TrainSettings
from training.run.systems import (
    ESM2,
    ESMM,
    GBDT_JOB,
    LATER,
    SHARED_CTR,
    SYSTEMS,
    TRAIN_JOB,
    System,
    system_named,
    systems_of,
)

ROOT = Path(__file__).parents[3]
LABELS = ["click", "daction", "conversion"]


@cache
def composed(words: tuple[str, ...], *more: str) -> TrainSettings:
    return compose("train", TrainSettings, ["data=DATA", "out=OUT", *words, *more])


def settings_of(system: System, *more: str) -> TrainSettings:
    return composed(system.settings, *(["ctr_run=CTR"] if system.trains_with_ctr_run else []), *more)


NETWORKS = [system for system in SYSTEMS if system.job == TRAIN_JOB]


@pytest.mark.parametrize("system", NETWORKS, ids=lambda system: f"{system.paper} {system.name}")
def test_every_system_composes_to_its_configuration_with_every_value_that_is_searched(system: System) -> None:
    settings = settings_of(system)
    graph = Graph(settings.model.graph, LABELS)
    check_losses(graph)
    check_body(settings.model.body, graph)
    assert settings.model.name == system.model
    uses_daction = any("daction" in str(edge) for edge in graph.edges)
    assert uses_daction == system.needs_daction
    assert "p_ctcvr" in graph.outputs or system.ctr
    for setting, values in system.searched.items():
        group, name = setting.rsplit(".", 1)
        assert group == "model.sampling"
        for value in (values[0], values[-1]):
            assert getattr(settings_of(system, f"{setting}={value}").model.sampling, name) == value
    if system.ctr:
        ctr = composed(system.ctr)
        assert list(ctr.model.graph.outputs) == ["p_ctr"]
        assert ctr.model.towers == settings.model.towers or system.model == "division"
        assert (ctr.plan, ctr.embedding) == (settings.plan, settings.embedding)


def test_the_trees_of_gbdt_compose_and_their_pctr_is_of_trees() -> None:
    (gbdt,) = (system for system in SYSTEMS if system.job != TRAIN_JOB)
    assert (gbdt.job, gbdt.model, gbdt.name) == (GBDT_JOB, None, "GBDT")
    targets = [
        compose("gbdt", GbdtSettings, ["data=DATA", "out=OUT", *words]).target for words in (gbdt.settings, gbdt.ctr)
    ]
    assert targets == ["cvr", "ctr"]


def test_the_rows_of_both_papers_are_there_in_their_order() -> None:
    """As Table 2 of ESMM and Table 3 of ESM² name them; a row between is an addition of ours."""
    names = {paper: [system.name for system in systems_of(paper)] for paper in (ESMM, ESM2, LATER)}
    assert [name for name in names[ESMM] if name != "UNBIAS, weighted"] == [
        *("BASE", "AMAN", "OVERSAMPLING", "UNBIAS", "DIVISION", "ESMM-NS", "ESMM"),
    ]
    assert names[ESM2] == ["GBDT", "DNN", "DNN-OS", "ESMM", "ESM2"]
    assert names[LATER] == ["Shared bottom", "MMoE", "PLE", "AITM", "ESCM2-IPS", "ESCM2-DR", "DCMT"]
    assert system_named(ESMM, "BASE").ctr == SHARED_CTR
    with pytest.raises(KeyError, match="esm2 has no system BASE"):
        system_named(ESM2, "BASE")


def test_the_systems_of_a_paper_have_one_network_and_its_optimizer() -> None:
    """ESMM §3.1 and ESM² §4.1.3: the same for all competitors."""
    for paper, hidden, dropout in ((ESMM, [200, 80], 0.0), (ESM2, [512, 256, 128, 32], 0.5)):
        networks = [system for system in systems_of(paper) if system.job == TRAIN_JOB]
        for system in networks:
            settings = settings_of(system)
            assert (settings.model.towers.hidden, settings.model.towers.dropout) == (hidden, dropout)
            assert settings.plan.batch_size == (1000 if paper == ESM2 else 5000)
            assert settings.optimizer == settings_of(networks[0]).optimizer


def test_the_searched_rates_are_those_of_the_paper() -> None:
    assert system_named(ESMM, "AMAN").searched == {"model.sampling.unclicked": (0.1, 0.2, 0.5, 1.0)}
    assert system_named(ESMM, "OVERSAMPLING").searched == {"model.sampling.converted": (2, 3, 5, 10)}


def line_of(system: System) -> str:
    """The row of docs/papers.md."""
    words = [*system.settings, *(["ctr_run=CTR"] if system.trains_with_ctr_run else [])]
    searched = [f"`{name}`: {', '.join(f'{value:g}' for value in values)}" for name, values in system.searched.items()]
    ctr = f"`{' '.join(system.ctr)}`" if system.ctr else "its own"
    equation = system.equation.replace("|", "\\|")
    job = f"{system.job} " if system.job != TRAIN_JOB else ""
    return f"| {system.name} | `{job}{' '.join(words)}` | {ctr} | {'; '.join(searched) or '–'} | {equation} |"


def test_the_documentation_has_a_line_for_each_system() -> None:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    for system in SYSTEMS:
        assert line_of(system) in text


def test_every_configuration_of_the_networks_that_are_compared_is_of_a_system() -> None:
    """Those left over: the longer funnel, the wide reading of ESMM's network, and single networks."""
    used = {str(system.model) for system in NETWORKS} | {
        word.removeprefix("model=") for system in NETWORKS for word in system.ctr if word.startswith("model=")
    }
    files = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    assert files - used == {"loan", "esmm_wide", "ctcvr"}
    for name in used:
        assert yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["name"] == name
