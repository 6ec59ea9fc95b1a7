"""Worlds of real processes: each runs one scenario of this file, as ``prh-eval`` would.

They are forked from a server that has imported torch once. The test keeps the store that they meet
at, as torchrun's agent does.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from prh_eval import lifeline
from prh_eval.errors import PrhEvalError, show_error
from prh_eval.processes import Processes, processes

SAFETY_S = 120
"""After which a test that hangs is stopped; nothing waits for it."""

Scenario = Callable[[Path, int], None]


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit status (negative: the signal), and its stderr."""

    status: int
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()


@contextmanager
def started(
    scenario: Scenario, size: int, folder: Path, ranks: Sequence[int] | None = None
) -> Iterator[list[Any]]:
    """The processes of a world of ``size``, or some of them; killed at the end if still there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prh_eval.processes", "numpy"])
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members = [
        context.Process(target=_run, args=(scenario, rank, size, store.port, str(folder)))
        for rank in (range(size) if ranks is None else ranks)
    ]
    for member in members:
        member.start()
    try:
        yield members
    finally:
        for member in members:
            member.kill()
            member.join()


def world(
    scenario: Scenario, size: int, folder: Path, ranks: Sequence[int] | None = None
) -> list[Ended]:
    """How the processes of a world ended, which they must do by themselves."""
    with started(scenario, size, folder, ranks) as members:
        for member in members:
            member.join(SAFETY_S)
        hang = [member.name for member in members if member.exitcode is None]
        assert not hang, f"{hang} did not end"
    return [
        Ended(member.exitcode, (folder / f"stderr_{rank}").read_text())
        for rank, member in zip(ranks or range(size), members, strict=True)
    ]


def _run(scenario: Scenario, rank: int, size: int, port: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    torch.set_num_threads(1)
    # Tests that were started in the background ignore it, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stderr = os.open(Path(folder) / f"stderr_{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 2)
    try:
        scenario(Path(folder), rank)
    except PrhEvalError as error:
        show_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


# Gates: a FIFO that processes meet at; who reads waits for who writes.


def make_gate(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)


def wait_at(folder: Path, name: str) -> None:
    (folder / name).read_bytes()


def open_gate(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")


# What is passed among processes: each test's oracle makes it again.

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


def content(dtype: torch.dtype, shape: Sequence[int], seed: int) -> Tensor:
    """Any bits, those of NaNs included."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 40
    made = (values > 0) if dtype == torch.bool else values.to(dtype)
    if made.is_floating_point() and made.numel():
        made.view(-1)[0] = float("nan")
    return made


def bits(tensor: Tensor) -> str:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()).hex()


ROUNDS = (
    (torch.float32, [(3, 4), (3, 4), (3, 4), (2, 4)]),
    (torch.float16, [(1, 2), (0, 2), (5, 2), (0, 2)]),
    (torch.bfloat16, [(0, 3), (0, 3), (0, 3), (0, 3)]),
    (torch.int64, [(7,), (1,), (300,), (2,)]),
    (torch.bool, [(2, 3, 5), (1, 3, 5), (4, 3, 5), (2, 3, 5)]),
    (torch.float64, [(1000, 33), (999, 33), (1000, 33), (998, 33)]),
)


def talk(folder: Path, rank: int) -> None:
    """All there is to say, written down by every process."""
    with processes("cpu") as p:
        said: dict[str, Any] = {
            "place": [p.rank, p.world_size, p.local_rank, str(p.device), p.first],
            "objects": p.all_gather_object({"from": rank}),
            "given": [p.broadcast_object([rank, "x"], source) for source in range(p.world_size)],
            "gathered": [bits(p.all_gather(content(d, (2, 3), rank))) for d in DTYPES],
            "column": p.all_gather(content(torch.int64, (3, 2), rank).T).tolist(),
            "empty": list(p.all_gather(torch.empty(0, 5)).shape),
        }
        p.barrier()
        said["rounds"] = []
        for dtype, shapes in ROUNDS:
            said["rounds"].append([])
            for owner, tensor in p.passed_round(content(dtype, shapes[rank], rank)):
                before = bits(tensor)
                said["rounds"][-1].append([owner, list(tensor.shape), str(tensor.dtype), before])
        said["transposed"] = [
            [owner, tensor.tolist()]
            for owner, tensor in p.passed_round(content(torch.int64, (3, 2), rank).T)
        ]
    assert not distributed.is_initialized()
    (folder / f"said_{rank}").write_text(json.dumps(said))


