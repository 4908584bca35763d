"""The interface between the towers and the tables: ids go out, pooled embedding rows come back, gradients follow them.

`training.distributed.peer_exchange` implements it, and so does `torchrec_exchange`, by TorchRec's own distribution.
"""

# Shapes: B impressions, C contexts, D width of a scope's inputs, N contexts or impressions.

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from training.feed.batch import Batch

T = TypeVar("T")


class Scope(IntEnum):
    """The subject of a field: a context, or one impression of it. The number is the index into a `PerScope`."""

    CONTEXT = 0
    IMPRESSION = 1


class PerScope(NamedTuple, Generic[T]):
    """One value for contexts and one for impressions: by name, or as `values[scope]`."""

    contexts: T
    impressions: T


@dataclass(frozen=True)
class Kernel:
    """FBGEMM's kernel for some tables of one scope, or for this rank's rows of them."""

    module: nn.Module  # (indices, offsets, weights) of its fields' bags, field-major → [N, allocated columns]
    scope: Scope
    fields: list[int]  # in the kernel's own order, which is not the catalogue's
    allocated: list[int]  # the columns of each; the used ones come first
    serves_all: bool  # the ids of all ranks come here, and not this rank's alone


class Handle(Protocol):
    """The ids of one batch on their way to the ranks that store their rows."""

    def proceed(self) -> None:
        """Do the next part of the sending, which needs an answer from the other ranks. A second call does nothing."""


class Pooled(Protocol):
    """The pooled embedding rows of one rank's batch. In training both matrices are leaves of autograd."""

    context_CD: Tensor
    impression_BD: Tensor


class Exchange(Protocol):
    """The lookup and the training of the sharded tables, for one rank's batches.

    All ranks make the same calls in the same order.
    """

    kernels: Sequence[Kernel]  # of this rank

    @property
    def num_fields(self) -> PerScope[int]:
        """The number of categorical fields of a context and of an impression."""

    def send(self, batch: Batch) -> Handle:
        """Start to send the ids of `batch` to the ranks that store their rows. No weight is read."""

    def look_up(self, handle: Any) -> Pooled:
        """Wait for the ids of `handle`, which `send` returned, and return the pooled rows of its batch: [C, D] and [B, D],
        the fields in catalogue order."""

    def learn(self, pooled: Any) -> None:
        """Send the gradients of `pooled`, which `look_up` returned, to the ranks that store the rows. Sharded tables are
        updated before this returns; replicated tables get a gradient."""
