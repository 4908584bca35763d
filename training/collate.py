"""Gather pieces of row groups into a batch: the hot path of the feed.

A piece is the impressions [start, stop) of a row group in the order in which it is fed: whole contexts, except that the
first and the last may be cut. A context that is cut stands in a batch once for each of its pieces. In the row group's
arrays, which are in the order of the file, the impressions of a context stand side by side, so that gathering is copying
runs, as long as the context; nothing is copied between decoding a row group and here.
"""

# Shapes: P pieces, C contexts, B impressions, K runs, F fields of a scope, N bags of a scope (C or B), V values,
# W weights, L labels, D numeric fields of a scope.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import pipeline.numba_cache  # noqa: F401  (before numba)

# isort: split
from numba import njit

from pipeline.manifest import NUMERIC
from training.batch import Bags, Batch
from training.columns import Columns
from training.row_groups import NO_WEIGHTS, Packed, RowGroupData


@dataclass(frozen=True)
class Piece:
    """The impressions [start, stop) of `data`, in the order in which it is fed."""

    data: RowGroupData
    start: int
    stop: int


@dataclass(frozen=True)
class _Cut:
    """Where the contexts and impressions of a piece stand in its row group."""

    row_C: np.ndarray
    offsets_C: np.ndarray  # [C + 1], into the impressions of the piece
    first_K: np.ndarray  # the impressions, as runs [first, last)
    last_K: np.ndarray


def collate(pieces: Sequence[Piece], columns: Columns) -> Batch:
    """The batch of `pieces` in their order; no pieces give a batch of no impressions."""
    cuts = [_cut(piece) for piece in pieces]
    num_impressions = sum(piece.stop - piece.start for piece in pieces)
    num_contexts = sum(len(cut.row_C) for cut in cuts)
    context_of_impression = np.empty(num_impressions, np.int64)
    impression_id = np.empty(num_impressions, np.int64)
    label_LB = np.empty((len(columns.labels), num_impressions), np.float32)
    group_id = np.empty(num_contexts, np.int64)
    context_id: list[str] = []
    context = impression = 0
    for piece, cut in zip(pieces, cuts, strict=True):
        data = piece.data
        mine = slice(impression, impression + piece.stop - piece.start)
        _copy_impressions(
            data.impression_id_I,
            data.labels_LI,
            cut.first_K,
            cut.last_K,
            cut.offsets_C,
            context,
            impression_id[mine],
            label_LB[:, mine],
            context_of_impression[mine],
        )
        group_id[context : context + len(cut.row_C)] = data.group_id_R[cut.row_C]
        context_id += [data.context_id_R[row] for row in cut.row_C.tolist()]
        context, impression = context + len(cut.row_C), mine.stop
    contexts = [(piece.data.context, cut.row_C, cut.row_C + 1) for piece, cut in zip(pieces, cuts, strict=True)]
    impressions = [(piece.data.impression, cut.first_K, cut.last_K) for piece, cut in zip(pieces, cuts, strict=True)]
    return Batch(
        context=_bags(contexts, num_contexts, len(columns.of_scope("context"))),
        impression=_bags(impressions, num_impressions, len(columns.of_scope("impression"))),
        context_numeric=_numbers(contexts, num_contexts, len(columns.of_scope("context", NUMERIC))),
        impression_numeric=_numbers(impressions, num_impressions, len(columns.of_scope("impression", NUMERIC))),
        context_of_impression=torch.from_numpy(context_of_impression),
        labels={label: torch.from_numpy(label_LB[place]) for place, label in enumerate(columns.labels)},
        impression_id=torch.from_numpy(impression_id),
        group_id=torch.from_numpy(group_id),
        context_id=context_id,
    )


def _cut(piece: Piece) -> _Cut:
    order, start, stop = piece.data.order, piece.start, piece.stop
    first, last = _cover(order.offsets_R, start, stop)
    first_run, last_run = (first, last) if order.offsets_K is order.offsets_R else _cover(order.offsets_K, start, stop)
    offsets_C = order.offsets_R[first : last + 1] - start
    offsets_C[0], offsets_C[-1] = 0, stop - start
    first_K, last_K = order.first_K[first_run:last_run].copy(), order.last_K[first_run:last_run].copy()
    first_K[0] += start - order.offsets_K[first_run]
    last_K[-1] -= order.offsets_K[last_run] - stop
    return _Cut(order.row_R[first:last], offsets_C, first_K, last_K)


