"""Scoring a saved model through lm-eval's own command line, in a process of its own."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from prh_eval import _plugin
from prh_eval.errors import PrhEvalError
from prh_eval.resources import folder

TASK = "prh_align_color"
BATCH_SIZE = 128
LINES_OF_A_FAILURE = 8


@dataclass(frozen=True)
class Score:
    """What lm-eval wrote of one model.

    Attributes:
        mnn: Mutual k-nearest-neighbour alignment, 0..1.
        stderr: Its standard error.
        chance: What independent representations score.
        layer: The best language layer; 0 is the embedding.
    """

    mnn: float
    stderr: float
    chance: float
    layer: int


def score(model: Path, results: Path, cache: Path) -> Score:
    """Run ``lm_eval`` on a model, offline and on one thread of the CPU.

    Args:
        model: A saved Hugging Face model.
        results: Where lm-eval writes; what it prints goes to ``lm_eval.log`` in there.
        cache: Where the task keeps neighbour graphs.

    Returns:
        What lm-eval wrote.

    Raises:
        PrhEvalError: If lm-eval fails, with the last lines it printed, or if its results lack the
            score.
    """
    command = lm_eval_command(model, results)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",  # what it printed last stands last
        "PRH_EVAL_CACHE": str(cache.resolve()),
    }
    run = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    results.mkdir(parents=True, exist_ok=True)
    log = results / "lm_eval.log"
    log.write_text(f"$ {shlex.join(command)}\n{run.stdout}", encoding="utf-8")
    if run.returncode:
        last = "\n".join(f"  {line}" for line in _last_lines(run.stdout))
        raise PrhEvalError(
            f"lm_eval ended with exit status {run.returncode} on {model} (all it printed is in "
            f"{log}), and its last lines were:\n{last or '  (nothing)'}"
        )
    return read_score(results)


def lm_eval_command(model: Path, results: Path) -> list[str]:
    """What a person would type to score the model, with this interpreter's lm-eval."""
    # The start-up hook shows our tasks to lm-eval, here as in the child; where it did not run (a
    # checkout on PYTHONPATH, the switch off), lm-eval is told where they are.
    hooked = any(type(finder).__module__ == _plugin.__name__ for finder in sys.meta_path)
    return [
        *(sys.executable, "-m", "lm_eval", "run"),
        *("--model", "hf"),
        # In JSON, since a comma or an equals sign in a path would end a plain value.
        *("--model_args", json.dumps({"pretrained": str(model)}, ensure_ascii=False)),
        *("--tasks", TASK),
        *("--batch_size", str(BATCH_SIZE)),
        *("--device", "cpu"),
        *("--output_path", str(results)),
        *([] if hooked else ["--include_path", str(folder("tasks"))]),
    ]


def read_score(results: Path) -> Score:
    """The score in the newest result file that lm-eval wrote under a folder.

    Args:
        results: lm-eval's ``--output_path``.

    Raises:
        PrhEvalError: If there is no result file or it lacks the score.
    """
    files = sorted(results.glob("**/results_*.json"), key=lambda path: path.name)
    if not files:
        raise PrhEvalError(f"lm_eval wrote no results_*.json under {results}")
    try:
        values = json.loads(files[-1].read_text(encoding="utf-8"))["results"][TASK]
        mnn, stderr, chance = numbers = [
            float(values[f"{name},none"]) for name in ("mnn", "mnn_stderr", "mnn_chance")
        ]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not a finite number")
        return Score(mnn, stderr, chance, int(values["mnn_layer,none"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PrhEvalError(f"{files[-1]} holds no whole score of {TASK}: {error!r}") from None


def _last_lines(output: str) -> list[str]:
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    return lines[-LINES_OF_A_FAILURE:]
