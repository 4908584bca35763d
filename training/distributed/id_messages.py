"""One batch's ids on their way between the ranks: a message of sizes, then one with the lookups of both scopes.

Nothing in it depends on a weight: it is begun as soon as a rank has its batch, travels while the step before computes,
and is waited for when the batch's turn comes.
"""

# Shapes: F fields of a scope, N rows of a scope of one rank (C contexts or B impressions), V values, S scopes, W ranks.
# Scopes are numbered: 0 context, 1 impression; a field by its place in its scope. What one rank sends another, as int32,
# its fields in catalogue order, those of the contexts first:
#
#     | lengths: N of each field | rows of the tables: V of each field | weights, float32: V of each field |

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from training.distributed.world import Pending, World
from training.feed.batch import Bags, Batch

#: (rank, scope, field)
Key = tuple[int, int, int]


@dataclass(frozen=True)
class TablePlacement:
    """Where a field's table is stored, and how many of its columns the towers see."""

    kind: str  # table_wise | row_wise | data_parallel
    owner: int | None  # the rank of a table_wise one
    block: int  # the rows that a rank holds of a row_wise one: id i is of rank i // block
    width: int  # the columns that the towers see

    def holders(self, world: World) -> list[int]:
        """The ranks that look up this rank's ids."""
        if self.kind == "row_wise":
            return list(range(world.size))
        return [world.rank if self.owner is None else self.owner]


