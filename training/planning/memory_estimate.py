"""What a run will need on each rank, from its settings and the sizes of its tables alone.

Tables, optimizers, the average and the copy that a checkpoint is written from are exact: the placement is the trainer's own
(training.distributed.sharding). What a step takes on top is an estimate from the shapes that pass through it, and what a process has
before it holds any model (some 0.6 GB of libraries and kernels on CPU) is not counted. `benchmarks.capacity` holds this
against resident memory.
"""

# Shapes: B impressions and C contexts of a rank's batch, D width of a scope's inputs, H of a layer, W ranks.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.dataset.kinds import INDEX
from pipeline.dataset.manifest import Manifest, ManifestField
from training.distributed.settings import FREQUENT_ROWS
from training.distributed.sharding import assign, lookups_per_impression, row_block
from training.model.graph import Graph, Query
from training.model.own_tables import tables_of
from training.model.settings import EmbeddingSettings, allocated_dim
from training.model.towers import TowerStack
from training.run.settings import TrainSettings

_FLOAT = 4
#: A looked-up value: its row (int64), its weight (float32), and the length of its bag (int32, at most).
_BYTES_PER_LOOKUP = 16
#: The towers' weights, gradients, the flat copy that the ranks sum, and Adam's two moments.
_COPIES_OF_TOWERS = 5
_SAVED_COPIES_OF_TOWERS = 3  # less the gradients and the flat copy
#: Optimizer → bytes it keeps for a table of (rows, allocated columns).
_STATE_BYTES = {
    "rowwise_adagrad": lambda rows, columns: rows * _FLOAT,
    "adagrad": lambda rows, columns: rows * columns * _FLOAT,
    "adam": lambda rows, columns: 2 * rows * columns * _FLOAT,
    "sgd": lambda rows, columns: 0,
}


@dataclass(frozen=True)
class TablePlan:
    """One table, as the trainer would place it."""

    field: ManifestField
    columns: int  # allocated
    kind: str  # table_wise | row_wise | data_parallel
    rows_of_rank: tuple[int, ...]
    state_bytes: float  # of the optimizer, for the whole table

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those that hold some of it."""
        return tuple(rank for rank, rows in enumerate(self.rows_of_rank) if rows)

    @property
    def weight_bytes(self) -> int:
        """The whole table once."""
        return self.field.num_rows * self.columns * _FLOAT

    def bytes_of_rank(self, rank: int) -> float:
        """Count weights and optimizer state on `rank`; a replicated table has a gradient too."""
        share = self.rows_of_rank[rank] / self.field.num_rows if self.field.num_rows else 0.0
        copies = 2 if self.kind == "data_parallel" else 1
        return share * (copies * self.weight_bytes + self.state_bytes)

    def average_of_rank(self, rank: int) -> float:
        """Count the bytes of the average of the rows on `rank`."""
        return float(self.rows_of_rank[rank] * self.columns * _FLOAT)

    def copied_average_of_rank(self, rank: int) -> float:
        """Count the bytes of the average that `rank` copies for a checkpoint: the frequent rows of what it saves."""
        if self.kind == "data_parallel" and rank:
            return 0.0
        first_row = 0 if self.kind == "data_parallel" else sum(self.rows_of_rank[:rank])
        frequent = min(max(0, FREQUENT_ROWS - first_row), self.rows_of_rank[rank])
        return float(frequent * self.columns * _FLOAT)

    def saved_by_rank(self, rank: int) -> float:
        """Count the bytes that `rank` saves to a checkpoint: rank 0 alone saves replicated tables."""
        if self.kind == "data_parallel":
            return self.weight_bytes + self.state_bytes if rank == 0 else 0.0
        return self.bytes_of_rank(rank)


@dataclass(frozen=True)
class Needs:
    """Bytes of each rank."""

    tables: tuple[float, ...]
    towers: float
    average: tuple[float, ...]  # of the weights, that of the towers included
    step: float  # the inputs, outputs and gradients of one step
    checkpoint: tuple[float, ...]  # the copy in the host's memory that is written beside training
    on_cpu: bool  # where that is the memory of the model too

    @property
    def ranks(self) -> tuple[float, ...]:
        """All that lies where the model lies."""
        copies = self.checkpoint if self.on_cpu else (0.0,) * len(self.tables)
        return tuple(
            tables + self.towers + average + self.step + copy
            for tables, average, copy in zip(self.tables, self.average, copies, strict=True)
        )


def table_plans(fields: Sequence[ManifestField], settings: TrainSettings, num_ranks: int) -> list[TablePlan]:
    """Plan every table of `fields` (`tables_of_model`) as `training.distributed.sharding.plan_of` places it."""
    embedding, optimizer = settings.embedding, settings.optimizer.embeddings.name
    columns = {entry.name: allocated_dim(embedding.dim_of(entry.name)) for entry in fields}
    kinds = {entry.name: settings.sharding.kind_of(entry, columns[entry.name]) for entry in fields}
    owners = assign([entry for entry in fields if kinds[entry.name] == "table_wise"], embedding, num_ranks)
    return [
        TablePlan(
            entry,
            columns[entry.name],
            kinds[entry.name],
            _rows_of_rank(entry, kinds[entry.name], owners.get(entry.name), num_ranks),
            _STATE_BYTES[optimizer](entry.num_rows, columns[entry.name]),
        )
        for entry in fields
    ]


def _rows_of_rank(entry: ManifestField, kind: str, owner: int | None, num_ranks: int) -> tuple[int, ...]:
    if kind == "data_parallel":
        return (entry.num_rows,) * num_ranks
    if kind == "table_wise":
        return tuple(entry.num_rows if rank == owner else 0 for rank in range(num_ranks))
    block = row_block(entry.num_rows, num_ranks)
    return tuple(max(0, min(block, entry.num_rows - rank * block)) for rank in range(num_ranks))


def memory_needs(
    tables: Sequence[TablePlan], manifest: Manifest, settings: TrainSettings, num_ranks: int, on_cpu: bool
) -> Needs:
    """Estimate the bytes of each rank at the settings' batch size."""
    ranks, tower = range(num_ranks), _FLOAT * tower_parameters(manifest, settings)
    saved = [sum(table.saved_by_rank(rank) for table in tables) for rank in ranks]
    saved[0] += _SAVED_COPIES_OF_TOWERS * tower
    average = [0.0] * num_ranks
    if settings.average.is_on:
        average = [tower + sum(table.average_of_rank(rank) for table in tables) for rank in ranks]
        saved = [saved[rank] + sum(table.copied_average_of_rank(rank) for table in tables) for rank in ranks]
        saved[0] += tower
    return Needs(
        tables=tuple(sum(table.bytes_of_rank(rank) for table in tables) for rank in ranks),
        towers=_COPIES_OF_TOWERS * tower,
        average=tuple(average),
        step=_step(manifest, settings, num_ranks),
        checkpoint=tuple(saved) if settings.checkpoint.asynchronous else (0.0,) * num_ranks,
        on_cpu=on_cpu,
    )


