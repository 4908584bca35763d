"""Dagster assets of the daily chain: a partition a day, each asset the folder that a job writes.

    dagster dev -f dagster_assets.py

RAW and OUT come from the environment. A partition depends on that of the day before, by the dataset's vocabularies and
the run's model. Partitions are made one after the other: limit the concurrency of the tag `entirespace` to 1.
"""

import os
import subprocess
import sys
from datetime import date, timedelta

from dagster import (
    AssetDep,
    AssetExecutionContext,
    DailyPartitionsDefinition,
    Definitions,
    Failure,
    RetryPolicy,
    TimeWindowPartitionMapping,
    asset,
)

FIRST_DAY = "2017-05-06"
DAYS = DailyPartitionsDefinition(start_date=FIRST_DAY)
RAW, OUT = os.environ.get("RAW", "raw"), os.environ.get("OUT", "out")
YESTERDAY = TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
RETRIES = RetryPolicy(max_retries=3, delay=300)


def folder(day: str, what: str) -> str:
    """Return the folder of a day's dataset, run or scores."""
    return f"{OUT}/{day}/{what}"


def before(day: str) -> str:
    """Return the day before; "" for the first one."""
    return "" if day == FIRST_DAY else (date.fromisoformat(day) - timedelta(days=1)).isoformat()


def run_job(context: AssetExecutionContext, job: str, *words: str) -> None:
    """Run a job. A mistake of settings or input (status 2) is not tried again."""
    command = [sys.executable, "-m", job, *words]
    context.log.info(" ".join(command))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    context.log.info(done.stdout + done.stderr)
    if done.returncode:
        raise Failure(done.stderr.strip().splitlines()[-1] if done.stderr else job, allow_retries=done.returncode != 2)


@asset(
    partitions_def=DAYS,
    retry_policy=RETRIES,
    deps=[AssetDep("dataset", partition_mapping=YESTERDAY)],
    op_tags={"dagster/concurrency_key": "entirespace"},
)
def dataset(context: AssetExecutionContext) -> None:
    """The dataset of a day, on the vocabularies of the day before."""
    day = context.partition_key
    base = [f"vocabulary.base={folder(before(day), 'dataset')}"] if before(day) else []
    run_job(context, "jobs.preprocess", f"source.path={RAW}/{day}", f"out={folder(day, 'dataset')}", *base)


@asset(
    partitions_def=DAYS,
    retry_policy=RETRIES,
    deps=[AssetDep("dataset"), AssetDep("model", partition_mapping=YESTERDAY)],
    op_tags={"dagster/concurrency_key": "entirespace"},
)
def model(context: AssetExecutionContext) -> None:
    """The run of a day, trained on from that of the day before, after this has been evaluated on the day."""
    day = context.partition_key
    data, out = folder(day, "dataset"), folder(day, "run")
    if before(day):
        earlier = folder(before(day), "run")
        run_job(context, "jobs.evaluate", f"run={earlier}", f"data={data}", "split=train")
        run_job(context, "jobs.train", f"data={data}", f"out={out}", f"init_from={earlier}")
    else:
        run_job(context, "jobs.train", f"data={data}", f"out={out}")
    run_job(context, "jobs.evaluate", f"run={out}", "split=test")


@asset(
    partitions_def=DAYS,
    retry_policy=RETRIES,
    deps=[AssetDep("model")],
    op_tags={"dagster/concurrency_key": "entirespace"},
)
def scores(context: AssetExecutionContext) -> None:
    """The scores of the next day's log by the model of this one."""
    day = context.partition_key
    tomorrow = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    run_job(
        context,
        "jobs.score",
        f"run={folder(day, 'run')}",
        f"source.path={RAW}/{tomorrow}",
        f"out={folder(day, 'scores')}",
        "overwrite=true",
    )


defs = Definitions(assets=[dataset, model, scores])
