"""Several commands on one OUT divide the trials among them: each takes one that no other is running, and waits for the rest.

So a Slurm array is the same command several times. A lock ends with its process: what a killed command held is taken up by
the next one.
"""

import time
from collections.abc import Iterable

from pipeline.errors import writing
from pipeline.file_lock import LockHeld, exclusive_lock
from training.reproduction.trials import Trial, run_trial, unite_trials

TRIAL_LOCK = "reproduce.lock"
_POLL_S = 5.0


def run_trials(trials: Iterable[Trial], poll_s: float = _POLL_S) -> None:
    """Run the trials that are not finished, and return when all are. Raises InputError where a job of this command fails."""
    left = [trial for trial in unite_trials(trials) if trial.missing]
    waits = False
    while left:
        held = [trial for trial in left if not _run_unless_held(trial)]
        if len(held) == len(left):
            if not waits:
                print(f"{held[0].name}: another command is running it; this one waits.", flush=True)
            waits = True
            time.sleep(poll_s)
        left = held


def _run_unless_held(trial: Trial) -> bool:
    """Run what is missing of a trial, and tell whether this command could: False while another one holds it."""
    with writing(f"out={trial.folder}"):
        trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive_lock(trial.folder / TRIAL_LOCK) as lock:
            lock.sign()
            run_trial(trial)
    except LockHeld:
        return False
    return True