def tower_parameters(manifest: Manifest, settings: TrainSettings) -> int:
    """Count the weights and biases of the body and of all towers together."""
    return sum(parameter.numel() for parameter in _tower_stack(manifest, settings).parameters())


def _tower_stack(manifest: Manifest, settings: TrainSettings) -> TowerStack:
    """Build the body and the towers without their memory."""
    with torch.device("meta"):
        return TowerStack(_heads(manifest, settings), *widths(manifest, settings.embedding), settings.model)


def _heads(manifest: Manifest, settings: TrainSettings) -> tuple[Query, ...]:
    return Graph(settings.model.graph, list(manifest.labels)).heads


def tables_of_model(manifest: Manifest, settings: TrainSettings) -> tuple[ManifestField, ...]:
    """Return a field for each table: several of one field where each head has its own."""
    return tables_of(manifest.fields_of(stored=INDEX), settings.model.num_copies(len(_heads(manifest, settings))))


def widths(manifest: Manifest, embedding: EmbeddingSettings) -> tuple[int, int]:
    """Return the widths that the towers take of a context and of an impression."""
    context, impression = (
        sum(embedding.dim_of(entry.name) for entry in manifest.fields_of(scope, INDEX)) + manifest.num_inputs(scope)
        for scope in ("context", "impression")
    )
    return context, impression


def _step(manifest: Manifest, settings: TrainSettings, num_ranks: int) -> float:
    """The inputs twice (as read, and as sent to the tables' ranks) for each batch that is ready; embeddings pooled, in
    catalogue order, and their gradients; each layer's output and its gradient, gathered contexts among them."""
    total = manifest.totals["train"]
    impressions = settings.plan.batch_size / num_ranks
    contexts = impressions * total["rows"] / max(1, total["impressions"])
    lookups = impressions * sum(map(lookups_per_impression, tables_of_model(manifest, settings)))
    copies = settings.model.num_copies(len(_heads(manifest, settings)))
    context_width, impression_width = (copies * width for width in widths(manifest, settings.embedding))
    inputs = 2 * (1 + settings.feed.batches_ahead) * lookups * _BYTES_PER_LOOKUP
    embedded = 4 * _FLOAT * (contexts * context_width + impressions * impression_width)
    size = _FLOAT if settings.precision == "fp32" else torch.bfloat16.itemsize
    hidden = settings.model.towers.hidden
    outputs = 2 * size * impressions * (sum(hidden) + (hidden[0] if hidden else 1) + 1)
    stack = _tower_stack(manifest, settings)
    body = stack.body.modules() if stack.body else ()
    body_width = sum(module.out_features for module in body if isinstance(module, nn.Linear))
    return inputs + embedded + len(stack.heads) * outputs + 2 * size * impressions * body_width
