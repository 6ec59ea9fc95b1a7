"""What a search among several processes needs of them, and one process alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Sharing(Protocol):
    """Processes that share the items of a layer; :class:`prh_eval.processes.Processes` is one."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

    def rows(self, n: int, rank: int | None = None) -> range:
        """The items of a process: contiguous, in the order of ranks."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Equal-shaped tensors of all processes, concatenated in the order of ranks."""

    def passed_round(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every process's rank and tensor in turn, the own first."""


@dataclass(frozen=True)
class _Alone:
    rank: int = 0
    world_size: int = 1

    def rows(self, n: int, rank: int | None = None) -> range:
        return range(n)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def passed_round(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        yield 0, tensor


ALONE: Sharing = _Alone()


def gathered_rows(sharing: Sharing, part: Tensor, n: int) -> Tensor:
    """The rows of all processes, of shares that may differ in length.

    Beside the result there are this process's rows and, passed round, those of two others.

    Args:
        sharing: The processes.
        part: This process's rows, shape (rows, ...); as wide in every process.
        n: Number of all rows.

    Returns:
        Shape (n, ...), the same in every process.
    """
    whole = part.new_empty(n, *part.shape[1:])
    for rank, rows in sharing.passed_round(part):
        share = sharing.rows(n, rank)
        whole[share.start : share.stop] = rows
    return whole
