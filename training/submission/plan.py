"""What is submitted: the stages that are not done, in their order, once or for each seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.plain_settings import words_of_setting
from training.run.chain import ChainFolders, ChainSettings, evaluation_stage, preprocess_stage, score_stage, train_stage
from training.run.stages import Ledger, Stage
from training.submission.settings import SubmitSettings, absolute_path

#: In the words of a stage of several seeds: the seed. No word can hold it, for a NUL is refused.
SEED_MARK = "\0"
#: They run in Spark.
SPARK_JOBS = ("jobs.preprocess", "jobs.score")


@dataclass(frozen=True)
class BatchJob:
    """A stage as a job of the cluster."""

    stage: Stage  # its words, inputs and output may hold SEED_MARK
    ledger: str  # the folder of pipeline.json; it may hold SEED_MARK
    tasks: tuple[int, ...] = ()  # of an array: the seeds, or numbers of equal commands; (): no array
    follows_its_own: bool = False  # task N waits for task N of the job before alone

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def has_ledger(self) -> bool:
        """Whether the stage is noted when it is done; jobs.reproduce notes its own."""
        return self.stage.job != "jobs.reproduce"

    def of_seed(self, seed: int) -> Stage:
        """Return the stage of one seed."""
        stage, number = self.stage, str(seed)
        return Stage(
            stage.name,
            stage.job,
            tuple(word.replace(SEED_MARK, number) for word in stage.words),
            tuple(place.replace(SEED_MARK, number) for place in stage.inputs),
            stage.output.replace(SEED_MARK, number),
            stage.metrics_of.replace(SEED_MARK, number),
        )


def plan_jobs(settings: SubmitSettings) -> list[BatchJob]:
    """List the jobs, each after the one before it; what is done and unchanged is left out.

    The paths of `settings` are absolute. What pods have done cannot be seen from here, so there nothing is left out.
    """
    chain, out = _chain_of(settings), Path(settings.out)
    jobs: list[BatchJob] = []
    if settings.raw:
        stage = preprocess_stage(chain, "preprocess", ChainFolders(settings.raw, out))
        jobs.append(BatchJob(stage, settings.out))
    dataset = settings.data or str(out / "dataset")
    if settings.table:
        jobs.append(_table_job(settings, dataset))
    else:
        jobs += _jobs_of_runs(settings, dataset)
    return _without_done(jobs) if settings.cluster == "slurm" else jobs


def _jobs_of_runs(settings: SubmitSettings, dataset: str) -> list[BatchJob]:
    chain = _chain_of(settings)
    folder = Path(settings.out) / f"seed-{SEED_MARK}" if settings.seeds else Path(settings.out)
    place = ChainFolders(settings.raw or "", folder, dataset)
    stages = [train_stage(chain, "train", place), evaluation_stage(chain, "evaluate", place)]
    if settings.score:
        stages.append(score_stage(chain, place, settings.score, folder / "scores"))
    if settings.seeds:
        words = (*stages[0].words, f"seed={SEED_MARK}", f"plan.seed={SEED_MARK}")
        stages[0] = Stage("train", stages[0].job, words, stages[0].inputs, stages[0].output)
    tasks = tuple(range(1, settings.seeds + 1))
    return [BatchJob(stage, str(folder), tasks, bool(tasks) and stage.name != "train") for stage in stages]


def _chain_of(settings: SubmitSettings) -> ChainSettings:
    """Return the settings of the chain; Spark takes all CPUs of its node, unless the *_args say where it runs."""
    chain = settings.chain()
    arguments: dict[str, Any] = {}
    for key in ("preprocess_args", "score_args"):
        if not any(word.startswith(("spark=", "spark.master=")) for word in chain.words_of(key)):
            arguments[key] = f"spark.master=local[{settings.sizes.spark.cpus}] {getattr(chain, key)}"
    return replace(chain, **arguments)


def _table_job(settings: SubmitSettings, dataset: str) -> BatchJob:
    tables = str(Path(settings.out) / "tables")
    words = [
        f"table={settings.table}",
        f"data={dataset}",
        f"out={tables}",
        *words_of_setting("table_args", settings.table_args),
    ]
    # The ledger of the table is of each of its runs (training.reproduction.trials), and the page says that all are done.
    stage = Stage("table", "jobs.reproduce", tuple(words), (dataset,), f"{tables}/tables/{settings.table}.md")
    return BatchJob(stage, tables, tuple(range(1, settings.table_jobs + 1)))


def _without_done(jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """Leave out the first stages, as far as they are done for all seeds; what follows checks that on its node."""
    left: list[BatchJob] = []
    for job in jobs:
        if left or not job.has_ledger or not _is_done(job):
            left.append(job)
    return left


def _is_done(job: BatchJob) -> bool:
    seeds = job.tasks or (0,)
    return all(Ledger(Path(job.ledger.replace(SEED_MARK, str(seed)))).is_done(job.of_seed(seed)) for seed in seeds)


def with_absolute_paths(settings: SubmitSettings) -> SubmitSettings:
    """Return the settings with every path from the root: the jobs may start in another folder."""
    given = {key: getattr(settings, key) for key in ("out", "raw", "data", "score")}
    places: dict[str, Any] = {key: absolute_path(path) for key, path in given.items() if path}
    return replace(settings, **places)
