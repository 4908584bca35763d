"""What a run with samples needs beside its dataset: pCTR of another run, and how many samples each row group gives.

RUN/samples.json keeps what a pass over the labels has counted, so that a resumed run need not count again, and so that
predictions that have changed in between are found.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic_files import write_whole
from pipeline.dataset.manifest import Manifest
from pipeline.errors import InputError, reason_of, writing
from training.checkpoint.files import checkpoint_paths
from training.checkpoint.remote_run import local_run
from training.feed.sampling import ClickedPCtr, Sampler, expected_by_counts, expected_of_row_groups, inverse_of
from training.run.settings import TrainSettings

SAMPLES = "samples.json"


@dataclass(frozen=True)
class SampleCounts:
    """What RUN/samples.json holds."""

    manifest_xxh3: str
    p_ctr_xxh3: str
    expected: list[int]  # of each row group of the train split, in 2^-SAMPLE_BITS


def open_sampler(settings: TrainSettings, manifest: Manifest, split: str) -> Sampler | None:
    """Return the sampler of `split`, or None for a model that neither draws samples nor weighs impressions.

    Raises InputError where ctr_run has no predictions of the split, or those of another dataset.
    """
    sampling, seed = settings.model.sampling, settings.plan.seed
    if settings.ctr_run is None:
        return Sampler(sampling, seed) if settings.model.train_on == "samples" else None
    run = local_run(settings.ctr_run, "ctr_run", folders=[f"predictions/{name}" for name in {split, "train"}])
    p_ctr = _read_p_ctr(run, split, manifest)
    of_train = p_ctr if split == "train" else _read_p_ctr(run, "train", manifest)
    mean_weight = float(inverse_of(of_train.p_ctr_N.astype(np.float64), sampling.clip).mean())
    return Sampler(sampling, seed, p_ctr, mean_weight)


def expected_samples(
    run: Path, settings: TrainSettings, manifest: Manifest, sampler: Sampler | None
) -> list[int] | None:
    """Return the expected samples of each row group of the train split; None where the plan counts otherwise.

    Raises InputError where a run that has begun was given another pCTR.
    """
    if not settings.model.sampling.draws_by_p_ctr:
        return _expected_by_labels(settings, manifest)
    assert sampler is not None
    assert sampler.p_ctr is not None
    saved = read_samples(run)
    if saved and (saved.manifest_xxh3, saved.p_ctr_xxh3) == (manifest.xxh3, sampler.p_ctr.xxh3):
        return saved.expected
    if saved and checkpoint_paths(run):
        raise InputError(
            f"ctr_run={settings.ctr_run} has other predictions of the train split than those that out={settings.out} was "
            "started with; put those back, or train a new run (out=…)."
        )
    return expected_of_row_groups(settings.data, manifest.files_of("train"), sampler, settings.feed.decoder)


def samples_of_run(run: Path, settings: TrainSettings, manifest: Manifest) -> list[int] | None:
    """Return the expected samples of each row group by which `run` was trained. Raises InputError where its counts are gone."""
    if not settings.model.sampling.draws_by_p_ctr:
        return _expected_by_labels(settings, manifest)
    saved = read_samples(run)
    if saved is None:
        raise InputError(f"run={run} has no {SAMPLES}, which says how long its epochs are; put it back.")
    return saved.expected


def _expected_by_labels(settings: TrainSettings, manifest: Manifest) -> list[int] | None:
    if settings.model.train_on != "samples":
        return None
    groups, sampling = (
        [group for file in manifest.files_of("train") for group in file.row_groups],
        settings.model.sampling,
    )
    return [expected_by_counts(sampling, one.impressions, one.clicks, one.conversions) for one in groups]


def write_samples(run: Path, manifest: Manifest, sampler: Sampler | None, expected: list[int] | None) -> None:
    """Write RUN/samples.json, for a model that draws by pCTR. The run is locked."""
    if sampler is None or sampler.p_ctr is None or expected is None:
        return
    counts = SampleCounts(manifest.xxh3, sampler.p_ctr.xxh3, expected)
    with writing(f"out={run}", "choose another folder"):
        write_whole(run / SAMPLES, json.dumps(vars(counts)) + "\n")


def read_samples(run: Path) -> SampleCounts | None:
    """Read RUN/samples.json; None where there is none. Raises InputError where it is damaged."""
    path = run / SAMPLES
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        counts = SampleCounts(**raw)
        if not all(type(count) is int and 0 <= count < 1 << 62 for count in counts.expected):
            raise ValueError("a count is no whole number")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({reason_of(error)}); delete it, and the samples are counted again."
        ) from error
    return counts


def _read_p_ctr(run: Path, split: str, manifest: Manifest) -> ClickedPCtr:
    """Read the predictions of the clicked impressions of `split`, sorted by impression."""
    folder, command = run / "predictions" / split, f"python -m jobs.evaluate run={run} split={split}"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise InputError(f"ctr_run={run} has no predictions of split={split}; write them with: {command}")
    try:
        tables = [
            pq.read_table(file, columns=["impression_id", "p_ctr"], filters=[("click", "=", 1)]) for file in files
        ]
        table = pa.concat_tables(tables).sort_by("impression_id")
        impression_id_N, p_ctr_N = (table.column(name).to_numpy() for name in ("impression_id", "p_ctr"))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"The predictions in {folder} give no pCTR ({reason_of(error)}); ctr_run is a run with the output p_ctr, such as "
            f"model=ctr; predict it with: {command}"
        ) from error
    if (clicks := manifest.totals.get(split, {}).get("clicks", 0)) != len(impression_id_N):
        raise InputError(
            f"The predictions in {folder} have {len(impression_id_N)} clicks, and split={split} of this dataset has {clicks}; "
            "give a ctr_run that was trained on this dataset."
        )
    if len(impression_id_N) and not ((p_ctr_N >= 0) & (p_ctr_N <= 1)).all():
        raise InputError(f"The predictions in {folder} have a p_ctr outside [0, 1]; train ctr_run again.")
    if (np.diff(impression_id_N) == 0).any():
        raise InputError(
            f"The predictions in {folder} have two clicks of one impression_id, so pCTR of an impression is not known; "
            "preprocess with checks.duplicates=global."
        )
    return ClickedPCtr(impression_id_N, p_ctr_N)
