"""The exchange between the ranks: a batch's ids travel to the ranks that store their rows, and the pooled rows come back.

    bags ─cut by rank─▶ ids ▶▶▶ FBGEMM's kernels ─▶ pooled rows ▶▶▶ context [C, D], impression [B, D] ─▶ towers
                tables ◀─ FBGEMM's optimizers ◀─ gradients ◀◀◀ gradients of [C, D], [B, D] ◀──────────── towers

TorchRec owns the tables, the kernels and their optimizers; this module moves what goes into the kernels and comes out of
them. TorchRec's own distribution sends seven messages a scope and step, each waited for in turn (measured: two ranks on
two cores trained 0.65 times as fast as one). Here ids travel while the step before computes, for they depend on no
weight. The rows of one scope travel while the other scope is looked up or learned. What a rank has for itself does not
travel, and a rank that is alone sends nothing.
"""

# Shapes: N rows of a scope (C contexts or B impressions) of one rank, D used columns of a scope, A columns that a
# kernel's tables allocate. A field is named by its number in its scope.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.distributed.exchange import Kernel, PerScope, Scope
from training.distributed.id_messages import IdExchange, TableOwners, TablePlacement
from training.distributed.local_rows import LocalRowLayout
from training.distributed.world import Pending, World
from training.feed.batch import Batch

#: (rank, field of a scope) → rows: [N, used columns].
RowsByRank = dict[tuple[int, int], Tensor]


@dataclass
class PeerPooled:
    """The pooled rows of this rank's batch; in training both matrices are leaves, and `learn` sends their gradients."""

    context_CD: Tensor
    impression_BD: Tensor
    num_rows_by_rank: list[PerScope[int]]
    outputs: PerScope[list[Tensor]]  # of this rank's kernels: [N of all ranks served, A]


class PeerExchange:
    """An `Exchange` of asynchronous all-to-alls, one of ids a step and one of rows a scope and direction."""

    def __init__(self, placements: PerScope[list[TablePlacement]], kernels: Sequence[Kernel], world: World) -> None:
        self.kernels, self._owners = kernels, TableOwners(placements, world)
        self._contexts, self._impressions = (_ScopeExchange(scope, self._owners, kernels) for scope in Scope)

    @property
    def num_fields(self) -> PerScope[int]:
        """The number of categorical fields of a context and of an impression."""
        contexts, impressions = self._owners.placements
        return PerScope(len(contexts), len(impressions))

    def send(self, batch: Batch) -> IdExchange:
        """Start to send the ids of `batch` to the ranks that store their rows."""
        return IdExchange(batch, self._owners)

    def look_up(self, ids: IdExchange) -> PeerPooled:
        """Look up and pool the embedding rows of the batch that `ids` belong to."""
        ids.wait()
        if self._owners.world.size == 1:
            return self._look_up_alone(ids)
        impressions, impression_rows = self._impressions.look_up(ids)  # the larger load leaves first
        contexts, context_rows = self._contexts.look_up(ids)
        with torch.no_grad():
            context_CD, impression_BD = context_rows.assemble(), impression_rows.assemble()
        if torch.is_grad_enabled():
            context_CD.requires_grad_()
            impression_BD.requires_grad_()
        return PeerPooled(context_CD, impression_BD, ids.num_rows_by_rank, PerScope(contexts, impressions))

    def _look_up_alone(self, ids: IdExchange) -> PeerPooled:
        """Look up and pool where no rows travel."""
        (num_rows,) = ids.num_rows_by_rank
        impressions, contexts = self._impressions.pool(ids), self._contexts.pool(ids)
        with torch.no_grad():
            rows = [
                scope.layout.rows_of(outputs, count)
                for scope, outputs, count in (
                    (self._contexts, contexts, num_rows.contexts),
                    (self._impressions, impressions, num_rows.impressions),
                )
            ]
        if torch.is_grad_enabled():
            rows = [rows_ND.requires_grad_() for rows_ND in rows]
        context_CD, impression_BD = rows
        return PeerPooled(context_CD, impression_BD, ids.num_rows_by_rank, PerScope(contexts, impressions))

    def learn(self, pooled: PeerPooled) -> None:
        """Send the gradients of `pooled` to the ranks that store the rows; sharded tables are updated in here, and
        replicated ones get a gradient."""
        if self._owners.world.size == 1:
            self._contexts.learn_alone(pooled.outputs.contexts, pooled.context_CD)
            self._impressions.learn_alone(pooled.outputs.impressions, pooled.impression_BD)
            return
        num_rows = pooled.num_rows_by_rank
        context_rows = self._contexts.send_back(pooled.context_CD, num_rows)  # the smaller is there first
        impression_rows = self._impressions.send_back(pooled.impression_BD, num_rows)
        self._contexts.learn(pooled.outputs.contexts, context_rows, num_rows)
        self._impressions.learn(pooled.outputs.impressions, impression_rows, num_rows)


