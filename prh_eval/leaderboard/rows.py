"""From a model's scores to its row."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from prh_eval.leaderboard.board import BoardColumn, Cell, Row, known, number
from prh_eval.leaderboard.config import Card
from prh_eval.leaderboard.reproduce import commands
from prh_eval.leaderboard.scores import Identity, ModelRun, Score
from prh_eval.leaderboard.tiers import tiers

BITS_PER_BYTE = "bits_per_byte"
SHARED_WORDS = "mnn_shared_words"
_LAST_LAYER, _CALIBRATED = "mnn_last_layer", "mnn_calibrated"


class Beside:
    """What stands beside a score of an alignment task in its file: the task's other metrics."""

    def __init__(self, scores: Iterable[Score]) -> None:
        self._found: dict[tuple[object, ...], dict[str, Score]] = defaultdict(dict)
        for score in scores:
            if score.record:
                self._found[self._place(score)][score.metric] = score

    def __call__(self, score: Score, metric: str) -> Score | None:
        """The task's other metric."""
        return self._found.get(self._place(score), {}).get(metric)

    @staticmethod
    def _place(score: Score) -> tuple[object, ...]:
        return score.model.identity, score.task, score.filter, score.file, score.version


def model_runs(kept: Iterable[Score], every: Iterable[Score]) -> dict[Identity, ModelRun]:
    """Of each model its newest run, with parameters and commit of the newest that tells them.

    Args:
        kept: The scores that count.
        every: All scores of these models: a run whose scores do not count may tell more.
    """

    def by_date(scores: Iterable[Score]) -> list[Score]:
        return sorted(scores, key=lambda score: (score.date, score.file))

    told: dict[tuple[str, str, str | None], tuple[int | None, str | None]] = {}
    for score in by_date(every):
        run = score.model
        parameters, sha = told.get((run.name, run.revision, run.peft), (None, None))
        told[run.name, run.revision, run.peft] = (run.parameters or parameters, run.sha or sha)
    runs = {score.model.identity: score.model for score in by_date(kept)}
    return {
        identity: dataclasses.replace(run, parameters=parameters, sha=sha)
        for identity, run in runs.items()
        for parameters, sha in [told[run.name, run.revision, run.peft]]
    }


def row_of(
    name: str, run: ModelRun, card: Card | None, scores: Mapping[str, Score], beside: Beside
) -> Row:
    """A model's row, without tiers.

    Args:
        name: Its name on the pages.
        run: The model.
        card: What was stated of it.
        scores: By column.
        beside: Other metrics.
    """
    stated = card or Card(name=run.name)
    return Row(
        name=name,
        model=run.name,
        revision=run.revision,
        dtype=run.dtype,
        adapter=run.peft,
        commit=run.sha,
        backend=run.backend,
        family=stated.family,
        parameters=stated.parameters or run.parameters,
        training_tokens=stated.training_tokens,
        release_date=stated.release_date.isoformat() if stated.release_date else None,
        kind=stated.kind,
        licence=stated.licence,
        link=stated.link,
        notes=stated.notes,
        control=stated.control,
        cells={key: cell_of(score, beside) for key, score in scores.items()},
        reproduce=commands(scores.values()),
    )


def cell_of(score: Score, beside: Beside) -> Cell:
    """A score as a page shows it, without its tier."""
    record = score.record
    last, calibrated = beside(score, _LAST_LAYER), beside(score, _CALIBRATED)
    return Cell(
        value=number(score.value),
        stderr=known(score.stderr),
        tier=None,
        date=score.date,
        file=score.file,
        calibrated=number(calibrated.value) if calibrated else None,
        layer=record.layers[0] if record else None,
        reference_layer=record.layers[1] if record else None,
        last_layer=number(last.value) if last else None,
        last_layer_stderr=known(last.stderr) if last else None,
        profile=tuple(map(number, record.profile)) if record else None,
    )


def with_tiers(rows: Sequence[Row], columns: Sequence[BoardColumn]) -> tuple[Row, ...]:
    """The rows with a tier in every cell, 1 for the best.

    Where the error of one score of a column is not known, none of it has a tier.
    """
    cells: list[dict[str, Cell]] = [dict(row.cells) for row in rows]
    for column in columns:
        there = [each for each in cells if column.key in each]
        if any(each[column.key].stderr is None for each in there):
            continue
        sign = 1 if column.higher_is_better else -1
        values = np.array([sign * each[column.key].value for each in there])
        errors = np.array([each[column.key].stderr for each in there], dtype=np.float64)
        for each, tier in zip(there, tiers(values, errors), strict=True):
            each[column.key] = each[column.key].model_copy(update={"tier": tier})
    return tuple(row.model_copy(update={"cells": c}) for row, c in zip(rows, cells, strict=True))
