"""Cut pieces of row groups into a batch: the hot path of the feed, so all loops are in numba kernels without the GIL.

A piece is the impressions [start, stop) of a row group in the order of its rows: whole contexts, except that the first
and the last may be cut. Only its own slices are copied, from the packed row group straight to their place in the batch.
"""

# Shapes: P pieces, K runs of a piece (each a context and its consecutive impressions), C contexts, B impressions,
# F fields of a scope, N bags of a scope (C or B), V values of a scope, L labels.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import pipeline.numba_cache  # noqa: F401  (before numba)

# isort: split
from numba import njit

from training.batch import Bags, Batch
from training.row_groups import Columns, Packed, RowGroupData

#: first and last bag of each run, the last exclusive: int64 [K]
Runs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Piece:
    """The impressions [start, stop) of `data`, counted in the order of its rows."""

    data: RowGroupData
    start: int
    stop: int


def collate(pieces: Sequence[Piece], columns: Columns) -> Batch:
    """The batch of `pieces` in their order; no pieces give a batch of no impressions."""
    row_PK: list[np.ndarray] = []
    runs_P: list[Runs] = []
    for piece in pieces:
        row_K, first_K, last_K = _cut(
            piece.data.order_R, piece.data.ends_R, piece.data.offsets_R, piece.start, piece.stop
        )
        row_PK.append(row_K)
        runs_P.append((first_K, last_K))
    num_impressions = sum(piece.stop - piece.start for piece in pieces)
    context_of_impression = np.empty(num_impressions, np.int64)
    impression_id = np.empty(num_impressions, np.int64)
    label_LB = np.empty((len(columns.labels), num_impressions), np.float32)
    context_id: list[str] = []
    at = 0
    for piece, row_K, (first_K, last_K) in zip(pieces, row_PK, runs_P, strict=True):
        at = _fill_impressions(
            first_K,
            last_K,
            at,
            len(context_id),
            piece.data.impression_id_I,
            piece.data.labels_LI,
            context_of_impression,
            impression_id,
            label_LB,
        )
        context_id += [piece.data.context_id_R[row] for row in row_K.tolist()]
    groups = [piece.data.group_id_R[row_K] for piece, row_K in zip(pieces, row_PK, strict=True)]
    return Batch(
        context=_bags(
            [piece.data.context for piece in pieces],
            [(row_K, row_K + 1) for row_K in row_PK],
            len(columns.of_scope("context")),
            len(context_id),
        ),
        impression=_bags(
            [piece.data.impression for piece in pieces],
            runs_P,
            len(columns.of_scope("impression")),
            num_impressions,
        ),
        context_of_impression=torch.from_numpy(context_of_impression),
        labels={label: torch.from_numpy(label_LB[place]) for place, label in enumerate(columns.labels)},
        impression_id=torch.from_numpy(impression_id),
        group_id=torch.from_numpy(np.concatenate(groups) if groups else np.empty(0, np.int64)),
        context_id=context_id,
    )


def _bags(packed_P: Sequence[Packed], runs_P: Sequence[Runs], num_fields: int, num_bags: int) -> Bags:
    """One scope of the batch, field-major: field 0 of piece 0, of piece 1, …, then field 1."""
    counts_PF = np.zeros((len(packed_P), num_fields), np.int64)
    for counts_F, packed, (first_K, last_K) in zip(counts_PF, packed_P, runs_P, strict=True):
        _count_values(packed.slot_F, packed.offsets_MN, first_K, last_K, counts_F)
    ends_FP = np.cumsum(counts_PF.T).reshape(num_fields, len(packed_P))
    starts_PF = ends_FP.T - counts_PF
    num_values = int(counts_PF.sum())
    values, weights = np.empty(num_values, np.int64), np.empty(num_values, np.float32)
    length_FN = np.empty((num_fields, num_bags), np.int32)
    bag = 0
    for starts_F, packed, (first_K, last_K) in zip(starts_PF, packed_P, runs_P, strict=True):
        bag = _copy_bags(
            packed.slot_F,
            packed.ones_ON,
            packed.offsets_MN,
            packed.values_V,
            packed.weights_V,
            first_K,
            last_K,
            starts_F,
            bag,
            values,
            weights,
            length_FN,
        )
    assert bag == num_bags, (bag, num_bags)
    return Bags(torch.from_numpy(values), torch.from_numpy(length_FN.reshape(-1)), torch.from_numpy(weights))


