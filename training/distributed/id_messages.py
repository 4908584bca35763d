"""One batch's ids on their way between the ranks: a message of sizes, then one with the lookups of both scopes.

The ids depend on no weight. So a rank sends them as soon as it has its batch, and waits for the others' when the batch's
turn comes; they travel while the step before computes.
"""

# Shapes: F fields of a scope, N rows of a scope of one rank (C contexts or B impressions), V values.
# A field is named by its number in its scope. What one rank sends another, as int32, its fields in catalogue order, those
# of the contexts first:
#
#     | lengths: N of each field | rows of the tables: V of each field | weights, float32: V of each field |

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from training.distributed.exchange import PerScope, Scope
from training.distributed.torchrec_internals import bucketize, offsets_of
from training.distributed.world import Pending, World
from training.feed.batch import Bags, Batch
from training.feed.device_copy import on_device

#: (rank, scope, field)
LookupKey = tuple[int, Scope, int]


@dataclass(frozen=True)
class TablePlacement:
    """The ranks that store a field's table, and the columns of it that the towers see."""

    kind: str  # table_wise | row_wise | data_parallel
    owner: int | None  # the rank of a table_wise one
    block: int  # the rows that a rank stores of a row_wise one: id i is on rank i // block
    width: int  # the columns that the towers see

    def holders(self, world: World) -> list[int]:
        """Return the ranks that look up this rank's ids."""
        if self.kind == "row_wise":
            return list(range(world.size))
        return [world.rank if self.owner is None else self.owner]


class TableOwners:
    """The rank that stores each field's table; identical on every rank."""

    def __init__(self, placements: PerScope[list[TablePlacement]], world: World) -> None:
        self.placements, self.world = placements, world
        #: of each rank, the (scope, field) that it stores for all ranks, in catalogue order
        self.fields_by_rank = [
            [
                (scope, field)
                for scope in Scope
                for field, placement in enumerate(placements[scope])
                if placement.kind == "row_wise" or placement.owner == rank
            ]
            for rank in range(world.size)
        ]


@dataclass(frozen=True)
class Lookups:
    """N bags of one field, in its table or in one rank's part of it."""

    lengths_N: Tensor  # int32
    rows_V: Tensor  # int32, counted from the first of the table or of the part
    weights_V: Tensor  # float32


