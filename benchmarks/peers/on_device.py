"""Two peers of the trainer on batches that lie on the device: ESMM in plain PyTorch, and by TorchRec's own pipeline.

Both take flat batches, as these libraries' examples do: every impression has its context's values again. The flat batches are
made beforehand and are not timed.
"""

# Shapes: B impressions, C contexts, D width of the inputs, F fields of both scopes, N rows of a scope, V values.

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.streamable import Pipelineable

from training.feed.batch import Batch

PLAIN_DIM, TORCHREC_DIM = 18, 20  # FBGEMM wants a multiple of 4


@dataclass
class FlatBatch(Pipelineable):
    """The bags of all fields for every impression, and the labels."""

    bags: KeyedJaggedTensor
    click: Tensor  # float32 [B]
    conversion: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "FlatBatch":
        """Copy the tensors to `device`."""
        return FlatBatch(*(part.to(device, non_blocking=non_blocking) for part in self._parts))

    def record_stream(self, stream: Any) -> None:
        """Keep the memory until `stream` has read it."""
        for part in self._parts:
            part.record_stream(stream)

    def pin_memory(self) -> "FlatBatch":
        """Copy to page-locked memory."""
        return FlatBatch(*(part.pin_memory() for part in self._parts))

    @property
    def _parts(self) -> tuple[Any, Tensor, Tensor]:
        return self.bags, self.click, self.conversion


def flatten(batch: Batch, names: Sequence[Sequence[str]]) -> FlatBatch:
    """Give every impression its context's values; `names` are the fields of contexts and of impressions."""
    index_B, values, lengths, weights = batch.context_of_impression, [], [], []
    for scope, bags in enumerate((batch.context, batch.impression)):
        length_FN = bags.lengths.view(len(names[scope]), -1).long()
        first_FN = (bags.lengths.long().cumsum(0) - bags.lengths.long()).view(len(names[scope]), -1)
        for length_N, first_N in zip(length_FN, first_FN, strict=True):
            length_B, first_B = (length_N[index_B], first_N[index_B]) if scope == 0 else (length_N, first_N)
            shift_B = first_B - (length_B.cumsum(0) - length_B)
            place = torch.arange(int(length_B.sum()), device=length_B.device) + shift_B.repeat_interleave(length_B)
            values.append(bags.values[place].long())
            weights.append(bags.weights[place])
            lengths.append(length_B.int())
    click = batch.labels["click"]
    bags = KeyedJaggedTensor(
        keys=[*names[0], *names[1]],
        values=torch.cat(values),
        weights=torch.cat(weights),
        lengths=torch.cat(lengths),
        stride=len(click),
        length_per_key=[len(of_field) for of_field in values],
    )
    return FlatBatch(bags, click, click * batch.labels["conversion"])


def perceptron(width: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise([width, *hidden]):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear([width, *hidden][-1], 1))


def esmm_loss(ctr_B: Tensor, cvr_B: Tensor, batch: FlatBatch) -> Tensor:
    ctcvr_B = torch.sigmoid(ctr_B) * torch.sigmoid(cvr_B)
    loss = binary_cross_entropy(ctcvr_B.clamp(1e-7, 1 - 1e-7), batch.conversion)
    return binary_cross_entropy_with_logits(ctr_B, batch.click) + loss


class PlainEsmm(nn.Module):
    """One table of all fields' rows, a bag a field and impression, and a perceptron for each task."""

    def __init__(self, num_rows: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.num_fields = len(num_rows)
        self.table = nn.EmbeddingBag(sum(num_rows), PLAIN_DIM, mode="sum")
        self.register_buffer("first_F", torch.tensor([0, *itertools.accumulate(num_rows)][:-1]))
        self.ctr, self.cvr = (perceptron(self.num_fields * PLAIN_DIM, hidden) for _ in range(2))

    def prepared(self, batch: FlatBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows of the one table, where bags begin, and weights: made once, not timed."""
        bags, first_F = batch.bags, self.get_buffer("first_F")
        first_V = first_F.repeat_interleave(torch.tensor(bags.length_per_key(), device=first_F.device))
        lengths = bags.lengths().long()
        return bags.values() + first_V, lengths.cumsum(0) - lengths, bags.weights()

    def forward(self, bags: tuple[Tensor, Tensor, Tensor], batch: FlatBatch) -> Tensor:
        """Return the loss."""
        rows, starts, weights = bags
        pooled = self.table(rows, starts, per_sample_weights=weights).view(self.num_fields, -1, PLAIN_DIM)
        inputs_BD = pooled.transpose(0, 1).flatten(1)
        return esmm_loss(self.ctr(inputs_BD).squeeze(1), self.cvr(inputs_BD).squeeze(1), batch)


def plain_steps(batches: Sequence[FlatBatch], num_rows: Sequence[int], hidden: Sequence[int]) -> Callable[[], int]:
    """Return a function that takes one step of plain PyTorch with Adam, and says over how many impressions."""
    device = batches[0].click.device
    model = PlainEsmm(num_rows, hidden).to(device)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    turns = itertools.cycle([(model.prepared(batch), batch) for batch in batches])

    def step() -> int:
        bags, batch = next(turns)
        adam.zero_grad()
        model(bags, batch).backward()
        adam.step()
        return len(batch.click)

    return step


class TorchRecEsmm(nn.Module):
    """An EmbeddingBagCollection over flat batches, and a perceptron for each task, as in TorchRec's DLRM example."""

    def __init__(self, names: Sequence[str], num_rows: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=name,
                    feature_names=[name],
                    num_embeddings=rows,
                    embedding_dim=TORCHREC_DIM,
                    pooling=PoolingType.SUM,
                )
                for name, rows in zip(names, num_rows, strict=True)
            ],
            is_weighted=True,
            device=torch.device("meta"),
        )
        self.ctr, self.cvr = (perceptron(TORCHREC_DIM * len(names), hidden) for _ in range(2))

    def forward(self, batch: FlatBatch) -> tuple[Tensor, Tensor]:
        """Return the loss, twice: what to differentiate, and what the pipeline hands out."""
        inputs_BD = self.tables(batch.bags).values()
        loss = esmm_loss(self.ctr(inputs_BD).squeeze(1), self.cvr(inputs_BD).squeeze(1), batch)
        return loss, loss.detach()


def torchrec_steps(batches: Sequence[FlatBatch], num_rows: Sequence[int], hidden: Sequence[int]) -> Callable[[], int]:
    """Return a function that advances TrainPipelineSparseDist by a step: DMP, row-wise Adagrad in the backward pass, Adam."""
    device = batches[0].click.device
    names = batches[0].bags.keys()
    model = TorchRecEsmm(names, num_rows, hidden)
    apply_optimizer_in_backward(RowWiseAdagrad, model.tables.parameters(), {"lr": 0.1, "eps": 1e-8})
    fused = {name: table_wise(rank=0, compute_kernel=EmbeddingComputeKernel.FUSED.value) for name in names}
    sharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        model.tables, fused, sharder=sharder, local_size=1, world_size=1, device_type=device.type
    )
    network = DistributedModelParallel(model, device=device, plan=ShardingPlan({"tables": plan}), sharders=[sharder])
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(network.named_parameters())),
        lambda parameters: torch.optim.Adam(parameters, fused=True),
    )
    optimizer = CombinedOptimizer([network.fused_optimizer, dense])
    pipeline: Any = TrainPipelineSparseDist(network, optimizer, device, execute_all_batches=True)
    turns = itertools.cycle(batches)

    def step() -> int:
        pipeline.progress(turns)
        return len(batches[0].click)

    return step
