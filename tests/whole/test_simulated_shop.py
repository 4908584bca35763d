"""The simulated shop through preprocessing: attribution finds every label again, and the audit every planted row."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import SPLITS, load_manifest
from pipeline.preprocess import preprocess
from pipeline.simulate.run import SimulateSettings, simulate

LABELS = ("click", "daction", "conversion")
CHOSEN = ("source=simulated_shop", "features=simulated_shop", "labels=cart_wish")


@pytest.fixture(scope="module")
def shop(spark: object, tmp_path_factory: pytest.TempPathFactory, preprocess_settings: Callable[..., PreprocessSettings]) -> Path:  # fmt: skip
    root = tmp_path_factory.mktemp("shop")
    overrides = ["layout=events", "impressions=8000", "seed=6", "dirt=0.01", f"out={root / 'raw'}"]
    simulate(compose("simulate", SimulateSettings, overrides))
    preprocess(preprocess_settings(root / "raw", root / "dataset", *CHOSEN))
    return root


def labels_in(dataset: Path) -> dict[int, tuple[int, ...]]:
    """Impression → its labels, over all splits."""
    found: dict[int, tuple[int, ...]] = {}
    for file in load_manifest(dataset).files:
        table = pq.read_table(dataset / file.path, columns=["impression_id", *LABELS])
        columns = [table[name].combine_chunks().flatten().to_pylist() for name in ("impression_id", *LABELS)]
        found |= {number: labels for number, *labels in zip(*columns, strict=True)}
    return found


def test_every_label_is_the_simulated_one(shop: Path) -> None:
    truth = pq.read_table(shop / "raw/truth.parquet").to_pylist()
    found = labels_in(shop / "dataset")
    assert len(found) == 7_200
    assert found == {
        row["impression_id"]: [row[name] for name in LABELS] for row in truth if row["impression_id"] in found
    }
    assert sum(labels[2] for labels in found.values()) > 30


def test_the_audit_counts_what_was_planted_and_what_becomes_of_every_action(shop: Path) -> None:
    planted = json.loads((shop / "raw/simulation.json").read_text())
    audit = json.loads((shop / "dataset/audit.json").read_text())
    names = ("impressions", "clicks", "dactions", "conversions")
    assert audit["funnel"] == {split: {name: planted["splits"][split][name] for name in names} for split in SPLITS}
    assert {reason: rows for reason, rows in audit["quarantined"].items() if rows} == planted["quarantined"]
    actions = audit["events"]["actions"]
    assert actions["outcomes"] == planted["actions"]["outcomes"]
    assert {name: actions[name] for name in ("other", "malformed", "after_end")} == {
        name: planted["actions"][name] for name in ("other", "malformed", "after_end")
    }
    assert audit["events"]["impressions"]["immature"] == dict.fromkeys(SPLITS, 0)
    assert audit["events"]["impressions"]["outside_split"] == planted["splits"]["later"]["impressions"]
    assert len({outcome for kind in actions["outcomes"].values() for outcome in kind}) == 4
