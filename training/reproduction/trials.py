"""The runs of a table: their folders, their commands, and which of them are finished.

    OUT/runs/esmm-aman/model.sampling.unclicked-0.1/seed-1/run/   one trial: a system, its searched values, a seed
                                                    …/validation.json, test.json, test.ctr.json, cost.json, pipeline.json

Tables share the trials, and a trial is what a user would type: jobs.train, then jobs.evaluate.
"""

import json
import re
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic_files import write_whole
from pipeline.errors import InputError, writing
from training.reproduction.settings import ReproduceSettings
from training.run.stages import Ledger, Stage, run_stages
from training.run.systems import GBDT_JOB, System

COST = "cost.json"
#: Splits of which UNBIAS needs pCTR: what it trains on, and what it is validated on.
_SPLITS_OF_P_CTR = ("train", "validation")
#: The settings of a CTR network that its model stands for.
_NAMED_BY_MODEL = ("model", "experiment", "target")


@dataclass(frozen=True)
class Trial:
    """A system, trained with one seed."""

    system: System
    words: tuple[str, ...]  # the searched values
    seed: int
    folder: Path
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        return " ".join((self.folder.relative_to(self.folder.parents[2]).parts[0], *self.words, f"seed {self.seed}"))

    @property
    def missing(self) -> list[Stage]:
        """The stages that have not run with these settings and inputs."""
        ledger = Ledger(self.folder)
        return [stage for stage in self.stages if not ledger.is_done(stage)]


def ctr_system(system: System) -> System | None:
    """Return the CTR network whose pCTR `system` takes, as a system of its own; None for one that predicts pCTCVR itself."""
    if not system.ctr:
        return None
    network = System("", system.paper, system.ctr, "log loss of pCTR over all impressions", job=system.job)
    others = (word for word in system.ctr if word.partition("=")[0] not in _NAMED_BY_MODEL)
    name = " ".join((network.model or "gbdt_ctr", *others))
    return System(name, network.paper, network.settings, network.equation, job=network.job)


class Trials:
    """Makes the trials of a command."""

    def __init__(self, settings: ReproduceSettings, data: str, prefix: str = "", splits: Iterable[str] = ()) -> None:
        """Take the dataset `data`; its runs' folders begin with `prefix`."""
        self._settings, self._data, self._prefix = settings, data, prefix
        self._splits_of_p_ctr = tuple(split for split in _SPLITS_OF_P_CTR if split in splits)

    def searched(self, system: System, words: Sequence[str], seed: int, ctr: Trial | None = None) -> Trial:
        """Return the trial of one candidate: trained, and evaluated on validation."""
        trial = self._trained(system, words, seed, ctr)
        stage = self._evaluation(trial, "validation", None, "validation.json")
        return _with(trial, stage)

    def tested(
        self,
        system: System,
        words: Sequence[str],
        seed: int,
        ctr: Trial | None = None,
        slices: Sequence[str] = (),
    ) -> Trial:
        """Return the trial of a row: trained, and evaluated on test, with pCTR of `ctr`, and in parts by `slices`."""
        trial = self._trained(system, words, seed, ctr)
        if system.job == GBDT_JOB:
            return trial
        output = ".".join(("test", *slices, *(["ctr"] if ctr else []), "json"))
        return _with(trial, self._evaluation(trial, "test", ctr, output, slices))

    def ctr(self, system: System, words: Sequence[str], seed: int, predicts: bool) -> Trial:
        """Return the trial of a CTR network; `predicts` what UNBIAS trains on."""
        trial = self._trained(system, words, seed, None)
        for split in self._splits_of_p_ctr if predicts else ():
            trial = _with(trial, self._evaluation(trial, split, None, f"run/metrics.{split}.json"))
        return trial

    def _trained(self, system: System, words: Sequence[str], seed: int, ctr: Trial | None) -> Trial:
        name = f"{self._prefix}{folder_name(f'{system.paper} {system.name}')}"
        folder = (
            Path(self._settings.out) / "runs" / name / ("_".join(words).replace("=", "-") or "as-is") / f"seed-{seed}"
        )
        run, ctr_run = folder / "run", str(ctr.folder / "run") if ctr else ""
        given = [f"data={self._data}", f"out={run}", *system.settings, *words]
        if system.job == GBDT_JOB:
            given += [f"seed={seed}", *([f"ctr_run={ctr_run}"] if ctr else []), *self._settings.arguments("gbdt_args")]
            inputs = (self._data, *([f"{ctr_run}/metrics.test.json"] if ctr else []))
            stage = Stage("trees", system.job, tuple(given), inputs, str(run / "metrics.test.json"))
        else:
            given += [f"seed={seed}", f"plan.seed={seed}", *self._settings.arguments("train_args")]
            takes_ctr = ctr is not None and system.trains_with_ctr_run
            given += [f"ctr_run={ctr_run}"] if takes_ctr else []
            inputs = (self._data, *([ctr_run] if takes_ctr else []))
            stage = Stage("train", system.job, tuple(given), inputs, str(run))
        return Trial(system, tuple(words), seed, folder, (stage,))

    def _evaluation(
        self, trial: Trial, split: str, ctr: Trial | None, output: str, slices: Sequence[str] = ()
    ) -> Stage:
        run = str(trial.folder / "run")
        words = [f"run={run}", f"split={split}", *([f"slices=[{','.join(slices)}]"] if slices else [])]
        inputs = [run, self._data]
        if ctr:
            words.append(f"ctr_run={ctr.folder / 'run'}")
            inputs.append(str(ctr.folder / "run"))
        written = str(trial.folder / output)
        # A result without a CTR network has its file in the run; one with it is in a place that is named by checksums.
        metrics_of = "" if output.startswith("run/") else run
        return Stage(output, "jobs.evaluate", tuple(words), tuple(inputs), written, metrics_of=metrics_of)


