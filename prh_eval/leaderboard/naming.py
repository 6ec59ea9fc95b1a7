"""Models' names for a reader: without machine paths, and no two alike."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from prh_eval.leaderboard.config import Card
from prh_eval.leaderboard.scores import Identity, ModelRun, Score

# An absolute path, of Unix or Windows, or one from a home or a parent folder.
_PATH = re.compile(r"^(/|\\|[A-Za-z]:[\\/]|~|\.\.?[\\/])")


def is_path(name: str) -> bool:
    """Whether a model's name is a place on somebody's machine."""
    return bool(_PATH.match(name))


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Names as a page may show them: of a path its last part, with more of it where two are alike.

    Args:
        names: Names of models as they were given to lm-eval.
    """
    result: dict[str, str] = {}
    taken = {name for name in names if not is_path(name)}
    for name in sorted(set(names)):
        if not is_path(name):
            result[name] = name
            continue
        parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".", "..", "~")]
        short = parts[-1] if parts else name
        result[name] = numbered(short, taken)
        taken.add(result[name])
    return result


def public_scores(scores: Iterable[Score], cards: Sequence[Card] = ()) -> list[Score]:
    """The scores, with models under the name that a page may show, aliases resolved.

    Args:
        scores: As they were read.
        cards: Their aliases count.
    """
    scores = list(scores)
    aliases = {alias: card.name for card in cards for alias in card.aliases}
    given = {score.model.name: aliases.get(score.model.name, score.model.name) for score in scores}
    public = public_names(given.values())
    runs: dict[int, ModelRun] = {}
    for score in scores:
        run = score.model
        if id(run) not in runs:
            peft = public_names([run.peft])[run.peft] if run.peft else None
            runs[id(run)] = dataclasses.replace(run, name=public[given[run.name]], peft=peft)
    return [dataclasses.replace(score, model=runs[id(score.model)]) for score in scores]


def numbered(name: str, taken: Iterable[str]) -> str:
    """A name, with a number where it is taken."""
    others = set(taken)
    count = 2
    result = name
    while result in others:
        result = f"{name} ({count})"
        count += 1
    return result


def row_names(
    runs: Mapping[tuple[str, str, str, str], tuple[ModelRun, Card | None]],
) -> dict[tuple[str, str, str, str], str]:
    """A name for each row, by the identity of its model.

    It is the card's title or the model's name, with revision, dtype and adapter where they are
    needed to tell rows apart.

    Args:
        runs: Of each row a run, under the name that a page may show, and its card.
    """
    titles = {key: (card.title if card else None) or run.name for key, (run, card) in runs.items()}
    shared = Counter((titles[key], run.revision, run.peft) for key, (run, _) in runs.items())
    result: dict[Identity, str] = {}
    for key, (run, card) in sorted(runs.items()):
        name = titles[key]
        if run.revision != "main" and not (card and card.revision and card.title):
            name += f" @ {run.revision}"
        if run.peft:
            name += f" + {run.peft}"
        if shared[titles[key], run.revision, run.peft] > 1:
            name += f" ({run.dtype or 'unknown dtype'})"
        result[key] = numbered(name, result.values())
    return result
