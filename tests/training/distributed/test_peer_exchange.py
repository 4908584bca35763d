"""Ids out and rows back, with kernels written in plain torch, against one process that holds every table whole."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import Arrays, run_ranks
from torch import Tensor, nn

from training.distributed.exchange import Kernel
from training.distributed.id_messages import TablePlacement
from training.distributed.peer_exchange import PeerExchange
from training.distributed.settings import WorldSettings
from training.distributed.sharding import row_block
from training.distributed.world import World, join
from training.feed.batch import Bags, Batch

NUM_ROWS = 7  # of every table
ALLOCATED = 4
KINDS = ("table_wise", "row_wise", "data_parallel")


def drawn(seed: int, world_size: int) -> tuple[list[list[TablePlacement]], list[list[Batch]]]:
    """Both scopes' fields, and two batches for each rank: bags of 0 to 3, another number of rows on each rank."""
    random = np.random.default_rng(seed)
    scopes = [
        [
            TablePlacement(
                kind,
                owner=int(random.integers(world_size)) if kind == "table_wise" else None,
                block=row_block(NUM_ROWS, world_size),
                width=int(random.integers(1, ALLOCATED + 1)),
            )
            for kind in random.choice(KINDS, size=random.integers(1, 5)).tolist()
        ]
        for _ in range(2)
    ]
    return scopes, [[batch_of(random, scopes) for _ in range(2)] for _ in range(world_size)]


def batch_of(random: np.random.Generator, scopes: list[list[TablePlacement]]) -> Batch:
    num_rows = [int(random.integers(1, 4)), int(random.integers(1, 9))]
    bags = []
    for columns, count in zip(scopes, num_rows, strict=True):
        lengths = random.integers(0, 4, size=len(columns) * count, dtype=np.int32)
        rows = random.integers(0, NUM_ROWS, size=lengths.sum())
        weights = random.normal(size=lengths.sum()).astype(np.float32)
        bags.append(Bags(*map(torch.from_numpy, (rows, lengths, weights))))
    nothing = torch.empty(0)
    return Batch(*bags, nothing, nothing, nothing, {}, torch.arange(num_rows[1]), nothing, ["context"] * num_rows[0])


def table_of(seed: int, scope: int, place: int, width: int) -> np.ndarray:
    """[rows, allocated columns]; what is not used is 0."""
    table = np.zeros((NUM_ROWS, ALLOCATED), np.float32)
    table[:, :width] = np.random.default_rng([seed, scope, place]).normal(size=(NUM_ROWS, width))
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
    seed: int, scopes: list[list[TablePlacement]], world: World
) -> tuple[list[Kernel], dict[tuple[int, int], Tensor]]:
    """This rank's, one for each scope and kind, its fields backwards; and (scope, field) → the table, or its part here."""
    kernels, held = [], {}
    for scope, columns in enumerate(scopes):
        for kind in KINDS:
            fields = [
                place
                for place, column in reversed(list(enumerate(columns)))
                if column.kind == kind and column.owner in (None, world.rank)
            ]
            if not fields:
                continue
            whole = [table_of(seed, scope, place, columns[place].width) for place in fields]
            if kind == "row_wise":
                block = row_block(NUM_ROWS, world.size)
                whole = [table[world.rank * block : (world.rank + 1) * block] for table in whole]
            module = PlainKernel(whole)
            held |= {(scope, place): table for place, table in zip(fields, module.tables, strict=True)}
            kernels.append(Kernel(module, scope, fields, [ALLOCATED] * len(fields), kind != "data_parallel"))
    return kernels, held


def exchanged(seeds: list[int]) -> Arrays:
    """The pooled rows of this rank's batches and the gradients of what it holds: <seed>/<what>."""
    found: Arrays = {}
    with join(WorldSettings(device="cpu")) as world:
        for seed in seeds:
            scopes, batches = drawn(seed, world.size)
            kernels, held = kernels_of(seed, scopes, world)
            exchange = PeerExchange(scopes, kernels, world)
            first, second = (exchange.send(batch) for batch in batches[world.rank])
            pooled = exchange.look_up(first)
            second.proceed()
            for number, one in enumerate((pooled, exchange.look_up(second))):
                for scope, rows_ND in enumerate((one.context_CD, one.impression_BD)):
                    found[f"{seed}/pooled/{number}/{scope}"] = rows_ND.detach().numpy().copy()
            (pooled.context_CD.square().sum() + pooled.impression_BD.square().sum()).backward()
            exchange.learn(pooled)
            for (scope, place), table in held.items():
                assert table.grad is not None
                found[f"{seed}/gradient/{scope}/{place}"] = table.grad.numpy()
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_and_gradients_are_those_of_tables_that_one_process_holds(tmp_path: Path, world_size: int) -> None:
    seeds = list(range(12))
    ranks = run_ranks(exchanged, world_size, tmp_path, seeds)
    for seed in seeds:
        scopes, batches = drawn(seed, world_size)
        for scope, columns in enumerate(scopes):
            gradients_RF = []
            for found, (first, second) in zip(ranks, batches, strict=True):
                tables = [
                    torch.from_numpy(table_of(seed, scope, place, column.width)).double().requires_grad_()
                    for place, column in enumerate(columns)
                ]
                for number, batch in enumerate((second, first), start=-1):
                    expected = plainly(batch, scope, columns, tables)
                    given = found[f"{seed}/pooled/{-number}/{scope}"]
                    np.testing.assert_allclose(given, expected.detach().numpy(), rtol=0, atol=1e-5)
                gradients_RF.append(torch.autograd.grad(expected.square().sum(), tables))
            for place, column in enumerate(columns):
                key, of_ranks = f"{seed}/gradient/{scope}/{place}", [row[place].numpy() for row in gradients_RF]
                if column.kind == "data_parallel":  # each rank's own, which `ShardedModel` sums
                    for found, expected_RA in zip(ranks, of_ranks, strict=True):
                        np.testing.assert_allclose(found[key], expected_RA, rtol=0, atol=1e-4)
                else:
                    given = np.concatenate([found[key] for found in ranks if key in found])
                    np.testing.assert_allclose(given, sum(of_ranks), rtol=0, atol=1e-4)


def plainly(batch: Batch, scope: int, columns: list[TablePlacement], tables: list[Tensor]) -> Tensor:
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
    batch = batch_of(np.random.default_rng(0), [columns, columns])
    alone = World(0, 1, torch.device("cpu"))
    kernel = Kernel(PlainKernel([table_of(0, 0, place, 4) for place in (0, 1)]), 0, [0, 1], [4, 4], True)
    message = PeerExchange([columns, columns], [kernel, replace(kernel, scope=1)], alone).send(batch)
    message.arrive()
    indices, offsets, weights = message.inputs(0, [0, 1], serves_all=True)
    assert indices is batch.context.values
    assert weights is batch.context.weights
    assert offsets.tolist() == [0, *batch.context.lengths.cumsum(0).tolist()]
