"""Time and memory of alternatives in one run: by turns, so that all see the same machine."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """How time is taken.

    Attributes:
        device: Whose work is waited for.
        cpu_time: By the CPU time of this process, which is for one thread, and which other
            processes disturb little; otherwise by the clock on the wall.
    """

    device: torch.device
    cpu_time: bool

    @property
    def name(self) -> str:
        """For the record."""
        return "CPU time of one thread" if self.cpu_time else "wall clock"

    def now(self) -> float:
        """Seconds, once the device has done all it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.cpu_time else time.perf_counter()


@dataclass(frozen=True)
class Timed:
    """Alternatives that were run by turns.

    Attributes:
        seconds: The shortest time of each.
        results: What each returned in its last turn.
        runs: How often each ran.
    """

    seconds: dict[str, float]
    results: dict[str, Any]
    runs: dict[str, int]


def by_turns(
    ways: Mapping[str, Callable[[], Any]], clock: Clock, *, turns: int = 5, seconds: float = 8.0
) -> Timed:
    """Run every way once a turn, and keep its shortest time, which was disturbed least.

    Args:
        ways: Named alternatives.
        clock: For all of them.
        turns: At most so many.
        seconds: A way that has run for so long is left out of further turns; on a GPU not of the
            second one, since the first compiles.
    """
    least = 2 if clock.device.type == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for turn in range(max(turns, least)):
        for name, way in ways.items():
            if turn >= least and sum(times[name]) > seconds:
                continue
            results.pop(name, None)  # its memory is free for the next turn
            start = clock.now()
            results[name] = way()
            times[name].append(clock.now() - start)
    return Timed(
        {name: min(taken) for name, taken in times.items()},
        results,
        {name: len(taken) for name, taken in times.items()},
    )


def shortest(way: Callable[[], Any], clock: Clock, *, turns: int, seconds: float) -> float:
    """The shortest time of one way; infinitesimal rather than 0, which a coarse clock may show."""
    return max(by_turns({"": way}, clock, turns=turns, seconds=seconds).seconds[""], math.ulp(1.0))


def added_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes by which the peak memory of this process, or of its GPU, rose during some work.

    Where the system does not let the peak start anew, as it does on Linux, the work must be what
    needs most memory in the process's life so far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak_memory()
    work()
    return _peak_memory() - before


def _peak_memory() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: what it says of a new process begins at the peak of its parent.
        (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return 1024 * int(kibibytes)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module where nothing has been allocated yet.

    There glibc gives freed memory back at once: what it keeps otherwise would hide or add to what
    is measured.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        return process.submit(function, *args, **kwargs).result()
