"""Model cards: which one is of a model, and what the board's filters make of it."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Sequence

from prh_eval.leaderboard.config import Card, Filters
from prh_eval.leaderboard.scores import ModelRun


class Cards:
    """Model cards, by the name that `naming.public_scores` gave to their models' runs."""

    def __init__(self, cards: Sequence[Card]) -> None:
        self._cards = cards
        self._by_name: defaultdict[str, list[Card]] = defaultdict(list)
        for card in cards:
            self._by_name[card.name].append(card)

    def of(self, run: ModelRun) -> Card | None:
        """A model's card: that of its revision before that of all."""
        if run.card is None:
            return None
        found = [c for c in self._by_name[run.card] if c.revision in (None, run.revision)]
        return max(found, key=lambda card: card.revision is not None, default=None)

    def unused(self, runs: Iterable[ModelRun]) -> tuple[str, ...]:
        """A sentence on every card that is of none of these."""
        used = {id(self.of(run)) for run in runs}
        return tuple(
            f"board.yaml has a card of {card.name}"
            + (f" at revision {card.revision}" if card.revision else "")
            + ", of which there is no result."
            for card in self._cards
            if id(card) not in used
        )


def filtered(run: ModelRun, card: Card | None, filters: Filters) -> str | None:
    """Why the board's filters leave a model out, a clause; None if they do not."""

    def is_one(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(run.name, pattern) for pattern in patterns)

    size = (card.parameters if card else None) or run.parameters
    family, kind = (card.family, card.kind) if card else (None, None)
    least, most = filters.least_parameters, filters.most_parameters
    if filters.only_with_card and card is None:
        return "it has no card in board.yaml (filters.only_with_card)"
    if filters.include and not is_one(filters.include):
        return "it is not among the board's filters.include"
    if is_one(filters.exclude):
        return "it is among the board's filters.exclude"
    if filters.families and family not in filters.families:
        return f"its family, {family or 'not stated'}, is not among the board's filters.families"
    if filters.kind and kind != filters.kind:
        return f"it is {kind or 'of no stated kind'}, where filters.kind is {filters.kind}"
    if (least or most) and not size:
        return "its number of parameters is not known, and the board has a filter on it"
    if size and ((least and size < least) or (most and size > most)):
        return f"its {size:,.0f} parameters are outside the board's filters"
    return None
