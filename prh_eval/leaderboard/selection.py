"""From scores as they were read to what each column takes: the same for a board and its check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prh_eval.leaderboard.cards import Cards, filtered
from prh_eval.leaderboard.columns import AnyColumn, Chosen, choose, of_columns
from prh_eval.leaderboard.config import BoardConfig
from prh_eval.leaderboard.merging import Conflict, merge
from prh_eval.leaderboard.naming import public_scores
from prh_eval.leaderboard.rows import model_runs
from prh_eval.leaderboard.scores import Identity, ModelRun, Score


@dataclass(frozen=True)
class Selection:
    """What a board takes of scores, and why not the rest.

    Attributes:
        every: All scores, with models under the names that a page may show.
        kept: Those of the board's tasks, one of each kind a model (`merging.merge`).
        conflicts: What there was to decide for that.
        cards: The board's model cards.
        runs: The models of the kept scores.
        outside: Why the board's filters leave a model out, a clause, by the models they do.
        on_board: The kept scores of the other models.
        chosen: What each column takes of these, by the column's key.
    """

    every: list[Score]
    kept: list[Score]
    conflicts: list[Conflict]
    cards: Cards
    runs: dict[Identity, ModelRun]
    outside: dict[Identity, str]
    on_board: list[Score]
    chosen: dict[str, Chosen]


def select(scores: Iterable[Score], columns: Sequence[AnyColumn], config: BoardConfig) -> Selection:
    """Choose what a board shows.

    Args:
        scores: As they were read.
        columns: The board's columns, in any order.
        config: Its cards and filters count.
    """
    every = public_scores(scores, config.models)
    kept, conflicts = merge(of_columns(columns, every))
    cards, runs = Cards(config.models), model_runs(kept, every)
    outside = {
        identity: why
        for identity, run in runs.items()
        if (why := filtered(run, cards.of(run), config.filters))
    }
    on_board = [score for score in kept if score.model.identity not in outside]
    chosen = {column.key: choose(column, on_board) for column in columns}
    return Selection(every, kept, conflicts, cards, runs, outside, on_board, chosen)
