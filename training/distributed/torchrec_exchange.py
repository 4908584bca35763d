"""TorchRec's own distribution as an `Exchange`: its input distribution, lookups and output distribution, as DMP runs them.

    bags as KeyedJaggedTensors ─ input distribution ─▶ FBGEMM's kernels ─ output distribution ─▶ pooled rows
                                  (sizes, then ids)    tables ◀─────── its backward pass ◀────── their gradients

It is what TorchRec's users run on NCCL. On a GPU the ids travel on a stream of their own, one step ahead of the towers: what
its TrainPipelineSparseDist does, without taking the loop over. The pooled rows are cut from autograd's graph, as those of
`peer_exchange` are: no weight changes before `learn`.
"""

# Shapes: B impressions, C contexts, N rows of a scope, D used columns of a scope, A allocated columns.

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchrec import KeyedJaggedTensor
from torchrec.distributed.comm_ops import set_gradient_division

from training.distributed.exchange import Kernel, PerScope, Scope
from training.distributed.local_rows import LocalRowLayout
from training.distributed.torchrec_internals import without_own_ddp
from training.distributed.world import World
from training.feed.batch import Bags, Batch


@dataclass(frozen=True)
class ShardedTables:
    """The tables of one scope: TorchRec's sharded collection, and in catalogue order their names and used columns."""

    collection: Any  # ShardedEmbeddingBagCollection
    names: list[str]
    widths: list[int]


class TorchRecIds:
    """One batch's ids on their way through the input distributions of both scopes."""

    def __init__(self, starts: PerScope[tuple[Any, Any]], num_rows: PerScope[int], stream: "_Stream") -> None:
        self.contexts = PerScope(*(context for context, _ in starts))
        self.num_rows = num_rows
        self._sizes = PerScope(*(sizes for _, sizes in starts))
        self._ids: PerScope[Any] | None = None
        self._stream = stream

    def proceed(self) -> None:
        """Send the ids, once the ranks know how many they are. A second call does nothing."""
        if self._ids is None:
            with self._stream.used():
                self._ids = PerScope(*(sizes.wait() for sizes in self._sizes))

    def wait(self) -> PerScope[Any]:
        """Return the ids that this rank looks up, of all ranks."""
        self.proceed()
        assert self._ids is not None
        with self._stream.used():
            found = PerScope(*(ids.wait() for ids in self._ids))
        self._stream.hand_over([*found, *self.contexts])
        return found


@dataclass
class TorchRecPooled:
    """The pooled rows of this rank's batch; in training both matrices are leaves, and `learn` sends their gradients."""

    context_CD: Tensor
    impression_BD: Tensor
    outputs: PerScope[Tensor]  # [N, A] in TorchRec's order, with its graph behind them


