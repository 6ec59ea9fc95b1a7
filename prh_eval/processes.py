"""Several processes for one command: where this one is among them, and what they say to each other.

Started by ``torchrun`` or by ``accelerate launch``, which are alike: both set RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. All else is ``torch.distributed``: gloo, and NCCL for what
lies on CUDA devices.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from prh_eval.errors import PrhEvalError
from prh_eval.lifeline import Lifeline

RENDEZVOUS_S = 600.0
"""How long the processes of a run may take to come together, in seconds."""

COLLECTIVE = timedelta(days=1)
"""How long a process may wait for another that is alive; that one has ended is noticed at once."""

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LIFELINE = "lifeline"
# A store may outlive a group, and would tell the next one where to find the last.
_groups = itertools.count()

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; alone, every method is trivial.

    All processes call the methods that communicate, in the same order. If one of them ends before
    its time, they raise :class:`PrhEvalError` in the others, with its reason.

    Attributes:
        rank: Of this process, from 0.
        world_size: How many processes there are.
        local_rank: Of this process among those of its machine, from 0.
        device: Where this process computes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    _lifeline: Lifeline | None = field(default=None, repr=False, compare=False)

    @classmethod
    def current(cls, device: str | torch.device | None = None) -> Processes:
        """The processes of a process group that somebody else has initialised, or this one alone.

        Args:
            device: Where this process computes; its current CUDA device by default, or the CPU
                where there is none.

        Raises:
            PrhEvalError: If torch knows no such device, or nothing is computed there.
        """
        if device is None and torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
        own = _device(device or "cpu")
        if not _initialised():
            return cls(0, 1, 0, own)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return cls(distributed.get_rank(), distributed.get_world_size(), local_rank, own)

    @property
    def first(self) -> bool:
        """Whether this is process 0, the one that prints and writes results."""
        return self.rank == 0

    def rows(self, n: int, rank: int | None = None) -> range:
        """The rows of a process: contiguous, in the order of ranks, sizes that differ by 1 at most.

        Args:
            n: The number of all rows.
            rank: Whose rows; this process's by default.
        """
        rank = self.rank if rank is None else rank
        return range(n * rank // self.world_size, n * (rank + 1) // self.world_size)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, concatenated.

        Args:
            tensor: Shape ``(n, ...)``, any dtype, the same of both in every process.

        Returns:
            Shape ``(world_size * n, ...)``, in the order of ranks, on the tensor's device, the
            same bits that the processes gave.

        Raises:
            ValueError: If shapes or dtypes differ.
        """
        if self.world_size == 1:
            return tensor
        kinds = self.all_gather_object((tuple(tensor.shape), tensor.dtype))
        if len(set(kinds)) > 1:
            raise ValueError(f"processes have different tensors: {kinds}")
        mine = _as_bytes(tensor)
        gathered = mine.new_empty(self.world_size, len(mine))
        with self._watched():
            distributed.all_gather(list(gathered), mine)
        shape = (self.world_size * len(tensor), *tensor.shape[1:])
        return _from_bytes(gathered.view(-1), shape, tensor.dtype)

    def all_gather_object(self, value: T) -> list[T]:
        """What every process gives, in the order of ranks: anything small that can be pickled."""
        gathered = [value] * self.world_size
        if self.world_size > 1:
            with self._watched():
                distributed.all_gather_object(gathered, value)
        return gathered

    def broadcast_object(self, value: T, source: int = 0) -> T:
        """What process ``source`` gives, in every process; the others' values do not count."""
        values: list[Any] = [value]
        if self.world_size > 1:
            with self._watched():
                distributed.broadcast_object_list(values, src=source)
        given: T = values[0]
        return given

    def barrier(self) -> None:
        """Wait until every process has come here."""
        # torch's own barrier chooses a device by itself, with a warning.
        self.all_gather_object(None)

    def passed_round(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Every process's tensor in turn: the own one, then those of the ranks before, in a ring.

        The next one is on its way while the caller works on the current one. Beside the own tensor,
        two buffers of the largest are held (one among two processes). Every process goes all the
        way round, or raises.

        Args:
            tensor: Shape ``(n, ...)``, any dtype; shapes may differ among processes. Not to be
                changed meanwhile.

        Yields:
            The rank and its tensor, on the own tensor's device; to be copied by who wants to keep
            it, since its memory is used again once the next one is asked for.

        Raises:
            ValueError: If dtypes differ.
        """
        kinds = self.all_gather_object((tuple(tensor.shape), tensor.dtype))
        if len({dtype for _, dtype in kinds}) > 1:
            raise ValueError(f"processes have different tensors: {kinds}")
        sizes = [max(1, prod(shape) * dtype.itemsize) for shape, dtype in kinds]
        following, previous = ((self.rank + step) % self.world_size for step in (1, -1))
        held = _as_bytes(tensor)
        buffers = [held.new_empty(max(sizes)) for _ in range(min(2, self.world_size - 1))]
        for step in range(self.world_size - 1):
            owner = (self.rank - step) % self.world_size
            coming = buffers[step % 2][: sizes[owner - 1]]
            with self._watched():
                works = distributed.batch_isend_irecv(
                    [
                        distributed.P2POp(distributed.isend, held, following),
                        distributed.P2POp(distributed.irecv, coming, previous),
                    ]
                )
            yield owner, _from_bytes(held, *kinds[owner])
            with self._watched():
                for work in works:
                    work.wait()
            held = coming
        yield following, _from_bytes(held, *kinds[following])

    def _watched(self) -> AbstractContextManager[None]:
        return nullcontext() if self._lifeline is None else self._lifeline.watched()


@contextmanager
def processes(
    device: str | torch.device | None = None, *, patience: float = RENDEZVOUS_S
) -> Iterator[Processes]:
    """The processes that torchrun or accelerate launch has started, or this one alone.

    All of them leave together: those that come to the end wait for the others there. If one raises,
    or is killed, the others raise :class:`PrhEvalError` with its reason when they communicate.
    One that does not within ten seconds, as it computes or as NCCL does not return, prints the
    sentence and exits with status 2. Only process 0 logs what is less than a warning.

    Without RANK and WORLD_SIZE in the environment, or if there is one process, torch.distributed is
    not used. A process group that is initialised already is used as it is, and left so.

    Args:
        device: Where to compute; CUDA where there is, by default. Processes on CUDA take the device
            of their local rank.
        patience: How long the processes may take to come together, in seconds.

    Raises:
        PrhEvalError: If the environment says half of what it should, there is no such device, not
            all processes come, or one of them ends before its time.
    """
    if _initialised() or not {"RANK", "WORLD_SIZE"} & set(os.environ):
        yield Processes.current(device)
        return
    rank, world_size, local_rank = _launched()
    if world_size == 1:
        yield Processes(rank, world_size, local_rank, _own_device(device, local_rank, world_size))
        return
    store = _store(rank, world_size, patience)
    lifeline = _lifeline(store, rank, world_size, patience)
    try:
        own_device = _own_device(device, local_rank, world_size)
        backend = "cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo"
        store.set_timeout(COLLECTIVE)
        with lifeline.watched():
            distributed.init_process_group(
                backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE
            )
        with _only_warnings() if rank else nullcontext():
            yield Processes(rank, world_size, local_rank, own_device, lifeline)
        lifeline.goodbye()
    except BaseException as error:
        lifeline.leave(error)
        # NCCL would wait for what never comes; its memory goes with the process.
        if _initialised() and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()
        raise
    lifeline.leave()
    distributed.destroy_process_group()


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _launched() -> tuple[int, int, int]:
    """Rank, world size and local rank, as the launcher says."""
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise PrhEvalError(
            f"the environment has RANK or WORLD_SIZE but not {', '.join(missing)}; start several "
            "processes with torchrun or accelerate launch, which set all, and unset them for one"
        )
    values = []
    for name in _VARIABLES[:3]:
        if not os.environ[name].isdecimal():
            raise PrhEvalError(
                f"the environment variable {name} is {os.environ[name]!r}; it must be a whole "
                "number, as torchrun and accelerate launch set it"
            )
        values.append(int(os.environ[name]))
    rank, world_size, local_rank = values
    if rank >= world_size:
        raise PrhEvalError(
            f"the environment says RANK={rank} and WORLD_SIZE={world_size}; ranks go from 0 to "
            "WORLD_SIZE - 1"
        )
    return rank, world_size, local_rank


def _device(given: str | torch.device) -> torch.device:
    try:
        device = torch.device(given)
    except RuntimeError as error:
        raise PrhEvalError(f"there is no device {given!r}: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise PrhEvalError("nothing is computed on the device meta; it should be as cpu or cuda")
    return device


def _own_device(
    device: str | torch.device | None, local_rank: int, world_size: int
) -> torch.device:
    """A device of its own for every process of a machine, where devices are several."""
    wanted = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if wanted.type != "cuda" or world_size == 1:
        return wanted
    if wanted.index is not None and wanted.index != local_rank:
        raise PrhEvalError(
            f"device {wanted} cannot be shared by {world_size} processes; say cuda, and every "
            "process takes the device of its local rank"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise PrhEvalError(
            f"local rank {local_rank} has no CUDA device: this machine has {count}; start one "
            "process a device, or use the device cpu"
        )
    own = torch.device("cuda", local_rank)
    torch.cuda.set_device(own)  # NCCL takes the current one
    return own


def _store(rank: int, world_size: int, patience: float) -> Store:
    if not distributed.is_available():
        raise PrhEvalError("this build of torch has no torch.distributed; start one process only")
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=patience)))
    except (RuntimeError, ValueError) as error:
        raise PrhEvalError(
            f"process {rank} of {world_size} did not meet the others within {patience:g} s at "
            f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return PrefixStore(f"prh_eval/{next(_groups)}", cast("Store", store))


def _lifeline(store: Store, rank: int, world_size: int, patience: float) -> Lifeline:
    if rank == 0:
        return Lifeline.host(
            world_size, lambda port, key: store.set(_LIFELINE, json.dumps([port, key])), patience
        )
    try:
        port, key = json.loads(store.get(_LIFELINE))
    except RuntimeError as error:
        raise PrhEvalError(
            f"process 0 of {world_size} did not come within {patience:g} s; start as many as "
            "WORLD_SIZE says, all with the same MASTER_ADDR and MASTER_PORT"
        ) from error
    address = (os.environ["MASTER_ADDR"], port)
    return Lifeline.join(rank, world_size, address, key, patience)


@contextmanager
def _only_warnings() -> Iterator[None]:
    """What processes other than 0 log: process 0 says the rest already."""
    logger = logging.getLogger("prh_eval")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _as_bytes(tensor: Tensor) -> Tensor:
    """What is sent: bytes, since the backends do not know every dtype, and never none of them."""
    if not tensor.numel():
        return torch.zeros(1, dtype=torch.uint8, device=tensor.device)
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _from_bytes(sent: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return sent[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
