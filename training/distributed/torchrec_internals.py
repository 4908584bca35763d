"""All that this project uses of TorchRec and FBGEMM beyond their documented interfaces.

An upgrade may change any of it without notice. tests/training/distributed/test_torchrec_internals.py fails then, and names
the symbol.
"""

# Shapes: N rows of a scope, F fields, V values.

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbeddingBag
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan


class LookupKernel(NamedTuple):
    """FBGEMM's kernel for some tables of one collection: (indices, offsets, weights) → pooled rows, field-major."""

    module: nn.Module
    tables: list[str]  # in the kernel's order
    allocated: list[int]  # the columns of each
    is_replicated: bool  # every rank has the whole tables; else this rank's rows alone


class LocalRows(NamedTuple):
    """This rank's rows of one sharded table, as views of FBGEMM's buffers: what is written to them is what trains on."""

    table: str
    first_row: int
    weight: Tensor  # [rows, allocated columns]
    optimizer: dict[str, Tensor]  # state name → [rows, …]


def distribute(model: nn.Module, plan: ShardingPlan, device: torch.device) -> DistributedModelParallel:
    """Replace the embedding collections of `model`, in place, by TorchRec's sharded ones; no table has values yet."""
    with _future_warnings_ignored():
        network = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=device,
            plan=plan,
            # Every index was compared with its table as it was read (training.feed.row_groups).
            sharders=[EmbeddingBagCollectionSharder(fused_params={"bounds_check_mode": BoundsCheckMode.NONE})],
            init_data_parallel=False,  # no DDP of TorchRec's: this project sums gradients itself
        )
        return network.to(device)


def lookup_kernels(collection: nn.Module) -> Iterator[LookupKernel]:
    """Yield this rank's kernels of a sharded collection: each has the tables that share a sharding and an optimizer."""
    lookups: Any = collection._lookups
    for lookup in lookups:
        for part in lookup.modules():
            if isinstance(part, BaseBatchedEmbeddingBag):
                tables = part.config.embedding_tables
                yield LookupKernel(
                    part.emb_module,
                    [table.name for table in tables],
                    [table.local_cols for table in tables],
                    isinstance(part.emb_module, DenseTableBatchedEmbeddingBagsCodegen),
                )


def leave_weights_without_gradient(kernel: nn.Module) -> None:
    """Have `kernel` compute no gradient of a bag's weights, which FBGEMM does on every backward pass unless asked not to
    (measured: a tenth of a step)."""
    offsets = kernel.D_offsets  # one more than features
    assert isinstance(offsets, Tensor)
    unwanted = torch.zeros(len(offsets) - 1, dtype=torch.int32, device=offsets.device)
    kernel.forward = partial(kernel.forward, feature_requires_grad=unwanted)


def without_own_ddp(collection: nn.Module) -> None:
    """Take TorchRec's DDP off the lookups of replicated tables: this project sums their gradients, in the order of ranks."""
    lookups: Any = collection._lookups
    for number, lookup in enumerate(lookups):
        if isinstance(lookup, DistributedDataParallel):
            lookups[number] = lookup.module


class FusedKernels:
    """The kernels of a rank that update their tables inside the backward pass."""

    def __init__(self, kernels: Sequence[nn.Module]) -> None:
        self.modules: list[Any] = [
            kernel for kernel in kernels if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)
        ]
        self._rates = [kernel.get_learning_rate() for kernel in self.modules]

    def scale_rates(self, factor: float) -> None:
        """Set the learning rates to `factor` of the first ones, for the forward passes to come.

        Trap: FBGEMM fixes the rate of a step in its forward pass, so set it before.
        """
        for kernel, rate in zip(self.modules, self._rates, strict=True):
            kernel.set_learning_rate(rate * factor)

    def set_num_updates(self, count: int) -> None:
        """Tell the kernels that their tables have had `count` updates, which Adam's bias correction needs.

        Left alone they count their forward passes, those of validation too, and from 0 after a restart.
        """
        for kernel in self.modules:
            kernel.iter.fill_(count)
            kernel.iter_cpu.fill_(count)


class ReplicatedKernels:
    """The kernels of a rank whose tables every rank has: they leave a gradient, and update nothing."""

    def __init__(self, kernels: Sequence[nn.Module]) -> None:
        self.modules: list[Any] = [
            kernel for kernel in kernels if isinstance(kernel, DenseTableBatchedEmbeddingBagsCodegen)
        ]

    def clear_gradients(self) -> None:
        """Drop the gradients. The tables are views of one buffer a kernel, which has the gradient of them all."""
        for kernel in self.modules:
            kernel.weights.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the flat gradient of each kernel that has one."""
        return [kernel.weights.grad for kernel in self.modules if kernel.weights.grad is not None]


def local_rows(network: DistributedModelParallel) -> list[LocalRows]:
    """Return this rank's rows of the sharded tables, and their optimizers' state."""
    with _future_warnings_ignored():
        states, weights = network.fused_optimizer.state_dict()["state"], network.state_dict()
    found = []
    for name, weight in weights.items():
        table = table_of(name)
        if table is None or not hasattr(weight, "local_shards"):
            continue
        for number, local in enumerate(weight.local_shards()):
            state = {
                key.removeprefix(f"{table}."): value.local_shards()[number].tensor
                for key, value in states.get(name, {}).items()
                if hasattr(value, "local_shards")
            }
            found.append(LocalRows(table, local.metadata.shard_offsets[0], local.tensor.detach(), state))
    return found


def replicated_tables(network: DistributedModelParallel) -> dict[str, Tensor]:
    """Return table → rows, for the tables that every rank has."""
    sharded = {name for name, weight in network.state_dict().items() if hasattr(weight, "local_shards")}
    return {
        table: weight
        for name, weight in network.named_parameters()
        if (table := table_of(name)) is not None and name not in sharded
    }


def table_of(parameter: str) -> str | None:
    """Return the table that a parameter's name ends with: `context.tables.embedding_bags.user_id.weight` → `user_id`."""
    parts = parameter.split(".")
    return parts[3] if parts[1:3] == ["tables", "embedding_bags"] else None


@contextmanager
def _future_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchRec calls deprecated parts of torch
        yield


def state_of_replicated(sums: Tensor) -> dict[str, Tensor]:
    """Name torch's Adagrad sums of a replicated table as FBGEMM names and shapes them, as views; [rows, 1] → [rows]."""
    return {"momentum1": sums.view(-1) if sums.shape[1] == 1 else sums}


def offsets_of(lengths: Tensor) -> Tensor:
    """Return where each bag begins, and where the last one ends: [bags] → [bags + 1]."""
    return torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)


def bucketize(
    lengths: Tensor, rows_V: Tensor, weights_V: Tensor, blocks_F: Tensor, world_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the bags of F fields by the rank that has the row: row r of field f is number r % blocks_F[f] of rank
    r // blocks_F[f].

    `lengths` is [F · N], field-major. Returns lengths [world_size · F · N], rank-major, with the rows and weights in
    that order.
    """
    lengths, rows_V, weights_V, _, _ = torch.ops.fbgemm.block_bucketize_sparse_features(
        lengths,
        rows_V,
        bucketize_pos=False,
        sequence=False,
        block_sizes=blocks_F,
        my_size=world_size,
        weights=weights_V,
    )
    return lengths, rows_V, weights_V
