"""The undisturbed files: a raw log (plain and gzip), its dataset, a run of two epochs with its checkpoints, configurations."""

import shutil
import sys
from pathlib import Path

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.preprocess import preprocess
from training.run.settings import TrainSettings

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2] / "tests" / "support")
)  # where the raw logs of the tests are

from raw_log import random_log

ROOT = Path(__file__).resolve().parents[2]
RAW, GZIP_RAW, DATA, TODAY, RUN, CONF = "raw", "gzip", "data", "today", "run", "conf"


def preprocess_settings_of(raw: Path, out: Path, features: str = "features=aliccp_numeric") -> PreprocessSettings:
    """Return the settings of the dataset."""
    overrides = [f"source.path={raw}", f"out={out}", features, "vocabulary.min_count=1", "split.validation=0.3"]
    overrides += ["rows.max_impressions=8", "rows.impressions_per_file=60", "source.split_bytes=20000"]
    return compose("preprocess", PreprocessSettings, overrides)


def train_settings_of(folder: Path) -> TrainSettings:
    """Return the settings of the run."""
    overrides = [
        f"data={folder / DATA}",
        f"out={folder / RUN}",
        "epochs=2",
        "plan.batch_size=64",
        "plan.lanes=2",
        "embedding.dim=4",
    ]
    overrides += ["model.towers.hidden=[8]", "world.device=cpu", "checkpoint.keep=3"]
    return compose("train", TrainSettings, overrides)


def write_inputs(folder: Path) -> None:
    """Write all that needs no training."""
    random_log(3, num_contexts=14).write(folder / RAW)
    random_log(3, num_contexts=14).write(folder / GZIP_RAW, compressed=True)
    preprocess(preprocess_settings_of(folder / RAW, folder / DATA))
    shutil.copytree(folder / DATA, folder / TODAY)
    for group in ("model", "experiment"):
        (folder / CONF / group).mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "model" / "esmm.yaml", folder / CONF / "model" / "mine.yaml")
    experiment = (
        "# @package _global_\nseed: 5\nepochs: 3\nembedding: {dim: 6, dims: {item_id: 8}}\nplan: {batch_size: 128}\n"
    )
    (folder / CONF / "experiment" / "mine.yaml").write_text(experiment)


def train(folder: Path) -> None:
    """Train the run, to its end; in a process that may load torch."""
    from training.distributed.world import join
    from training.run.trainer import Trainer

    settings = train_settings_of(folder)
    with join(settings.world) as world:
        assert Trainer(settings, world).fit() == 0
