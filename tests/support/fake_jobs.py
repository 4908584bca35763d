"""jobs.reproduce without its jobs: settings, and what stands for jobs.train and jobs.evaluate."""

import json
from pathlib import Path
from typing import Any

from jobs.entry import compose
from pipeline.errors import InputError
from training.reproduction.settings import ReproduceSettings


def settings_of(data: Path, out: Path, *words: str) -> ReproduceSettings:
    return compose("reproduce", ReproduceSettings, ["table=esmm2", f"data={data}", f"out={out}", *words])


class FakeJobs:
    """Stands for the jobs: writes what they would, and remembers their commands."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails_at = -1

    def __call__(self, name: str, command: list[str]) -> None:
        if len(self.commands) == self.fails_at:
            raise InputError(f"The stage {name} ended with status 2; its own message stands above.")
        self.commands.append(command[2:])
        job, words = command[2], dict(word.split("=", 1) for word in command[3:])
        folder = Path(words["run"] if job == "jobs.evaluate" else words["out"])
        folder.mkdir(parents=True, exist_ok=True)
        if job == "jobs.train":
            (folder / "config.yaml").write_text(" ".join(command))
            checkpoint = folder / "checkpoints" / "step-00000001"
            checkpoint.mkdir(parents=True)
            (checkpoint / "checkpoint.json").write_text(" ".join(command))
        else:
            number = len(self.commands)
            unclicked = float(str(folder).partition("unclicked-")[2].partition("/")[0] or 0)
            figures: dict[str, Any] = {"cvr_auc": 0.5 + 0.1 * unclicked * (1 - unclicked), "num_impressions": 9}
            figures |= {"ctcvr_independent_auc": 0.6 + 0.001 * number, "num_clicks": 3, "num_conversions": 1}
            (folder / f"metrics.{words['split']}.json").write_text(json.dumps(figures | {"alerts": []}))
