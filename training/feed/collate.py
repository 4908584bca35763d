"""Cut pieces of row groups into a batch: the hot path of the feed, each array one slice a piece.

A piece is the impressions [start, stop) of a row group in the order in which it is fed: whole contexts, except that the
first and the last may be cut. A context that is cut stands in a batch once for each of its pieces.
"""

# Shapes: P pieces, C contexts, B impressions, F fields of a scope, N bags of a scope (C or B), V values, L labels,
# D numeric fields of a scope.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.dataset.kinds import NUMBER
from pipeline.kernels.jit import nb
from training.feed.batch import Bags, Batch
from training.feed.columns import Columns
from training.feed.row_groups import NO_WEIGHTS, Packed, RowGroupData


@dataclass(frozen=True)
class Piece:
    """The impressions [start, stop) of `data`."""

    data: RowGroupData
    start: int
    stop: int

    def rows(self) -> tuple[int, int]:
        """The first row of these impressions, and the row after the last."""
        offsets_R = self.data.offsets_R
        return int(offsets_R.searchsorted(self.start, "right")) - 1, int(offsets_R.searchsorted(self.stop, "left"))


#: The bags [first, last) of a row group's scope.
_Slice = tuple[Packed, int, int]


def collate(pieces: Sequence[Piece], columns: Columns) -> Batch:
    """The batch of `pieces` in their order; no pieces give a batch of no impressions."""
    num_impressions = sum(piece.stop - piece.start for piece in pieces)
    context_of_impression = np.empty(num_impressions, np.int64)
    impression_id = np.empty(num_impressions, np.int64)
    label_LB = np.empty((len(columns.labels), num_impressions), np.float32)
    context_id: list[str] = []
    group_id = [np.empty(0, np.int64)]
    contexts: list[_Slice] = []
    impressions: list[_Slice] = []
    at = 0
    for piece in pieces:
        data, (first, last) = piece.data, piece.rows()
        _copy_impressions(
            data.impression_id_I,
            data.labels_LI,
            data.offsets_R[first : last + 1],
            piece.start,
            piece.stop,
            len(context_id),
            at,
            impression_id,
            label_LB,
            context_of_impression,
        )
        context_id += data.context_id_R[first:last]
        group_id.append(data.group_id_R[first:last])
        contexts.append((data.context, first, last))
        impressions.append((data.impression, piece.start, piece.stop))
        at += piece.stop - piece.start
    return Batch(
        context=_bags(contexts, len(columns.of_scope("context"))),
        impression=_bags(impressions, len(columns.of_scope("impression"))),
        context_numeric=_numeric_inputs(contexts, len(columns.of_scope("context", NUMBER))),
        impression_numeric=_numeric_inputs(impressions, len(columns.of_scope("impression", NUMBER))),
        context_of_impression=torch.from_numpy(context_of_impression),
        labels={label: torch.from_numpy(label_LB[place]) for place, label in enumerate(columns.labels)},
        impression_id=torch.from_numpy(impression_id),
        group_id=torch.from_numpy(np.concatenate(group_id)),
        context_id=context_id,
    )


def _bags(slices_P: Sequence[_Slice], num_fields: int) -> Bags:
    """The bags [first, last) of each piece, field-major: field 0 of piece 0, of piece 1, …, then field 1."""
    counts_PF = np.empty((len(slices_P), num_fields), np.int64)
    for counts_F, (packed, first, last) in zip(counts_PF, slices_P, strict=True):
        _count_bag_values(packed.slot_F, packed.offsets_MN, first, last, counts_F)
    starts_PF = np.cumsum(counts_PF.T).reshape(num_fields, len(slices_P)).T - counts_PF
    num_bags, num_values = sum(last - first for _, first, last in slices_P), int(counts_PF.sum())
    values, weights = np.empty(num_values, np.int32), np.empty(num_values, np.float32)
    length_FN = np.empty((num_fields, num_bags), np.int32)
    bag = 0
    for starts_F, (packed, first, last) in zip(starts_PF, slices_P, strict=True):
        _copy_bags(
            packed.slot_F,
            packed.ones_ON,
            packed.offsets_MN,
            packed.values_V,
            packed.shift_M,
            packed.weights_W,
            first,
            last,
            starts_F,
            bag,
            values,
            weights,
            length_FN,
        )
        bag += last - first
    return Bags(torch.from_numpy(values), torch.from_numpy(length_FN.reshape(-1)), torch.from_numpy(weights))


