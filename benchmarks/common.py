"""What every benchmark does alike: its command line, its figures, and the JSON it writes."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import cores, device_name, machine, peak, versions
from benchmarks.timing import Clock, Timed

# Rows of synthetic features that are worked on at once.
_PART = 1 << 14
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Setting:
    """What a benchmark is asked for.

    Attributes:
        clock: With the device it measures.
        threads: How many of the CPU's it may use.
        tiny: Sizes that show in seconds that it works, and figures that mean nothing.
    """

    clock: Clock
    threads: int
    tiny: bool

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self.clock.device


@dataclass(frozen=True)
class Figure:
    """One thing measured.

    Attributes:
        name: Stays the same over releases.
        what: What was measured, for a reader.
        value: The figure.
        unit: "x" (how many times as fast as the plain way), "%", "s", "MiB" or what is counted.
        seconds: Time of each alternative.
        runs: How often each alternative ran; its time is the shortest.
        of_peak: Share of the machine's measured peak, by the part of it that is meant.
        details: What else there is to say.
    """

    name: str
    what: str
    value: float
    unit: str
    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    of_peak: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


Peak = dict[str, float]
Benchmark = Callable[[Setting, Peak], list[Figure]]


def main(name: str, run: Benchmark, threads: int | None = 1) -> None:
    """The command line of one benchmark.

    Args:
        name: Of its JSON.
        run: Measures.
        threads: Of a CPU; 1, whose CPU time is taken, or None for as many as there are
            cores, and the clock on the wall.
    """
    parser = argparse.ArgumentParser(description=f"Measure {name}, and write one JSON.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--tiny", action="store_true", help="show that it works; figures are void")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: benchmarks/results")
    options = parser.parse_args()
    if options.tiny and options.output == RESULTS:
        parser.error("--tiny needs an --output elsewhere: its figures mean nothing")
    print(measure(name, run, options.device, options.output, tiny=options.tiny, threads=threads))


def measure(
    name: str, run: Benchmark, device: str, output: Path, *, tiny: bool, threads: int | None
) -> Path:
    """Run a benchmark and write ``<output>/<device name>/<name>.json``; returns that path."""
    torch.set_num_threads(threads or cores())
    clock = Clock(torch.device(device), cpu_time=device == "cpu" and threads == 1)
    # Products of float32 are to be those of float32, also on a GPU.
    torch.set_float32_matmul_precision("highest")
    setting = Setting(clock, torch.get_num_threads(), tiny)
    about = {
        "benchmark": name,
        "device": device_name(setting.device),
        "kind": setting.device.type,
        "date": date.today().isoformat(),
        "tiny": tiny,
        "threads": setting.threads,
        "clock": clock.name,
        "machine": machine(setting.device),
        "versions": versions(),
    }
    best = peak(clock, tiny)
    figures = run(setting, best)
    content = {**about, "peak": best, "figures": [asdict(figure) for figure in figures]}
    path = output / slug(str(about["device"])) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(content), indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def slug(device: str) -> str:
    """A device's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def rounded(value: Any) -> Any:
    """The same content with four significant digits, since no time is known better."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def speedup(
    name: str, what: str, timed: Timed, *, plain: str, ours: str = "ours", **more: Any
) -> Figure:
    """How many times as fast as the plain way ours is."""
    ratio = timed.seconds[plain] / timed.seconds[ours]
    return Figure(name, what, ratio, "x", timed.seconds, timed.runs, **more)


def synthetic_features(
    n: int, dim: int, kind: str, *, seed: int, device: torch.device, layers: int = 1
) -> list[Tensor]:
    """Layers of float32 rows of length 1 that look like layers of one model.

    Args:
        n: Items.
        dim: Dimensions.
        kind: "isotropic": normal, nothing to find in them. "clustered": sqrt(n) clusters, a
            spectrum that falls as that of real layers does, and a common mean that makes the mean
            cosine about 0.9, which is harder on low precision.
        seed: Of everything.
        device: Where they are made, and lie.
        layers: How many; of clustered ones the clusters are the same in all.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    spectrum = torch.arange(1, dim + 1, device=device).rsqrt()
    cluster = torch.randint(round(n**0.5), (n,), generator=generator, device=device)
    # So that a million rows need no second copy.
    parts = [slice(start, start + _PART) for start in range(0, n, _PART)]
    made = []
    for _ in range(layers):
        x = normal(n, dim)
        if kind == "clustered":
            centres = normal(round(n**0.5), dim)
            offset = 3 * spectrum.norm() / dim**0.5 * normal(dim)
            for rows in parts:
                x[rows] += centres[cluster[rows]]
            x.mul_(spectrum).add_(offset)
        for rows in parts:
            x[rows] /= torch.linalg.vector_norm(x[rows], dim=1, keepdim=True)
        made.append(x)
    return made
