"""Between the ranks: the ids of a batch travel to the ranks that hold their rows, and the pooled rows come back.

    bags ─cut by holder─▶ ids ▶▶▶ FBGEMM's kernels ─▶ pooled rows ▶▶▶ context [C, D], impression [B, D] ─▶ towers
                  tables ◀─ FBGEMM's optimizers ◀─ gradients ◀◀◀ gradients of [C, D], [B, D] ◀──────────── towers

TorchRec owns the tables, the kernels and their optimizers; this module moves what goes into the kernels and comes out of
them. TorchRec's own distribution sends seven messages a scope and step, each waited for in turn (measured: two ranks on two
cores trained 0.65 times as fast as one). Here ids travel while the step before computes, for they depend on no weight,
and the rows of one scope while the other scope is looked up or learned. What a rank has for itself does not travel, and a rank
that is alone sends nothing.
"""

# Shapes: N rows of a scope (C contexts or B impressions) of one rank, D used columns of a scope, A columns that a
# kernel's tables allocate. Scopes are numbered: 0 context, 1 impression; a field by its place in its scope.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.distributed.exchange import Kernel
from training.distributed.id_messages import IdExchange, TableOwners, TablePlacement
from training.distributed.world import Pending, World
from training.feed.batch import Batch

#: (rank, field of a scope) → rows: [N, used columns].
RowsByRank = dict[tuple[int, int], Tensor]


@dataclass
class PeerPooled:
    """The pooled rows of this rank's batch; in training both matrices are leaves, and `learn` sends their gradients."""

    context_CD: Tensor
    impression_BD: Tensor
    num_rows_WS: list[list[int]]  # N, of each rank and scope
    outputs_S: list[list[Tensor]]  # of this rank's kernels: [N of all ranks served, A]


class PeerExchange:
    """An `Exchange` of asynchronous all-to-alls, one of ids a step and one of rows a scope and direction."""

    def __init__(self, scopes: Sequence[Sequence[TablePlacement]], kernels: Sequence[Kernel], world: World) -> None:
        self.kernels, self._owners = kernels, TableOwners(scopes, world)
        self._contexts, self._impressions = (_ScopeExchange(scope, self._owners, kernels) for scope in (0, 1))

    @property
    def num_fields(self) -> tuple[int, int]:
        """Of contexts and of impressions, the categorical ones."""
        contexts, impressions = self._owners.scopes
        return len(contexts), len(impressions)

    def send(self, batch: Batch) -> IdExchange:
        """Start to send the ids of `batch` to the ranks that store their rows."""
        return IdExchange(batch, self._owners)

    def look_up(self, message: IdExchange) -> PeerPooled:
        """Look up and pool the embedding rows of the batch whose ids were sent with `message`."""
        message.arrive()
        impressions, impression_rows = self._impressions.look_up(message)  # the larger load leaves first
        contexts, context_rows = self._contexts.look_up(message)
        with torch.no_grad():
            context_CD, impression_BD = context_rows.together(), impression_rows.together()
        if torch.is_grad_enabled():
            context_CD.requires_grad_()
            impression_BD.requires_grad_()
        return PeerPooled(context_CD, impression_BD, message.num_rows_WS, [contexts, impressions])

    def learn(self, pooled: PeerPooled) -> None:
        """Send the gradients of `pooled` to the ranks that store the rows; sharded tables are updated in here, replicated
        ones get a gradient."""
        context_rows = self._contexts.send_back(pooled.context_CD, pooled.num_rows_WS)  # the smaller is there first
        impression_rows = self._impressions.send_back(pooled.impression_BD, pooled.num_rows_WS)
        self._contexts.learn(pooled.outputs_S[0], context_rows, pooled.num_rows_WS)
        self._impressions.learn(pooled.outputs_S[1], impression_rows, pooled.num_rows_WS)


