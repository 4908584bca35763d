"""Ids out and rows back, with kernels written in plain torch, against one process that holds every table whole."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from torch import Tensor, nn

from training.distributed.exchange import Kernel, PerScope, Scope
from training.distributed.id_messages import TablePlacement
from training.distributed.peer_exchange import PeerExchange
from training.distributed.settings import WorldSettings
from training.distributed.sharding import row_block
from training.distributed.world import World, join
from training.feed.batch import Bags, Batch

NUM_ROWS = 7  # of every table
ALLOCATED = 4
KINDS = ("table_wise", "row_wise", "data_parallel")


def drawn(seed: int, world_size: int) -> tuple[PerScope[list[TablePlacement]], list[list[Batch]]]:
    """Both scopes' fields, and two batches for each rank: bags of 0 to 3, another number of rows on each rank."""
    random = np.random.default_rng(seed)
    placements = PerScope(
        *(
            [
                TablePlacement(
                    kind,
                    owner=int(random.integers(world_size)) if kind == "table_wise" else None,
                    block=row_block(NUM_ROWS, world_size),
                    width=int(random.integers(1, ALLOCATED + 1)),
                )
                for kind in random.choice(KINDS, size=random.integers(1, 5)).tolist()
            ]
            for _ in Scope
        )
    )
    return placements, [[batch_of(random, placements) for _ in range(2)] for _ in range(world_size)]


def batch_of(random: np.random.Generator, placements: PerScope[list[TablePlacement]]) -> Batch:
    num_rows = [int(random.integers(1, 4)), int(random.integers(1, 9))]
    bags = []
    for columns, count in zip(placements, num_rows, strict=True):
        lengths = random.integers(0, 4, size=len(columns) * count, dtype=np.int32)
        rows = random.integers(0, NUM_ROWS, size=lengths.sum())
        weights = random.normal(size=lengths.sum()).astype(np.float32)
        bags.append(Bags(*map(torch.from_numpy, (rows, lengths, weights))))
    nothing = torch.empty(0)
    return Batch(*bags, nothing, nothing, nothing, {}, torch.arange(num_rows[1]), nothing, ["context"] * num_rows[0])


def table_of(seed: int, scope: Scope, field: int, width: int) -> np.ndarray:
    """[rows, allocated columns]; what is not used is 0."""
    table = np.zeros((NUM_ROWS, ALLOCATED), np.float32)
    table[:, :width] = np.random.default_rng([seed, scope, field]).normal(size=(NUM_ROWS, width))
    return table


class PlainKernel(nn.Module):
    """What FBGEMM's kernels compute, for tables of the same number of columns."""

    def __init__(self, tables: list[np.ndarray]) -> None:
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(torch.from_numpy(table.copy())) for table in tables])

    def forward(self, indices_V: Tensor, offsets: Tensor, weights_V: Tensor) -> Tensor:
        """→ [N, A]."""
        count = (len(offsets) - 1) // len(self.tables)
        parts = []
        for number, table in enumerate(self.tables):
            bounds = offsets[number * count : (number + 1) * count + 1].tolist()
            parts.append(
                torch.stack(
                    [
                        (table[indices_V[start:stop]] * weights_V[start:stop, None]).sum(0)
                        for start, stop in itertools.pairwise(bounds)
                    ]
                )
            )
        return torch.cat(parts, dim=1)


def kernels_of(
    seed: int, placements: PerScope[list[TablePlacement]], world: World
) -> tuple[list[Kernel], dict[tuple[Scope, int], Tensor]]:
    """This rank's, one for each scope and kind, its fields backwards; and (scope, field) → the table, or its part here."""
    kernels, stored = [], {}
    for scope in Scope:
        columns = placements[scope]
        for kind in KINDS:
            fields = [
                field
                for field, column in reversed(list(enumerate(columns)))
                if column.kind == kind and column.owner in (None, world.rank)
            ]
            if not fields:
                continue
            whole = [table_of(seed, scope, field, columns[field].width) for field in fields]
            if kind == "row_wise":
                block = row_block(NUM_ROWS, world.size)
                whole = [table[world.rank * block : (world.rank + 1) * block] for table in whole]
            module = PlainKernel(whole)
            stored |= {(scope, field): table for field, table in zip(fields, module.tables, strict=True)}
            kernels.append(Kernel(module, scope, fields, [ALLOCATED] * len(fields), kind != "data_parallel"))
    return kernels, stored


