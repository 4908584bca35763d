"""Between the ranks: the ids of a batch travel to the ranks that hold their rows, and the pooled rows come back.

    bags ─cut by holder─▶ ids ▶▶▶ FBGEMM's kernels ─▶ pooled rows ▶▶▶ context [C, D], impression [B, D] ─▶ towers
                  tables ◀─ FBGEMM's optimizers ◀─ gradients ◀◀◀ gradients of [C, D], [B, D] ◀──────────── towers

TorchRec owns the tables, the kernels and their optimizers; this module moves what goes into the kernels and comes out of
them, both scopes in one message each way. TorchRec's own distribution sends seven, each waited for in turn (measured: two
ranks on two cores trained 0.65 times as fast as one). Ids depend on no weight, so those of the next batch travel while
this step computes. What a rank has for itself does not travel, and a rank that is alone sends nothing.
"""

# Shapes: N rows of a scope (C contexts or B impressions) of one rank, D used columns of a scope, A columns that a
# kernel's tables allocate. Scopes are numbered: 0 context, 1 impression; a field by its place in its scope.

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.batch import Batch
from training.ids import Column, Key, Message, held_by
from training.world import World


@dataclass(frozen=True)
class Kernel:
    """FBGEMM's kernel for some tables of one scope, or for this rank's rows of them."""

    module: nn.Module  # (indices, offsets, weights) of its fields' bags, field-major → [N, A]
    scope: int
    fields: list[int]  # in the kernel's own order, which is not the catalogue's
    allocated: list[int]  # the columns of each; the used ones come first
    serves_all: bool  # the ids of all ranks come here, and not this rank's alone


@dataclass
class Pooled:
    """What the towers get. In training both matrices are leaves of autograd, and `Exchange.learn` takes their gradients."""

    context_CD: Tensor
    impression_BD: Tensor
    num_rows_WS: list[list[int]]  # N, of each rank and scope
    outputs: list[Tensor] = field(default_factory=list)  # of this rank's kernels: [N of all ranks served, A]


