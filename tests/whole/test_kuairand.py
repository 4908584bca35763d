"""A log of KuaiRand's shape: the standard feed to train on, random exposures to test on, by the commands of docs/papers.md.

The real log cannot be fetched here. This one has its files and columns, a feed that shows what users like, and videos
that are shown at random.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny_run import tiny_settings

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.dataset.manifest import SPLITS, load_manifest
from pipeline.preprocess import preprocess
from training.distributed.world import join
from training.run.evaluate import evaluate_split
from training.run.settings import TrainSettings
from training.run.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]
NUM_USERS, NUM_VIDEOS = 60, 40
DAY_MS = 86_400_000
REACTIONS = ("is_like", "is_follow", "is_comment", "is_forward")


class Log(NamedTuple):
    folder: Path
    standard: pd.DataFrame
    random: pd.DataFrame


def exposures(random: np.random.Generator, first_day: str, num_days: int, count: int, is_rand: int) -> pd.DataFrame:
    """Draw exposures; the standard feed prefers what users like, and what users like they click and watch."""
    user = random.integers(0, NUM_USERS, count)
    video = random.integers(0, NUM_VIDEOS, count)
    taste = 4.0 * video / NUM_VIDEOS - 2.0 + 0.3 * (user % 3 - 1)
    keeps = np.ones(count, bool) if is_rand else random.random(count) < 1 / (1 + np.exp(-3 * taste))
    user, video, taste = user[keeps], video[keeps], taste[keeps]
    click = random.random(len(user)) < 1 / (1 + np.exp(-taste))
    view = random.random(len(user)) < 1 / (
        1 + np.exp(-2 * taste)
    )  # also without a click: the next video plays by itself
    start = int(pd.Timestamp(first_day, tz="Asia/Shanghai").timestamp() * 1000)
    at = start + random.integers(0, num_days * DAY_MS, len(user))
    columns = {
        "user_id": user,
        "video_id": video,
        "date": 20220408,
        "hourmin": 1200,
        "time_ms": at,
        "is_click": click.astype(int),
        **{name: (random.random(len(user)) < 0.1).astype(int) for name in REACTIONS},
        "is_hate": 0,
        "long_view": view.astype(int),
        "play_time_ms": 1000,
        "duration_ms": random.integers(3000, 60_000, len(user)),
        "is_rand": is_rand,
        "tab": random.integers(0, 5, len(user)),
    }
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    random = np.random.default_rng(4)
    folder = tmp_path_factory.mktemp("kuairand") / "raw"
    (folder / "impressions").mkdir(parents=True)
    standard = exposures(random, "2022-04-08", 14, 6000, 0)
    shown_at_random = exposures(random, "2022-04-22", 17, 2500, 1)
    standard.to_csv(folder / "impressions/log_standard_4_08_to_4_21_pure.csv", index=False)
    shown_at_random.to_csv(folder / "impressions/log_random_4_22_to_5_08_pure.csv", index=False)
    (folder / "actions.csv").write_text("timestamp,user_id,video_id,action\n")
    users = {"user_id": np.arange(NUM_USERS), "user_active_degree": "full_active", "is_video_author": 0}
    users |= {
        f"{name}_range": "(0,10]" for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    }
    users |= {f"onehot_feat{number}": np.arange(NUM_USERS) % (number + 2) for number in range(4)}
    pd.DataFrame(users).to_csv(folder / "user_features_pure.csv", index=False)
    videos = {"video_id": np.arange(NUM_VIDEOS), "author_id": np.arange(NUM_VIDEOS) // 2, "video_type": "NORMAL"}
    videos |= {
        "upload_type": "ShortImport",
        "music_type": 9.0,
        "tag": [f"{n % 7},{n % 3 + 10}" for n in range(NUM_VIDEOS)],
    }
    pd.DataFrame(videos).to_csv(folder / "video_features_basic_pure.csv", index=False)
    return Log(folder, standard, shown_at_random)


@pytest.fixture(scope="module")
def dataset(spark: object, log: Log) -> Path:
    out = log.folder.parent / "dataset"
    words = [
        "source=kuairand",
        "features=kuairand",
        "labels=engagement",
        f"source.path={log.folder}",
        f"out={out}",
        "vocabulary.min_count=1",
    ]
    preprocess(compose("preprocess", PreprocessSettings, words))
    return out


def test_the_feed_is_trained_on_and_random_exposures_are_tested_on(dataset: Path, log: Log) -> None:
    totals = load_manifest(dataset).totals
    boundary = int(pd.Timestamp("2022-04-20", tz="Asia/Shanghai").timestamp() * 1000)
    wanted = (
        log.standard[log.standard.time_ms < boundary],
        log.standard[log.standard.time_ms >= boundary],
        log.random,
    )
    for split, rows in zip(SPLITS, wanted, strict=True):
        clicked = rows[rows.is_click == 1]
        assert totals[split]["impressions"] == len(rows) > 0
        assert totals[split]["clicks"] == len(clicked)
        assert totals[split]["conversions"] == clicked.long_view.sum(), "a long view counts behind a click"
        assert totals[split]["dactions"] == clicked[list(REACTIONS)].any(axis=1).sum()
    fields = {entry.name: entry for entry in load_manifest(dataset).fields}
    assert fields["video_id"].num_rows == wanted[0].video_id.nunique() + 2
    assert fields["tag"].arity == "many"
    assert fields["tag"].num_rows == 10 + 2


@pytest.mark.parametrize("model", ["esmm", "base"])
def test_a_model_of_the_feed_is_evaluated_where_nothing_was_chosen(model: str, dataset: Path, tmp_path: Path) -> None:
    chosen = compose("train", TrainSettings, [f"data={dataset}", f"out={tmp_path / 'run'}", f"model={model}"])
    settings = tiny_settings(dataset, tmp_path / "run", batch_size=128, epochs=4)
    settings.model = chosen.model
    with join(settings.world) as world:
        Trainer(settings, world).fit()
        evaluate_split(tmp_path / "run", settings, "test", None, world)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["num_impressions"] == 2500
    assert metrics["cvr_auc"] > 0.6, "videos that the feed likes to show are liked here too"
    predictions = pq.read_table(tmp_path / "run/predictions/test").to_pandas()
    assert predictions.p_cvr.between(0, 1).all()