def exchanged(seeds: list[int]) -> Arrays:
    """The pooled rows of this rank's batches and the gradients of the tables that it stores: <seed>/<what>."""
    found: Arrays = {}
    with join(WorldSettings(device="cpu")) as world:
        for seed in seeds:
            placements, batches = drawn(seed, world.size)
            kernels, stored = kernels_of(seed, placements, world)
            exchange = PeerExchange(placements, kernels, world)
            first, second = (exchange.send(batch) for batch in batches[world.rank])
            pooled = exchange.look_up(first)
            second.proceed()
            for number, one in enumerate((pooled, exchange.look_up(second))):
                for scope, rows_ND in zip(Scope, (one.context_CD, one.impression_BD), strict=True):
                    found[f"{seed}/pooled/{number}/{scope.name}"] = rows_ND.detach().numpy().copy()
            (pooled.context_CD.square().sum() + pooled.impression_BD.square().sum()).backward()
            exchange.learn(pooled)
            for (scope, field), table in stored.items():
                assert table.grad is not None
                found[f"{seed}/gradient/{scope.name}/{field}"] = table.grad.numpy()
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_and_gradients_are_those_of_tables_that_one_process_holds(tmp_path: Path, world_size: int) -> None:
    seeds = list(range(12))
    ranks = run_ranks(exchanged, world_size, tmp_path, seeds)
    for seed in seeds:
        placements, batches = drawn(seed, world_size)
        for scope in Scope:
            columns, gradients_by_rank = placements[scope], []
            for found, (first, second) in zip(ranks, batches, strict=True):
                tables = [
                    torch.from_numpy(table_of(seed, scope, field, column.width)).double().requires_grad_()
                    for field, column in enumerate(columns)
                ]
                for number, batch in enumerate((second, first), start=-1):
                    expected = plainly(batch, scope, columns, tables)
                    given = found[f"{seed}/pooled/{-number}/{scope.name}"]
                    np.testing.assert_allclose(given, expected.detach().numpy(), rtol=0, atol=1e-5)
                gradients_by_rank.append(torch.autograd.grad(expected.square().sum(), tables))
            for field, column in enumerate(columns):
                key = f"{seed}/gradient/{scope.name}/{field}"
                of_ranks = [gradients[field].numpy() for gradients in gradients_by_rank]
                if column.kind == "data_parallel":  # each rank's own, which `ShardedModel` sums
                    for found, gradient in zip(ranks, of_ranks, strict=True):
                        np.testing.assert_allclose(found[key], gradient, rtol=0, atol=1e-4)
                else:
                    given = np.concatenate([found[key] for found in ranks if key in found])
                    np.testing.assert_allclose(given, sum(of_ranks), rtol=0, atol=1e-4)


def plainly(batch: Batch, scope: Scope, columns: list[TablePlacement], tables: list[Tensor]) -> Tensor:
    """[N, D] by a loop over the bags."""
    bags, at = (batch.context, batch.impression)[scope], 0
    lengths_FN = bags.lengths.view(len(columns), -1).tolist()
    parts = []
    for lengths, column, table in zip(lengths_FN, columns, tables, strict=True):
        rows = []
        for length in lengths:
            ids, weights = bags.values[at : at + length].long(), bags.weights[at : at + length].double()
            rows.append((table[ids] * weights[:, None]).sum(0)[: column.width])
            at += length
        parts.append(torch.stack(rows))
    return torch.cat(parts, dim=1)


def test_a_rank_that_is_alone_looks_up_its_bags_as_they_are() -> None:
    """No copy is made where nothing has to travel or change places."""
    columns = [TablePlacement("table_wise", 0, NUM_ROWS, 2), TablePlacement("row_wise", None, NUM_ROWS, 3)]
    both = PerScope(columns, columns)
    batch = batch_of(np.random.default_rng(0), both)
    alone = World(0, 1, torch.device("cpu"))
    tables = [table_of(0, Scope.CONTEXT, field, 4) for field in (0, 1)]
    kernel = Kernel(PlainKernel(tables), Scope.CONTEXT, [0, 1], [4, 4], True)
    ids = PeerExchange(both, [kernel, replace(kernel, scope=Scope.IMPRESSION)], alone).send(batch)
    ids.wait()
    indices, offsets, weights = ids.inputs(Scope.CONTEXT, [0, 1], serves_all=True)
    assert indices is batch.context.values
    assert weights is batch.context.weights
    assert offsets.tolist() == [0, *batch.context.lengths.cumsum(0).tolist()]
