"""What kernels pool, brought into the catalogue's order on a rank that is alone, and its gradient brought back.

A kernel's output has its fields in its own order, each with all columns that its table allocates. Fields that follow each
other in both orders, with equal widths, are one run, and one strided copy moves it. Mostly a scope is one run:

    kernel [N, F · A]   |field 0: used, unused|field 1: used, unused| …
    rows   [N, F · d]   |field 0: used|field 1: used| …
"""

# Shapes: N rows of a scope, D used columns of a scope, A columns that a kernel's tables allocate.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from training.distributed.exchange import Kernel


@dataclass(frozen=True)
class _Run:
    """`count` fields of one kernel, each with `width` used columns of `allocated` ones."""

    kernel: int
    column: int  # of the kernel's output, the first one
    target: int  # of the rows, the first one
    count: int
    allocated: int
    width: int

    def in_output(self, output: Tensor) -> Tensor:
        """Return a view of the used columns: [N, count, width]."""
        columns = output[:, self.column : self.column + self.count * self.allocated]
        return columns.unflatten(1, (self.count, self.allocated))[:, :, : self.width]

    def in_rows(self, rows_ND: Tensor) -> Tensor:
        """Return a view of the same columns of the rows: [N, count, width]."""
        return rows_ND[:, self.target : self.target + self.count * self.width].unflatten(1, (self.count, self.width))


class LocalRowLayout:
    """The places of one scope's fields in its kernels' outputs; `widths` are the fields' used columns."""

    def __init__(self, kernels: Sequence[Kernel], widths: Sequence[int]) -> None:
        self._width = sum(widths)
        starts = [sum(widths[:field]) for field in range(len(widths))]
        self._runs: list[_Run] = []
        for number, kernel in enumerate(kernels):
            column, before = 0, -1
            for field, allocated in zip(kernel.fields, kernel.allocated, strict=True):
                run = self._runs[-1] if before >= 0 else None
                if run and field == before and (run.allocated, run.width) == (allocated, widths[field]):
                    self._runs[-1] = _Run(number, run.column, run.target, run.count + 1, allocated, run.width)
                else:
                    self._runs.append(_Run(number, column, starts[field], 1, allocated, widths[field]))
                column, before = column + allocated, field + 1
        self._is_one_run = len(self._runs) == len(kernels) == 1

    def rows_of(self, outputs: Sequence[Tensor], num_rows: int) -> Tensor:
        """Return the used columns of all fields in catalogue order: [N, D]."""
        if self._is_one_run:
            return self._runs[0].in_output(outputs[0].detach()).flatten(1)
        rows_ND = torch.empty((num_rows, self._width), device=outputs[0].device if outputs else None)
        for run in self._runs:
            run.in_rows(rows_ND).copy_(run.in_output(outputs[run.kernel]))
        return rows_ND

    def gradients_of(self, rows_ND: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of each kernel's output from that of the rows; columns that are not used get 0."""
        if self._is_one_run:
            (run,) = self._runs
            return [pad(run.in_rows(rows_ND), (0, run.allocated - run.width)).flatten(1)]
        gradients = [torch.zeros_like(output) for output in outputs]
        for run in self._runs:
            run.in_output(gradients[run.kernel]).copy_(run.in_rows(rows_ND))
        return gradients
