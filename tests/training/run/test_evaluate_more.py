"""Evaluation by an independent CTR network, and by parts of the split, against the dataset itself."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranks import Arrays, run_ranks
from tiny_dataset import write_tiny_dataset
from tiny_run import tiny_settings

from pipeline.errors import InputError
from training.distributed.world import join
from training.model.settings import GraphSettings
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

CTR = GraphSettings(["click | impression"], ["click"], {"p_ctr": "click"})
CVR = GraphSettings(["conversion | click"], ["conversion | click"], {"p_cvr": "conversion | click"})


def train(data: Path, run: Path, graph: GraphSettings | None = None, seed: int = 1) -> TrainSettings:
    settings = tiny_settings(data, run)
    settings.seed = seed
    if graph:
        settings.model.graph = graph
    with join(settings.world) as world:
        Trainer(settings, world).fit()
    return settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainSettings]:
    folder = tmp_path_factory.mktemp("more")
    write_tiny_dataset(folder / "data", num_contexts=90)
    return {
        "esmm": train(folder / "data", folder / "esmm"),
        "ctr": train(folder / "data", folder / "ctr", CTR, seed=5),
        "cvr": train(folder / "data", folder / "cvr", CVR),
    }


def evaluate(settings: TrainSettings, ctr_run: str | None = None, slices: tuple[str, ...] = ()) -> None:
    with join(settings.world) as world:
        ctr = Path(ctr_run) if ctr_run else None
        evaluate_split(Path(settings.out), settings, "test", None, world, ctr_run=ctr, slices=slices)


def evaluate_on_ranks(settings: TrainSettings, ctr_run: str, slices: tuple[str, ...]) -> Arrays:
    evaluate(settings, ctr_run, slices)
    return {}


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder).sort_by("impression_id")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def place_of(settings: TrainSettings) -> Path:
    (found,) = [path for path in (Path(settings.out) / "evaluations").iterdir() if ".ctr-" in path.name]
    return found


def test_pctcvr_is_also_that_of_the_one_independent_ctr_network(runs: dict[str, TrainSettings], tmp_path: Path) -> None:
    evaluate(runs["esmm"])
    evaluate(runs["ctr"])
    before = (Path(runs["esmm"].out) / "metrics.json").read_bytes()
    evaluate(runs["esmm"], runs["ctr"].out)
    assert (Path(runs["esmm"].out) / "metrics.json").read_bytes() == before
    place = place_of(runs["esmm"])
    found, ctr = columns_of(place / "predictions"), columns_of(Path(runs["ctr"].out) / "predictions/test")
    own = columns_of(Path(runs["esmm"].out) / "predictions/test")
    np.testing.assert_array_equal(found["impression_id"], ctr["impression_id"])
    np.testing.assert_array_equal(found["p_ctr_independent"], ctr["p_ctr"])
    np.testing.assert_array_equal(found["p_ctcvr_independent"], ctr["p_ctr"] * own["p_cvr"])
    for name, column in own.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    figures = json.loads((place / "metrics.json").read_text())
    assert figures["provenance"]["ctr_run"] == "ctr"
    assert figures["ctcvr_independent_auc"] != figures["ctcvr_auc"]
    assert "CTCVR by ctr_run" in (place / "report.html").read_text()

    run_ranks(evaluate_on_ranks, 2, tmp_path / "ranks", runs["esmm"], runs["ctr"].out, ())
    assert json.loads((place / "metrics.json").read_text()) == figures

    evaluate(runs["cvr"], runs["ctr"].out)  # BASE has no pCTCVR but this one
    assert {"cvr_auc", "ctcvr_independent_auc"} < json.loads(
        (place_of(runs["cvr"]) / "metrics.json").read_text()
    ).keys()
    with pytest.raises(InputError, match=r"ctr_run=\S+cvr predicts p_cvr and no p_ctr"):
        evaluate(runs["esmm"], runs["cvr"].out)


def test_parts_are_those_of_the_rows_of_the_dataset(runs: dict[str, TrainSettings]) -> None:
    settings = runs["esmm"]
    evaluate(settings, slices=("item_id", "user_id", "user_impressions", "user_purchases"))
    slices = json.loads((Path(settings.out) / "metrics.json").read_text())["slices"]
    manifest = json.loads((Path(settings.data) / "manifest.json").read_text())
    ids = {
        entry["name"]: pq.read_table(Path(settings.data) / entry["vocabulary"]).column("raw_id").to_pylist()
        for entry in manifest["fields"]
        if entry["name"] in ("item_id", "user_id")
    }
    shown: dict[str, dict[str, list[int]]] = {"item_id": {}, "user_id": {}}
    bought: dict[int, int] = {}
    seen: dict[int | None, int] = {}
    for file in manifest["files"]:
        for context in pq.read_table(Path(settings.data) / file["path"]).to_pylist():
            if file["split"] == "train" and context["group_id"] is not None:
                pairs = zip(context["click"], context["conversion"], strict=True)
                bought[context["group_id"]] = bought.get(context["group_id"], 0) + sum(a and b for a, b in pairs)
            if file["split"] == "test":
                seen[context["group_id"]] = seen.get(context["group_id"], 0) + len(context["click"])
                for row, click in enumerate(context["click"]):
                    for name, index in (
                        ("item_id", context["item_id"][row]),
                        ("user_id", context["user_id"]),
                    ):
                        text = {0: "missing", 1: "out of vocabulary"}.get(index) or str(ids[name][index - 2])
                        counts = shown[name].setdefault(text, [0, 0])
                        counts[0] += 1
                        counts[1] += click
    for name, expected in shown.items():
        found = {part["value"]: [part["num_impressions"], part["ctr_num_positives"]] for part in slices[name]}
        others = found.pop("others", [0, 0])
        assert found == {value: expected[value] for value in found}, name
        left = [counts for value, counts in expected.items() if value not in found]
        assert others == [sum(shown for shown, _ in left), sum(clicks for _, clicks in left)]
    by_purchases = {part["value"]: part["num_impressions"] for part in slices["user_purchases"]}
    few = sum(count for group, count in seen.items() if group is not None and bought.get(group, 0) <= 10)
    assert by_purchases["[0,10]"] == few
    assert by_purchases.get("unknown user", 0) == seen.get(None, 0)
    by_activity = {part["value"]: part["num_impressions"] for part in slices["user_impressions"]}
    assert by_activity.get("[11,100]", 0) == sum(n for group, n in seen.items() if group is not None and 10 < n <= 100)
    assert "By item_id" in (Path(settings.out) / "report.html").read_text()


@pytest.mark.parametrize("name", ["colour", "user_shops"])
def test_a_slice_that_is_no_single_valued_field_is_refused(runs: dict[str, TrainSettings], name: str) -> None:
    with pytest.raises(InputError, match=rf"slices: {name} is not one of user_impressions, user_purchases or a single"):
        evaluate(runs["esmm"], slices=(name,))
