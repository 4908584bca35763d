"""Values that no setting may have: each is refused before anything starts, by a sentence with the key and the value."""

import pytest

from jobs.entry import compose
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from training.run.settings import TrainSettings

REFUSED = [
    *[f"optimizer.{group}.{name}={value}" for group in ("towers", "embeddings") for name in ("lr", "eps")
      for value in ("-1", "0", "nan", "inf", "1e300", "true", "x", "null")],
    "optimizer.towers.betas=[0.9]", "optimizer.towers.betas=[0.9,1.0]", "optimizer.towers.betas=[0.9,nan]",
    "optimizer.towers.clip_norm=nan", "optimizer.embeddings.name=adamw", "embedding.dim=0", "embedding.dim=1000000000",
    "embedding.dim=true", "embedding.dim=1.5", "embedding.dim=99999999999999999999", "embedding.init_bound=-1",
    "model.towers.hidden=[0]", "model.towers.hidden=[1000000000]", "feed.threads=0", "feed.threads=1000000000",
    "feed.batches_ahead=1000000000", "feed.verify=none", "feed.decoder=none", "world.device=tpu", "world.timeout_s=0",
    "world.timeout_s=nan", "world.timeout_s=1e12", "seed=-1", "seed=true", "plan.seed=-1", "log.line_every_s=-1",
    "log.line_every_s=nan", "checkpoint.every_minutes=nan", "checkpoint.asynchronous=2", "epochs=inf", "data=", "out=",
    "init_from=", "validation.split=", "precision=", "model.train_on=rows", "model.sampling.unclicked=-1",
    "model.sampling.clicked=nan", "model.sampling.converted=1e9", "model.sampling.by_p_ctr=x", "model.sampling.clip=0.5",
    "model.sampling.by_p_ctr=weigh", "ctr_run=RUN",
    "average.kind=ema", "average.power=-1", "average.power=nan",
    "average.power=1e9", "average.snapshots=0", "average.snapshots=1.5", "average.snapshots=99999999",
]  # fmt: skip
REFUSED_BY_PREPROCESS = [
    "source.path=", "out=", "vocabulary.base=", "vocabulary.min_count=0", "vocabulary.max_ids=0", "seed=-1", "overwrite=2",
    "grace_hours=nan", "grace_hours=-1", "split.validation=nan", "audit.leakage_auc=nan", "labels.daction=['']",
    "rows.max_impressions=true", "source.split_bytes=0", "source.split_bytes=99999999999999999999",
]  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_a_training_setting_outside_its_rule_is_refused(override: str) -> None:
    with pytest.raises(InputError) as refused:
        compose("train", TrainSettings, ["data=d", "out=o", override])
    assert override.partition("=")[0].rpartition(".")[2] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("override", REFUSED_BY_PREPROCESS)
def test_a_preprocessing_setting_outside_its_rule_is_refused(override: str) -> None:
    with pytest.raises(InputError) as refused:
        compose("preprocess", PreprocessSettings, ["source.path=d", "out=o", override])
    assert override.partition("=")[0].rpartition(".")[2] in str(refused.value)
    assert "\n" not in str(refused.value)
