"""The model of a board: everything that its pages show, and the schema of ``leaderboard.json``.

Numbers that cannot be had are None, with the reason beside them. They are rounded when the board is
made, so that another processor's last digits change no page.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from prh_eval.schema import Section

SCHEMA_VERSION = 1
"""Of `Board`, raised where a reader of ``leaderboard.json`` would have to change."""

LEVEL = 0.05
"""Of the test by which a page says whether an association is more than chance."""

SCHEMA_FILE = "leaderboard.schema.json"

ColumnKind = Literal["alignment", "task", "bits per byte"]


_DIGITS = 6


def number(value: float) -> float:
    """A finite number as a board has it."""
    return round(float(value), _DIGITS) + 0.0  # no -0.0


def known(value: float | None) -> float | None:
    """A number as a board has it; None for NaN."""
    return None if value is None or math.isnan(value) else number(value)


class AlignmentFacts(Section):
    """What an alignment column was measured on; one set for all its scores."""

    reference: str = Field(description="name of the reference")
    data: str = Field(description="name of the paired data")
    captions: str = Field(description="fingerprint of its items and captions")
    n: int = Field(description="number of items")
    k: int = Field(description="neighbourhood size")
    protocol: str = Field(description="preprocessing of the features")
    pooling: str = Field(description="over a caption's tokens")
    chance: float | None = Field(
        description="what unrelated representations score, k / (n - 1) for mnn; null where it "
        "depends on the representations"
    )
    shared_words: float | None = Field(
        description="what the captions' words alone (TF-IDF) score against the reference"
    )


class BoardColumn(Section):
    """A column of scores."""

    key: str = Field(description="its name in data; unique")
    label: str = Field(description="its heading")
    kind: ColumnKind
    task: str = Field(description="lm-eval's task")
    metric: str = Field(description="the task's metric")
    filter: str = Field(description="lm-eval's filter; none where there is none")
    n_shot: int | None = Field(description="examples in the prompt, of every score")
    version: str = Field(description="the task's version, of every score; empty: unknown")
    higher_is_better: bool
    chance: float | None = Field(description="chance level of the score, where it is known")
    models: int = Field(description="number of models with a score, controls not counted")
    alignment: AlignmentFacts | None = Field(description="of an alignment column")


class Cell(Section):
    """One model's score in one column."""

    value: float
    stderr: float | None = Field(description="its standard error")
    tier: int | None = Field(
        description="1 for the best: models of one tier are not told apart from its first by their "
        "errors (5 % level); None for a control"
    )
    date: str = Field(description="when the run ended, ISO format; empty where unknown")
    file: str = Field(description="result file, relative to the folder of results")
    calibrated: float | None = Field(None, description="calibrated alignment, where it was given")
    layer: int | None = Field(None, description="best language layer, 0 is the embedding output")
    reference_layer: int | None = Field(None, description="best layer of the reference")
    last_layer: float | None = Field(None, description="alignment of the last language layer")
    last_layer_stderr: float | None = None
    profile: tuple[float, ...] | None = Field(
        None, description="for each language layer its alignment with its best reference layer"
    )


class Row(Section):
    """One model, or control."""

    name: str = Field(description="its name on the pages; unique among rows")
    model: str = Field(description="as it was given to lm-eval; of a path on disk the last part")
    revision: str
    dtype: str | None = Field(description="with quantisation; None where the files tell none")
    adapter: str | None
    commit: str | None = Field(description="the revision's commit, where the files tell it")
    backend: str = Field(description="lm-eval's model class, as hf")
    family: str | None = Field(description="as stated in board.yaml; never guessed")
    parameters: float | None
    training_tokens: float | None
    release_date: str | None = Field(description="ISO format")
    kind: Literal["base", "instruct"] | None
    licence: str | None
    link: str | None
    notes: str | None
    control: str | None = Field(description="which control this is; None for a model")
    cells: dict[str, Cell] = Field(description="by the column's key; a missing score is not there")
    reproduce: tuple[str, ...] = Field(description="commands that make its scores")


class Coefficient(Section):
    """A correlation coefficient."""

    value: float | None = Field(description="in [-1, 1]")
    n: int = Field(description="number of models that it is over")
    note: str | None = Field(description="why there is none")


class CoefficientInterval(Section):
    """An interval of Spearman's correlation."""

    low: float | None
    high: float | None
    note: str | None = Field(description="why there is none, or what to hold against it")


class Omission(Section):
    """The range of Spearman's correlation as each family in turn is left out."""

    low: float | None
    high: float | None
    most_influential: str | None = Field(description="the family that matters most")
    note: str | None


class Association(Section):
    """How two columns go together over the models that have both scores."""

    x: str = Field(description="key of a column; alignment, or bits per byte")
    y: str = Field(description="key of another")
    primary: bool = Field(description="the one primary hypothesis; all others are exploratory")
    models: int
    families: int | None = Field(description="None where a model's family is not stated")
    spearman: Coefficient
    kendall_b: Coefficient
    pearson: Coefficient
    over_families: CoefficientInterval = Field(
        description="95 % of a bootstrap over families: the primary interval"
    )
    over_models: CoefficientInterval = Field(
        description="95 % of a bootstrap over models as if they were independent, for contrast"
    )
    with_noise: CoefficientInterval = Field(
        description="95 % of Spearman over draws of both scores from their standard errors, and of "
        "families"
    )
    p: float | None = Field(description="two-sided, sign flips of family score sums")
    p_holm: float | None = Field(description="adjusted by Holm for all associations of the board")
    p_exact: bool = Field(description="whether all sign flips were enumerated")
    p_note: str | None = Field(description="why it is not testable, or a warning")
    given_parameters: Coefficient = Field(description="partial Spearman given log parameters")
    given_compute: Coefficient = Field(
        description="partial Spearman given log parameters and log training compute (6 N D)"
    )
    within_families: Coefficient = Field(description="pooled over families")
    leave_one_family_out: Omission
    base_only: Coefficient = Field(description="Spearman over base models alone")


class Trend(Section):
    """How alignment goes with what is known of models; no hypothesis of the board."""

    of: Literal["parameters", "release date"]
    column: str = Field(description="key of an alignment column")
    models: int = Field(description="number of models of which it is known")
    spearman: Coefficient
    over_families: CoefficientInterval


class LeftOut(Section):
    """A run, a score, a model or a file that is not on the board."""

    what: str = Field(description="the model, or the file")
    reason: str = Field(description="a sentence")
    files: tuple[str, ...] = Field(description="relative to the folder of results")


class Board(Section):
    """A board: what a page shows, and no more."""

    schema_version: int = SCHEMA_VERSION
    title: str
    about: str | None
    columns: tuple[BoardColumn, ...] = Field(
        description="the primary reference's first, then the other references', the tasks', and "
        "bits per byte where it was measured"
    )
    rows: tuple[Row, ...] = Field(description="models, best alignment first")
    controls: tuple[Row, ...] = Field(description="models that are controls, as untrained ones")
    associations: tuple[Association, ...] = Field(description="the primary one first")
    trends: tuple[Trend, ...]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...] = Field(
        description="choices that were made and what to hold against them, a sentence each"
    )
    files: int = Field(description="number of result files that were read")
    config: bool = Field(description="whether a board.yaml decided the columns")

    def column(self, key: str) -> BoardColumn:
        """The column of that key."""
        return next(column for column in self.columns if column.key == key)

    def of_kind(self, kind: ColumnKind) -> tuple[BoardColumn, ...]:
        """The columns of one kind, in the board's order."""
        return tuple(column for column in self.columns if column.kind == kind)