class _ScopeExchange:
    """The exchange of one scope."""

    def __init__(self, scope: Scope, owners: TableOwners, kernels: Sequence[Kernel]) -> None:
        self._scope, self._placements, self._world = scope, owners.placements[scope], owners.world
        self._kernels = [kernel for kernel in kernels if kernel.scope == scope]
        self._widths = [placement.width for placement in self._placements]
        self.layout = LocalRowLayout(self._kernels, self._widths)
        #: of each rank, the fields that it stores for all ranks
        self._fields_by_rank = [[field for at, field in fields if at == scope] for fields in owners.fields_by_rank]
        self._fields_here = [self._fields_by_rank[self._world.rank]] * self._world.size

    def pool(self, ids: IdExchange) -> list[Tensor]:
        """Return what this rank's kernels pool: [N of all ranks served, A]."""
        return [kernel.module(*ids.inputs(self._scope, kernel.fields, kernel.serves_all)) for kernel in self._kernels]

    def learn_alone(self, outputs: list[Tensor], rows_ND: Tensor) -> None:
        """Take the gradient of the rows back through the kernels of a rank that is alone."""
        assert rows_ND.grad is not None
        if outputs:
            torch.autograd.backward(outputs, self.layout.gradients_of(rows_ND.grad, outputs))

    def look_up(self, ids: IdExchange) -> tuple[list[Tensor], "_IncomingRows"]:
        """Return what this rank's kernels pool, [N of all ranks served, A], and this rank's rows, on their way."""
        outputs = self.pool(ids)
        num_rows = self._num_rows(ids.num_rows_by_rank)
        with torch.no_grad():
            pooled = self._views(outputs, num_rows)
            mine = [num_rows[self._world.rank]] * self._world.size
            pending, received = self._start(pooled, (num_rows, self._fields_here), (mine, self._fields_by_rank))
        # One's own rows lie under one's own rank, as those that another rank pooled lie under its.
        rows_ND = torch.empty(mine[0], sum(self._widths), device=self._world.device)
        return outputs, _IncomingRows(rows_ND, pending, pooled | received, self._placements, self._world)

    def send_back(self, rows_ND: Tensor, num_rows_by_rank: list[PerScope[int]]) -> tuple[Pending, RowsByRank]:
        """Send the gradients of this rank's rows to the ranks that pooled them; return those of all ranks, on their way."""
        assert rows_ND.grad is not None
        wanted = {
            (rank, field): part
            for field, part in enumerate(rows_ND.grad.split(self._widths, dim=1))
            for rank in self._placements[field].holders(self._world)
        }
        num_rows = self._num_rows(num_rows_by_rank)
        mine = [len(rows_ND)] * self._world.size
        pending, received = self._start(wanted, (mine, self._fields_by_rank), (num_rows, self._fields_here))
        return pending, wanted | received

    def learn(
        self, outputs: list[Tensor], incoming: tuple[Pending, RowsByRank], num_rows_by_rank: list[PerScope[int]]
    ) -> None:
        """Take the gradients of all ranks' rows back through the kernels."""
        pending, received = incoming
        gradients = [torch.zeros_like(output) for output in outputs]
        pending.wait()
        _copy(self._views(gradients, self._num_rows(num_rows_by_rank)), received)
        if outputs:
            torch.autograd.backward(outputs, gradients)

    def _num_rows(self, num_rows_by_rank: list[PerScope[int]]) -> list[int]:
        return [num_rows[self._scope] for num_rows in num_rows_by_rank]

    def _views(self, outputs: Sequence[Tensor], num_rows: list[int]) -> RowsByRank:
        """Return views of the used columns of what this rank's kernels pool, or of its gradient, for each rank served."""
        views = {}
        for kernel, output in zip(self._kernels, outputs, strict=True):
            ranks = range(self._world.size) if kernel.serves_all else [self._world.rank]
            for rank, rows in zip(ranks, output.split([num_rows[rank] for rank in ranks]), strict=True):
                for field, part in zip(kernel.fields, rows.split(kernel.allocated, dim=1), strict=True):
                    views[rank, field] = part[:, : self._widths[field]]
        return views

    def _start(
        self, rows: RowsByRank, send: tuple[list[int], list[list[int]]], receive: tuple[list[int], list[list[int]]]
    ) -> tuple[Pending, RowsByRank]:
        """Send `rows` to the other ranks and make room for theirs; `send` and `receive` are N and the fields, by rank."""
        out, out_views, out_sizes = self._room(*send)
        back, back_views, back_sizes = self._room(*receive)
        _copy(out_views, rows)
        return self._world.start_exchange(out, out_sizes, back_sizes, into=back), back_views

    def _room(self, num_rows: list[int], fields_by_rank: list[list[int]]) -> tuple[Tensor, RowsByRank, list[int]]:
        """Allocate N rows of some fields with each other rank: the whole, its views, and the sizes by rank."""
        keys = [
            (rank, field) for rank, fields in enumerate(fields_by_rank) if rank != self._world.rank for field in fields
        ]
        sizes = [num_rows[rank] * self._widths[field] for rank, field in keys]
        sizes_by_rank = [0] * self._world.size
        for (rank, _), size in zip(keys, sizes, strict=True):
            sizes_by_rank[rank] += size
        whole = torch.empty(sum(sizes), device=self._world.device)
        parts = zip(keys, whole.split(sizes), strict=True)
        views = {(rank, field): part.view(-1, self._widths[field]) for (rank, field), part in parts}
        return whole, views, sizes_by_rank


@dataclass
class _IncomingRows:
    """The pooled rows of one scope of this rank, while they arrive."""

    rows_ND: Tensor
    pending: Pending
    views: RowsByRank  # (rank, field) → what the rank pooled for this one
    placements: Sequence[TablePlacement]
    world: World

    def assemble(self) -> Tensor:
        """Wait for the rows and return them: [N, D]. The parts of a row_wise table are summed in the order of the ranks."""
        self.pending.wait()
        widths = [placement.width for placement in self.placements]
        for field, target in enumerate(self.rows_ND.split(widths, dim=1)):
            first, *others = self.placements[field].holders(self.world)
            target.copy_(self.views[first, field])
            for rank in others:
                target.add_(self.views[rank, field])
        return self.rows_ND


def _copy(to: RowsByRank, given: RowsByRank) -> None:
    for key, view in to.items():
        view.copy_(given[key])
