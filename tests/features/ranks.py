"""Threads in place of processes that gather tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class Ranks:
    """As many threads as ranks, whose ``all_gather`` waits for all of them."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.slots: list[Tensor] = [torch.empty(0)] * world_size

    def all_gather(self, rank: int, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, concatenated."""
        self.slots[rank] = tensor
        self.barrier.wait()
        assert len({(slot.dtype, slot.shape) for slot in self.slots}) == 1
        result = torch.cat(self.slots)
        self.barrier.wait()
        return result

    def run(self, one: Callable[..., list[Tensor]]) -> list[list[Tensor]]:
        """Call a function in every rank with what it needs to know of the others."""

        def alone(rank: int) -> list[Tensor]:
            try:
                return one(
                    rank=rank,
                    world_size=self.world_size,
                    all_gather=lambda tensor: self.all_gather(rank, tensor),
                )
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.world_size) as threads:
            return list(threads.map(alone, range(self.world_size)))