class TableOwners:
    """Which rank stores which field's table; identical on every rank."""

    def __init__(self, scopes: Sequence[Sequence[TablePlacement]], world: World) -> None:
        self.scopes, self.world = scopes, world
        #: rank → (scope, field) of what it holds for all ranks, in catalogue order
        self.of_rank = [
            [
                (scope, place)
                for scope, columns in enumerate(scopes)
                for place, column in enumerate(columns)
                if column.kind == "row_wise" or column.owner == rank
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
    """The ids of this rank's batch to the others, and theirs to this one. All ranks call everything in the same order."""

    def __init__(self, batch: Batch, owners: TableOwners) -> None:
        self._world, self._columns, self._held_W = owners.world, owners.scopes, owners.of_rank
        self._bags = (batch.context, batch.impression)
        self.num_rows_WS = [[batch.num_contexts, batch.num_impressions] for _ in self._held_W]
        self._num_values_WF: list[list[int]] = [[] for _ in self._held_W]  # of each rank, V of each field held here
        self._served: dict[Key, Lookups] = {}  # what the others want here, once it has arrived
        self._sizes = self._send_sizes()
        self._ids: Pending | None = None

    @cached_property
    def _wanted(self) -> dict[Key, Lookups]:
        """The lookups that this rank requests from each rank. Not computed on a single rank whose bags are in kernel order."""
        return {
            (rank, scope, place): part
            for scope, (bags, columns) in enumerate(zip(self._bags, self._columns, strict=True))
            for place, parts in enumerate(_cut(bags, columns, self._world.size))
            for rank, part in zip(columns[place].holders(self._world), parts, strict=True)
        }

    def proceed(self) -> None:
        """Send the ids, whose sizes `__init__` announced. A second call does nothing."""
        if self._ids is not None:
            return
        me, sizes = self._world.rank, iter(self._sizes.wait().tolist())
        for rank in self._others():
            self.num_rows_WS[rank] = [next(sizes), next(sizes)]
            self._num_values_WF[rank] = [next(sizes) for _ in self._held_W[me]]
        parts = [self._parts_for(rank) if rank != me else [] for rank in range(self._world.size)]
        nothing = self._bags[0].lengths.new_empty(0)
        self._ids = self._world.start_exchange(
            torch.cat([nothing, *(part for of_rank in parts for part in of_rank)]),
            [sum(map(len, of_rank)) for of_rank in parts],
            [sum(self._layout(rank)) for rank in range(self._world.size)],
        )

    def arrive(self) -> None:
        """Wait for the ids of the other ranks."""
        self.proceed()
        assert self._ids is not None
        me = self._world.rank
        parts = iter(self._ids.wait().split([size for rank in self._others() for size in self._layout(rank)]))
        for rank in self._others():
            lengths, rows, weights = ([next(parts) for _ in self._held_W[me]] for _ in range(3))
            for key, *lookups in zip(self._held_W[me], lengths, rows, weights, strict=True):
                self._served[rank, *key] = Lookups(lookups[0], lookups[1], lookups[2].view(torch.float32))

    def inputs(self, scope: int, fields: Sequence[int], serves_all: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(indices, offsets, weights) of the bags in `fields`, in that order, of all ranks or of this one alone."""
        if self._world.size == 1 and list(fields) == list(range(len(self._columns[scope]))):
            bags = self._bags[scope]  # as they are
            return bags.values, torch.ops.fbgemm.asynchronous_complete_cumsum(bags.lengths), bags.weights
        me = self._world.rank
        ranks = range(self._world.size) if serves_all else [me]
        found = [
            (self._wanted if rank == me else self._served)[rank, scope, place] for place in fields for rank in ranks
        ]
        return (
            torch.cat([part.rows_V for part in found]),
            torch.ops.fbgemm.asynchronous_complete_cumsum(torch.cat([part.lengths_N for part in found])),
            torch.cat([part.weights_V for part in found]),
        )

    def _send_sizes(self) -> Pending:
        """To each other rank: C, B, and V of each field that it holds."""
        me, rows = self._world.rank, []
        for rank, held in enumerate(self._held_W):
            wanted = [len(self._wanted[rank, *key].rows_V) for key in held] if rank != me else []
            rows.append([*self.num_rows_WS[me], *wanted] if rank != me else [])
        coming = [2 + len(self._held_W[me]) if rank != me else 0 for rank in range(self._world.size)]
        out = torch.tensor([size for row in rows for size in row], dtype=torch.int64, device=self._world.device)
        return self._world.start_exchange(out, list(map(len, rows)), coming)

    def _parts_for(self, rank: int) -> list[Tensor]:
        wanted = [self._wanted[rank, *key] for key in self._held_W[rank]]
        return [
            *(part.lengths_N for part in wanted),
            *(part.rows_V for part in wanted),
            *(part.weights_V.view(torch.int32) for part in wanted),
        ]

    def _layout(self, rank: int) -> list[int]:
        """Return the sizes of the parts that `rank` sends, in their order."""
        if rank == self._world.rank:
            return []
        lengths = [self.num_rows_WS[rank][scope] for scope, _ in self._held_W[self._world.rank]]
        return [*lengths, *self._num_values_WF[rank], *self._num_values_WF[rank]]

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world.size) if rank != self._world.rank]


def _cut(bags: Bags, columns: Sequence[TablePlacement], world_size: int) -> list[list[Lookups]]:
    """Of each field: its lookups, or those of each rank's part of its table."""
    if not columns:
        return []
    lengths_FN = bags.lengths.view(len(columns), -1)
    counts_F = lengths_FN.sum(1).tolist()
    rows_F, weights_F = bags.values.to(torch.int32).split(counts_F), bags.weights.split(counts_F)
    lookups = [[Lookups(*of_field)] for of_field in zip(lengths_FN, rows_F, weights_F, strict=True)]
    by_rows = [place for place, column in enumerate(columns) if column.kind == "row_wise"]
    if by_rows and world_size > 1:
        parts = _by_rank(
            [lookups[place][0] for place in by_rows], [columns[place].block for place in by_rows], world_size
        )
        for place, of_ranks in zip(by_rows, parts, strict=True):
            lookups[place] = of_ranks
    return lookups


def _by_rank(fields: Sequence[Lookups], blocks: Sequence[int], world_size: int) -> list[list[Lookups]]:
    """The lookups of row_wise fields, cut by the rank that holds the row, and counted from that rank's first row."""
    lengths_WFN, rows, weights, _, _ = torch.ops.fbgemm.block_bucketize_sparse_features(
        torch.cat([part.lengths_N for part in fields]),
        torch.cat([part.rows_V for part in fields]),
        bucketize_pos=False,
        sequence=False,
        block_sizes=torch.tensor(blocks, dtype=torch.int32, device=fields[0].rows_V.device),
        my_size=world_size,
        weights=torch.cat([part.weights_V for part in fields]),
    )
    lengths_WFN = lengths_WFN.view(world_size, len(fields), -1)
    counts = lengths_WFN.sum(2).flatten().tolist()
    parts = [
        Lookups(*part)
        for part in zip(lengths_WFN.flatten(0, 1), rows.split(counts), weights.split(counts), strict=True)
    ]
    return [parts[place :: len(fields)] for place in range(len(fields))]
