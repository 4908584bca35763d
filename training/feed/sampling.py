"""Samples: which impressions an epoch of AMAN, OVERSAMPLING or UNBIAS holds, and how often (ESMM §3.1).

Each impression has an expected number of copies, by its labels: AMAN gives one of 0.1 to the unclicked, OVERSAMPLING one of
5 to the converted. `Plan` counts with their sums, which the manifest's counts give without opening a file. From a row group
exactly as many are drawn as it plans, by systematic sampling (Madow 1949): the impressions stand in random order, each as
long as its expected copies, and one copy is drawn at ½, 1½, 2½, …

    expected     0.4   0.4   0.4   1     0.4   0.4       in the order of a hash of (seed, epoch, impression)
                ├─────┼─────┼─────┼────────┼─────┼─────┤
    sum S       0.3  0.7   1.1   1.5      2.5   2.9   3.3    from what the row groups before it leave over
    round(S)    0    1     1     2        3     3     3
    copies        1     0     1       1      0     0

So an impression's copies are one of the two whole numbers around its expectation. Over the epochs they average to it, up
to the rounding of its row group's sum. Nothing depends on the number of ranks. Copies of an impression follow each other in
one batch, so their context is read and looked up once; a copy shares its dropout mask, and acts as a weight.

UNBIAS accepts a clicked impression by pCTR of another network. Its expectation is then that probability, and one pass over
the labels sums it for each row group (`expected_of_row_groups`).
"""

# Shapes: B impressions of a row group, N clicked impressions of a split.

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from pipeline.dataset.manifest import DatasetFile
from pipeline.errors import InputError
from pipeline.kernels.hashing import order_hashes
from training.feed.checked_columns import CheckedColumns
from training.feed.columns import Columns
from training.feed.dataset_files import DatasetFiles
from training.feed.plan import SAMPLE_BITS, Draw, whole_samples
from training.feed.settings import ACCEPT_INVERSE, REJECT, WEIGH, SamplingSettings

_ONE_SAMPLE = 1 << SAMPLE_BITS


def expected_by_counts(settings: SamplingSettings, impressions: int, clicks: int, conversions: int) -> int:
    """Return the samples that impressions of these counts are expected to give, in 2^-SAMPLE_BITS; none is rejected."""
    unclicked, clicked, converted = map(_fixed_point, settings.copies)
    return unclicked * (impressions - clicks) + clicked * (clicks - conversions) + converted * conversions


def _fixed_point(copies: float) -> int:
    return round(copies * _ONE_SAMPLE)


@dataclass(frozen=True)
class ClickedPCtr:
    """pCTR of every clicked impression of a split, by another network."""

    impression_id_N: np.ndarray  # int64, ascending, each once
    p_ctr_N: np.ndarray  # float32

    def of(self, impression_id_B: np.ndarray) -> np.ndarray:
        """Return float64 [B]. Raises InputError for an impression that is not there."""
        place_B = self.impression_id_N.searchsorted(impression_id_B)
        place_B = np.minimum(place_B, len(self.impression_id_N) - 1)
        missing_B = self.impression_id_N[place_B] != impression_id_B
        if missing_B.any():
            raise InputError(
                f"The predictions of ctr_run lack the clicked impression_id={impression_id_B[missing_B][0]}; predict the split "
                "of this dataset again with jobs.evaluate."
            )
        return self.p_ctr_N[place_B].astype(np.float64)

    @cached_property
    def xxh3(self) -> str:
        """The hash of the ids and their pCTR."""
        return xxhash.xxh3_64_hexdigest(self.impression_id_N.tobytes() + self.p_ctr_N.tobytes())


