"""One rank's share of each step, in training, validation and evaluation: its batch on the device, and the batch's ids on their way one step ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.errors import InputError
from training.distributed.id_messages import Message
from training.distributed.peer_exchange import Exchange
from training.distributed.world import Pending, World
from training.feed.batch import Batch
from training.feed.device_copy import on_device, to_device
from training.feed.feed import Feed
from training.model.entire_space import without_emptiness


@dataclass
class Share:
    """This rank's part of a step."""

    step: int  # of the epoch
    batch: Batch  # on the device; a stand-in where the rank has no impressions
    num_impressions: int
    ids: Message  # of the batch
    error: InputError | None  # why this rank has no batch
    following: "Share | None" = None  # its part of the next step of the epoch

    def send_next(self) -> None:
        """Have the next share's ids go on, while this one's step computes."""
        if self.following:
            self.following.ids.proceed()

    def start_agreement(self, world: World, stops: bool = False) -> Pending:
        """Outside training: begin to tell the other ranks whether this one has failed, or wants to stop."""
        return world.start_sum(torch.tensor([self.error is not None, stops], dtype=torch.int64, device=world.device))

    def agreed(self, agreeing: Pending, world: World) -> bool:
        """Whether any rank wants to stop; InputError on every rank where one has failed."""
        num_failed, num_stops = agreeing.wait().tolist()
        if num_failed:
            world.agree(self.error)
        return num_stops > 0


def shares(feed: Feed, epoch: int, steps: range, exchange: Exchange, device: torch.device) -> Iterator[Share]:
    """This rank's share of each of `steps`; the ids of the one after it are on their way when it is given out.

    A rank that cannot read its share takes part in the step with nothing, and the ranks agree on its error there: the
    others wait for it inside the forward pass already.
    """
    batches = on_device(feed.batches(epoch, steps.start), device)
    error: InputError | None = None
    present: Share | None = None
    for step in steps:
        try:
            batch = to_device(feed.nothing(), device) if error else next(batches)
        except InputError as failure:
            error, batch = failure, to_device(feed.nothing(), device)
        whole = without_emptiness(batch, *exchange.num_fields)
        following = Share(step, whole, batch.num_impressions, exchange.send(whole), error)
        if present:
            present.following = following
            yield present
        present = following
    if present:
        yield present
