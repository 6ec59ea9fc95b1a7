"""What the start-up hook costs, and ``prh-eval --help``: time, and what is imported.

Makes two virtual environments that differ in nothing but this package, and runs them by turns so
that both see the same load. Needs an environment that has lm-eval.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Figure, Peak, Setting, main
from benchmarks.timing import by_turns

ROOT = Path(__file__).resolve().parents[1]
# Libraries that take a tenth of a second or more to import.
HEAVY = ("torch", "transformers", "lm_eval", "datasets", "pandas", "scipy", "sklearn", "matplotlib")
SHOW_HEAVY = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))"


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


def output(command: Sequence[str | Path]) -> str:
    """Run a command without this process's Python settings; returns what it printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(command, check=True, env=clean, stdout=subprocess.PIPE, text=True).stdout


def run(setting: Setting, peak: Peak) -> list[Figure]:
    """Interpreter start and ``lm_eval -h`` with and without the hook, and our own command's."""
    runs, slow_runs = (1, 1) if setting.tiny else (200, 20)
    with tempfile.TemporaryDirectory() as folder:
        without = environment(Path(folder, "without"), with_hook=False)
        with_hook = environment(Path(folder, "with"), with_hook=True)
        return [
            _hook(setting, "python -c pass", ["-c", "pass"], without, with_hook, runs),
            _hook(setting, "lm_eval -h", ["-m", "lm_eval", "-h"], without, with_hook, slow_runs),
            _help(setting, with_hook, slow_runs),
            _heavy(with_hook),
        ]


def _hook(
    setting: Setting,
    name: str,
    arguments: Sequence[str],
    without: Path,
    with_hook: Path,
    turns: int,
) -> Figure:
    ways = {
        "without": functools.partial(output, [without, *arguments]),
        "with": functools.partial(output, [with_hook, *arguments]),
    }
    for way in ways.values():
        way()  # compiles, and fills the page cache
    timed = by_turns(ways, setting.clock, turns=turns)
    return Figure(
        f"startup {name}",
        f"`{name}` with the start-up hook, of its time without",
        100 * timed.seconds["with"] / timed.seconds["without"],
        "%",
        timed.seconds,
        timed.runs,
    )


def _help(setting: Setting, python: Path, turns: int) -> Figure:
    way = functools.partial(output, [python, "-m", "prh_eval", "--help"])
    timed = by_turns({"ours": way}, setting.clock, turns=turns)
    return Figure(
        "startup prh-eval --help",
        "`prh-eval --help`",
        timed.seconds["ours"],
        "s",
        timed.seconds,
        timed.runs,
    )


def _heavy(python: Path) -> Figure:
    found = set(output([python, "-c", SHOW_HEAVY]).split())
    help_ = "from prh_eval.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    found |= set(output([python, "-c", help_ + SHOW_HEAVY]).splitlines()[-1].split())
    return Figure(
        "startup heavy libraries",
        "heavy libraries imported at start-up and by `prh-eval --help`",
        len(found),
        "libraries",
        details={"imported": sorted(found), "looked_for": list(HEAVY)},
    )


if __name__ == "__main__":
    main("startup", run, threads=None)
