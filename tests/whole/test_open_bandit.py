"""A real log that nobody here wrote: the Open Bandit Dataset's sample, 10,000 impressions of a fashion shop with clicks.

Saito et al., Open Bandit Dataset and Pipeline, NeurIPS 2021 (arXiv 2008.07146); random policy, campaign "men". Its CSV
files lie in the wheel obp==0.4.1, of which no code is run.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny_run import tiny_settings

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import SPLITS, load_manifest
from pipeline.dataset.raw_ids import text_id
from pipeline.preprocess import preprocess
from training.distributed.world import join
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

DAYS = ("2019-11-24", "2019-11-29", "2019-11-30", "2019-12-01")
USER = [f"user_feature_{number}" for number in range(4)]


def sample() -> Path:
    spec = find_spec("obp")  # which imports nothing
    assert spec is not None, "make install-dev brings it"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "dataset/obd/random/men"


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    return pd.read_csv(sample() / "men.csv", index_col=0, parse_dates=["timestamp"], dtype={"item_id": str})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("bandit") / "raw"
    raw.mkdir()
    for name in ("men.csv", "item_context.csv"):
        shutil.copy(sample() / name, raw / name)  # with the column without a name that pandas writes
    (raw / "actions.csv").write_text(f"timestamp,{','.join(USER)},item_id,action\n")
    return raw


@pytest.fixture(scope="module")
def dataset(spark: object, raw: Path, preprocess_settings: Callable[..., PreprocessSettings]) -> Path:
    out = raw.parent / "dataset"
    preprocess(preprocess_settings(raw, out, "source=open_bandit", "features=open_bandit"))
    return out


def impressions_in(dataset: Path, split: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield (time in ms, index of the item, position, click) of each impression."""
    for file in load_manifest(dataset).files:
        if file.split == split:
            for row in pq.read_table(dataset / file.path).to_pylist():
                yield from zip(row["timestamp"], row["item_id"], row["position"], row["click"], strict=True)


def test_the_splits_have_the_impressions_and_clicks_of_a_plain_count(dataset: Path, log: pd.DataFrame) -> None:
    totals = load_manifest(dataset).totals
    found = {split: (totals[split]["impressions"], totals[split]["clicks"]) for split in SPLITS}
    assert found == {"train": (7_189, 28), "validation": (1_379, 7), "test": (1_432, 11)}
    bounds = pd.to_datetime(pd.Series(DAYS), utc=True)
    for number, split in enumerate(SPLITS):
        here = log[(log.timestamp >= bounds[number]) & (log.timestamp < bounds[number + 1])]
        assert found[split] == (len(here), here.click.sum())
    audit = json.loads((dataset / "audit.json").read_text())
    assert not any(audit["quarantined"].values())
    found = audit["events"]["impressions"]
    assert (found["read"], found["outside_split"], found["quarantined"], found["defects"]) == (10_000, 0, {}, [])


def test_every_impression_has_its_time_item_position_and_click(dataset: Path, log: pd.DataFrame) -> None:
    manifest = load_manifest(dataset)
    texts = {}
    for name in ("item_id", "position"):
        entry = next(entry for entry in manifest.fields if entry.name == name)
        table = pq.read_table(dataset / entry.vocabulary)
        texts[name] = dict(zip(table["index"].to_pylist(), table["raw_id"].to_pylist(), strict=True))
    found = sorted(
        (at, texts["item_id"][item], texts["position"][position], click)
        for split in SPLITS
        for at, item, position, click in impressions_in(dataset, split)
    )
    at_ms = (log.timestamp - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(milliseconds=1)
    assert found == sorted(zip(at_ms, log.item_id.astype(int), log.position, log.click, strict=True))


def test_a_context_is_what_one_user_saw_within_half_an_hour(dataset: Path, log: pd.DataFrame) -> None:
    half_hour = log.timestamp.dt.floor("30min")
    wanted = log.groupby([*USER, half_hour]).size()
    rows = [
        len(row)
        for file in load_manifest(dataset).files
        for row in pq.read_table(dataset / file.path, columns=["impression_id"])["impression_id"].to_pylist()
    ]
    assert sorted(rows) == sorted(wanted)  # none is longer than a row
    groups = {
        group
        for file in load_manifest(dataset).files
        for group in pq.read_table(dataset / file.path)["group_id"].to_pylist()
    }
    assert groups == {text_id(text) for text in log.user_feature_0}


def test_a_click_model_is_trained_and_evaluated_on_it(dataset: Path, tmp_path: Path) -> None:
    chosen = compose("train", TrainSettings, [f"data={dataset}", f"out={tmp_path / 'run'}", "model=ctr"])
    settings = tiny_settings(dataset, tmp_path / "run", batch_size=512)
    settings.model = chosen.model
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        evaluate_split(tmp_path / "run", settings, "test", None, world)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert 0 < metrics["ctr_auc"] < 1
    predictions = pq.read_table(tmp_path / "run/predictions/test").to_pandas()
    assert (len(predictions), predictions.click.sum()) == (1_432, 11)
    assert (
        predictions.p_ctr.mean() < 0.5
    )  # 15 steps on 28 clicks: on its way from one half to 0.004, and no further claim
