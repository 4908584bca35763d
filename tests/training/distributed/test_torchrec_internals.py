"""Every symbol of TorchRec, FBGEMM and torch.distributed that is not documented, or not typed, and that training/ needs.

A test that fails here after an upgrade names the symbol; training/distributed/torchrec_internals.py and world.py use it.
"""

import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from training.distributed import torchrec_internals as internals
from training.distributed.settings import WorldSettings
from training.distributed.world import join

TRAINING = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
# Symbol → the parameters that we pass by name, or in this order.
SIGNATURES = {
    "torchrec.distributed.model_parallel:DistributedModelParallel": (
        *("module", "env", "device", "plan", "sharders", "init_data_parallel"),
    ),
    "torchrec.distributed.embeddingbag:EmbeddingBagCollectionSharder": ("fused_params",),
    "torchrec.distributed.types:ShardingEnv.from_process_group": ("pg",),
    f"{TRAINING}:SplitTableBatchedEmbeddingBagsCodegen.forward": (
        *("self", "indices", "offsets", "per_sample_weights", "feature_requires_grad"),
    ),
    f"{TRAINING}:SplitTableBatchedEmbeddingBagsCodegen.get_learning_rate": ("self",),
    f"{TRAINING}:SplitTableBatchedEmbeddingBagsCodegen.set_learning_rate": ("self", "lr"),
    f"{TRAINING}:DenseTableBatchedEmbeddingBagsCodegen.forward": (
        *("self", "indices", "offsets", "per_sample_weights", "feature_requires_grad"),
    ),
    "torch.nn.parallel:DistributedDataParallel.register_comm_hook": ("self", "state", "hook"),
    "torch.distributed:all_to_all_single": ("output", "input", "output_split_sizes", "input_split_sizes"),
}
SYMBOLS = (
    "fbgemm_gpu.split_table_batched_embeddings_ops_common:BoundsCheckMode.NONE",
    "torchrec.distributed.batched_embedding_kernel:BaseBatchedEmbeddingBag",
    "torch.distributed:GradBucket.buffer",
    "torch.distributed:HashStore",
    "torch.distributed:DistError",
    "torch.distributed:group.WORLD",
)
OPERATORS = {
    "asynchronous_complete_cumsum": (),
    "block_bucketize_sparse_features": (
        *("lengths", "indices", "bucketize_pos", "sequence", "block_sizes", "my_size", "weights"),
    ),
}


@pytest.mark.parametrize("symbol", [*SYMBOLS, *SIGNATURES])
def test_the_symbol_exists(symbol: str) -> None:
    pkgutil.resolve_name(symbol)


@pytest.mark.parametrize("symbol", SIGNATURES)
def test_the_symbol_takes_the_parameters_that_we_pass(symbol: str) -> None:
    expected = SIGNATURES[symbol]
    found = tuple(inspect.signature(pkgutil.resolve_name(symbol)).parameters)
    assert found[: len(expected)] == expected or set(expected) <= set(found), f"{symbol} takes {found}"


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_takes_the_arguments_that_we_pass(name: str) -> None:
    found = [argument.name for argument in getattr(torch.ops.fbgemm, name).default._schema.arguments]
    assert set(OPERATORS[name]) <= set(found), f"torch.ops.fbgemm.{name} takes {found}"


def test_asynchronous_complete_cumsum_gives_the_offsets_of_bags() -> None:
    offsets = internals.offsets_of(torch.tensor([2, 0, 3], dtype=torch.int32))
    assert offsets.tolist() == [0, 2, 2, 5]


