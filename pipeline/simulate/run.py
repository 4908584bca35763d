"""Simulated raw logs in Ali-CCP's layout, or a shop's tables (shop/), with the true probabilities beside them.

Read in this order: published_figures, world (tastes), oracle (true probabilities), draw (a chunk of contexts),
lines (its bytes), dirt (planted faults), split (the files of a split), chunk_pool (processes), and here the chain.
Chunks of 20,000 impressions are drawn, written and forgotten, so memory does not grow with the log.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from pipeline.atomic_files import move_whole, write_whole
from pipeline.chunks.sources import PERIODS
from pipeline.config.features import FeaturesSettings
from pipeline.config.preprocess import ALICCP, EVENTS
from pipeline.errors import InputError, writing
from pipeline.features.fields import catalogue
from pipeline.locations import refuse_address
from pipeline.simulate.chunk_pool import chunk_pool
from pipeline.simulate.draw import CHUNK_IMPRESSIONS, draw_chunk
from pipeline.simulate.lines import CONTEXT_FIELDS, IMPRESSION_FIELDS, line_layout
from pipeline.simulate.oracle import RatesSettings, calibrate
from pipeline.simulate.published_figures import field_sizes, id_blocks
from pipeline.simulate.shop.summary import shop_summary
from pipeline.simulate.shop.write import LARGEST_SHOP, LEAST_SHOP, write_shop
from pipeline.simulate.split import LogPlan, Split, SplitWriter
from pipeline.simulate.world import PILOT, build_world
from pipeline.terminal import command_of, print_next, stage
from pipeline.undo import undone_by

LOG_FORMAT_VERSION = 1
SIMULATION = "simulation.json"
_SIMULATING = "_simulating"
_PILOT_IMPRESSIONS = 40_000
_MIN_SPLIT_IMPRESSIONS = 100  # of a split
_MOST_PROCESSES = 1024
_LEAST_BYTES_PER_IMPRESSION = {ALICCP: 300, EVENTS: 30}  # of a log; 550 and 60 are common


@dataclass
class SimulateSettings:
    """The settings of jobs.simulate."""

    out: str = MISSING  # the folder of the log
    layout: str = ALICCP  # aliccp | events: impressions, actions, items and users of a shop (docs/quickstart-events.md)
    impressions: int = 100_000  # train and test together
    seed: int = 1  # the same seed gives the same log, byte for byte
    rates: RatesSettings = field(default_factory=RatesSettings)
    train_share: float = 0.5  # of the impressions; the published one is 42.3 : 43.0. layout=events splits by day
    actions: bool = False  # write actions_{train,test}.csv too (carts and wish lists); layout=events always has them
    dirt: float = 0.001  # planted dirty lines, as a share of the lines; dirt_{train,test}.parquet lists them
    features: FeaturesSettings = field(default_factory=FeaturesSettings)
    processes: int | None = None  # that make the log of layout=aliccp; null: one a core. The bytes do not depend on it

    def __post_init__(self) -> None:
        refuse_address("out", self.out)
        if self.seed < 0:
            raise InputError(f"seed={self.seed} is negative; give a whole number from 0.")
        if self.processes is not None and not 1 <= self.processes <= _MOST_PROCESSES:
            raise InputError(
                f"processes={self.processes} is not between 1 and {_MOST_PROCESSES}; null takes one a core."
            )
        if not 0 < self.train_share < 1:
            raise InputError(f"train_share={self.train_share} leaves a split empty; give a share between 0 and 1.")
        if not 0 <= self.dirt <= 0.1:
            raise InputError(f"dirt={self.dirt} is not a share of at most 0.1; dirt=0 plants no dirty line.")
        if self.layout not in (ALICCP, EVENTS):
            raise InputError(f"layout={self.layout} is not one of {ALICCP}, {EVENTS}.")
        if self.layout == EVENTS:
            self._check_shop()
        elif min(self.split_impressions) < _MIN_SPLIT_IMPRESSIONS:
            raise InputError(
                f"impressions={self.impressions} with train_share={self.train_share} leaves a split of "
                f"{min(self.split_impressions)}; each needs at least {_MIN_SPLIT_IMPRESSIONS}."
            )

    def _check_shop(self) -> None:
        if not LEAST_SHOP <= self.impressions <= LARGEST_SHOP:
            raise InputError(
                f"impressions={self.impressions} is not between {LEAST_SHOP:,} and {LARGEST_SHOP:,}, the smallest and the "
                f"largest shop of layout={EVENTS}; give a number between them."
            )
        for name in ("train_share", "actions"):
            if (given := getattr(self, name)) != getattr(SimulateSettings, name):
                raise InputError(f"{name}={given} has no meaning for layout={EVENTS}; leave it out.")

    @property
    def split_impressions(self) -> tuple[int, int]:
        """Impressions of train and of test."""
        train = round(self.impressions * self.train_share)
        return train, self.impressions - train

    def determining(self) -> dict[str, Any]:
        """Return the settings that determine the bytes: all but the place, and what the layout does not read."""
        settings = {"format_version": LOG_FORMAT_VERSION, **asdict(self), "features": self.features.determining()}
        # Logs of earlier releases, all of them in Ali-CCP's layout, name no layout.
        unread = ("layout",) if self.layout == ALICCP else ("train_share", "actions", "features")
        return {name: value for name, value in settings.items() if name not in ("out", "processes", *unread)}


def simulate(settings: SimulateSettings) -> None:
    """Write the log to `settings.out`, simulation.json last; do nothing if the same log is already there.

    Files are written beside their final names and moved when whole, so a killed run is started again with the same command.
    Raises InputError if `out` holds anything else, or cannot be written.
    """
    out = Path(os.path.expanduser(settings.out))
    with writing(f"out={out}"):
        if _holds_this_log(out, settings):
            print(f"{out}: already there, with the same settings; nothing to do.")
            return
        _check_room(out, settings)
        with _staging_in(out) as (staging, moved):
            record = {"settings": settings.determining()} | _WRITERS[settings.layout](settings, staging)
            for path in sorted(path for path in staging.rglob("*") if path.is_file()):
                moved.append(out / path.relative_to(staging))
                moved[-1].parent.mkdir(exist_ok=True)
                move_whole(path, moved[-1])
            write_whole(out / SIMULATION, json.dumps(record, indent=1) + "\n", partial=staging / SIMULATION)
            moved.clear()
    _print_summary(out, record)


@contextmanager
def _staging_in(out: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Make the folder in which the files are written; remove it at the end, and those that have left it but are `moved`.

    It is there from the first file to the last: a folder with it holds an unfinished log.
    """
    staging, is_new, moved = out / _SIMULATING, not out.exists(), list[Path]()

    def remove() -> None:
        for path in moved:
            path.unlink(missing_ok=True)
            if path.parent != out and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not any(out.iterdir()):
            out.rmdir()

    with undone_by(remove):
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            yield staging, moved
        finally:
            with suppress(FileNotFoundError):
                remove()


