"""Batches on their way to the device: the same tensors, one ahead, and errors in their turn."""

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch

from pipeline.errors import InputError
from training.feed.batch import Bags, Batch
from training.feed.device_copy import in_one_block, map_tensors, prefetch_to_device, to_device

CPU = torch.device("cpu")


def batch_of(number: int) -> Batch:
    bags = Bags(torch.tensor([number]), torch.ones(1, dtype=torch.int32), torch.ones(1))
    return Batch(
        context=bags,
        impression=bags,
        context_numeric=torch.zeros(1, 0),
        impression_numeric=torch.zeros(1, 0),
        context_of_impression=torch.zeros(1, dtype=torch.int64),
        labels={"click": torch.tensor([float(number)])},
        impression_id=torch.tensor([number]),
        group_id=torch.tensor([number]),
        context_id=[str(number)],
    )


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)
    return found


def test_every_tensor_of_a_batch_moves_and_the_rest_stays() -> None:
    moved = to_device(batch_of(7), torch.device("meta"))
    found = tensors_of(moved)
    assert {tensor.device.type for tensor in found} == {"meta"}
    assert (
        len(found) == 2 * (len(fields(Bags)) - 1) + 6
    )  # two scopes without their counts, and what Batch holds beside them
    assert moved.context_id == ["7"]


def test_a_batch_in_one_block_moves_as_one_tensor_and_is_the_same() -> None:
    given = replace(batch_of(7), impression_numeric=torch.randn(3, 5), context_of_impression=torch.arange(3))
    packed = in_one_block(given, is_pinned=False)
    assert packed.block is not None
    start, stop = packed.block.data_ptr(), packed.block.data_ptr() + packed.block.nbytes
    assert all(start <= part.data_ptr() < stop for part in tensors_of(packed) if part.numel())
    assert to_device(packed, CPU).block is packed.block
    copied = replace(packed, block=packed.block.clone())  # as memory that a GPU copied
    moved = to_device(replace(copied, block=Elsewhere(copied.block)), torch.device("meta"))
    for batch in (packed, moved):
        for part, whole in zip(tensors_of(batch), tensors_of(given), strict=True):
            assert (part.dtype, part.shape) == (whole.dtype, whole.shape)
            torch.testing.assert_close(part, whole, rtol=0, atol=0)
    assert moved.context_id == ["7"]


class Elsewhere:
    """A block that `to` copies once, within the host's memory."""

    def __init__(self, block: torch.Tensor) -> None:
        self.block, self.device = block, torch.device("cuda")

    def to(self, device: torch.device, non_blocking: bool) -> torch.Tensor:
        assert non_blocking
        return self.block


def test_the_next_batch_is_asked_for_before_the_present_one_is_given_out() -> None:
    asked: list[int] = []

    def host() -> Iterator[Batch]:
        for number in range(3):
            asked.append(number)
            yield batch_of(number)

    seen = []
    for batch in prefetch_to_device(host(), CPU):
        seen.append((int(batch.impression_id), list(asked)))
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]


def test_an_error_comes_in_its_turn() -> None:
    def host() -> Iterator[Batch]:
        yield batch_of(0)
        raise InputError("part-00000, row group 3: broken.")

    batches = prefetch_to_device(host(), CPU)
    assert int(next(batches).impression_id) == 0
    with pytest.raises(InputError, match="row group 3"):
        next(batches)


def test_no_batches_give_none() -> None:
    assert list(prefetch_to_device(iter(()), CPU)) == []