def folder_name(name: str) -> str:
    """Return `name` with what a folder's name should not have as a hyphen: esm2 DNN-OS → esm2-dnn-os."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")


def run_trial(trial: Trial) -> None:
    """Run the stages that are missing, and add what they cost to cost.json. Raises InputError for one that fails."""
    with writing(f"out={trial.folder}"):
        trial.folder.mkdir(parents=True, exist_ok=True)
    for stage in trial.missing:
        print(f"\n{trial.name}", flush=True)
        wall_s, cpu_s = time.monotonic(), _cpu_of_children_s()
        try:
            run_stages([stage], Ledger(trial.folder))
        finally:
            _add_cost(trial.folder, stage.name, time.monotonic() - wall_s, _cpu_of_children_s() - cpu_s)


def unite_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Return one trial a folder, with the stages of all: a CTR network that many rows take predicts what one of them needs."""
    found: dict[Path, Trial] = {}
    for trial in trials:
        united = found.setdefault(trial.folder, trial)
        for stage in trial.stages:
            united = united if stage in united.stages else _with(united, stage)
        found[trial.folder] = united
    return list(found.values())


def read_cost(trial: Trial) -> dict[str, float]:
    """Return the wall and CPU seconds of a trial, over all attempts that did not end by a signal to this command."""
    found = _read_costs(trial.folder).values()
    return {name: sum(float(cost[name]) for cost in found) for name in ("wall_s", "cpu_s")}


def read_outcome(trial: Trial) -> dict[str, Any]:
    """Read the metrics.json that the last stage of a finished trial has written."""
    path = Path(trial.stages[-1].output)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it, and run the same command again.") from error
    return found


def _with(trial: Trial, stage: Stage) -> Trial:
    return Trial(trial.system, trial.words, trial.seed, trial.folder, (*trial.stages, stage))


def _cpu_of_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_costs(folder: Path) -> dict[str, dict[str, float]]:
    path = folder / COST
    try:
        found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it: it holds times alone.") from error
    return found


def _add_cost(folder: Path, stage: str, wall_s: float, cpu_s: float) -> None:
    costs = _read_costs(folder)
    before = costs.get(stage, {"wall_s": 0.0, "cpu_s": 0.0})
    costs[stage] = {"wall_s": before["wall_s"] + wall_s, "cpu_s": before["cpu_s"] + cpu_s}
    with writing(f"out={folder}"):
        write_whole(folder / COST, json.dumps(costs, indent=1) + "\n")