class _ScopeExchange:
    """The exchange of one scope."""

    def __init__(self, scope: int, owners: TableOwners, kernels: Sequence[Kernel]) -> None:
        self._scope, self._columns, self._world = scope, owners.scopes[scope], owners.world
        self._kernels = [kernel for kernel in kernels if kernel.scope == scope]
        self._widths = [column.width for column in self._columns]
        #: rank → the fields that it holds for all ranks
        self._held_W = [[place for at, place in held if at == scope] for held in owners.of_rank]
        self._held_here = [self._held_W[self._world.rank]] * self._world.size

    def look_up(self, message: IdExchange) -> tuple[list[Tensor], "_IncomingRows"]:
        """What this rank's kernels pool, [N of all ranks served, A]; and this rank's rows, on their way."""
        outputs = [
            kernel.module(*message.inputs(self._scope, kernel.fields, kernel.serves_all)) for kernel in self._kernels
        ]
        num_rows_W = self._num_rows(message.num_rows_WS)
        with torch.no_grad():
            pooled = self._views(outputs, num_rows_W)
            mine = [num_rows_W[self._world.rank]] * self._world.size
            pending, coming = self._start(pooled, (num_rows_W, self._held_here), (mine, self._held_W))
        # One's own rows lie under one's own rank, as those that another rank pooled lie under its.
        rows_ND = torch.empty(mine[0], sum(self._widths), device=self._world.device)
        return outputs, _IncomingRows(rows_ND, pending, pooled | coming, self._columns, self._world)

    def send_back(self, rows_ND: Tensor, num_rows_WS: list[list[int]]) -> tuple[Pending, RowsByRank]:
        """The gradients of this rank's rows, to the ranks that pooled them: those of all ranks, on their way."""
        assert rows_ND.grad is not None
        wanted = {
            (rank, place): part
            for place, part in enumerate(rows_ND.grad.split(self._widths, dim=1))
            for rank in self._columns[place].holders(self._world)
        }
        num_rows_W = self._num_rows(num_rows_WS)
        mine = [len(rows_ND)] * self._world.size
        pending, coming = self._start(wanted, (mine, self._held_W), (num_rows_W, self._held_here))
        return pending, wanted | coming

    def learn(self, outputs: list[Tensor], coming: tuple[Pending, RowsByRank], num_rows_WS: list[list[int]]) -> None:
        """Take the gradients of all ranks' rows back through the kernels."""
        pending, wanted = coming
        gradients = [torch.zeros_like(output) for output in outputs]
        pending.wait()
        _copy(self._views(gradients, self._num_rows(num_rows_WS)), wanted)
        if outputs:
            torch.autograd.backward(outputs, gradients)

    def _num_rows(self, num_rows_WS: list[list[int]]) -> list[int]:
        return [num_rows[self._scope] for num_rows in num_rows_WS]

    def _views(self, outputs: Sequence[Tensor], num_rows_W: list[int]) -> RowsByRank:
        """The used columns of what this rank's kernels pool, or of its gradient, for each rank that they serve."""
        views = {}
        for kernel, output_NA in zip(self._kernels, outputs, strict=True):
            ranks = range(self._world.size) if kernel.serves_all else [self._world.rank]
            for rank, rows_NA in zip(ranks, output_NA.split([num_rows_W[rank] for rank in ranks]), strict=True):
                for place, part in zip(kernel.fields, rows_NA.split(kernel.allocated, dim=1), strict=True):
                    views[rank, place] = part[:, : self._widths[place]]
        return views

    def _start(
        self, given: RowsByRank, leaving: tuple[list[int], list[list[int]]], coming: tuple[list[int], list[list[int]]]
    ) -> tuple[Pending, RowsByRank]:
        """Send rows to the other ranks and make room for theirs: N and the fields of each are `leaving` and `coming`."""
        out, out_views, out_sizes = self._room(*leaving)
        back, back_views, back_sizes = self._room(*coming)
        _copy(out_views, given)
        return self._world.start_exchange(out, out_sizes, back_sizes, into=back), back_views

    def _room(self, num_rows_W: list[int], fields_W: list[list[int]]) -> tuple[Tensor, RowsByRank, list[int]]:
        """Memory for N rows of some fields with each other rank: the whole, its views, and the sizes by rank."""
        keys = [(rank, place) for rank, fields in enumerate(fields_W) if rank != self._world.rank for place in fields]
        sizes = [num_rows_W[rank] * self._widths[place] for rank, place in keys]
        sizes_W = [0] * self._world.size
        for (rank, _), size in zip(keys, sizes, strict=True):
            sizes_W[rank] += size
        whole = torch.empty(sum(sizes), device=self._world.device)
        parts = zip(keys, whole.split(sizes), strict=True)
        return whole, {(rank, place): part.view(-1, self._widths[place]) for (rank, place), part in parts}, sizes_W


@dataclass
class _IncomingRows:
    """The pooled rows of one scope of this rank, while they arrive."""

    rows_ND: Tensor
    pending: Pending
    views: RowsByRank  # (rank, field) → what the rank pooled for this one
    columns: Sequence[TablePlacement]
    world: World

    def together(self) -> Tensor:
        """[N, D], once they are there. The parts of a row_wise table are summed in the order of the ranks."""
        self.pending.wait()
        widths = [column.width for column in self.columns]
        for place, to_N in enumerate(self.rows_ND.split(widths, dim=1)):
            first, *others = self.columns[place].holders(self.world)
            to_N.copy_(self.views[first, place])
            for rank in others:
                to_N.add_(self.views[rank, place])
        return self.rows_ND


def _copy(to: RowsByRank, given: RowsByRank) -> None:
    for key, view in to.items():
        view.copy_(given[key])