def test_block_bucketize_sparse_features_cuts_bags_by_the_rank_of_their_rows() -> None:
    """Two fields of two bags; blocks of 3 and 2 rows; row r goes to rank r // block, as row r % block."""
    bags = {0: [[0, 5, 2], [3]], 1: [[], [1, 2]]}
    rows = [row for field in bags for bag in bags[field] for row in bag]
    expected: dict[tuple[int, int, int], list[tuple[int, float]]] = {}
    for number, (field, bag, row) in enumerate((f, b, r) for f in bags for b in (0, 1) for r in bags[f][b]):
        block = (3, 2)[field]
        expected.setdefault((row // block, field, bag), []).append((row % block, float(number)))
    lengths, rows_V, weights_V = internals.bucketize(
        torch.tensor([3, 1, 0, 2], dtype=torch.int32),
        torch.tensor(rows, dtype=torch.int32),
        torch.arange(len(rows), dtype=torch.float32),
        torch.tensor([3, 2], dtype=torch.int32),
        2,
    )
    parts = iter(zip(rows_V.tolist(), weights_V.tolist(), strict=True))
    for (rank, field, bag), length in zip(np.ndindex(2, 2, 2), lengths.tolist(), strict=True):
        assert [next(parts) for _ in range(length)] == expected.get((rank, field, bag), [])


ROWS, COLUMNS, LR = 6, 4, 0.5


class Model(nn.Module):
    """A collection where `EntireSpaceModel` has one, with a sharded table `fused` and a replicated one `dense`."""

    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Module()
        self.context.tables = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=name, feature_names=[name], num_embeddings=ROWS, embedding_dim=COLUMNS, pooling=PoolingType.SUM
                )
                for name in ("fused", "dense")
            ],
            is_weighted=True,
            device=torch.device("meta"),
        )


class Sharded:
    """What TorchRec makes of `Model` on one rank."""

    def __init__(self) -> None:
        model = Model()
        fused, _ = model.context.tables.parameters()
        apply_optimizer_in_backward(RowWiseAdagrad, [fused], {"lr": LR, "eps": 1e-8})
        whole = ShardMetadata(shard_offsets=[0, 0], shard_sizes=[ROWS, COLUMNS], placement="rank:0/cpu")
        plan = {
            "fused": ParameterSharding("table_wise", "fused", [0], EnumerableShardingSpec([whole])),
            "dense": ParameterSharding("data_parallel", "dense", [0], None),
        }
        self.network = internals.distribute(
            model, ShardingPlan({"context.tables": EmbeddingModuleShardingPlan(plan)}), torch.device("cpu")
        )
        self.kernels = {kernel.tables[0]: kernel for kernel in internals.lookup_kernels(model.context.tables)}
        (self.rows,) = internals.local_rows(self.network)
        self.replicated = internals.replicated_tables(self.network)
        for table in (self.rows.weight, self.replicated["dense"].detach()):
            table.copy_(torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS))

    def pool(self, table: str, weights_V: Tensor | None = None) -> Tensor:
        """The bags {1, 3} and {} of `table`."""
        weights_V = torch.tensor([1.0, 2.0]) if weights_V is None else weights_V
        return self.kernels[table].module(torch.tensor([1, 3]), torch.tensor([0, 2, 2]), weights_V)


@pytest.fixture
def sharded() -> Iterator[Sharded]:
    with join(WorldSettings(device="cpu")):
        yield Sharded()


def test_lookups_have_one_kernel_a_sharding_with_tables_and_columns(sharded: Sharded) -> None:
    """`_lookups`, `config.embedding_tables`, `local_cols`, `emb_module`; pooled rows are [N, columns], weighted sums."""
    assert {name: (kernel.tables, kernel.allocated) for name, kernel in sharded.kernels.items()} == {
        "fused": (["fused"], [COLUMNS]),
        "dense": (["dense"], [COLUMNS]),
    }
    assert [sharded.kernels[name].is_replicated for name in ("fused", "dense")] == [False, True]
    for name in sharded.kernels:
        expected = torch.arange(4.0, 8.0) + 2 * torch.arange(12.0, 16.0)
        torch.testing.assert_close(sharded.pool(name), torch.stack([expected, torch.zeros(COLUMNS)]))


