"""``python -m benchmarks cpu`` or ``gpu``: all benchmarks of a device, and the README's tables."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import RESULTS
from benchmarks.report import README, load, with_tables

ALL = {
    "cpu": ("startup", "scoring", "neighbours", "permutations", "features", "trust"),
    "gpu": ("scoring", "neighbours", "permutations", "features", "trust"),
}


def main() -> int:
    """Run what is asked for; 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ALL:
        command = commands.add_parser(name, help=f"measure everything on a {name.upper()}")
        command.add_argument("--tiny", action="store_true", help="show that it works, in seconds")
        command.add_argument("--output", type=Path, default=RESULTS)
    commands.add_parser("tables", help="write the README's tables anew from the results")
    options = parser.parse_args()
    if options.command == "tables":
        README.write_text(with_tables(README.read_text("utf-8"), load()), encoding="utf-8")
        return 0
    if options.command == "gpu" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    return measure(options.command, options.output, options.tiny)


def measure(kind: str, output: Path, tiny: bool) -> int:
    """Every benchmark in a process of its own, one after the other."""
    failed = []
    began = time.perf_counter()
    for name in ALL[kind]:
        start = time.perf_counter()
        device = "cuda" if kind == "gpu" else "cpu"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", device]
        command += ["--output", str(output.resolve()), *(["--tiny"] if tiny else [])]
        if subprocess.run(command, cwd=README.parents[1]).returncode:
            failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"all: {time.perf_counter() - began:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
