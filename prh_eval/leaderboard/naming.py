"""Models' names for a reader: without machine paths, and no two alike."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from prh_eval.leaderboard.config import Card, names_of
from prh_eval.leaderboard.paths import is_path, parts
from prh_eval.leaderboard.scores import Identity, ModelRun, Score


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Names as a page may show them: of a path its last part, with more of it where two are alike.

    Args:
        names: Names of models as they were given to lm-eval.
    """
    every = sorted(set(names))
    result = {name: name for name in every if not is_path(name)}
    places = {name: parts(name) for name in every if name not in result}
    for name, own in places.items():
        for depth in range(1, len(own) + 1):
            short = "/".join(own[-depth:])
            alike = [o for o in places.values() if o is not own and o[-depth:] == own[-depth:]]
            if not alike and short not in result.values():
                break
        result[name] = numbered(short, result.values())
    return result


def public_scores(scores: Iterable[Score], cards: Sequence[Card] = ()) -> list[Score]:
    """The scores, with models under the name that a page may show, and by the name of their card.

    A card is of the models that were given to lm-eval under one of its names; else, if there is but
    one, of the model that a page would show under such a name.

    Args:
        scores: As they were read.
        cards: Model cards.
    """
    scores = list(scores)
    stated = {name.rstrip("/\\"): card.name for card in cards for name in names_of(card)}
    given = {score.model.name for score in scores}
    by_card = {name: stated[name] for name in given if name in stated}
    shown = public_names(given - set(by_card))
    by_card |= {name: stated[short] for name, short in shown.items() if short in stated}
    public = public_names(by_card.get(name, name) for name in given)
    adapters = public_names(score.model.peft for score in scores if score.model.peft)
    runs: dict[int, ModelRun] = {}
    for score in scores:
        run = score.model
        if id(run) not in runs:
            card = by_card.get(run.name)
            runs[id(run)] = dataclasses.replace(
                run,
                name=public[card or run.name],
                peft=adapters[run.peft] if run.peft else None,
                card=card,
            )
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
    runs: Mapping[Identity, tuple[ModelRun, Card | None]],
) -> dict[Identity, str]:
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