def test_local_rows_are_views_of_what_trains_and_the_state_is_one_sum_a_row(sharded: Sharded) -> None:
    """`fused_optimizer`, `local_shards`, `metadata.shard_offsets`, and the state's key `<table>.momentum1`."""
    assert (sharded.rows.table, sharded.rows.first_row) == ("fused", 0)
    assert {name: tuple(value.shape) for name, value in sharded.rows.optimizer.items()} == {"momentum1": (ROWS,)}
    sharded.rows.weight.zero_()
    assert sharded.pool("fused").abs().sum() == 0
    sharded.pool("fused").sum().backward()
    # Row-wise Adagrad: the sum is the mean of g² over the columns, and g is the weight of the value.
    torch.testing.assert_close(sharded.rows.optimizer["momentum1"], torch.tensor([0.0, 1, 0, 4, 0, 0]))
    torch.testing.assert_close(sharded.rows.weight[3], torch.full((COLUMNS,), -LR))


def test_bounds_are_not_checked_again(sharded: Sharded) -> None:
    """`fused_params` reach the kernel, whose check would read every index once more."""
    assert sharded.kernels["fused"].module.bounds_check_mode_int == internals.BoundsCheckMode.NONE.value


def test_a_dense_kernel_leaves_the_gradient_of_its_tables_in_one_buffer(sharded: Sharded) -> None:
    """`DenseTableBatchedEmbeddingBagsCodegen.weights`; the table that the network names is a view of it."""
    kernels = internals.ReplicatedKernels([kernel.module for kernel in sharded.kernels.values()])
    assert len(kernels.modules) == 1
    sharded.pool("dense").sum().backward()
    (gradient,) = kernels.gradients()
    expected = torch.zeros(ROWS, COLUMNS)
    expected[1], expected[3] = 1, 2
    torch.testing.assert_close(gradient.view(ROWS, COLUMNS), expected)
    table = sharded.replicated["dense"]
    assert table.grad is not None
    torch.testing.assert_close(table.grad.view(ROWS, COLUMNS), expected)
    kernels.clear_gradients()
    assert kernels.gradients() == []


@pytest.mark.parametrize("name", ["fused", "dense"])
def test_feature_requires_grad_switches_the_gradient_of_weights_off(sharded: Sharded, name: str) -> None:
    """`D_offsets` has one entry more than the kernel has features."""
    wanted = torch.tensor([1.0, 2.0], requires_grad=True)
    sharded.pool(name, wanted).sum().backward()
    assert wanted.grad is not None
    assert wanted.grad.abs().min() > 0
    internals.leave_weights_without_gradient(sharded.kernels[name].module)
    unwanted = torch.tensor([1.0, 2.0], requires_grad=True)
    sharded.pool(name, unwanted).sum().backward()
    assert unwanted.grad is None or unwanted.grad.abs().max() == 0


def test_a_learning_rate_counts_from_the_next_forward_pass_on(sharded: Sharded) -> None:
    """`get_learning_rate`, `set_learning_rate`, and the trap that `FusedKernels.scale_rates` names."""
    kernels = internals.FusedKernels([kernel.module for kernel in sharded.kernels.values()])
    assert len(kernels.modules) == 1
    moves = []
    for factor_before, factor_after in ((1.0, 0.5), (0.5, 1.0)):
        sharded.rows.weight.zero_()
        sharded.rows.optimizer["momentum1"].zero_()
        kernels.scale_rates(factor_before)
        pooled = sharded.pool("fused")
        kernels.scale_rates(factor_after)
        pooled.sum().backward()
        moves.append(-sharded.rows.weight[3, 0].item())
    assert moves == pytest.approx([LR, 0.5 * LR])


def test_a_forward_pass_counts_one_update_from_the_count_that_was_set(sharded: Sharded) -> None:
    """`iter` and `iter_cpu`."""
    kernels = internals.FusedKernels([sharded.kernels["fused"].module])
    kernels.set_num_updates(7)
    sharded.pool("fused")
    module: Any = sharded.kernels["fused"].module
    assert (int(module.iter.item()), int(module.iter_cpu.item())) == (8, 8)
