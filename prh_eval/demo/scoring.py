"""Scoring saved models through lm-eval's own command line, some at once, a process for each."""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from collections.abc import Iterator
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TextIO

from prh_eval import _plugin
from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.results import read_results
from prh_eval.resources import folder

ALIGNMENT, CHOICE = ("prh_align_color", "mnn"), ("prh_color_choice", "acc")
MODELS, RESULTS, LOGS, CACHE = "models", "results", "logs", "cache"
BATCH_SIZE = 128
LINES_OF_A_FAILURE = 8

# Imports take nearly half of lm-eval's time on a tiny model. So one process has imported all of it,
# and each run of the command line is a fork of that one; elsewhere than on Linux, where that is not
# safe, each imports by itself.
CONTEXT = get_context("forkserver") if sys.platform == "linux" else get_context("spawn")
_IMPORTED = (
    "lm_eval.evaluator",
    "lm_eval.loggers",
    "lm_eval.models.huggingface",
    "prh_eval.harness.task",
    "prh_eval.harness.color_choice",
    "prh_eval.demo.training",
    "transformers.modeling_utils",
)


class Scoring:
    """Runs of ``lm_eval``, as many at once as there are cores for them.

    Args:
        output: The demo's folder: models are read from ``models`` in it, lm-eval writes to
            ``results`` and what it prints goes to ``logs``.
        at_once: How many.
    """

    def __init__(self, output: Path, at_once: int) -> None:
        self._output = output.resolve()
        self._at_once = at_once
        self._waiting: list[str] = []
        self._running: dict[str, BaseProcess] = {}
        CONTEXT.set_forkserver_preload([*_IMPORTED])

    def __enter__(self) -> Scoring:
        """No more than itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what is still running."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.join()

    def add(self, name: str) -> None:
        """Score a model as soon as a process is free.

        Args:
            name: Of its folder.
        """
        self._waiting.append(name)

    def poll(self) -> list[str]:
        """Start what can be started.

        Returns:
            A line on each model whose scores are there, told once.

        Raises:
            PrhEvalError: If lm-eval failed, with the last lines it printed, or if its results lack
                a score.
        """
        lines = []
        for name, process in list(self._running.items()):
            if process.exitcode is not None:
                del self._running[name]
                lines.append(self._scores(name, process.exitcode))
        while self._waiting and len(self._running) < self._at_once:
            name = self._waiting.pop(0)
            command = (lm_eval_arguments(name), self._output, self._log(name))
            self._running[name] = CONTEXT.Process(target=_lm_eval, args=command)
            self._running[name].start()
        return lines

    def rest(self) -> Iterator[str]:
        """Wait for all that was added, and tell of it as `poll` does."""
        while self._running:
            connection.wait([process.sentinel for process in self._running.values()])
            yield from self.poll()

    def _log(self, name: str) -> Path:
        return self._output / LOGS / f"{name}.log"

    def _scores(self, name: str, status: int) -> str:
        log = self._log(name)
        if status:
            printed = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            last = [line.rstrip() for line in printed.splitlines() if line.strip()]
            shown = "\n".join(f"  {line}" for line in last[-LINES_OF_A_FAILURE:])
            raise PrhEvalError(
                f"lm_eval ended with exit status {status} on {name} (all it printed is in {log}), "
                f"and its last lines were:\n{shown or '  (nothing)'}"
            )
        results = self._output / RESULTS / f"{MODELS}__{name}"
        found = {}
        if results.is_dir():
            read = read_results(results, progress=False).scores
            found = {(score.task, score.metric): score.value for score in read}
        for task, metric in (ALIGNMENT, CHOICE):
            if (task, metric) not in found:
                raise PrhEvalError(
                    f"lm_eval ended well, and wrote no {metric} of {task} to {results} (all it "
                    f"printed is in {log})"
                )
        return f"{name}: mnn {found[ALIGNMENT]:.3f}, acc {found[CHOICE]:.3f}"


def lm_eval_arguments(name: str) -> list[str]:
    """What a person would type after ``lm_eval`` in the demo's folder to score a model."""
    # The start-up hook shows our tasks to lm-eval, here as in the child; where it did not run (a
    # checkout on PYTHONPATH, the switch off), lm-eval is told where they are.
    hooked = any(type(finder).__module__ == _plugin.__name__ for finder in sys.meta_path)
    return [
        "run",
        *("--model", "hf", "--model_args", f"pretrained={MODELS}/{name}"),
        *("--tasks", f"{ALIGNMENT[0]},{CHOICE[0]}"),
        *("--batch_size", str(BATCH_SIZE)),
        *("--device", "cpu"),
        *("--output_path", RESULTS),
        *([] if hooked else ["--include_path", str(folder("tasks"))]),
    ]


def _lm_eval(arguments: list[str], place: Path, log: Path) -> None:
    """Become ``lm_eval``, run in a folder with its output going to a file."""
    os.chdir(place)
    os.environ["PRH_EVAL_CACHE"] = str(place / CACHE)
    stream: TextIO = log.open("w", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    sys.argv = ["lm_eval", *arguments]
    print("$", shlex.join(sys.argv))
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
