"""Several processes on one detection (`torchrun`, `accelerate launch`): each takes its share of the documents.

Nothing is exchanged while documents are scored. After each language the statistics are reduced over all processes, and
every process holds the same totals, as if it had scored all documents itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
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

    @classmethod
    def join(cls) -> Processes:
        """Finds the others by what torchrun and accelerate put into the environment, or by the group they opened."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return cls()
            dist.init_process_group("gloo", timeout=_PATIENCE)
        if dist.get_world_size() < 2:
            return cls()
        # Statistics lie in host memory, which NCCL cannot reduce.
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, shard: tuple[int, int]) -> tuple[int, int]:
        """This process's part of a shard: together the processes' parts are the shard."""
        place, of = shard
        return place + of * self.rank, of * self.count

    def agree(self, yes: bool) -> bool:
        """Whether all say yes; returns when all have spoken."""
        return bool(self.reduced(torch.tensor(int(yes)), "minimum"))

    def wait(self) -> None:
        """Returns when all have come here."""
        self.agree(True)

    def reduced(self, values: Tensor, how: str = "total") -> Tensor:
        """Sums over all processes, or their `minimum` or `maximum`, in place."""
        operation = {"minimum": dist.ReduceOp.MIN, "maximum": dist.ReduceOp.MAX}.get(how, dist.ReduceOp.SUM)
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
