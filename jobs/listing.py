"""Every job, in the order of use: what it does in a line, an example, and where its settings are.

`entirespace --help`, the help of a job and the completion of a shell read this list. It imports no job, so that none of
them waits for Spark or torch.
"""

import importlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml  # type: ignore[import-untyped]

import conf

CONF = Path(conf.__file__).parent


class JobEntry(NamedTuple):
    """A job."""

    name: str  # jobs/NAME.py and conf/NAME.yaml
    about: str
    example: str  # the words behind its name
    settings: str  # module:class

    @property
    def schema(self) -> type[Any]:
        """The dataclass of its settings; loads no torch and no Spark."""
        module, _, name = self.settings.partition(":")
        return cast(type[Any], getattr(importlib.import_module(module), name))


JOBS = (
    JobEntry(
        "demo",
        "Simulate a log, preprocess it with Spark, train on two ranks, evaluate; reuse what is finished.",
        "out=demo",
        "training.run.demo:DemoSettings",
    ),
    JobEntry(
        "simulate",
        "Write raw logs, in Ali-CCP's layout or as the tables of a shop, with the true probabilities beside them.",
        "out=RAW impressions=1000000 seed=1",
        "pipeline.simulate.run:SimulateSettings",
    ),
    JobEntry(
        "preprocess",
        "Turn raw logs into a dataset of context rows, in Spark. docs/dataset.md says what it writes.",
        "source=aliccp source.path=RAW out=DATASET",
        "pipeline.config.preprocess:PreprocessSettings",
    ),
    JobEntry(
        "inspect",
        "Show what a dataset holds, and its first rows with raw ids.",
        "data=DATASET split=train rows=3",
        "jobs.inspect:InspectSettings",
    ),
    JobEntry(
        "plan",
        "Tell whether a training run fits a cluster that is not here; takes every setting of train.",
        "data=DATASET cluster=8x8xH100 rows.user_id=48000000",
        "training.planning.settings:FeasibilitySettings",
    ),
    JobEntry(
        "train",
        "Train a model of the behaviour graph on a dataset; ranks=N starts several ranks of this host.",
        "ranks=2 data=DATASET model=esmm out=RUN",
        "training.run.settings:TrainSettings",
    ),
    JobEntry(
        "evaluate",
        "Predict a split with a trained run; write RUN/predictions, RUN/metrics.json and RUN/report.html.",
        "run=RUN split=test",
        "jobs.evaluate:EvaluateSettings",
    ),
    JobEntry(
        "compare",
        "Put evaluated runs side by side, with the significance of each difference; write OUT.md and OUT.html.",
        "runs=[RUN1,RUN2] split=test out=comparison",
        "jobs.compare:CompareSettings",
    ),
    JobEntry(
        "score",
        "Write pCTR, pCTAVR, pCVR and pCTCVR of a raw log without labels, or of a dataset, in Spark, by a trained run.",
        "run=RUN source=aliccp source.path=RAW out=SCORES",
        "pipeline.config.score:ScoreSettings",
    ),
    JobEntry(
        "export",
        "Write a folder that scores requests without this project, after comparing it with the feed.",
        "run=RUN out=EXPORT",
        "training.export.settings:ExportSettings",
    ),
    JobEntry(
        "pipeline",
        "Preprocess, train, evaluate, and score or export, on this machine; day after day with days=[…].",
        "raw=RAW out=OUT train_args='model=esm2 ranks=2'",
        "training.run.chain:ChainSettings",
    ),
    JobEntry(
        "submit",
        "Give the same chain to Slurm as batch jobs, or write it as manifests of Kubernetes (docs/clusters.md).",
        "cluster=slurm raw=RAW out=OUT train_args='model=esm2' sizes.train.nodes=2",
        "training.submission.settings:SubmitSettings",
    ),
    JobEntry(
        "track",
        "Put a run on an MLflow server: settings, log, evaluations, reports and an export.",
        "run=RUN uri=http://127.0.0.1:5000",
        "jobs.track:TrackSettings",
    ),
    JobEntry(
        "gbdt",
        "Fit ESM²'s GBDT competitor with XGBoost (an optional extra), predict a split and evaluate it.",
        "data=DATASET out=RUN target=cvr",
        "training.gbdt.settings:GbdtSettings",
    ),
    JobEntry(
        "reproduce",
        "Fill a table of the papers on a dataset of yours: train what is missing, write OUT/tables/TABLE.md and .html.",
        "table=esmm2 data=DATASET out=OUT",
        "training.reproduction.settings:ReproduceSettings",
    ),
)


def job_named(name: str) -> JobEntry:
    """Return the entry of a job; KeyError for another name."""
    return {job.name: job for job in JOBS}[name]


class Choice(NamedTuple):
    """A file of a group."""

    name: str
    about: str  # the sentence that the file begins with; "" where it has none
    is_default: bool


def groups_of(job: str) -> dict[str, str | None]:
    """Return the groups of a job, in the order of its defaults list, and the file that is chosen of each; None for no file."""
    defaults = yaml.load(
        resources.files("conf").joinpath(f"{job}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader
    )["defaults"]
    return {group: name for entry in defaults if isinstance(entry, dict) for group, name in entry.items()}


def choices_of(job: str, folders: tuple[Path, ...] = ()) -> dict[str, list[Choice]]:
    """Return the groups of a job with the files of each, in conf/ and in `folders`."""
    return {
        group: [
            Choice(path.stem, first_sentence_of(path), path.stem == name)
            for folder in (CONF, *folders)
            for path in sorted(folder.glob(f"{group}/*.yaml"))
        ]
        for group, name in groups_of(job).items()
    }


def first_sentence_of(path: Path) -> str:
    """Return the first sentence of the comment at the head of a file."""
    text = " ".join(_head_comment(path))
    end = text.find(". ", 12)  # behind an abbreviation at its beginning
    return text[:end] if end > 0 else text.rstrip(".:")


def _head_comment(path: Path) -> Iterator[str]:
    for line in _text_of_file(path).splitlines():
        body, _, comment = line.partition("#")
        if body.strip():
            if not line.startswith("defaults"):
                yield from [comment.strip()] * bool(comment)
            return
        if comment and not comment.strip().startswith("@"):
            yield comment.strip()


def _text_of_file(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
