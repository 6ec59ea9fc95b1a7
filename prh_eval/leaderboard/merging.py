"""From the scores of many files to one of each kind a model, and a sentence on every choice."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal, TypeVar

from prh_eval.leaderboard.scores import Score

_Key = TypeVar("_Key", bound=Hashable)


Kind = Literal[
    "limit", "model", "few-shot", "version", "prompt", "setup", "taken", "commit", "dtype"
]


@dataclass(frozen=True, order=True)
class Conflict:
    """Runs of one model that do not simply add up, and what was done.

    Attributes:
        model: The model's name.
        kind: ``limit``: refused. ``model``: other revision, dtype or adapter, kept apart.
            ``few-shot``, ``version``, ``prompt``, ``setup``: of one task, kept apart. ``taken``:
            one few-shot count of several was taken. ``commit``: another commit of the same
            revision, merged. ``dtype``: a file tells none, and its scores joined the only one.
        sentence: What differs, and what was done.
        files: The files that it is about, sorted.
    """

    model: str
    kind: Literal[
        "limit", "model", "few-shot", "version", "prompt", "setup", "taken", "commit", "dtype"
    ]
    sentence: str
    files: tuple[str, ...]


def merge(scores: Iterable[Score]) -> tuple[list[Score], list[Conflict]]:
    """Join the runs of every model.

    Runs with a limit are refused. Of runs that differ in nothing but their date, the newest counts
    (by the date, then by the file's name). Runs that differ in revision, dtype or adapter, and
    those of one task that differ in few-shot count, version, prompt or, of an alignment task, in
    what it was measured on, are kept apart.

    A file that tells no dtype, as none of 0.3 does, is taken to be of the one dtype that the model
    has in other files, if there is but one.

    Of 0.3's files, one that was made for a task alone is taken before one that has it among others:
    a 0.3 file has one few-shot count for all its tasks, chosen for the collection. GSM8K, for one,
    stands in the published files ``<model>_mathematical_reasoning..._5-shot.json`` (and
    ``..._0-shot.json``) with 0.0 for every model, and in ``<model>_gsm8k_8-shot.json`` with what
    the model can do. The file's name tells, for it holds also where scores were chosen by task.

    Args:
        scores: In any order.

    Returns:
        The scores that count, by model and task; and what there is to say, by model.
    """
    whole, conflicts = _refuse_limited(scores)
    whole, untold = _with_only_dtypes(whole)
    newest = [
        max(same, key=lambda score: (score.date, score.file, score.value))
        for same in _grouped(whole, _run).values()
    ]
    kept: list[Score] = []
    for same in _grouped(newest, _task).values():
        taken, said = _made_for_it(same)
        kept += taken
        conflicts += said + _differing(taken)
    for same in _grouped(kept, lambda score: score.model.name).values():
        conflicts += _other_models(same)
    for file in sorted({score.file for score in kept} & untold):
        model = next(score.model for score in kept if score.file == file)
        sentence = (
            f"{file} does not tell the dtype of {model.name}; its scores stand in the row of "
            f"{model.dtype}"
        )
        conflicts.append(Conflict(model.name, "dtype", sentence, (file,)))
    return sorted(kept, key=_run), sorted(conflicts)


def _with_only_dtypes(scores: Sequence[Score]) -> tuple[list[Score], set[str]]:
    """The scores, those of unknown dtype under the only one of their model; and their files."""
    known: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for score in scores:
        name, revision, dtype, peft = score.model.identity
        known[name, revision, peft] |= {dtype} - {""}
    result: list[Score] = []
    untold: set[str] = set()
    for score in scores:
        name, revision, dtype, peft = score.model.identity
        dtypes = known[name, revision, peft]
        if not dtype and len(dtypes) == 1:
            score = replace(score, model=replace(score.model, dtype=next(iter(dtypes))))
            untold.add(score.file)
        result.append(score)
    return result, untold


def _refuse_limited(scores: Iterable[Score]) -> tuple[list[Score], list[Conflict]]:
    whole: list[Score] = []
    limited: defaultdict[tuple[str, str, float], set[str]] = defaultdict(set)
    for score in scores:
        if score.limit is None:
            whole.append(score)
        else:
            limited[score.model.name, score.file, score.limit].add(score.task)
    return whole, [
        Conflict(
            model,
            "limit",
            f"{model} was run on {', '.join(sorted(tasks))} with limit {limit:g} in {file}, which "
            "is refused; a run on all documents is needed",
            (file,),
        )
        for (model, file, limit), tasks in limited.items()
    ]


def _made_for_it(scores: Sequence[Score]) -> tuple[Sequence[Score], list[Conflict]]:
    """Scores of one task without the collections' where 0.3 has a file of the task's own."""
    own = [score for score in scores if _is_own_file(score)]
    # All 0.4 files have a date.
    others = [score for score in scores if not score.date and not _is_own_file(score)]
    others = [
        score
        for score in others
        if (score.metric, score.filter) in {(each.metric, each.filter) for each in own}
    ]
    if not others:
        return scores, []
    first = own[0]
    sentence = (
        f"{first.model.name} was run on {first.task} {_shots(scores)}; that {_shots(own)} is "
        "taken, for its file was made for this task alone"
    )
    kept = [score for score in scores if score not in others]
    return kept, [Conflict(first.model.name, "taken", sentence, _files(scores))]


def _is_own_file(score: Score) -> bool:
    ending = rf"(^|_){re.escape(score.task)}_{score.n_shot}-shot$"
    return not score.date and bool(re.search(ending, PurePosixPath(score.file).stem))


def _differing(scores: Sequence[Score]) -> list[Conflict]:
    """What differs among a model's scores on one task that are kept apart."""
    model, task = scores[0].model.name, scores[0].task
    said: list[Conflict] = []
    if len({score.n_shot for score in scores}) > 1:
        sentence = f"{model} was run on {task} {_shots(scores)}; the scores are kept apart"
        said.append(Conflict(model, "few-shot", sentence, _files(scores)))
    versions = sorted({score.version or "unknown" for score in scores})
    if len(versions) > 1:
        sentence = (
            f"{model} was run on {task} in versions {_and(versions)}; the scores are kept apart"
        )
        said.append(Conflict(model, "version", sentence, _files(scores)))
    if len({score.prompt for score in scores}) > 1:
        sentence = (
            f"{model} was run on {task} with different chat templates or system instructions; "
            "the scores are kept apart"
        )
        said.append(Conflict(model, "prompt", sentence, _files(scores)))
    setups = [score.record.setup for score in scores if score.record]
    if len(set(setups)) > 1:
        names = (
            "reference",
            "build",
            "data",
            "captions",
            "n",
            "k",
            "metric",
            "protocol",
            "pooling",
        )
        different = [
            name
            for name, found in zip(names, zip(*setups, strict=True), strict=True)
            if len(set(found)) > 1
        ]
        sentence = (
            f"{model} was run on {task} with different {_and(different)}; the scores are kept apart"
        )
        said.append(Conflict(model, "setup", sentence, _files(scores)))
    return said


def _other_models(scores: Sequence[Score]) -> list[Conflict]:
    """What differs among the runs of one model's name."""
    name = scores[0].model.name
    said: list[Conflict] = []
    # What a field is called, and what it is where it is empty.
    fields = (("revision", "unknown"), ("dtype", "unknown"), ("adapter", "none"))
    values = zip(*(score.model.identity[1:] for score in scores), strict=True)
    different = [
        f"{field} {_and(sorted({value or empty for value in found}))}"
        for (field, empty), found in zip(fields, values, strict=True)
        if len(set(found)) > 1
    ]
    if different:
        sentence = f"{name} was run with {'; '.join(different)}; the scores are kept apart"
        said.append(Conflict(name, "model", sentence, _files(scores)))
    for same in _grouped(scores, lambda score: score.model.identity).values():
        commits = sorted({score.model.sha for score in same if score.model.sha})
        if len(commits) > 1:
            sentence = (
                f"{name} stood for the commits {_and([commit[:8] for commit in commits])} at "
                f"revision {same[0].model.revision}; the newest run of each task counts"
            )
            said.append(Conflict(name, "commit", sentence, _files(same)))
    return said


def _run(score: Score) -> tuple[Hashable, ...]:
    """What two scores share that are of the same thing; it can be sorted."""
    n_shot = -1 if score.n_shot is None else score.n_shot
    prompt = score.prompt or ""
    setup = str(score.record.setup) if score.record else ""
    return (*_task(score), score.metric, score.filter, n_shot, score.version, prompt, setup)


def _task(score: Score) -> tuple[Hashable, ...]:
    return (*score.model.identity, score.task)


def _grouped(scores: Iterable[Score], key: Callable[[Score], _Key]) -> dict[_Key, list[Score]]:
    groups: dict[_Key, list[Score]] = {}
    for score in scores:
        groups.setdefault(key(score), []).append(score)
    return groups


def _shots(scores: Iterable[Score]) -> str:
    known = sorted({score.n_shot for score in scores}, key=lambda n: -1 if n is None else n)
    counts = ["an unknown number of" if n is None else str(n) for n in known]
    return f"with {_and(counts)} {'example' if counts == ['1'] else 'examples'}"


def _files(scores: Iterable[Score]) -> tuple[str, ...]:
    return tuple(sorted({score.file for score in scores}))


def _and(words: Sequence[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1]) if len(words) > 1 else words)
