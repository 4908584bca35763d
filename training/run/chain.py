"""jobs.pipeline: preprocess → train → evaluate → score, export; or that day after day, with progressive validation.

    day 1   dataset ─ train ─ run
    day 2   dataset on day 1's vocabularies ─ evaluate day 1's run on it ─ train from day 1's run ─ run
    day 3   …                                 the score of a model on a day that it has not seen: days.json

Each evaluation comes before the model is trained on that day (test, then train), so every impression is predicted by a
model that has not seen it, as in production.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline.atomic_files import write_whole
from pipeline.dataset.manifest import SPLITS
from pipeline.errors import InputError, writing
from pipeline.locations import refuse_address
from pipeline.plain_settings import words_of_setting
from pipeline.terminal import close_job
from training.checkpoint.files import checkpoint_paths
from training.run.stages import Ledger, Stage, run_stages

DAYS_FILE = "days.json"
#: Columns of the table over days: the heading, and the keys of metrics.json.
_SHOWN = (("CTR", "ctr"), ("CVR", "cvr"), ("CTCVR", "ctcvr"))


@dataclass
class ChainSettings:
    """conf/pipeline.yaml. The *_args are further settings of a job, as on its command line: train_args='model=esm2 ranks=2'."""

    raw: str = MISSING  # the raw log; with days, the folder that holds a folder of each day
    out: str = MISSING  # of everything: dataset, run, scores, export, pipeline.json
    days: list[str] = field(default_factory=list)  # folders below raw, in the order of time; each goes on from the last
    progressive_split: str = "train"  # of a day, that yesterday's model predicts before it is trained on the day
    score: str | None = None  # a raw log, labels not needed, that the last run scores
    export: bool = False  # write the last run as a folder that serves requests
    preprocess_args: str = ""
    train_args: str = ""
    evaluate_args: str = ""
    score_args: str = ""
    export_args: str = ""

    def __post_init__(self) -> None:
        refuse_address("out", self.out)
        if self.progressive_split not in SPLITS:
            raise InputError(f"progressive_split={self.progressive_split} is not one of {', '.join(SPLITS)}.")
        for day in self.days:
            if not day or "/" in day or day.startswith("."):
                raise InputError(
                    f"days has {day!r}, which is no name of a folder below raw; give names such as 2017-05-06."
                )
        if len(set(self.days)) < len(self.days):
            raise InputError(f"days={list(self.days)} names a day twice; give each once, in the order of time.")
        for name in ("preprocess_args", "train_args", "evaluate_args", "score_args", "export_args"):
            self.words_of(name)

    def words_of(self, name: str) -> tuple[str, ...]:
        """Return the words of one of the *_args. Raises InputError where they cannot be read, or hold a secret."""
        return words_of_setting(name, getattr(self, name))


@dataclass(frozen=True)
class ChainFolders:
    """The folders of one day, or of a chain without days."""

    raw: str
    folder: Path
    own_dataset: str = ""  # a dataset elsewhere; "": that of the chain

    @property
    def dataset(self) -> str:
        return self.own_dataset or str(self.folder / "dataset")

    @property
    def run(self) -> str:
        return str(self.folder / "run")


def run_chain(settings: ChainSettings) -> None:
    """Run the stages that are not done, then print the figures; InputError if a stage fails."""
    out = Path(settings.out)
    with writing(f"out={out}"):
        out.mkdir(parents=True, exist_ok=True)
    ledger, started = Ledger(out), time.monotonic()
    run_stages(daily_stages(settings) if settings.days else single_stages(settings), ledger)
    if settings.days:
        print(f"\n{days_table(json.loads((out / DAYS_FILE).read_text(encoding='utf-8'))['days'])}", flush=True)
    last = out / settings.days[-1] if settings.days else out
    pages = [str(last / page) for page in ("dataset/audit.html", "run/report.html")]
    close_job("pipeline", str(out), time.monotonic() - started, pages=[page for page in pages if Path(page).exists()])


def single_stages(settings: ChainSettings) -> Iterator[Stage]:
    """Yield the stages of a chain without days. The next one is made when the one before it is done."""
    place = ChainFolders(settings.raw, Path(settings.out))
    yield preprocess_stage(settings, "preprocess", place)
    yield train_stage(settings, "train", place)
    yield evaluation_stage(settings, "evaluate", place)
    yield from _last_stages(settings, place)


def daily_stages(settings: ChainSettings) -> Iterator[Stage]:
    """Yield the stages of every day. The next one is made when the one before it is done."""
    out = Path(settings.out)
    before: ChainFolders | None = None
    found: list[dict[str, Any]] = []
    for day in settings.days:
        place = ChainFolders(f"{settings.raw.rstrip('/')}/{day}", out / day)
        yield preprocess_stage(settings, f"preprocess {day}", place, before)
        entry: dict[str, Any] = {"day": day}
        if before:
            stage = evaluation_stage(settings, f"evaluate yesterday's run on {day}", before, place)
            yield stage
            entry["progressive"] = json.loads(Path(stage.output).read_text(encoding="utf-8"))
        yield train_stage(settings, f"train {day}", place, before)
        stage = evaluation_stage(settings, f"evaluate {day}", place)
        yield stage
        entry["test"] = json.loads(Path(stage.output).read_text(encoding="utf-8"))
        found.append(entry)
        content = {"progressive_split": settings.progressive_split, "days": found}
        with writing(f"out={out}"):
            write_whole(out / DAYS_FILE, json.dumps(content, indent=1) + "\n")
        before = place
    assert before is not None, "days is not empty"
    yield from _last_stages(settings, before)


def preprocess_stage(
    settings: ChainSettings, name: str, place: ChainFolders, before: ChainFolders | None = None
) -> Stage:
    """Make the dataset of `place`, on the vocabularies of the day `before`."""
    words = [f"source.path={place.raw}", f"out={place.dataset}"]
    words += [f"vocabulary.base={before.dataset}"] if before else []
    words += [
        with_day(word, place.folder.name) if settings.days else word for word in settings.words_of("preprocess_args")
    ]
    inputs = (place.raw, before.dataset) if before else (place.raw,)
    return Stage(name, "jobs.preprocess", tuple(words), inputs, place.dataset)


def train_stage(settings: ChainSettings, name: str, place: ChainFolders, before: ChainFolders | None = None) -> Stage:
    """Train on the dataset of `place`, from the run of the day `before`."""
    words = [f"data={place.dataset}", f"out={place.run}"]
    words += [f"init_from={before.run}"] if before else []
    inputs = (place.dataset, before.run) if before else (place.dataset,)
    return Stage(name, "jobs.train", (*words, *settings.words_of("train_args")), inputs, place.run)


def evaluation_stage(settings: ChainSettings, name: str, place: ChainFolders, on: ChainFolders | None = None) -> Stage:
    """Evaluate the run of `place` on its own test split, or on the day `on` before that is trained on."""
    words = [f"run={place.run}", f"split={settings.progressive_split if on else 'test'}"]
    words += [f"data={on.dataset}"] if on else []
    output = on.folder / "progressive.json" if on else place.folder / "test.json"
    inputs = (place.run, on.dataset if on else place.dataset)
    words += settings.words_of("evaluate_args")
    return Stage(name, "jobs.evaluate", tuple(words), inputs, str(output), metrics_of=place.run)


def _last_stages(settings: ChainSettings, place: ChainFolders) -> Iterator[Stage]:
    """Yield what is done with the last run: scores of a log, and a folder that serves requests."""
    out = Path(settings.out)
    if settings.score:
        yield score_stage(settings, place, settings.score, out / "scores")
    if settings.export:
        exported = str(out / "export" / checkpoint_paths(Path(place.run))[0].name)
        words = [f"run={place.run}", f"out={exported}", *settings.words_of("export_args")]
        yield Stage("export", "jobs.export", tuple(words), (place.run,), exported)


def score_stage(settings: ChainSettings, place: ChainFolders, raw: str, scores: Path) -> Stage:
    """Score the raw log `raw` with the run of `place`."""
    words = [f"run={place.run}", f"source.path={raw}", f"out={scores}", "overwrite=true"]
    return Stage("score", "jobs.score", (*words, *settings.words_of("score_args")), (place.run, raw), str(scores))


def with_day(word: str, day: str) -> str:
    """Replace {day} in a word by the day, and {day+1}, {day-7} and so on by another, where days are dates as 2017-05-06."""

    def other(match: re.Match[str]) -> str:
        if not match[1]:
            return day
        try:
            return (date.fromisoformat(day) + timedelta(days=int(match[1]))).isoformat()
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{word} needs days that are dates, and days has {day}; call the folders as in 2017-05-06."
            ) from error

    return re.sub(r"\{day([+-][0-9]{1,4})?\}", other, word)


def days_table(days: Sequence[Mapping[str, Any]]) -> str:
    """Format the progressive validation: a row a day, the figures of yesterday's model on it, then those of its own on test."""
    headings = [f"{task} AUC" for task, _ in _SHOWN] + [f"{task} p/y" for task, _ in _SHOWN]
    lines = [f"{'yesterday’s model on':<22}{'impressions':>12}" + "".join(f"{text:>11}" for text in headings)]
    for kind, what in (("progressive", ""), ("test", " (own, test)")):
        for entry in days:
            if kind not in entry:
                continue
            figures = entry[kind]
            keys = [f"{name}_auc" for _, name in _SHOWN] + [f"{name}_calibration" for _, name in _SHOWN]
            cells = [f"{figures[key]:.4f}" if isinstance(figures.get(key), float) else "–" for key in keys]
            lines.append(
                f"{entry['day'] + what:<22}{figures.get('num_impressions', 0):>12,}"
                + "".join(f"{cell:>11}" for cell in cells)
            )
    return "\n".join(lines)