class TorchRecExchange:
    """An `Exchange` by TorchRec. All ranks make the same calls in the same order."""

    def __init__(
        self, tables: PerScope[ShardedTables], kernels: Sequence[Kernel], world: World, has_row_wise: bool
    ) -> None:
        self.kernels, self._tables, self._world = kernels, tables, world
        #: Trap: behind tables cut by rows TorchRec gathers gradients of as many rows as each rank has, and gloo gathers equal shapes.
        self._fills_up = has_row_wise and world.size > 1 and world.device.type == "cpu"
        self._stream = _Stream(world.device)
        self._layouts: PerScope[LocalRowLayout] | None = None
        for scope in tables:
            without_own_ddp(scope.collection)
        set_gradient_division(False)  # losses are divided by the count of the global batch already

    @property
    def num_fields(self) -> PerScope[int]:
        """The number of categorical fields of a context and of an impression."""
        return PerScope(*(len(scope.names) for scope in self._tables))

    def send(self, batch: Batch) -> TorchRecIds:
        """Start the input distribution of `batch`: first the sizes."""
        num_rows = PerScope(batch.num_contexts, batch.num_impressions)
        most = self._world.max([*num_rows]) if self._fills_up else num_rows
        self._stream.follow(batch)
        with self._stream.used():
            starts = []
            for scope, bags, count in zip(self._tables, (batch.context, batch.impression), most, strict=True):
                context = scope.collection.create_context()
                starts.append((context, scope.collection.input_dist(context, _keyed(scope.names, bags, count))))
        return TorchRecIds(PerScope(*starts), num_rows, self._stream)

    def look_up(self, ids: TorchRecIds) -> TorchRecPooled:
        """Look up and pool the embedding rows of the batch that `ids` belong to."""
        found = ids.wait()
        awaited = [
            scope.collection.compute_and_output_dist(context, of_scope)
            for scope, context, of_scope in zip(self._tables, ids.contexts, found, strict=True)
        ]
        keyed = [pooled.wait() for pooled in awaited]
        if self._layouts is None:
            self._layouts = PerScope(*(map(_places_in, Scope, self._tables, keyed)))
        outputs = PerScope(*(pooled.values()[:count] for pooled, count in zip(keyed, ids.num_rows, strict=True)))
        with torch.no_grad():
            rows = [
                layout.rows_of([output], count)
                for layout, output, count in zip(self._layouts, outputs, ids.num_rows, strict=True)
            ]
        if torch.is_grad_enabled():
            rows = [rows_ND.requires_grad_() for rows_ND in rows]
        context_CD, impression_BD = rows
        return TorchRecPooled(context_CD, impression_BD, outputs)

    def learn(self, pooled: TorchRecPooled) -> None:
        """Take the gradients of `pooled` back through the output distribution; sharded tables are updated in here, and
        replicated ones get a gradient."""
        assert self._layouts is not None
        rows = (pooled.context_CD, pooled.impression_BD)
        for layout, rows_ND, output in zip(self._layouts, rows, pooled.outputs, strict=True):
            assert rows_ND.grad is not None
            torch.autograd.backward([output], layout.gradients_of(rows_ND.grad, [output]))


class _Stream:
    """The stream on which ids travel. On a CPU it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ids = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have what is called in the block run on this stream."""
        with torch.get_device_module(self._device).stream(self._ids):
            yield

    def follow(self, batch: Batch) -> None:
        """Wait, on the device, for `batch`; its memory is not reused before this stream has read it."""
        if self._ids is not None:
            self._ids.wait_stream(torch.cuda.current_stream(self._device))
            for bags in (batch.context, batch.impression):
                for part in (bags.values, bags.lengths, bags.weights):
                    part.record_stream(self._ids)

    def hand_over(self, parts: Sequence[Any]) -> None:
        """Let the computing stream wait for what this one has made, and own it."""
        if self._ids is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._ids)
            for part in parts:
                part.record_stream(computing)


def _keyed(names: Sequence[str], bags: Bags, num_rows: int) -> KeyedJaggedTensor:
    """Return `bags` as TorchRec has them: the layout is the same. Empty bags fill each field up to `num_rows`."""
    lengths_FN = bags.lengths.view(len(names), -1) if names else bags.lengths.view(0, num_rows)
    return KeyedJaggedTensor(
        keys=list(names),
        values=bags.values,
        weights=bags.weights,
        lengths=pad(lengths_FN, (0, num_rows - lengths_FN.shape[1])).flatten(),
        stride=num_rows,
        length_per_key=bags.counts_of(len(names)),
    )


def _places_in(scope: Scope, tables: ShardedTables, keyed: Any) -> LocalRowLayout:
    """Find the catalogue's fields in TorchRec's output, whose order depends on the sharding."""
    fields = [tables.names.index(name) for name in keyed.keys()]  # noqa: SIM118  (a KeyedTensor is no mapping)
    output = Kernel(tables.collection, scope, fields, keyed.length_per_key(), True)
    return LocalRowLayout([output], tables.widths)