def _cover(offsets: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """The first of the ranges between `offsets` that [start, stop) touches, and the one after the last."""
    return int(offsets.searchsorted(start, side="right")) - 1, int(offsets.searchsorted(stop, side="left"))


def _bags(runs_P: Sequence[tuple[Packed, np.ndarray, np.ndarray]], num_bags: int, num_fields: int) -> Bags:
    """The bags of each piece's runs [first, last), field-major: field 0 of piece 0, of piece 1, …, then field 1."""
    counts_PF = np.empty((len(runs_P), num_fields), np.int64)
    for counts_F, (packed, first_K, last_K) in zip(counts_PF, runs_P, strict=True):
        _count_values(packed.slot_F, packed.offsets_MN, first_K, last_K, counts_F)
    starts_PF = np.cumsum(counts_PF.T).reshape(num_fields, len(runs_P)).T - counts_PF
    num_values = int(counts_PF.sum())
    values, weights = np.empty(num_values, np.int32), np.empty(num_values, np.float32)
    length_FN = np.empty((num_fields, num_bags), np.int32)
    bag = 0
    for starts_F, (packed, first_K, last_K) in zip(starts_PF, runs_P, strict=True):
        bag = _copy_bags(
            packed.slot_F,
            packed.ones_ON,
            packed.offsets_MN,
            packed.values_V,
            packed.shift_M,
            packed.weights_W,
            first_K,
            last_K,
            starts_F,
            bag,
            values,
            weights,
            length_FN,
        )
    return Bags(torch.from_numpy(values), torch.from_numpy(length_FN.reshape(-1)), torch.from_numpy(weights))


def _numbers(runs_P: Sequence[tuple[Packed, np.ndarray, np.ndarray]], num_bags: int, num_fields: int) -> torch.Tensor:
    """float32 [N, D]: the numeric inputs of each piece's runs."""
    out_ND = np.empty((num_bags, num_fields), np.float32)
    at = 0
    for packed, first_K, last_K in runs_P if num_fields else ():
        at = _copy_numbers(packed.numeric_DN, first_K, last_K, at, out_ND)
    return torch.from_numpy(out_ND)


# In these kernels every loop over values runs from 0 over slices, or numba's test for negative indices keeps it from
# vectorizing.


@njit(nogil=True, cache=True)
def _copy_impressions(
    impression_id_I: np.ndarray,
    labels_LI: np.ndarray,
    first_K: np.ndarray,
    last_K: np.ndarray,
    offsets_C: np.ndarray,
    context: int,
    impression_id: np.ndarray,
    label_LB: np.ndarray,
    context_of_impression: np.ndarray,
) -> None:
    """The ids and labels of the impressions [first_K, last_K), and the numbers of their contexts, from `context` on."""
    at = 0
    for run in range(len(first_K)):
        ids = impression_id_I[first_K[run] : last_K[run]]
        to_ids = impression_id[at : at + len(ids)]
        for place in range(len(ids)):
            to_ids[place] = ids[place]
        for label in range(len(labels_LI)):
            labels = labels_LI[label, first_K[run] : last_K[run]]
            to_labels = label_LB[label, at : at + len(ids)]
            for place in range(len(labels)):
                to_labels[place] = labels[place]
        at += len(ids)
    for number in range(len(offsets_C) - 1):
        context_of_impression[offsets_C[number] : offsets_C[number + 1]] = context + number


@njit(nogil=True, cache=True)
def _copy_numbers(numeric_DN: np.ndarray, first_K: np.ndarray, last_K: np.ndarray, at: int, out_ND: np.ndarray) -> int:
    """out_ND from row `at` on: the numbers of the bags [first_K, last_K). Returns the row after them."""
    for run in range(len(first_K)):
        for bag in range(first_K[run], last_K[run]):
            for field in range(len(numeric_DN)):
                out_ND[at, field] = numeric_DN[field, bag]
            at += 1
    return at


@njit(nogil=True, cache=True)
def _count_values(
    slot_F: np.ndarray, offsets_MN: np.ndarray, first_K: np.ndarray, last_K: np.ndarray, counts_F: np.ndarray
) -> None:
    """counts_F: how many values of each field the bags [first_K, last_K) hold."""
    num_bags = 0
    for run in range(len(first_K)):
        num_bags += last_K[run] - first_K[run]
    for field in range(len(slot_F)):
        slot = slot_F[field]
        count = 0
        if slot >= 0:
            count = num_bags
        else:
            for run in range(len(first_K)):
                count += offsets_MN[-1 - slot, last_K[run]] - offsets_MN[-1 - slot, first_K[run]]
        counts_F[field] = count


@njit(nogil=True, cache=True)
def _copy_bags(
    slot_F: np.ndarray,
    ones_ON: np.ndarray,
    offsets_MN: np.ndarray,
    values_V: np.ndarray,
    shift_M: np.ndarray,
    weights_W: np.ndarray,
    first_K: np.ndarray,
    last_K: np.ndarray,
    starts_F: np.ndarray,
    bag: int,
    out_values: np.ndarray,
    out_weights: np.ndarray,
    out_length_FN: np.ndarray,
) -> int:
    """Copy the bags [first_K, last_K) of field f to place starts_F[f] of the values, and their lengths to place `bag`.

    values_V    … |field 0: ·· run 1 ▓▓▓▓ ···· run 0 ░░ ··|field 1: ·· run 1 ▓▓ ·· run 0 ░ ·· | …
    out_values  |field 0: piece 0, ░░▓▓▓▓, piece 2|field 1: piece 0, ░▓▓, piece 2| …
    Returns the place after the last bag.
    """
    after = bag
    for field in range(len(slot_F)):
        slot = slot_F[field]
        at, after = starts_F[field], bag
        for run in range(len(first_K)):
            first, last = first_K[run], last_K[run]
            count = last - first
            lengths = out_length_FN[field, after : after + count]
            after += count
            if slot >= 0:
                ones = ones_ON[slot, first:last]
                to_values, to_weights = out_values[at : at + count], out_weights[at : at + count]
                for place in range(count):
                    to_values[place] = ones[place]
                    to_weights[place] = 1.0
                    lengths[place] = 1
                at += count
                continue
            starts = offsets_MN[-1 - slot, first:last]
            ends = offsets_MN[-1 - slot, first + 1 : last + 1]
            start, stop = offsets_MN[-1 - slot, first], offsets_MN[-1 - slot, last]
            from_values = values_V[start:stop]
            to_values, to_weights = out_values[at : at + len(from_values)], out_weights[at : at + len(from_values)]
            for place in range(len(from_values)):
                to_values[place] = from_values[place]
            shift = shift_M[-1 - slot]
            if shift == NO_WEIGHTS:
                for place in range(len(to_weights)):
                    to_weights[place] = 1.0
            else:
                from_weights = weights_W[start + shift : stop + shift]
                for place in range(len(from_weights)):
                    to_weights[place] = from_weights[place]
            for place in range(count):
                lengths[place] = ends[place] - starts[place]
            at += len(from_values)
    return after
