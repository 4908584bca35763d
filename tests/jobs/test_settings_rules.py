"""Values that no setting may have: each is refused before anything starts, by a sentence with the key and the value."""

import copy
import importlib
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import jobs
from jobs.command_line import settings_of
from jobs.entry import _composed, compose, to_settings
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
    "world.towers=all", "world.deterministic=2", "sharding.exchange=nccl", "sharding.plan=auto",
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


#: What each job needs to be composed.
NEEDED = {
    "compare": ["runs=[a,b]"],
    "demo": [],
    "evaluate": ["run=r"],
    "export": ["run=r", "out=o"],
    "gbdt": ["data=d", "out=o"],
    "inspect": ["data=d"],
    "pipeline": ["out=o", "raw=r"],
    "plan": ["data=d", "cluster=2x8xH100"],
    "preprocess": ["source.path=d", "out=o", "source=events"],
    "reproduce": ["table=esmm2", "data=d", "out=o"],
    "score": ["run=r", "out=o", "data=d"],
    "submit": ["cluster=slurm", "out=o", "data=d"],
    "simulate": ["out=o", "impressions=1000"],
    "track": ["run=r", "uri=http://127.0.0.1:5000"],
    "train": ["data=d", "out=o"],
}
NO_VALUE_OF: dict[type, list[Any]] = {
    int: [1.5, True, 10**20, -1],
    float: [math.nan, math.inf, "x", -1.0],
    bool: [2, "x"],
}
#: Checked where the environment of torchrun is known: `training.distributed.torchrun.starts_ranks`.
LATER = {("train", "ranks", -1), ("evaluate", "ranks", -1)}


@cache
def schema_of(job: str) -> Any:
    """Return the dataclass that jobs/<job>.py gives to `launch`."""
    source = (Path(jobs.__file__).parent / f"{job}.py").read_text()
    name = re.search(r'launch\("\w+", (\w+),', source)
    return getattr(importlib.import_module(f"jobs.{job}"), name[1]) if name else None


def test_every_job_is_walked() -> None:
    files = {path.stem for path in Path(jobs.__file__).parent.glob("*.py")}
    assert {job for job in files if schema_of(job)} == set(NEEDED) & files


@pytest.mark.parametrize("job", [job for job in NEEDED if (Path(jobs.__file__).parent / f"{job}.py").exists()])
def test_no_number_and_no_switch_of_a_job_takes_just_anything(job: str) -> None:
    schema = schema_of(job)
    config = _composed(job, schema, NEEDED[job], None)
    to_settings(schema, config)
    found, of_train = [], {setting.key for setting in settings_of(TrainSettings)} if job == "plan" else set()
    for setting in settings_of(schema):
        if setting.type not in NO_VALUE_OF or setting.key in of_train:
            continue
        *groups, leaf = setting.key.split(".")
        for value in NO_VALUE_OF[setting.type]:
            changed = copy.deepcopy(config)
            group = changed
            for name in groups:
                group = group.get(name) or {}
            if leaf not in group or (job, setting.key, value) in LATER:
                continue  # of an optional group that this command does not choose
            group[leaf] = value
            try:
                to_settings(schema, changed)
                found.append(f"{setting.key}={value} is taken")
            except InputError as refused:
                if leaf not in str(refused) or "\n" in str(refused):
                    found.append(f"{setting.key}={value}: {refused}")
    assert not found
