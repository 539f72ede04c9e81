"""Several processes on one detection (`torchrun`, `accelerate launch`): each takes its share of the documents.

They exchange which documents are long enough (a bit each), and after each language its statistics, which are reduced
over all processes: every one holds the same totals, as if it had scored all documents itself.

Processes that hold one model together (tensor parallel) score the same documents, and every one finds all units.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from babelscope.neurons.statistics import Statistics

_PATIENCE = timedelta(days=7)
"""A process may finish its share long before the others; the default of half an hour would end the run."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. One process: nothing is started, nothing exchanged."""

    rank: int = 0
    count: int = 1
    group: Any = None
    one_model: bool = False
    """Whether they hold one model together, and so score the same documents."""

    @classmethod
    def join(cls, one_model: bool = False) -> Processes:
        """Finds the others by what torchrun and accelerate put into the environment, or by the group they opened."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return cls()
            dist.init_process_group("gloo", timeout=_PATIENCE)
            atexit.register(_leave)
        if dist.get_world_size() < 2:
            return cls()
        # Statistics lie in host memory, which NCCL cannot reduce.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), group, one_model)

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """(i, n): this process scores the i-th of n parts of the documents."""
        return (0, 1) if self.one_model else (self.rank, self.count)

    @property
    def writes(self) -> bool:
        """Whether this process keeps checkpoints of its part."""
        return self.first or not self.one_model

    def agree(self, yes: bool) -> bool:
        """Whether all say yes; returns when all have spoken."""
        return bool(self._exchanged(torch.tensor(int(yes)), dist.ReduceOp.MIN))

    def any_of(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of each flag, whether a process has it up."""
        return self._exchanged(torch.from_numpy(flags.astype(np.uint8)), dist.ReduceOp.MAX).bool().numpy()

    def wait(self) -> None:
        """Returns when all have come here."""
        self.agree(True)

    def reduced(self, values: Tensor, how: str = "total") -> Tensor:
        """Sums over all parts of the documents, or their `minimum` or `maximum`, in place."""
        operation = {"minimum": dist.ReduceOp.MIN, "maximum": dist.ReduceOp.MAX}.get(how, dist.ReduceOp.SUM)
        return values if self.one_model else self._exchanged(values, operation)

    def _exchanged(self, values: Tensor, operation: Any) -> Tensor:
        if self.count > 1 and values.numel():
            dist.all_reduce(values, operation, group=self.group)
        return values

    def together(self, statistics: Statistics) -> Statistics:
        """The statistics of all processes merged, in place."""
        self.reduced(statistics.documents)
        self.reduced(statistics.tokens)
        for values in statistics.slots.values():
            for name, value in values.items():
                self.reduced(value, name)
        return statistics


def _leave() -> None:
    """Ends the threads of the group; a process that ends before them is now and then aborted, its work done."""
    if dist.is_initialized():
        dist.destroy_process_group()