class Sampler:
    """Draws the samples of a row group, or weighs its impressions, in any thread.

    `p_ctr` is that of the split that is read, and `mean_weight` the mean of min(1 / pCTR, clip) over the clicked
    impressions of the train split, for `by_p_ctr`.
    """

    def __init__(
        self, settings: SamplingSettings, seed: int, p_ctr: ClickedPCtr | None = None, mean_weight: float = 1.0
    ) -> None:
        self._copies = np.array([_fixed_point(copies) for copies in settings.copies], np.int64)
        self._settings, self._seed, self.p_ctr, self._mean_weight = settings, seed, p_ctr, mean_weight

    @property
    def weighs(self) -> bool:
        return self._settings.by_p_ctr == WEIGH

    def expected(self, impression_id_B: np.ndarray, label_B: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return int64 [B]: the expected copies of each impression, in 2^-SAMPLE_BITS, by its labels (0 or 1) and pCTR."""
        click_B = label_B["click"].astype(np.int64)
        expected_B = self._copies[click_B + click_B * label_B["conversion"]]
        if self._settings.draws_by_p_ctr:
            clicked = np.flatnonzero(click_B)
            accepted = expected_B[clicked] * self._acceptance(impression_id_B[clicked])
            expected_B[clicked] = np.rint(accepted).astype(np.int64)
        return expected_B

    def _acceptance(self, clicked_id_N: np.ndarray) -> np.ndarray:
        """Return the probability of accepting each of these clicked impressions.

        REJECT is the paper's sentence: pCTR is the probability of rejection. ACCEPT_INVERSE is rejection sampling whose
        target is all impressions: clicks come with probability pCTR, so acceptance is in proportion to 1 / pCTR.
        """
        assert self.p_ctr is not None
        p_ctr_N = self.p_ctr.of(clicked_id_N)
        if self._settings.by_p_ctr == REJECT:
            return 1.0 - p_ctr_N
        assert self._settings.by_p_ctr == ACCEPT_INVERSE
        return inverse_of(p_ctr_N, self._settings.clip) / self._settings.clip

    def draw(
        self, epoch: int, draw: Draw, impression_id_B: np.ndarray, label_B: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return int64 [B]: the copies of each impression in `epoch`. Raises InputError unless they are as many as planned."""
        stream = xxhash.xxh3_64_intdigest(f"samples/{epoch}".encode(), self._seed & 0xFFFFFFFFFFFFFFFF)
        order_B = np.argsort(order_hashes(impression_id_B, stream), kind="stable")
        ends_B = draw.before + np.cumsum(self.expected(impression_id_B, label_B)[order_B])
        copies_B = np.empty(len(order_B), np.int64)
        copies_B[order_B] = np.diff(whole_samples(ends_B), prepend=whole_samples(draw.before))
        if (found := int(copies_B.sum())) != draw.num_samples:
            raise InputError(
                f"A row group gives {found} samples where {draw.num_samples} are planned, so what they were planned by has "
                "changed: the predictions of ctr_run, or the run's samples.json; train a new run (out=…)."
            )
        return copies_B

    def weigh(self, impression_id_B: np.ndarray, click_B: np.ndarray) -> np.ndarray:
        """Return float32 [B]: of a clicked impression min(1 / pCTR, clip) over its mean, of another one 1.

        Divided by the mean over the whole train split, the weights of an epoch have mean 1: the self-normalised estimator,
        of which every batch has its part.
        """
        assert self.p_ctr is not None
        weight_B = np.ones(len(impression_id_B), np.float32)
        clicked = np.flatnonzero(click_B)
        inverse = inverse_of(self.p_ctr.of(impression_id_B[clicked]), self._settings.clip)
        weight_B[clicked] = (inverse / self._mean_weight).astype(np.float32)
        return weight_B


def inverse_of(p_ctr: np.ndarray, clip: float) -> np.ndarray:
    """Return min(1 / p_ctr, clip), without a division by 0."""
    return 1.0 / np.maximum(p_ctr, 1.0 / clip)


def expected_of_row_groups(data: str, files: tuple[DatasetFile, ...], sampler: Sampler, decoder: str) -> list[int]:
    """Sum the expected samples of each row group of `files` in 2^-SAMPLE_BITS, in one pass over ids and labels.

    Checksums are left to the training, which reads the files again.
    """
    labels = ("click", "conversion")
    reading = DatasetFiles(data, Columns((), {}, labels), "size", decoder)
    expected = []
    for file in files:
        for number, counts in enumerate(file.row_groups):
            checked = CheckedColumns(reading.read(file, number), counts, f"{file.path}, row group {number}")
            promised = {"click": counts.clicks, "conversion": counts.conversions}
            label_B = {label: checked.label(label, promised[label]) for label in labels}
            expected.append(int(sampler.expected(checked.impression_id_B, label_B).sum()))
    return expected