def _check_room(out: Path, settings: SimulateSettings) -> None:
    """Raise InputError if the disk is much too small for the log."""
    impressions = settings.impressions
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    needed, free = impressions * _LEAST_BYTES_PER_IMPRESSION[settings.layout], shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"impressions={impressions} make a log of {needed / 1e9:,.0f} GB or more, and the disk of out={out} has "
            f"{free / 1e9:,.1f} GB free; lower impressions, or choose another out."
        )


def _holds_this_log(out: Path, settings: SimulateSettings) -> bool:
    """Return True if `out` holds this very log; raises InputError if it holds another, or files of another origin."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"out={out} is a file; name a directory.")
    names = sorted(path.name for path in out.iterdir())
    if SIMULATION in names:
        try:
            written = dict(json.loads((out / SIMULATION).read_text())["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out / SIMULATION} is damaged ({error}); empty {out} or name another out=.") from error
        wanted = json.loads(json.dumps(settings.determining()))
        if written == wanted:
            return True
        differing = [key for key in {**written, **wanted} if written.get(key) != wanted.get(key)]
        raise InputError(
            f"out={out} holds a log simulated with other settings ({', '.join(differing)} differ); "
            "empty it or name another out=."
        )
    if names and _SIMULATING not in names:
        raise InputError(f"out={out} holds files of another origin ({names[0]}, …); name an empty directory.")
    return False


def _write_aliccp(settings: SimulateSettings, staging: Path) -> dict[str, Any]:
    """Write every file of the log into `staging`; return what simulation.json says beside the settings."""
    fields = catalogue(settings.features, min_count=1)
    world = build_world(settings.seed, settings.impressions, settings.train_share)
    pilot = draw_chunk(world, np.random.default_rng([settings.seed, PILOT]), 0, _PILOT_IMPRESSIONS)
    calibration = calibrate(world, settings.rates, pilot.scores, pilot.context_of)
    blocks = id_blocks(field_sizes(settings.impressions, world.num_users))
    plan = LogPlan(
        world=world,
        calibration=calibration,
        context_layout=line_layout(fields, CONTEXT_FIELDS, blocks, world),
        impression_layout=line_layout(fields, IMPRESSION_FIELDS, blocks, world),
        seed=settings.seed,
        impressions=settings.impressions,
        actions=settings.actions,
        dirt=settings.dirt,
    )
    splits, first_id = {}, 1
    num_chunks = -(-settings.impressions // CHUNK_IMPRESSIONS)
    processes = min(settings.processes or len(os.sched_getaffinity(0)), num_chunks)
    with (
        chunk_pool(plan, processes) as pool,
        stage("simulating", settings.impressions, "impressions", f"{settings.impressions:,} impressions") as progress,
    ):
        for number, impressions in enumerate(settings.split_impressions):
            split = Split(number, impressions, first_id)
            with SplitWriter(plan, staging, split) as writer:
                for chunk in pool.chunks(split):
                    writer.add(chunk)
                    progress.update_to(progress.done + len(chunk.labels.click))
                writer.finish()
            splits[PERIODS[number]] = writer.tally.summary()
            first_id += impressions
    return {
        "click_logit_variance": {
            "interaction_share": calibration.interaction_share,
            "interaction_share_within_contexts_and_categories": calibration.interaction_share_strict,
        },
        "cardinality": {name: block.size for name, block in blocks.items()},
        "splits": splits,
    }


def _write_events(settings: SimulateSettings, staging: Path) -> dict[str, Any]:
    return write_shop(staging, settings.seed, settings.impressions, settings.rates, settings.dirt)


_WRITERS = {ALICCP: _write_aliccp, EVENTS: _write_events}


def _print_summary(out: Path, record: dict[str, Any]) -> None:
    """Print a few lines on the log in `out`."""
    if record["settings"].get("layout") == EVENTS:
        print(shop_summary(out, record), flush=True)
        return
    rates = record["settings"]["rates"]
    print(
        f"{out}: {record['settings']['impressions']:,} impressions in Ali-CCP's layout, labels at rates={rates['name']}"
    )
    if rates["name"] != "published":
        print(
            f"  NOTE rates={rates['name']}: {rates['click']:.1%} clicks and {rates['conversion']:.1%} conversions after a "
            "click are not Ali-CCP's published 3.9% and 0.5%; rates=published has those."
        )
    for split, tally in record["splits"].items():
        dirty = sum(count for reasons in tally["dirty"].values() for count in reasons.values())
        auc = tally["true_auc"]["ctr_auc"]
        print(
            f"  {split}: {tally['contexts']:,} contexts, {tally['impressions']:,} impressions, {tally['clicks']:,} clicks, "
            f"{tally['dactions']:,} dactions, {tally['conversions']:,} conversions, {dirty:,} dirty lines planted"
            + (f", true CTR AUC {auc:.4f}" if auc is not None else "")
        )
    print_next(command_of("jobs.preprocess", "source=aliccp", f"source.path={out}", "out=DATASET"))