class Exchange:
    """The road of one rank's ids and rows. All ranks call everything in the same order."""

    def __init__(self, scopes: Sequence[Sequence[Column]], kernels: Sequence[Kernel], world: World) -> None:
        self._scopes, self.kernels, self._world = scopes, kernels, world
        self._held_W = [held_by(rank, scopes) for rank in range(world.size)]

    def send(self, batch: Batch) -> Message:
        """Put the ids of `batch` on their way to the ranks that hold their rows."""
        return Message(batch, self._scopes, self._world)

    def look_up(self, message: Message) -> Pooled:
        """The pooled rows of the batch whose ids `message` brought away."""
        message.arrive()
        outputs = [
            kernel.module(*message.inputs(kernel.scope, kernel.fields, kernel.serves_all)) for kernel in self.kernels
        ]
        with torch.no_grad():
            context_CD, impression_BD = self._to_ranks(outputs, message.num_rows_WS)
        if torch.is_grad_enabled():
            context_CD.requires_grad_()
            impression_BD.requires_grad_()
        return Pooled(context_CD, impression_BD, message.num_rows_WS, outputs)

    def learn(self, pooled: Pooled) -> None:
        """Send the gradients of `pooled` to where the rows are. Sharded tables learn from them in here, replicated ones are
        left with a gradient."""
        gradients = self._to_kernels(pooled)
        if gradients:
            torch.autograd.backward(pooled.outputs, gradients)

    def _to_ranks(self, outputs: Sequence[Tensor], num_rows_WS: list[list[int]]) -> list[Tensor]:
        """What the kernels pooled → [C, D] and [B, D] of this rank.

        The parts of a row_wise table are summed in the order of the ranks.
        """
        me, like = self._world.rank, torch.empty(0, device=self._world.device)
        pooled = self._views(outputs, num_rows_WS)
        out, leaving, out_sizes = self._message(like, num_rows_WS, [self._held_W[me]] * self._world.size)
        back, coming, back_sizes = self._message(like, [num_rows_WS[me]] * self._world.size, self._held_W)
        _copy(leaving, pooled)
        self._world.start_exchange(out, out_sizes, back_sizes, into=back).wait()
        pooled |= coming
        whole = []
        for scope, columns in enumerate(self._scopes):
            rows_ND = like.new_empty(num_rows_WS[me][scope], sum(column.width for column in columns))
            for place, to_N in enumerate(rows_ND.split([column.width for column in columns], dim=1)):
                ranks = columns[place].holders(self._world)
                # One's own rows lie under one's own rank, as those of the others lie under theirs.
                to_N.copy_(pooled[ranks[0], scope, place])
                for rank in ranks[1:]:
                    to_N.add_(pooled[rank, scope, place])
            whole.append(rows_ND)
        return whole

    def _to_kernels(self, pooled: Pooled) -> list[Tensor]:
        """The gradients of the kernels' outputs: of each rank's rows from that rank."""
        me, num_rows_WS = self._world.rank, pooled.num_rows_WS
        wanted = {}
        for scope, leaf_ND in enumerate((pooled.context_CD, pooled.impression_BD)):
            assert leaf_ND.grad is not None
            parts = leaf_ND.grad.split([column.width for column in self._scopes[scope]], dim=1)
            for place, column in enumerate(self._scopes[scope]):
                for rank in column.holders(self._world):
                    wanted[rank, scope, place] = parts[place]
        like = pooled.impression_BD
        out, leaving, out_sizes = self._message(like, [num_rows_WS[me]] * self._world.size, self._held_W)
        back, coming, back_sizes = self._message(like, num_rows_WS, [self._held_W[me]] * self._world.size)
        _copy(leaving, wanted)
        self._world.start_exchange(out, out_sizes, back_sizes, into=back).wait()
        gradients = [torch.zeros_like(output) for output in pooled.outputs]
        _copy(self._views(gradients, num_rows_WS), wanted | coming)
        return gradients

    def _views(self, outputs: Sequence[Tensor], num_rows_WS: list[list[int]]) -> dict[Key, Tensor]:
        """[N, used columns] of each rank that this rank's kernels serve, and each of their fields."""
        views = {}
        for kernel, output in zip(self.kernels, outputs, strict=True):
            ranks = range(self._world.size) if kernel.serves_all else [self._world.rank]
            columns = self._scopes[kernel.scope]
            for rank, rows_NA in zip(
                ranks, output.split([num_rows_WS[rank][kernel.scope] for rank in ranks]), strict=True
            ):
                for place, part in zip(kernel.fields, rows_NA.split(kernel.allocated, dim=1), strict=True):
                    views[rank, kernel.scope, place] = part[:, : columns[place].width]
        return views

    def _message(
        self, like: Tensor, num_rows_WS: list[list[int]], held_W: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Tensor, dict[Key, Tensor], list[int]]:
        """Room for N rows of the fields `held` with each other rank: the whole, a view for each field, the sizes by rank."""
        widths_WF = [[self._scopes[scope][place].width for scope, place in held] for held in held_W]
        sizes_WF = [
            [
                num_rows[scope] * width if rank != self._world.rank else 0
                for (scope, _), width in zip(held, widths, strict=True)
            ]
            for rank, (num_rows, held, widths) in enumerate(zip(num_rows_WS, held_W, widths_WF, strict=True))
        ]
        whole = like.new_empty(sum(map(sum, sizes_WF)))
        parts = iter(whole.split([size for sizes in sizes_WF for size in sizes]))
        views = {}
        for rank, (held, widths) in enumerate(zip(held_W, widths_WF, strict=True)):
            for (scope, place), width in zip(held, widths, strict=True):
                part = next(parts)
                if rank != self._world.rank:
                    views[rank, scope, place] = part.view(-1, width)
        return whole, views, [sum(sizes) for sizes in sizes_WF]


def _copy(to: dict[Key, Tensor], given: dict[Key, Tensor]) -> None:
    for key, view in to.items():
        view.copy_(given[key])
