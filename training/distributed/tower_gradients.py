"""Towers under DistributedDataParallel, with a communication hook that adds gradients in the order of the ranks.

A loss is divided by the number of impressions of the *global* batch, so gradients are summed and not averaged.

The sum must not depend on when a process started or where it runs, or a resumed run would end with other bits:

- After its first backward pass DDP rebuilds its buckets in the order in which gradients arrived. An all-reduce over more
  than two ranks adds in an order that depends on the place in the bucket.
- NCCL's rings and trees follow the hosts, which change when a job is requeued.
"""

import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from training.distributed.world import World


def data_parallel(towers: nn.Module, world: World) -> nn.Module:
    """Wrap `towers` so that `backward` leaves the sum of their gradients over the ranks.

    A rank that is alone has nothing to sum: DDP would copy each gradient to its buckets, which is a launch each on a GPU.
    """
    if world.size == 1:
        return towers
    parallel = DistributedDataParallel(towers, gradient_as_bucket_view=True)
    parallel.register_comm_hook(world, sum_bucket)
    return parallel


def sum_bucket(world: World, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    """Sum one bucket of gradients over the ranks, in place: DDP's hook, which DDP calls inside `backward`."""
    future: Future[Tensor] = Future(devices=[world.device] if world.device.type == "cuda" else None)
    future.set_result(sum_in_rank_order(bucket.buffer(), world))
    return future


def sum_in_rank_order(gradient: Tensor, world: World) -> Tensor:
    """Sum a flat `gradient` over the ranks, in place: rank 0's plus rank 1's plus rank 2's, on every rank.

    An all-to-all gives rank r the r-th part of every rank's gradient, which it adds in the order of the ranks; a second
    one gives its sum to all. Together they move 2(W - 1)/W of the gradient, as much as a ring does.
    """
    if world.size == 1:
        return gradient
    sizes = [len(part) for part in gradient.tensor_split(world.size)]
    own = [sizes[world.rank]] * world.size
    total, *others = world.start_exchange(gradient, sizes, own).wait().split(own)
    for part in others:
        total.add_(part)
    # Trap: gloo numbers messages as they are sent, so this one may not be sent from a callback, out of turn.
    return world.start_exchange(total.repeat(world.size), own, sizes, into=gradient).wait()
