"""The settings of jobs.reproduce; loads no torch."""

import math
from dataclasses import dataclass, field

from omegaconf import MISSING

from pipeline.errors import InputError
from pipeline.locations import refuse_address
from pipeline.plain_settings import words_of_setting
from training.reproduction.figures import REPRODUCED

_MOST_SEEDS = 1000
#: What the command itself says to each job.
_OWN_KEYS = frozenset(("data", "out", "model", "experiment", "seed", "plan.seed", "ctr_run", "target", "split"))


@dataclass
class ReproduceSettings:
    """conf/reproduce.yaml. The *_args are further settings of a job, the same for every system: train_args='epochs=2 ranks=2'."""

    table: str = (
        MISSING  # esmm2 | esm2_3 | esm2_4 | esm2_5 | esm2_6 | beyond | esmm_fig3 | esm2_fig6 | esm2_fig7 | esm2_numeric
    )
    data: str = (
        MISSING  # the dataset; for esm2_6 the one whose daction is cart and wish, for esm2_numeric the one with numbers
    )
    out: str = MISSING  # runs/ and tables/; the same command resumes there, and tables share their runs
    seeds: int = 5  # runs of each system: seed and plan.seed are 1, 2, …
    systems: list[str] = field(default_factory=list)  # rows, by their names in the table; none: all
    learning_rates: list[float] = field(
        default_factory=list
    )  # of the towers, searched on validation; none: the configuration's
    data_cart: str | None = None  # of esm2_6: the same log with labels.daction=[cart]
    data_wish: str | None = None  # of esm2_6: with labels.daction=[wish]
    data_bucketized: str | None = None  # of esm2_numeric: the same log with features=aliccp_bucketized
    data_without: str | None = None  # of esm2_numeric: with features=aliccp
    train_args: str = ""
    gbdt_args: str = ""
    only_plan: bool = False  # print what is finished and what is missing, and train nothing

    def __post_init__(self) -> None:
        refuse_address("out", self.out)
        if self.table not in REPRODUCED:
            raise InputError(f"table={self.table} is not one of {', '.join(REPRODUCED)}.")
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise InputError(f"seeds={self.seeds} is not from 1 to {_MOST_SEEDS}.")
        known = [row.label for row in REPRODUCED[self.table].rows]
        for name in self.systems:
            if name not in known:
                raise InputError(f"systems has {name}, which is no row of table={self.table}: {', '.join(known)}.")
        if len(set(self.systems)) < len(self.systems):
            raise InputError(f"systems={self.systems} names one twice; name each once.")
        for rate in self.learning_rates:
            if not (math.isfinite(rate) and rate > 0):
                raise InputError(f"learning_rates has {rate}, which is not a finite number above 0.")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise InputError(f"learning_rates={self.learning_rates} has one twice; give each once.")
        for name in ("train_args", "gbdt_args"):
            for word in self.arguments(name):
                if word.partition("=")[0].lstrip("+~") in _OWN_KEYS:
                    raise InputError(
                        f"{name} has {word}, which this command sets itself for each system and seed; leave it out."
                    )

    def arguments(self, name: str) -> tuple[str, ...]:
        """Return the words of one of the *_args. Raises InputError where they cannot be read, or hold a secret."""
        return words_of_setting(name, getattr(self, name))
