"""The commands that make a row's scores."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from prh_eval.leaderboard.paths import is_path, last_part
from prh_eval.leaderboard.scores import ModelRun, Score

# What a task of ours does if nothing else is asked for.
_USUAL = {"k": 10, "protocol": "paper", "pooling": "mean"}


def commands(scores: Iterable[Score]) -> tuple[str, ...]:
    """One command for each few-shot count and set of options, as typed in a shell.

    Args:
        scores: Of one row.
    """
    groups: defaultdict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    templated: set[str] = set()
    for score in scores:
        run = score.model
        shots = "" if score.record or score.n_shot is None else str(score.n_shot)
        groups[run.backend, _model_args(run), shots, _options(score)].add(score.task)
        if "chat_template_sha" in (score.prompt or ""):
            templated.add(score.task)
    # What needs no few-shot count can be run with what needs one.
    for key in sorted(groups):
        backend, args, shots, options = key
        others = [each for each in sorted(groups) if each[:2] == (backend, args) and each[2]]
        if not shots and not options and others:
            groups[others[0]] |= groups.pop(key)
    return tuple(
        shlex.join(
            [
                *("lm_eval", "--model", backend or "hf", "--model_args", args),
                *("--tasks", ",".join(sorted(tasks))),
                *(("--num_fewshot", shots) if shots else ()),
                *(("--metadata", options) if options else ()),
                *(("--apply_chat_template",) if tasks & templated else ()),
            ]
        )
        for (backend, args, shots, options), tasks in sorted(groups.items())
    )


def _model_args(run: ModelRun) -> str:
    args: dict[str, Any] = {**run.model_args, "pretrained": run.name}
    if run.sha:
        args["revision"] = run.sha
    for key, value in args.items():
        if isinstance(value, str) and is_path(value):
            args[key] = last_part(value)
    if any(isinstance(value, (dict, list)) or "," in str(value) for value in args.values()):
        return json.dumps(args, ensure_ascii=False)
    return ",".join(f"{key}={value}" for key, value in args.items())


def _options(score: Score) -> str:
    """What was asked for of an alignment task beyond the usual, as ``--metadata`` takes it."""
    record = score.record
    if record is None:
        return ""
    options: dict[str, Any] = {
        f"prh_{name}": getattr(record, name)
        for name, usual in _USUAL.items()
        if getattr(record, name) != usual
    }
    if score.filter.startswith("caption_"):
        options["prh_caption"] = int(score.filter.removeprefix("caption_"))
    elif score.filter == "mean_over_captions":
        options["prh_caption"] = "mean"
    return json.dumps(options) if options else ""
