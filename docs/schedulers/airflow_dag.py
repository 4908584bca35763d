"""An Airflow DAG of the daily chain: one task a stage, each the command of a job. Copy it into the folder of your DAGs.

It needs apache-airflow-providers-standard, which Airflow 3 brings with it.

Set ENTIRESPACE (a Python with this package), RAW (a folder with a folder of each day) and OUT in Airflow's variables. A
day needs the dataset and the run of the day before: `depends_on_past` keeps the order, and `max_active_runs=1` keeps two
days apart. The first day of all begins a vocabulary and a model of its own.
"""

from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import ShortCircuitOperator

PYTHON = "{{ var.value.ENTIRESPACE }}"
RAW, OUT = "{{ var.value.RAW }}", "{{ var.value.OUT }}"
FIRST_DAY = datetime(2017, 5, 6)
TODAY, YESTERDAY = "{{ ds }}", "{{ macros.ds_add(ds, -1) }}"
DATASET, RUN = f"{OUT}/{TODAY}/dataset", f"{OUT}/{TODAY}/run"
BASE, BEFORE = f"{OUT}/{YESTERDAY}/dataset", f"{OUT}/{YESTERDAY}/run"
#: A mistake in the settings or the input ends with 2: to try again would be the same mistake. 99 is Airflow's own.
FAIL_WITHOUT_RETRY = "; status=$?; [ $status -eq 2 ] && exit 99; exit $status"


def command(job: str, *words: str) -> str:
    """Return the command of a job. Words that begin with 'first?' stand there on every day but the first."""
    kept = [word for word in words if not word.startswith("first?")]
    later = " ".join(word.removeprefix("first?") for word in words if word.startswith("first?"))
    optional = f"{{% if ds != '{FIRST_DAY:%Y-%m-%d}' %}} {later}{{% endif %}}" if later else ""
    return f"{PYTHON} -m {job} {' '.join(kept)}{optional}{FAIL_WITHOUT_RETRY}"


def is_not_first_day(ds: str) -> bool:
    """Say whether there is a model of yesterday."""
    return ds != f"{FIRST_DAY:%Y-%m-%d}"


with DAG(
    "entirespace_daily",
    start_date=FIRST_DAY,
    schedule="@daily",
    catchup=True,
    max_active_runs=1,
    default_args={"depends_on_past": True, "retries": 3, "retry_delay": timedelta(minutes=5)},
) as dag:
    preprocess = BashOperator(
        task_id="preprocess",
        bash_command=command(
            "jobs.preprocess", f"source.path={RAW}/{TODAY}", f"out={DATASET}", f"first?vocabulary.base={BASE}"
        ),
        skip_on_exit_code=None,
    )
    has_model = ShortCircuitOperator(
        task_id="yesterday_has_a_model",
        python_callable=is_not_first_day,
        op_kwargs={"ds": "{{ ds }}"},
        ignore_downstream_trigger_rules=False,
    )
    progressive = BashOperator(
        task_id="evaluate_yesterdays_run_on_today",
        bash_command=command("jobs.evaluate", f"run={BEFORE}", f"data={DATASET}", "split=train"),
        skip_on_exit_code=None,
    )
    train = BashOperator(
        task_id="train",
        bash_command=command("jobs.train", f"data={DATASET}", f"out={RUN}", f"first?init_from={BEFORE}"),
        trigger_rule="none_failed",  # on the first day the evaluation of yesterday's run is skipped
        skip_on_exit_code=None,
    )
    evaluate = BashOperator(
        task_id="evaluate", bash_command=command("jobs.evaluate", f"run={RUN}", "split=test"), skip_on_exit_code=None
    )
    score = BashOperator(
        task_id="score_tomorrow",
        bash_command=command(
            "jobs.score",
            f"run={RUN}",
            f"source.path={RAW}/{{{{ macros.ds_add(ds, 1) }}}}",
            f"out={OUT}/{TODAY}/scores",
            "overwrite=true",
        ),
        skip_on_exit_code=None,
    )
    preprocess >> has_model >> progressive >> train >> evaluate >> score
    preprocess >> train