@njit(nogil=True, cache=True)
def _cut(
    order_R: np.ndarray, ends_R: np.ndarray, offsets_R: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs of a piece: row_K, and its impressions first_K to last_K (exclusive) of the row group.

    order_R  7      2    5          rows as they are fed
    ends_R   3      5    9          impressions up to and including each
             a a a  b b  c c c c
               [start        stop)  → rows 7, 2, 5, of which 7 loses its first and 5 its last two
    """
    place = np.searchsorted(ends_R, start, side="right")
    most = np.searchsorted(ends_R, stop, side="left") + 1 - place
    row_K, first_K, last_K = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    num_runs = 0
    while start < stop:
        row = order_R[place]
        end = ends_R[place]
        if end > start:  # a row without impressions makes no run
            row_K[num_runs] = row
            first_K[num_runs] = offsets_R[row + 1] - (end - start)
            last_K[num_runs] = offsets_R[row + 1] - max(end - stop, 0)
            num_runs += 1
            start = end
        place += 1
    return row_K[:num_runs], first_K[:num_runs], last_K[:num_runs]


@njit(nogil=True, cache=True)
def _count_values(
    slot_F: np.ndarray, offsets_MN: np.ndarray, first_K: np.ndarray, last_K: np.ndarray, counts_F: np.ndarray
) -> None:
    """counts_F: how many values of each field the bags first_K to last_K hold."""
    num_bags = 0
    for run in range(len(first_K)):
        num_bags += last_K[run] - first_K[run]
    for field in range(len(slot_F)):
        if slot_F[field] >= 0:
            counts_F[field] = num_bags
            continue
        offsets_N = offsets_MN[-1 - slot_F[field]]
        for run in range(len(first_K)):
            counts_F[field] += offsets_N[last_K[run]] - offsets_N[first_K[run]]


@njit(nogil=True, cache=True)
def _copy_bags(
    slot_F: np.ndarray,
    ones_ON: np.ndarray,
    offsets_MN: np.ndarray,
    values_V: np.ndarray,
    weights_V: np.ndarray,
    first_K: np.ndarray,
    last_K: np.ndarray,
    starts_F: np.ndarray,
    bag: int,
    out_values: np.ndarray,
    out_weights: np.ndarray,
    out_length_FN: np.ndarray,
) -> int:
    """Copy the bags first_K to last_K of every field: values from starts_F[f], lengths from `bag`; gives the next bag."""
    next_bag = bag
    for field in range(len(slot_F)):
        at = starts_F[field]
        next_bag = bag
        slot = slot_F[field]
        for run in range(len(first_K)):
            first, last = first_K[run], last_K[run]
            if slot >= 0:
                for place in range(first, last):
                    out_values[at + place - first] = ones_ON[slot, place]
                    out_weights[at + place - first] = 1.0
                    out_length_FN[field, next_bag + place - first] = 1
                at += last - first
            else:
                offsets_N = offsets_MN[-1 - slot]
                start, stop = offsets_N[first], offsets_N[last]
                for place in range(start, stop):
                    out_values[at + place - start] = values_V[place]
                    out_weights[at + place - start] = weights_V[place]
                for place in range(first, last):
                    out_length_FN[field, next_bag + place - first] = offsets_N[place + 1] - offsets_N[place]
                at += stop - start
            next_bag += last - first
    return next_bag


@njit(nogil=True, cache=True)
def _fill_impressions(
    first_K: np.ndarray,
    last_K: np.ndarray,
    at: int,
    context: int,
    impression_id_I: np.ndarray,
    labels_LI: np.ndarray,
    out_context: np.ndarray,
    out_id: np.ndarray,
    out_label_LB: np.ndarray,
) -> int:
    """What an impression has besides its fields, from place `at` of the batch on; `context` is that of the first run."""
    for run in range(len(first_K)):
        first, last = first_K[run], last_K[run]
        for place in range(first, last):
            out_context[at + place - first] = context + run
            out_id[at + place - first] = impression_id_I[place]
        for label in range(len(labels_LI)):
            for place in range(first, last):
                out_label_LB[label, at + place - first] = labels_LI[label, place]
        at += last - first
    return at
