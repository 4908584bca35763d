"""python -m jobs.inspect data=DATASET [split=train] [rows=3]"""

from dataclasses import dataclass

from omegaconf import MISSING

from jobs.entry import launch
from pipeline.audit.card import card
from pipeline.dataset.decode import decode_rows
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError


@dataclass
class InspectSettings:
    """conf/inspect.yaml."""

    data: str = MISSING  # the dataset
    split: str = "train"  # train | validation | test
    rows: int = 3  # of the split, with raw ids; 0 for the card alone

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise InputError(f"rows={self.rows} is negative; give 0 for the card alone.")


def run(settings: InspectSettings) -> None:
    """Print the card of the dataset, and its first rows with raw ids."""
    shown = [card(settings.data, load_manifest(settings.data))]
    if settings.rows:
        shown.append(decode_rows(settings.data, settings.split, settings.rows))
    print("\n\n".join(shown), flush=True)


if __name__ == "__main__":
    about = "what a dataset holds, and its first rows with raw ids."
    launch("inspect", InspectSettings, run, about)
