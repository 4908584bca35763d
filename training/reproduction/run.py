"""Search, train, evaluate, and write the table; each trial once, whichever command or table asks for it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.atomic_files import partial_of_its_own, write_whole
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.errors import InputError, writing
from pipeline.terminal import close_job
from training.reproduction.figures import REPRODUCED
from training.reproduction.page import FilledRow, FilledTable, markdown_of_table, write_table
from training.reproduction.search import CHOSEN_BY, CTR_CHOSEN_BY, candidates_of, choose_best
from training.reproduction.settings import ReproduceSettings
from training.reproduction.shared_work import run_trials
from training.reproduction.tables import TableRow
from training.reproduction.trials import Trial, Trials, ctr_system, folder_name, read_cost, read_outcome, unite_trials
from training.run.systems import GBDT_JOB, System

_FIRST_SEED = 1


def reproduce(settings: ReproduceSettings) -> None:
    """Fill in a table. Raises InputError where a dataset lacks what a row needs, and where a job fails."""
    table = REPRODUCED[settings.table]
    rows = [row for row in table.rows if not settings.systems or row.label in settings.systems]
    _check_trees(rows)
    trials = _trials_by_data(settings, rows)
    for note in table.notes:
        print(note, flush=True)
    chosen = _Chosen(settings, trials)
    for row in rows:
        chosen.search(row)
    filled_trials = [(row, chosen.tested(row)) for row in rows]
    wanted = [trial for _, (ctrs, tested) in filled_trials for trial in (*ctrs, *tested)]
    _say_plan(f"table={settings.table}", wanted)
    if settings.only_plan:
        return
    run_trials(trial for _, (ctrs, _) in filled_trials for trial in ctrs)
    run_trials(trial for _, (_, tested) in filled_trials for trial in tested)
    filled = FilledTable(table, [_filled(row, *found) for row, found in filled_trials], settings.data)
    written = write_table(filled, Path(settings.out), settings.table)
    print(f"\n{markdown_of_table(filled)}", flush=True)
    page = next(str(path) for path in written if path.suffix == ".html")
    close_job(f"table {settings.table}", str(written[0]), numbers=[f"{len(filled.rows)} systems"], pages=[page])


class _Chosen:
    """The searched values of each system, chosen once, and the trials with them."""

    def __init__(self, settings: ReproduceSettings, trials: dict[str, Trials]) -> None:
        self._settings, self._trials = settings, trials
        self._words: dict[tuple[str, str, str], tuple[str, ...]] = {}

    def search(self, row: TableRow) -> None:
        """Choose the values of a row and of its CTR network, which comes first."""
        system = row.searched_as or row.system
        network = ctr_system(system)
        if network:
            self._choose(row.data, network, None, CTR_CHOSEN_BY)
        self._choose(row.data, system, self._ctr(row.data, system, system, _FIRST_SEED), CHOSEN_BY)

    def tested(self, row: TableRow) -> tuple[list[Trial], list[Trial]]:
        """Return the trials of the CTR network, and those of the row, one a seed."""
        searched = row.searched_as or row.system
        words, slices = self._words[_key_of(row.data, searched)], REPRODUCED[self._settings.table].slices
        ctrs, tested = [], []
        for seed in range(_FIRST_SEED, _FIRST_SEED + self._settings.seeds):
            ctr = self._ctr(row.data, row.system, searched, seed)
            ctrs += [ctr] if ctr else []
            tested.append(self._trials[row.data].tested(row.system, words, seed, ctr, slices))
        return ctrs, tested

    def _ctr(self, data: str, system: System, searched: System, seed: int) -> Trial | None:
        """Return the trial of the CTR network of `system`, with the values that were chosen for the one of `searched`."""
        network, searched_network = ctr_system(system), ctr_system(searched)
        if network is None or searched_network is None:
            return None
        words = self._words[_key_of(data, searched_network)]
        if network.job == GBDT_JOB:
            return self._trials[data].tested(network, words, seed)
        return self._trials[data].ctr(network, words, seed, system.trains_with_ctr_run)

    def _choose(self, data: str, system: System, ctr: Trial | None, metric: str) -> None:
        key = _key_of(data, system)
        if key in self._words:
            return
        candidates = candidates_of(system, self._settings.learning_rates)
        if len(candidates) == 1:
            self._words[key] = candidates[0]
            return
        searched = [self._trials[data].searched(system, words, _FIRST_SEED, ctr) for words in candidates]
        if self._settings.only_plan and any(trial.missing for trial in searched):
            _say_plan(f"{system.name}: the search on validation", searched)
            self._words[key] = candidates[0]  # which one is not known yet; the number of runs is
            return
        run_trials([ctr] if ctr and system.trains_with_ctr_run else [])
        run_trials(searched)
        found = {trial.words: read_outcome(trial).get(metric) for trial in searched}
        best = choose_best(system.name, metric, found)
        print(f"{system.name}: {' '.join(best)} has the best {metric} on validation, {found[best]:.4f}.", flush=True)
        self._words[key] = best
        self._note(data, system, metric, found, best)

    def _note(
        self, data: str, system: System, metric: str, found: dict[tuple[str, ...], float | None], best: Iterable[str]
    ) -> None:
        """Save what was searched: OUT/tables/search-<system>.json."""
        folder = Path(self._settings.out) / "tables"
        content = {
            "system": system.name,
            "data": getattr(self._settings, data),
            "metric": metric,
            "candidates": [{"words": list(words), metric: value} for words, value in found.items()],
            "chosen": list(best),
        }
        with writing(f"out={self._settings.out}"):
            folder.mkdir(parents=True, exist_ok=True)
            name = f"search-{_prefix(data)}{folder_name(f'{system.paper} {system.name}')}.json"
            write_whole(folder / name, json.dumps(content, indent=1) + "\n", partial_of_its_own(folder / name))


def _filled(row: TableRow, ctrs: Sequence[Trial], tested: Sequence[Trial]) -> FilledRow:
    commands = tuple((stage.job, *stage.words) for trial in (*ctrs[:1], tested[0]) for stage in trial.stages)
    metrics, costs = tuple(map(read_outcome, tested)), tuple(map(read_cost, tested))
    return FilledRow(row, tested[0].words, commands, metrics, costs)


def _trials_by_data(settings: ReproduceSettings, rows: Sequence[TableRow]) -> dict[str, Trials]:
    """Open the datasets of the rows, and check that they have what the rows need."""
    found = {}
    test_splits: dict[str, tuple[int, ...]] = {}
    for data in dict.fromkeys(row.data for row in rows):
        path = getattr(settings, data)
        if not path:
            raise InputError(
                f"table={settings.table} needs {data}=DATASET, the same log preprocessed otherwise (docs/models.md); or leave its "
                "rows out: systems=[…]."
            )
        manifest, _ = read_manifest(path, data)
        _check_needs(settings, data, path, manifest, [row for row in rows if row.data == data])
        totals = manifest.totals["test"]
        test_splits[data] = totals["impressions"], totals["clicks"], totals["conversions"]
        found[data] = Trials(settings, path, _prefix(data), manifest.totals)
    if len(set(test_splits.values())) > 1:
        shown = "; ".join(f"{data} {numbers}" for data, numbers in test_splits.items())
        raise InputError(
            f"The test splits differ in impressions, clicks, conversions ({shown}), so their rows cannot be compared; preprocess one "
            "log, and change labels.daction or features alone."
        )
    return found


def _check_needs(
    settings: ReproduceSettings, data: str, path: str, manifest: Manifest, rows: Sequence[TableRow]
) -> None:
    manifest.files_of("test")
    for row in rows:
        if row.system.needs_daction and "daction" not in manifest.labels:
            raise InputError(
                f"{data}={path} has no label daction, which {row.label} needs; preprocess with labels=cart_wish, or leave the row "
                "out: systems=[…]."
            )
        if len(candidates_of(row.searched_as or row.system, settings.learning_rates)) > 1 and not manifest.totals.get(
            "validation"
        ):
            raise InputError(
                f"{data}={path} has no validation split, on which the rates of {row.label} are chosen; preprocess with "
                "split.validation=0.1, or leave the row out: systems=[…]."
            )


def _check_trees(rows: Sequence[TableRow]) -> None:
    """Raise InputError where trees are wanted and XGBoost is not installed: at the start, not behind hours of training."""
    if any(row.system.job == GBDT_JOB for row in rows):
        from training.gbdt.trees import load_xgboost

        try:
            load_xgboost()
        except InputError as error:
            raise InputError(f"{error}, or leave GBDT out: systems=[…].") from error


def _key_of(data: str, system: System) -> tuple[str, str, str]:
    """Return what tells a searched system from another; the paper and the name do, for a system of a dictionary has no hash."""
    return data, system.paper, system.name


def _prefix(data: str) -> str:
    """Return what the folders of a dataset's runs begin with: data → "", data_cart → cart-."""
    kind = data.removeprefix("data").strip("_")
    return f"{kind}-" if kind else ""


def _say_plan(what: str, trials: Sequence[Trial]) -> None:
    united = unite_trials(trials)
    missing = [trial for trial in united if trial.missing]
    print(f"{what}: {len(united)} runs, {len(united) - len(missing)} finished, {len(missing)} to do.", flush=True)
    for trial in missing:
        print(f"  {trial.name}: {', '.join(stage.name for stage in trial.missing)}", flush=True)
