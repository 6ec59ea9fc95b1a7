"""What the start-up hook costs: interpreter start and ``lm_eval -h`` with and without it.

Makes two virtual environments that differ in nothing but this package, runs them by turns so that
both see the same load, and prints the shortest times as one JSON line (milliseconds, and the ratio
of with to without): the shortest of many runs is the one that other processes disturbed least.
Run it in an environment that has lm-eval: ``python benchmarks/startup.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(folder: Path, with_hook: bool) -> Path:
    """Make a virtual environment that borrows the running one's libraries; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [entry for entry in sys.path if entry.endswith("-packages")]
    (site_packages / "libraries.pth").write_text("\n".join(borrowed) + "\n")
    if with_hook:
        shutil.copytree(ROOT / "prh_eval", site_packages / "prh_eval")
        shutil.copytree(ROOT / "tasks", site_packages / "prh_eval" / "resources_tasks")
        for file in (ROOT / "plugin").iterdir():
            shutil.copy(file, site_packages)
    return folder / "bin" / "python"


def milliseconds(command: Sequence[str | Path]) -> float:
    """Wall-clock time of one run of a command."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=clean, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def compare(pythons: dict[str, Path], arguments: Sequence[str], runs: int) -> dict[str, float]:
    """Shortest time of ``python <arguments>`` in each environment, run by turns."""
    times: dict[str, list[float]] = {name: [] for name in pythons}
    for turn in range(runs + 1):
        for name, python in pythons.items():
            took = milliseconds([python, *arguments])
            if turn > 0:  # the first turn compiles and fills the page cache
                times[name].append(took)
    shortest = {name: round(min(values), 3) for name, values in times.items()}
    return {**shortest, "ratio": round(shortest["with"] / shortest["without"], 4)}


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="interpreter starts (default: 200)")
    parser.add_argument("--slow-runs", type=int, default=20, help="command runs (default: 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pythons = {
            "without": environment(Path(folder, "without"), with_hook=False),
            "with": environment(Path(folder, "with"), with_hook=True),
        }
        own: list[str | Path] = [pythons["with"], "-m", "prh_eval", "--help"]
        milliseconds(own)
        figures = {
            "python -c pass": compare(pythons, ["-c", "pass"], options.runs),
            "lm_eval -h": compare(pythons, ["-m", "lm_eval", "-h"], options.slow_runs),
            "prh-eval --help": round(min(milliseconds(own) for _ in range(options.slow_runs)), 3),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
