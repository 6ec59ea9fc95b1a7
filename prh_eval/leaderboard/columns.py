"""Which scores a column of the board takes, and why not the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prh_eval.leaderboard.config import ReferenceColumn, TaskColumn
from prh_eval.leaderboard.scores import Identity, Score

AnyColumn = ReferenceColumn | TaskColumn

LOSSES = frozenset(
    {"bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "ppl", "loss"}
)
"""Metrics that are better where lower, should neither config nor result files say so."""

NO_RECORD = "the result file has no whole record of what the alignment was measured on"


@dataclass(frozen=True)
class Chosen:
    """What a column takes of all scores.

    Attributes:
        scores: Those it takes: of one version, one few-shot count, one setup.
        refused: The others, each with a clause on why.
    """

    scores: tuple[Score, ...]
    refused: tuple[tuple[Score, str], ...]


def metrics_of(column: AnyColumn) -> list[tuple[str, str]]:
    """Metric and filter of what a column shows, the preferred first."""
    names = [column.metric, *(column.also if isinstance(column, TaskColumn) else [])]
    parts = (name.partition(",") for name in names)
    return [(metric.strip(), filter_.strip() or "none") for metric, _, filter_ in parts]


def is_of(column: AnyColumn, score: Score) -> bool:
    """Whether a score is what a column shows, however it was made."""
    return score.task == column.task and (score.metric, score.filter) in metrics_of(column)


def of_columns(columns: Sequence[AnyColumn], scores: Iterable[Score]) -> list[Score]:
    """The scores that are of a column, or stand beside one in an alignment task."""
    aligned = {column.task for column in columns if not isinstance(column, TaskColumn)}
    others = [column for column in columns if isinstance(column, TaskColumn)]
    return [
        score
        for score in scores
        if score.task in aligned or any(is_of(column, score) for column in others)
    ]


def refusal(column: AnyColumn, score: Score) -> str | None:
    """Why a column's config does not take a score; None if it does.

    Args:
        column: The column.
        score: A score that `is_of` it.
    """
    if isinstance(column, TaskColumn):
        if column.chat_template and not score.prompt:
            return "it was run without a chat template or system instruction, which the board has"
        if score.prompt and not column.chat_template:
            hashed = "sha " in score.prompt
            what = "a chat template or system instruction" if hashed else "arguments of generation"
            return f"it was run with {what}, which the board has not"
    elif score.record is None:
        return NO_RECORD
    for name, wanted in _pinned(column).items():
        found = _facts(column, score)[name]
        if wanted is not None and found != wanted:
            return f"its {name} is {_short(found)}, where the board's is {_short(wanted)}"
    return None


def choose(column: AnyColumn, scores: Sequence[Score]) -> Chosen:
    """What a column takes of merged scores.

    What the config leaves open (version, few-shot count, setup of an alignment) is as it is for
    most models; where as many have another, as it sorts last, so that a newer version wins.

    Args:
        column: The column.
        scores: Any scores; those of other tasks and metrics are passed over.
    """
    refused: list[tuple[Score, str]] = []
    possible: list[Score] = []
    for score in scores:
        if not is_of(column, score):
            continue
        reason = refusal(column, score)
        if reason:
            refused.append((score, reason))
        else:
            possible.append(score)
    facts = {id(score): _facts(column, score) for score in possible}
    kinds = Counter(
        key for key, _ in {(_sortable(facts[id(s)]), s.model.identity) for s in possible}
    )
    most = max(kinds, key=lambda key: (kinds[key], key), default=())
    taken = [score for score in possible if _sortable(facts[id(score)]) == most]
    for score in possible:
        for name, found in facts[id(score)].items():
            wanted = facts[id(taken[0])][name]
            if found != wanted:
                clause = f"its {name} is {_short(found)}, where that of most is {_short(wanted)}"
                refused.append((score, clause))
                break
    return Chosen(tuple(taken), tuple(refused))


def one_of_each(column: AnyColumn, chosen: Chosen) -> dict[Identity, Score]:
    """Each model's score: the newest, of one file that under the preferred metric's name."""

    def preference(score: Score) -> tuple[str, str, int]:
        place = metrics_of(column).index((score.metric, score.filter))
        return score.date, score.file, -place

    ordered = sorted(chosen.scores, key=preference)
    return {score.model.identity: score for score in ordered}


def _pinned(column: AnyColumn) -> dict[str, Any]:
    """What a column's config says of a score's facts; None where it leaves one open."""
    if isinstance(column, TaskColumn):
        return {"task version": column.version, "few-shot count": column.num_fewshot}
    return {
        "task version": column.version,
        "data fingerprint": column.captions,
        "k": column.k,
        "protocol": column.protocol,
        "pooling": column.pooling,
    }


def _facts(column: AnyColumn, score: Score) -> dict[str, Any]:
    """What the scores of one column must share, by name."""
    about: dict[str, Any] = {"task version": score.version}
    record = score.record
    if isinstance(column, TaskColumn) or record is None:
        # Chat templates are the models' own; the rest of a prompt is not.
        rest = [part for part in (score.prompt or "").split(", ") if "chat_template" not in part]
        return about | {"few-shot count": score.n_shot, "system instruction": ", ".join(rest)}
    return about | {
        "reference": record.reference,
        "data": record.data,
        "data fingerprint": record.captions,
        "number of items": record.n,
        "k": record.k,
        "metric": record.metric,
        "protocol": record.protocol,
        "pooling": record.pooling,
        "build of the reference": record.reference_key,
    }


def _sortable(facts: dict[str, Any]) -> tuple[tuple[float, str], ...]:
    return tuple(_order(value) for value in facts.values())


def _order(value: Any) -> tuple[float, str]:
    """Numbers, and versions that are numbers, by their size; None first."""
    try:
        return float(value), str(value)
    except (TypeError, ValueError):
        return float("-inf"), str(value)


def _short(value: Any) -> str:
    if value is None or value == "":
        return "unknown"
    text = str(value)
    return text if len(text) < 40 else f"{text[:12]}..."  # a fingerprint
