"""Cut pieces of row groups into a batch: the hot path of the feed, each array one slice a piece.

A piece is the impressions [start, stop) of a row group in the order of the epoch: whole contexts, except that the first
and the last may be cut. A context that is cut stands in a batch once for each of its pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.kernels.jit import nb
from training.feed.batch import Bags, Batch
from training.feed.columns import Columns
from training.feed.row_groups import NO_WEIGHTS, RowGroupData, ScopeArrays


@dataclass(frozen=True)
class Piece:
    """The impressions [start, stop) of `data`."""

    data: RowGroupData
    start: int
    stop: int

    def rows(self) -> tuple[int, int]:
        """Return the first row of these impressions, and the row after the last."""
        offsets_R = self.data.offsets_R
        return int(offsets_R.searchsorted(self.start, "right")) - 1, int(offsets_R.searchsorted(self.stop, "left"))


#: The contexts, or the impressions, [start, stop) of a row group. A plain tuple: making a NamedTuple takes longer.
_Slice = tuple[ScopeArrays, int, int]


def collate(pieces: Sequence[Piece], columns: Columns) -> Batch:
    """Return the batch of `pieces` in their order; no pieces give a batch of no impressions."""
    num_impressions = sum(piece.stop - piece.start for piece in pieces)
    impression_id_B, context_of_impression_B = np.empty((2, num_impressions), np.int64)
    label_LB = np.empty((len(columns.label_names), num_impressions), np.float32)
    context_id: list[str] = []
    group_id = [np.empty(0, np.int64)]
    contexts: list[_Slice] = []
    impressions: list[_Slice] = []
    at = 0
    for piece in pieces:
        data, (first, last) = piece.data, piece.rows()
        end = at + piece.stop - piece.start
        _copy_impressions(
            data.impression_id_B,
            data.label_LB,
            data.offsets_R[first : last + 1],
            piece.start,
            len(context_id),
            impression_id_B[at:end],
            label_LB[:, at:end],
            context_of_impression_B[at:end],
        )
        context_id += data.context_ids[first:last]
        group_id.append(data.group_id_R[first:last])
        contexts.append((data.context, first, last))
        impressions.append((data.impression, piece.start, piece.stop))
        at = end
    return Batch(
        context=_repeat_bags(_bags(contexts, len(columns.of_scope("context"))), columns.num_copies),
        impression=_repeat_bags(_bags(impressions, len(columns.of_scope("impression"))), columns.num_copies),
        context_numeric=_numeric_inputs(contexts, columns.num_inputs("context")),
        impression_numeric=_numeric_inputs(impressions, columns.num_inputs("impression")),
        context_of_impression=torch.from_numpy(context_of_impression_B),
        labels={label: torch.from_numpy(label_B) for label, label_B in zip(columns.label_names, label_LB, strict=True)},
        impression_id=torch.from_numpy(impression_id_B),
        group_id=torch.from_numpy(np.concatenate(group_id)),
        context_id=context_id,
    )


def _bags(slices: Sequence[_Slice], num_fields: int) -> Bags:
    """Join the bags of each piece, field-major: field 0 of piece 0, of piece 1, …, then field 1."""
    num_values = np.empty((len(slices), num_fields), np.int64)  # of each piece and field
    for num_values_F, (arrays, start, stop) in zip(num_values, slices, strict=True):
        _count_bag_values(arrays.bags.slot_F, arrays.bags.offsets_FN, start, stop, num_values_F)
    starts = np.cumsum(num_values.T).reshape(num_fields, len(slices)).T - num_values
    num_bags, total = sum(stop - start for _, start, stop in slices), int(num_values.sum())
    value_V, weight_V = np.empty(total, np.int32), np.empty(total, np.float32)
    length_FN = np.empty((num_fields, num_bags), np.int32)
    bag = 0
    for start_F, (arrays, start, stop) in zip(starts, slices, strict=True):
        _copy_bags(*arrays.bags, start, stop, start_F, bag, value_V, weight_V, length_FN)
        bag += stop - start
    counts = tuple(num_values.sum(0).tolist())
    return Bags(torch.from_numpy(value_V), torch.from_numpy(length_FN.reshape(-1)), torch.from_numpy(weight_V), counts)


def _repeat_bags(bags: Bags, num_copies: int) -> Bags:
    """Return the bags of all fields, then those of all fields again: `num_copies` times."""
    if num_copies == 1:
        return bags
    assert bags.counts is not None
    values, lengths, weights = (part.repeat(num_copies) for part in (bags.values, bags.lengths, bags.weights))
    return Bags(values, lengths, weights, bags.counts * num_copies)


def _numeric_inputs(slices: Sequence[_Slice], width: int) -> torch.Tensor:
    """Join the inputs of each piece: float32 [N, width], those of numeric fields before those of dense ones."""
    out_ND = np.empty((sum(stop - start for _, start, stop in slices), width), np.float32)
    at = 0
    for arrays, start, stop in slices:
        num_numeric = len(arrays.numeric_FN)
        out_ND[at : at + stop - start, :num_numeric] = arrays.numeric_FN[:, start:stop].T
        if num_numeric < width:
            out_ND[at : at + stop - start, num_numeric:] = arrays.vectors_ND[start:stop]
        at += stop - start
    return torch.from_numpy(out_ND)


# In these kernels every loop runs from 0 over slices, or numba's test for negative indices prevents vectorizing. Arrays
# are passed one by one: a NamedTuple of six takes 0.5 µs more a call, and each piece of a batch needs two such calls.


@nb.njit(nogil=True, cache=True)
def _copy_impressions(
    impression_id_B: np.ndarray,
    label_LB: np.ndarray,
    offsets_R: np.ndarray,
    start: int,
    context: int,
    to_impression_id_B: np.ndarray,
    to_label_LB: np.ndarray,
    to_context_B: np.ndarray,
) -> None:
    """Copy the impressions from `start` on into a piece's part of the batch; their contexts count from `context` on.

    offsets_R     0       4     7        11     of the rows of which the piece has impressions
    piece             2 ▓▓▓▓▓▓▓▓▓▓▓▓▓ 9         start = 2
    to_context_B      0 0 1 1 1 2 2             context = 0
    """
    stop = start + len(to_impression_id_B)
    ids = impression_id_B[start:stop]
    for place in range(len(ids)):
        to_impression_id_B[place] = ids[place]
    for label in range(len(label_LB)):
        labels, to_labels = label_LB[label, start:stop], to_label_LB[label]
        for place in range(len(labels)):
            to_labels[place] = labels[place]
    for row in range(len(offsets_R) - 1):
        first, last = max(offsets_R[row], start), min(offsets_R[row + 1], stop)
        numbers = to_context_B[first - start : last - start]
        for place in range(len(numbers)):
            numbers[place] = context + row


@nb.njit(nogil=True, cache=True)
def _count_bag_values(
    slot_F: np.ndarray, offsets_FN: np.ndarray, start: int, stop: int, num_values_F: np.ndarray
) -> None:
    """Count the values of each field in the bags [start, stop), into `num_values_F`."""
    for field in range(len(slot_F)):
        slot = slot_F[field]
        if slot >= 0:
            num_values_F[field] = stop - start
        else:
            num_values_F[field] = offsets_FN[-1 - slot, stop] - offsets_FN[-1 - slot, start]


@nb.njit(nogil=True, cache=True)
def _copy_bags(
    slot_F: np.ndarray,
    single_FN: np.ndarray,
    offsets_FN: np.ndarray,
    values_V: np.ndarray,
    weight_shift_F: np.ndarray,
    weights: np.ndarray,
    start: int,
    stop: int,
    start_F: np.ndarray,
    bag: int,
    value_V: np.ndarray,
    weight_V: np.ndarray,
    length_FN: np.ndarray,
) -> None:
    """Copy the bags [start, stop) of field f to place start_F[f] of the values, and their lengths to place `bag`.

    values_V   … |field 0: ·· start ▓▓▓▓ stop ··|field 1: ·· start ▓▓ stop ··| …
    value_V    |field 0: piece 0, ▓▓▓▓, piece 2|field 1: piece 0, ▓▓, piece 2| …
    """
    count = stop - start
    for field in range(len(slot_F)):
        slot = slot_F[field]
        at = start_F[field]
        lengths = length_FN[field, bag : bag + count]
        if slot >= 0:  # single-valued: a value a bag
            values = single_FN[slot, start:stop]
            weight = NO_WEIGHTS
            for place in range(count):
                lengths[place] = 1
        else:
            row = -1 - slot
            starts, ends = offsets_FN[row, start:stop], offsets_FN[row, start + 1 : stop + 1]
            values = values_V[starts[0] : ends[-1]]
            weight = NO_WEIGHTS  # where the first weight is
            if weight_shift_F[row] != NO_WEIGHTS:
                weight = starts[0] + weight_shift_F[row]
            for place in range(count):
                lengths[place] = ends[place] - starts[place]
        to_values, to_weights = value_V[at : at + len(values)], weight_V[at : at + len(values)]
        for place in range(len(values)):
            to_values[place] = values[place]
        if weight == NO_WEIGHTS:
            for place in range(len(to_weights)):
                to_weights[place] = 1.0
        else:
            from_weights = weights[weight : weight + len(values)]
            for place in range(len(from_weights)):
                to_weights[place] = from_weights[place]
