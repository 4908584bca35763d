"""An Airflow DAG of the daily chain: one task a stage, each the command of a job. Copy it into the folder of your DAGs.

It needs apache-airflow-providers-standard, which Airflow 3 brings with it. Set ENTIRESPACE (a Python with this package),
RAW (a folder with a folder of each day) and OUT in Airflow's variables. A day needs the dataset and the run of the day
before: `depends_on_past` keeps the order, and `max_active_runs=1` keeps two days apart. The first day of all begins a
vocabulary and a model of its own.
"""

import subprocess
from datetime import datetime, timedelta

from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.providers.standard.operators.python import PythonOperator

PYTHON, RAW, OUT = "{{ var.value.ENTIRESPACE }}", "{{ var.value.RAW }}", "{{ var.value.OUT }}"
FIRST_DAY = datetime(2017, 5, 6)
TODAY, YESTERDAY, TOMORROW = "{{ ds }}", "{{ macros.ds_add(ds, -1) }}", "{{ macros.ds_add(ds, 1) }}"
DATASET, RUN = f"{OUT}/{TODAY}/dataset", f"{OUT}/{TODAY}/run"
BASE, BEFORE = f"{OUT}/{YESTERDAY}/dataset", f"{OUT}/{YESTERDAY}/run"


def run_job(
    python: str, job: str, words: list[str], words_from_day_2: list[str], only_from_day_2: bool, day: str
) -> None:
    """Run a job; a mistake of settings or input (status 2) fails at once, anything else is tried again."""
    is_first = day == f"{FIRST_DAY:%Y-%m-%d}"
    if is_first and only_from_day_2:
        raise AirflowSkipException("There is no model of yesterday.")
    command = [python, "-m", job, *words, *([] if is_first else words_from_day_2)]
    print(" ".join(command), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status == 2:
        raise AirflowFailException(f"{job} has found a mistake in its settings or input; its message stands above.")
    if status != 0:
        raise AirflowException(f"{job} ended with status {status}.")


def stage(task_id: str, job: str, *words: str, later: tuple[str, ...] = (), skip_first: bool = False) -> PythonOperator:
    """Make the task of a job; the words `later` stand in its command on every day but the first."""
    arguments = [PYTHON, job, list(words), list(later), skip_first, TODAY]
    # Where the evaluation of yesterday's run is skipped, what comes after it is not.
    return PythonOperator(task_id=task_id, python_callable=run_job, op_args=arguments, trigger_rule="none_failed")


with DAG(
    "entirespace_daily",
    start_date=FIRST_DAY,
    schedule="@daily",
    catchup=True,
    max_active_runs=1,
    default_args={"depends_on_past": True, "retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    preprocess = stage(
        "preprocess",
        "jobs.preprocess",
        f"source.path={RAW}/{TODAY}",
        f"out={DATASET}",
        later=(f"vocabulary.base={BASE}",),
    )
    progressive = stage(
        "evaluate_yesterdays_run", "jobs.evaluate", f"run={BEFORE}", f"data={DATASET}", "split=train", skip_first=True
    )
    train = stage("train", "jobs.train", f"data={DATASET}", f"out={RUN}", later=(f"init_from={BEFORE}",))
    evaluate = stage("evaluate", "jobs.evaluate", f"run={RUN}", "split=test")
    score = stage(
        "score_tomorrow", "jobs.score", f"run={RUN}", f"source.path={RAW}/{TOMORROW}", f"out={OUT}/{TODAY}/scores",
        "overwrite=true",
    )  # fmt: skip
    preprocess >> progressive >> train >> evaluate >> score