def meanwhile(folder: Path, rank: int) -> None:
    """Process 1 works on its own tensor until process 0 has got it."""
    with processes("cpu") as p:
        for owner, tensor in p.passed_round(torch.full((100_000,), rank)):
            if (rank, owner) == (1, 1):
                wait_at(folder, "received")
            if (rank, owner) == (0, 1):
                assert bool((tensor == 1).all())
                open_gate(folder, "received")


def held(folder: Path, rank: int) -> None:
    """What is worked on stays as it is while the next one comes, and all after it."""
    with processes("cpu") as p:
        for owner, tensor in p.passed_round(torch.full((50_000,), rank)):
            p.barrier()  # everybody has begun to send the next one
            assert bool((tensor == owner).all())
            p.all_gather_object(None)
            assert bool((tensor == owner).all())


def wrong_shapes(folder: Path, rank: int) -> None:
    with processes("cpu") as p:
        for call in (
            lambda: p.all_gather(torch.zeros(rank + 1)),
            lambda: list(p.passed_round(torch.zeros(1, dtype=DTYPES[rank]))),
        ):
            try:
                call()
            except ValueError as error:
                print(error, file=sys.stderr)


def logs(folder: Path, rank: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger = logging.getLogger("prh_eval")
    logger.setLevel(logging.INFO)
    with processes("cpu"):
        logger.info("remark inside")
        logging.getLogger("prh_eval.store").warning("warning inside")
    logger.info("remark after")


def somebody_elses_group(folder: Path, rank: int) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SAFETY_S),
    )
    with processes("cpu") as p:
        assert p == Processes.current("cpu")
        assert (p.rank, p.world_size) == (rank, 2)
        assert p.all_gather(torch.tensor([rank])).tolist() == [0, 1]
        assert [owner for owner, _ in p.passed_round(torch.zeros(1))] == [rank, 1 - rank]
    assert distributed.is_initialized()
    distributed.destroy_process_group()


# Faults.


def mistake() -> None:
    raise PrhEvalError("layer 3 has a NaN in row 7")


def defect() -> None:
    raise ZeroDivisionError("division\nby zero")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def in_a_round(fault: Callable[[], None], culprit: int, folder: Path, rank: int) -> None:
    """Half way round the ring."""
    with processes("cpu") as p:
        for step, _ in enumerate(p.passed_round(torch.zeros(2000, 32))):
            if rank == culprit and step == 1:
                fault()


def in_a_gather(fault: Callable[[], None], culprit: int, folder: Path, rank: int) -> None:
    with processes("cpu") as p:
        p.barrier()
        if rank == culprit:
            fault()
        p.all_gather(torch.zeros(5))


def raises_while_others_wait(folder: Path, rank: int) -> None:
    """Process 2 fails in a computation before it passes on anything; the others wait for it."""
    with processes("cpu") as p:
        for owner, _ in p.passed_round(torch.zeros(2000, 32)):
            if rank == 2:
                for other in (0, 1, 3):
                    wait_at(folder, f"waits_{other}")
                mistake()
            if owner == rank:
                open_gate(folder, f"waits_{rank}")


def raises_while_others_are_done(folder: Path, rank: int) -> None:
    with processes("cpu"):
        if rank == 1:
            for other in (0, 2):
                wait_at(folder, f"done_{other}")
            mistake()
        open_gate(folder, f"done_{rank}")


def killed_while_others_compute(folder: Path, rank: int) -> None:
    """Process 0 computes for ever and hears of nothing else."""
    lifeline.GRACE_S = 0.0
    with processes("cpu") as p:
        p.barrier()
        if rank == 1:
            kill()
        wait_at(folder, "never")


def killed_with_a_worker(folder: Path, rank: int) -> None:
    """A forked worker of process 1 outlives it, and with it all that process 1 had open."""
    lifeline.GRACE_S = 0.0
    with processes("cpu") as p:
        if rank == 1:
            if os.fork() == 0:
                wait_at(folder, "worker")
                os._exit(0)
            kill()
        p.all_gather_object(None)


def comes_alone(folder: Path, rank: int) -> None:
    with processes("cpu", patience=0.5):
        raise AssertionError("the others never came")


def no_device(folder: Path, rank: int) -> None:
    lifeline.GRACE_S = 0.0  # gloo waits for process 1
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda _: None
    with processes("cuda" if rank == 1 else "cpu"):
        pass