def _numeric_inputs(slices_P: Sequence[_Slice], num_fields: int) -> torch.Tensor:
    """float32 [N, D]: the numeric inputs [first, last) of each piece."""
    out_ND = np.empty((sum(last - first for _, first, last in slices_P), num_fields), np.float32)
    at = 0
    for packed, first, last in slices_P:
        out_ND[at : at + last - first] = packed.numeric_DN[:, first:last].T
        at += last - first
    return torch.from_numpy(out_ND)


# In these kernels every loop runs from 0 over slices, or numba's test for negative indices keeps it from vectorizing.


@nb.njit(nogil=True, cache=True)
def _copy_impressions(
    impression_id_I: np.ndarray,
    labels_LI: np.ndarray,
    offsets_C: np.ndarray,
    start: int,
    stop: int,
    context: int,
    at: int,
    impression_id_B: np.ndarray,
    label_LB: np.ndarray,
    context_of_impression_B: np.ndarray,
) -> None:
    """The impressions [start, stop), from place `at` of the batch on; their contexts are numbered from `context` on."""
    ids = impression_id_I[start:stop]
    to_ids = impression_id_B[at : at + len(ids)]
    for place in range(len(ids)):
        to_ids[place] = ids[place]
    for label in range(len(labels_LI)):
        labels, to_labels = labels_LI[label, start:stop], label_LB[label, at : at + len(ids)]
        for place in range(len(labels)):
            to_labels[place] = labels[place]
    for row in range(len(offsets_C) - 1):
        first, last = max(offsets_C[row], start), min(offsets_C[row + 1], stop)
        numbers = context_of_impression_B[at + first - start : at + last - start]
        for place in range(len(numbers)):
            numbers[place] = context + row


@nb.njit(nogil=True, cache=True)
def _count_bag_values(slot_F: np.ndarray, offsets_MN: np.ndarray, first: int, last: int, counts_F: np.ndarray) -> None:
    """counts_F: how many values of each field the bags [first, last) hold."""
    for field in range(len(slot_F)):
        slot = slot_F[field]
        if slot >= 0:
            counts_F[field] = last - first
        else:
            counts_F[field] = offsets_MN[-1 - slot, last] - offsets_MN[-1 - slot, first]


@nb.njit(nogil=True, cache=True)
def _copy_bags(
    slot_F: np.ndarray,
    ones_ON: np.ndarray,
    offsets_MN: np.ndarray,
    values_V: np.ndarray,
    shift_M: np.ndarray,
    weights_W: np.ndarray,
    first: int,
    last: int,
    starts_F: np.ndarray,
    bag: int,
    out_values: np.ndarray,
    out_weights: np.ndarray,
    out_length_FN: np.ndarray,
) -> None:
    """Copy the bags [first, last) of field f to place starts_F[f] of the values, and their lengths to place `bag`.

    values_V    … |field 0: ·· first ▓▓▓▓ last ··|field 1: ·· first ▓▓ last ··| …
    out_values  |field 0: piece 0, ▓▓▓▓, piece 2|field 1: piece 0, ▓▓, piece 2| …
    """
    count = last - first
    for field in range(len(slot_F)):
        slot = slot_F[field]
        at = starts_F[field]
        lengths = out_length_FN[field, bag : bag + count]
        if slot >= 0:
            from_values = ones_ON[slot, first:last]
            shift = NO_WEIGHTS
            for place in range(count):
                lengths[place] = 1
        else:
            starts, ends = offsets_MN[-1 - slot, first:last], offsets_MN[-1 - slot, first + 1 : last + 1]
            from_values = values_V[starts[0] : ends[-1]]
            shift = starts[0] + shift_M[-1 - slot] if shift_M[-1 - slot] != NO_WEIGHTS else NO_WEIGHTS
            for place in range(count):
                lengths[place] = ends[place] - starts[place]
        to_values, to_weights = out_values[at : at + len(from_values)], out_weights[at : at + len(from_values)]
        for place in range(len(from_values)):
            to_values[place] = from_values[place]
        if shift == NO_WEIGHTS:
            for place in range(len(to_weights)):
                to_weights[place] = 1.0
        else:
            from_weights = weights_W[shift : shift + len(from_values)]
            for place in range(len(from_weights)):
                to_weights[place] = from_weights[place]