class IdExchange:
    """The ids of this rank's batch to the others, and theirs to this one.

    All ranks make the same calls in the same order.
    """

    def __init__(self, batch: Batch, owners: TableOwners) -> None:
        self._world, self._placements, self._fields_by_rank = owners.world, owners.placements, owners.fields_by_rank
        self._bags = PerScope(batch.context, batch.impression)
        self.num_rows_by_rank = [PerScope(batch.num_contexts, batch.num_impressions) for _ in self._fields_by_rank]
        #: of each rank, V of each field that this rank stores
        self._num_values_by_rank: list[list[int]] = [[] for _ in self._fields_by_rank]
        self._requested: dict[LookupKey, Lookups] = {}  # by the other ranks, of this one; once they have arrived
        self._sizes = self._send_sizes() if self._world.size > 1 else None  # a rank that is alone sends nothing
        self._ids: Pending | None = None

    @cached_property
    def _wanted(self) -> dict[LookupKey, Lookups]:
        """The lookups that this rank requests from each rank. Not computed on a single rank whose bags are in kernel order."""
        return {
            (rank, scope, field): part
            for scope in Scope
            for field, parts in enumerate(_cut(self._bags[scope], self._placements[scope], self._world.size))
            for rank, part in zip(self._placements[scope][field].holders(self._world), parts, strict=True)
        }

    def proceed(self) -> None:
        """Send the ids, whose sizes `__init__` announced. A second call does nothing."""
        if self._sizes is None or self._ids is not None:
            return
        me, sizes = self._world.rank, iter(self._sizes.wait().tolist())
        for rank in self._others():
            self.num_rows_by_rank[rank] = PerScope(next(sizes), next(sizes))
            self._num_values_by_rank[rank] = [next(sizes) for _ in self._fields_by_rank[me]]
        parts_by_rank = [self._parts_for(rank) if rank != me else [] for rank in range(self._world.size)]
        nothing = self._bags.contexts.lengths.new_empty(0)
        self._ids = self._world.start_exchange(
            torch.cat([nothing, *(part for parts in parts_by_rank for part in parts)]),
            [sum(map(len, parts)) for parts in parts_by_rank],
            [sum(self._layout(rank)) for rank in range(self._world.size)],
        )

    def wait(self) -> None:
        """Wait for the ids of the other ranks."""
        self.proceed()
        if self._ids is None:
            return
        fields = self._fields_by_rank[self._world.rank]
        parts = iter(self._ids.wait().split([size for rank in self._others() for size in self._layout(rank)]))
        for rank in self._others():
            lengths, rows, weights = ([next(parts) for _ in fields] for _ in range(3))
            for key, lengths_N, rows_V, weights_V in zip(fields, lengths, rows, weights, strict=True):
                self._requested[rank, *key] = Lookups(lengths_N, rows_V, weights_V.view(torch.float32))

    def inputs(self, scope: Scope, fields: Sequence[int], serves_all: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return (indices, offsets, weights) of the bags in `fields`, in that order, of all ranks or of this one alone."""
        if self._world.size == 1 and list(fields) == list(range(len(self._placements[scope]))):
            bags = self._bags[scope]  # as they are
            return bags.values, offsets_of(bags.lengths), bags.weights
        me = self._world.rank
        ranks = range(self._world.size) if serves_all else [me]
        found = [
            (self._wanted if rank == me else self._requested)[rank, scope, field] for field in fields for rank in ranks
        ]
        return (
            torch.cat([part.rows_V for part in found]),
            offsets_of(torch.cat([part.lengths_N for part in found])),
            torch.cat([part.weights_V for part in found]),
        )

    def _send_sizes(self) -> Pending:
        """Send each other rank C, B, and V of each field that it stores."""
        me, rows = self._world.rank, []
        for rank, fields in enumerate(self._fields_by_rank):
            wanted = [len(self._wanted[rank, *key].rows_V) for key in fields] if rank != me else []
            rows.append([*self.num_rows_by_rank[me], *wanted] if rank != me else [])
        receive = [2 + len(self._fields_by_rank[me]) if rank != me else 0 for rank in range(self._world.size)]
        out = on_device([size for row in rows for size in row], torch.int64, self._world.device)
        return self._world.start_exchange(out, list(map(len, rows)), receive)

    def _parts_for(self, rank: int) -> list[Tensor]:
        wanted = [self._wanted[rank, *key] for key in self._fields_by_rank[rank]]
        return [
            *(part.lengths_N for part in wanted),
            *(part.rows_V for part in wanted),
            *(part.weights_V.view(torch.int32) for part in wanted),
        ]

    def _layout(self, rank: int) -> list[int]:
        """Return the sizes of the parts that `rank` sends, in their order."""
        if rank == self._world.rank:
            return []
        lengths = [self.num_rows_by_rank[rank][scope] for scope, _ in self._fields_by_rank[self._world.rank]]
        return [*lengths, *self._num_values_by_rank[rank], *self._num_values_by_rank[rank]]

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world.size) if rank != self._world.rank]


def _cut(bags: Bags, placements: Sequence[TablePlacement], world_size: int) -> list[list[Lookups]]:
    """Return the lookups of each field: one for its whole table, or one for each rank's part of it."""
    if not placements:
        return []
    lengths_FN = bags.lengths.view(len(placements), -1)
    counts = bags.counts_of(len(placements))
    rows, weights = bags.values.to(torch.int32).split(counts), bags.weights.split(counts)
    lookups = [[Lookups(*of_field)] for of_field in zip(lengths_FN, rows, weights, strict=True)]
    by_rows = [field for field, placement in enumerate(placements) if placement.kind == "row_wise"]
    if by_rows and world_size > 1:
        parts = _cut_by_rank(
            [lookups[field][0] for field in by_rows], [placements[field].block for field in by_rows], world_size
        )
        for field, of_ranks in zip(by_rows, parts, strict=True):
            lookups[field] = of_ranks
    return lookups


def _cut_by_rank(fields: Sequence[Lookups], blocks: Sequence[int], world_size: int) -> list[list[Lookups]]:
    """Cut the lookups of row_wise `fields` by the rank that stores the row, and count from that rank's first row."""
    lengths, rows_V, weights_V = bucketize(
        torch.cat([part.lengths_N for part in fields]),
        torch.cat([part.rows_V for part in fields]),
        torch.cat([part.weights_V for part in fields]),
        on_device(blocks, torch.int32, fields[0].rows_V.device),
        world_size,
    )
    lengths = lengths.view(world_size * len(fields), -1)
    counts = lengths.sum(1).tolist()
    parts = [Lookups(*part) for part in zip(lengths, rows_V.split(counts), weights_V.split(counts), strict=True)]
    return [parts[field :: len(fields)] for field in range(len(fields))]
