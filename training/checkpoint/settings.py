"""The settings of checkpoints; loads no torch (see training.run.settings)."""

import re
from dataclasses import dataclass

from pipeline.errors import InputError

NEWEST, BEST = "newest", "best"


@dataclass
class CheckpointSettings:
    """The group `checkpoint`. There is one at the end of each epoch in any case."""

    every_steps: int = 0  # 0: not by steps
    every_minutes: float = 15.0  # 0: not by the clock
    asynchronous: bool = True  # written beside training, from a copy in memory of all that the rank saves
    keep: int = 2  # the newest ones: one to resume from, one in case the disk damages it; the best one stays too

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_minutes"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"checkpoint.{name}={getattr(self, name)} is negative; 0 saves at ends of epochs only."
                )
        if self.keep < 1:
            raise InputError(f"checkpoint.keep={self.keep} is below 1; a run resumes from its newest checkpoint.")


def check_which(which: str, key: str) -> None:
    """Raise InputError unless `which` is newest, best or step-N."""
    if which not in (NEWEST, BEST) and not re.fullmatch(r"step-[0-9]{1,18}", which, re.ASCII):
        raise InputError(f"{key}={which} is not one of {NEWEST}, {BEST}, step-N; N counts the steps of the run.")
