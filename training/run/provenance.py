"""Where a result comes from, and where it is kept: each evaluation of a run has a place of its own.

RUN/metrics.json, metrics.<split>.json, report.html, predictions/<split>/   the newest checkpoint, the run's own dataset
RUN/evaluations/<name>/metrics.json, report.html, predictions/              any other
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.atomic_files import write_whole, xxh3_of
from pipeline.release import release
from training.checkpoint.meta import META_FILE, Checkpoint, steps_of
from training.checkpoint.settings import NEWEST
from training.evaluation.run_files import EVALUATIONS
from training.run.run_folder import CONFIG

#: Of the metadata of a Parquet file of predictions.
METADATA_KEY = b"entirespace"

Provenance = dict[str, Any]


def provenance_of(
    run: Path,
    found: Checkpoint,
    which: str,
    split: str,
    data: str,
    manifest_xxh3: str,
    truth: Path | None,
    ctr: tuple[Path, Checkpoint] | None = None,
) -> Provenance:
    """Describe an evaluation: what was evaluated, on what, by which release. Equal for equal results, wherever they are made."""
    return {
        "run": run.resolve().name,
        "checkpoint": found.path.name,
        "step": steps_of(found.path),
        "weights": "average" if found.average else "last",
        "chosen_as": which,
        "checkpoint_xxh3": _xxh3_of_file(found.path / META_FILE),
        "settings_xxh3": _xxh3_of_file(run / CONFIG),
        "trained_on_manifest_xxh3": found.manifest_xxh3,
        "split": split,
        "data": data,
        "manifest_xxh3": manifest_xxh3,
        "truth": truth.name if truth else None,
        "ctr_run": ctr[0].resolve().name if ctr else None,
        "ctr_checkpoint": ctr[1].path.name if ctr else None,
        "ctr_checkpoint_xxh3": _xxh3_of_file(ctr[1].path / META_FILE) if ctr else None,
        "version": release(),
    }


class ResultPaths(NamedTuple):
    """The files of one evaluation."""

    predictions: Path  # the folder
    metrics: tuple[Path, ...]  # the same figures in each
    report: Path

    @classmethod
    def default(cls, run: Path, split: str) -> "ResultPaths":
        """Return the place of the newest checkpoint on the run's own dataset."""
        metrics = (run / f"metrics.{split}.json", run / "metrics.json")
        return cls(run / "predictions" / split, metrics, run / "report.html")

    @classmethod
    def named(cls, run: Path, name: str) -> "ResultPaths":
        """Return the place of any other evaluation."""
        folder = run / EVALUATIONS / name
        return cls(folder / "predictions", (folder / "metrics.json",), folder / "report.html")

    @classmethod
    def of(cls, run: Path, provenance: Provenance) -> "ResultPaths":
        """Return the place of an evaluation."""
        is_own = provenance["manifest_xxh3"] == provenance["trained_on_manifest_xxh3"]
        if provenance["chosen_as"] == NEWEST and is_own and not provenance.get("ctr_run"):
            return cls.default(run, provenance["split"])
        return cls.named(run, place_name(provenance))


def place_name(provenance: Provenance) -> str:
    """Name a place by split and checkpoint, the manifest of another dataset than that of the training, and the CTR network."""
    is_own = provenance["manifest_xxh3"] == provenance["trained_on_manifest_xxh3"]
    data = "" if is_own else f".data-{provenance['manifest_xxh3'][:8]}"
    ctr = f".ctr-{provenance['ctr_checkpoint_xxh3'][:8]}" if provenance.get("ctr_run") else ""
    return f"{provenance['split']}.{provenance['checkpoint']}{data}{ctr}"


def keep_earlier_result(run: Path, provenance: Provenance) -> Path | None:
    """Move the default result of an earlier checkpoint to a place of its own, before that of `provenance` is written.

    Returns the place; None where `provenance` is of another place, or the default one is empty, is of the same checkpoint, or
    was written by a release that noted no provenance.
    """
    paths = ResultPaths.default(run, provenance["split"])
    earlier = read_provenance(paths.metrics[0])
    if (
        paths != ResultPaths.of(run, provenance)
        or earlier is None
        or earlier["checkpoint_xxh3"] == provenance["checkpoint_xxh3"]
    ):
        return None
    kept = ResultPaths.named(run, place_name(earlier))
    if kept.predictions.parent.exists() or not paths.predictions.exists():
        return None
    staging = kept.predictions.parent.with_name(f".{kept.predictions.parent.name}.tmp")
    staging.mkdir(parents=True, exist_ok=True)
    write_whole(staging / kept.metrics[0].name, paths.metrics[0].read_text(encoding="utf-8"))
    os.replace(paths.predictions, staging / kept.predictions.name)
    os.replace(staging, kept.predictions.parent)
    return kept.predictions.parent


def read_provenance(metrics: Path) -> Provenance | None:
    """Read the provenance of a metrics.json; None where there is none."""
    try:
        found = json.loads(metrics.read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and {"checkpoint", "checkpoint_xxh3", "split"} <= found.keys() else None


def _xxh3_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return xxh3_of(stream)
