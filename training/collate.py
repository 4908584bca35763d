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

import pipeline.numba_cache  # noqa: F401  (before numba)

# isort: split
from numba import njit

from pipeline.manifest import NUMERIC
from training.batch import Bags, Batch
from training.row_groups import Columns, Packed, RowGroupData


@dataclass(frozen=True)
class Piece:
    """The impressions [start, stop) of `data`."""

    data: RowGroupData
    start: int
    stop: int

    def rows(self) -> tuple[int, int]:
        """The first row of these impressions, and the row after the last."""
        first = int(np.searchsorted(self.data.offsets_R, self.start, side="right")) - 1
        return first, int(np.searchsorted(self.data.offsets_R, self.stop, side="left"))


def collate(pieces: Sequence[Piece], columns: Columns) -> Batch:
    """The batch of `pieces` in their order; no pieces give a batch of no impressions."""
    num_impressions = sum(piece.stop - piece.start for piece in pieces)
    context_of_impression = np.empty(num_impressions, np.int64)
    impression_id = np.empty(num_impressions, np.int64)
    label_LB = np.empty((len(columns.labels), num_impressions), np.float32)
    context_id: list[str] = []
    group_id = [np.empty(0, np.int64)]
    at = 0
    for piece in pieces:
        data, (first, last) = piece.data, piece.rows()
        mine = slice(at, at + piece.stop - piece.start)
        bounds = np.clip(data.offsets_R[first : last + 1], piece.start, piece.stop)
        number = np.arange(len(context_id), len(context_id) + last - first)
        context_of_impression[mine] = np.repeat(number, np.diff(bounds))
        impression_id[mine] = data.impression_id_I[piece.start : piece.stop]
        label_LB[:, mine] = data.labels_LI[:, piece.start : piece.stop]
        context_id += data.context_id_R[first:last]
        group_id.append(data.group_id_R[first:last])
        at = mine.stop
    contexts = [(piece.data.context, *piece.rows()) for piece in pieces]
    impressions = [(piece.data.impression, piece.start, piece.stop) for piece in pieces]
    return Batch(
        context=_bags(contexts, len(columns.of_scope("context"))),
        impression=_bags(impressions, len(columns.of_scope("impression"))),
        context_numeric=_numbers(contexts, len(columns.of_scope("context", NUMERIC))),
        impression_numeric=_numbers(impressions, len(columns.of_scope("impression", NUMERIC))),
        context_of_impression=torch.from_numpy(context_of_impression),
        labels={label: torch.from_numpy(label_LB[place]) for place, label in enumerate(columns.labels)},
        impression_id=torch.from_numpy(impression_id),
        group_id=torch.from_numpy(np.concatenate(group_id)),
        context_id=context_id,
    )


def _bags(slices_P: Sequence[tuple[Packed, int, int]], num_fields: int) -> Bags:
    """The bags [first, last) of each piece, field-major: field 0 of piece 0, of piece 1, …, then field 1."""
    counts_PF = np.empty((len(slices_P), num_fields), np.int64)
    for counts_F, (packed, first, last) in zip(counts_PF, slices_P, strict=True):
        _count_values(packed.slot_F, packed.offsets_MN, first, last, counts_F)
    starts_PF = np.cumsum(counts_PF.T).reshape(num_fields, len(slices_P)).T - counts_PF
    num_bags, num_values = sum(last - first for _, first, last in slices_P), int(counts_PF.sum())
    values, weights = np.empty(num_values, np.int64), np.empty(num_values, np.float32)
    length_FN = np.empty((num_fields, num_bags), np.int32)
    bag = 0
    for starts_F, (packed, first, last) in zip(starts_PF, slices_P, strict=True):
        _copy_bags(
            packed.slot_F,
            packed.ones_ON,
            packed.offsets_MN,
            packed.values_V,
            packed.weights_V,
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


def _numbers(slices_P: Sequence[tuple[Packed, int, int]], num_fields: int) -> torch.Tensor:
    """float32 [N, D]: the numeric inputs [first, last) of each piece."""
    out_ND = np.empty((sum(last - first for _, first, last in slices_P), num_fields), np.float32)
    at = 0
    for packed, first, last in slices_P:
        out_ND[at : at + last - first] = packed.numeric_DN[:, first:last].T
        at += last - first
    return torch.from_numpy(out_ND)


@njit(nogil=True, cache=True)
def _count_values(slot_F: np.ndarray, offsets_MN: np.ndarray, first: int, last: int, counts_F: np.ndarray) -> None:
    """counts_F: how many values of each field the bags [first, last) hold."""
    for field in range(len(slot_F)):
        slot = slot_F[field]
        if slot >= 0:
            counts_F[field] = last - first
        else:
            counts_F[field] = offsets_MN[-1 - slot, last] - offsets_MN[-1 - slot, first]


@njit(nogil=True, cache=True)
def _copy_bags(
    slot_F: np.ndarray,
    ones_ON: np.ndarray,
    offsets_MN: np.ndarray,
    values_V: np.ndarray,
    weights_V: np.ndarray,
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
        lengths = out_length_FN[field, bag : bag + count]
        # Every loop runs from 0 over slices, or numba's test for negative indices keeps it from vectorizing.
        if slot >= 0:
            rows = ones_ON[slot, first:last]
            at = starts_F[field]
            to_values, to_weights = out_values[at : at + count], out_weights[at : at + count]
            for place in range(count):
                to_values[place] = rows[place]
                to_weights[place] = 1.0
                lengths[place] = 1
        else:
            starts = offsets_MN[-1 - slot, first:last]
            ends = offsets_MN[-1 - slot, first + 1 : last + 1]
            from_values, from_weights = values_V[starts[0] : ends[-1]], weights_V[starts[0] : ends[-1]]
            at = starts_F[field]
            to_values = out_values[at : at + len(from_values)]
            to_weights = out_weights[at : at + len(from_values)]
            for place in range(len(from_values)):
                to_values[place] = from_values[place]
            for place in range(len(from_values)):
                to_weights[place] = from_weights[place]
            for place in range(count):
                lengths[place] = ends[place] - starts[place]
