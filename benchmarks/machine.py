"""What figures were measured on: the machine, what it can do at best, and versions."""

from __future__ import annotations

import functools
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import prh_eval
from benchmarks.timing import Clock, shortest

LIBRARIES = ("torch", "faiss-cpu", "transformers", "tokenizers", "lm_eval")


def device_name(device: torch.device) -> str:
    """The name of the processor that figures are of, with its cores where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = cores()
    return f"{_cpu_name()}, {count} core{'s' if count > 1 else ''}"


def machine(device: torch.device) -> dict[str, Any]:
    """Names, cores, memory in GiB, and how busy the machine was when the benchmark began."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": _gib(properties.total_memory)}
    return found


def versions() -> dict[str, str | None]:
    """Python's, our own and the libraries' versions; None where a library is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "prh_eval": prh_eval.__version__,
    }
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


def peak(clock: Clock, tiny: bool) -> dict[str, float]:
    """What this machine does at best, with as many threads as the benchmark has.

    Returns:
        Operations a second of a large square matrix product in float32 (no TF32), bfloat16 and
        float16, two for each multiplication and addition; and bytes a second of a copy, read and
        written ones both counted.
    """
    device, turns = clock.device, 2 if tiny else 10
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        size = _product_size(device, dtype, tiny)
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        took = shortest(
            functools.partial(torch.mm, a, b), clock, turns=2 if tiny else 10, seconds=3.0
        )
        found[str(dtype).removeprefix("torch.")] = 2 * size**3 / took
    count = 1 << (12 if tiny else 28 if device.type == "cuda" else 26)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    took = shortest(lambda: target.copy_(source), clock, turns=turns, seconds=3.0)
    return found | {"copy_bytes": 2 * source.nbytes / took}


def _product_size(device: torch.device, dtype: torch.dtype, tiny: bool) -> int:
    if tiny:
        return 64
    if device.type == "cuda":
        return 8192
    # Most CPUs have no float16 product to speak of, and take seconds for a larger one.
    return 512 if dtype == torch.float16 else 2048


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gib(size: int) -> float:
    return round(size / 2**30, 1)
