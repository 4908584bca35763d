"""python -m jobs.inspect data=DATASET [split=train] [rows=3] [verify=checksum]"""

from dataclasses import dataclass

from omegaconf import MISSING

from jobs.entry import launch
from pipeline.audit.card import card
from pipeline.dataset.check_files import check_files
from pipeline.dataset.decode import decode_rows
from pipeline.dataset.manifest import load_manifest
from pipeline.errors import InputError


@dataclass
class InspectSettings:
    """conf/inspect.yaml."""

    data: str = MISSING  # the dataset
    split: str = "train"  # train | validation | test
    rows: int = 3  # of the split, with raw ids; 0 for the card alone
    verify: str = "size"  # what is compared of each file that the manifest names: size | checksum

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise InputError(f"rows={self.rows} is negative; give 0 for the card alone.")
        if self.verify not in ("size", "checksum"):
            raise InputError(f"verify={self.verify} is not one of size, checksum.")


def run(settings: InspectSettings) -> None:
    """Check the files of the dataset; print its card, and its first rows with raw ids."""
    manifest = load_manifest(settings.data)
    check_files(settings.data, manifest, with_checksums=settings.verify == "checksum")
    shown = [card(settings.data, manifest)]
    if settings.rows:
        shown.append(decode_rows(settings.data, settings.split, settings.rows))
    print("\n\n".join(shown), flush=True)


if __name__ == "__main__":
    launch("inspect", InspectSettings, run)
