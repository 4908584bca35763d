"""One rank's batch of each step, in training, validation and evaluation: on the device, its ids sent one step ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from training.distributed.exchange import Exchange, Handle
from training.distributed.world import Pending, World
from training.feed.batch import Batch
from training.feed.device_copy import prefetch_to_device, to_device
from training.feed.feed import Feed
from training.model.entire_space import or_stand_in


@dataclass
class RankBatch:
    """This rank's batch of one step."""

    step: int  # of the epoch
    batch: Batch  # on the device; a stand-in where the rank has no impressions
    num_impressions: int
    ids: Handle  # of the batch
    error: InputError | None  # the reason that this rank has no batch
    following: "RankBatch | None" = None  # its batch of the next step of the epoch

    def send_next(self) -> None:
        """Send the next batch's ids now: they travel during this step's computation."""
        if self.following:
            self.following.ids.proceed()

    def start_agreement(self, world: World, stops: bool = False) -> Pending:
        """Outside training: start to tell the other ranks whether this one has failed, or wants to stop."""
        return world.start_sum(torch.tensor([self.error is not None, stops], dtype=torch.int64, device=world.device))

    def agreed(self, agreeing: Pending, world: World) -> bool:
        """Return whether any rank wants to stop. Raise InputError on every rank if one has failed."""
        num_failed, num_stops = agreeing.wait().tolist()
        if num_failed:
            world.agree(self.error)
        return num_stops > 0


def rank_batches(feed: Feed, epoch: int, steps: range, exchange: Exchange, device: torch.device) -> Iterator[RankBatch]:
    """Yield this rank's batch of each of `steps`, once the ids of the batch after it are on their way.

    A rank that cannot read its batch takes part in the step with an empty one, because the others wait for it inside the
    forward pass. The ranks agree on its error in that step.
    """
    batches = prefetch_to_device(feed.batches(epoch, steps.start), device)
    error: InputError | None = None
    present: RankBatch | None = None
    for step in steps:
        try:
            batch = to_device(feed.empty_batch(), device) if error else next(batches)
        except InputError as failure:
            error, batch = failure, to_device(feed.empty_batch(), device)
        whole = or_stand_in(batch, *exchange.num_fields)
        following = RankBatch(step, whole, batch.num_impressions, exchange.send(whole), error)
        if present:
            present.following = following
            yield present
        present = following
    if present:
        yield present
