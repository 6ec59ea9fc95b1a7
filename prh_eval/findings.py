"""What a run found about one model and one reference: the record that result files carry.

lm-eval's results file has it under ``configs.<task>.metadata.alignment``, where ``prh-eval show``
reads it. Imports nothing heavy.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    # What other versions write beside it is theirs.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Null(_Part):
    """The best layer pair's score where items are re-paired at random."""

    draws: int = Field(ge=1, description="number of permutations")
    seed: int = Field(description="of their generator")
    alpha: float = Field(description="level of the test")
    threshold: float = Field(description="score that chance exceeds with probability alpha at most")
    calibrated: float = Field(description="max((score - threshold) / (1 - threshold), 0)")
    p: float = Field(description="(1 + draws that score as high) / (1 + draws)")
    values: list[float] = Field(description="the draws' scores, rising, to six places")


class CrossFitted(_Part):
    """The layer pair chosen on one half of the items and scored on the other, both ways."""

    score: float = Field(
        description="mean over five random splits and both halves, each scored by the other's "
        "choice; by the neighbours inside the half"
    )
    stderr: float = Field(description="its standard error")
    layers: list[tuple[int, int]] = Field(
        description="the pair that each half chose, split by split"
    )
    flattery: float | None = Field(
        None, description="how much the choice flatters the best pair's score, by the halves' own"
    )


class Chosen(_Part):
    """The score of one layer of the model with the layer of the reference best for it."""

    score: float
    stderr: float | None = None
    layers: tuple[int, int] = Field(description="of the model and the reference, from 0")


class Control(_Part):
    """What something else than the model scores against the reference, or the reference itself."""

    score: float
    name: str | None = Field(None, description="what it is, where that is to be told")


class AtK(_Part):
    """A point of the curve over the neighbourhood size: the chosen layer pair's score."""

    k: int = Field(ge=1)
    score: float
    chance: float


class AtN(_Part):
    """A point of the curve over the number of items: the chosen layer pair's score."""

    n: int = Field(ge=1)
    score: float = Field(description="mean over subsets of that size")
    spread: float = Field(description="their standard deviation; 0 for all items")
    repeats: int = Field(description="number of subsets; 1 for all items")
    chance: float


class Hubs(_Part):
    """How unevenly items are others' neighbours, in the chosen layer pair.

    An item's in-degree is how many others have it among their k nearest; its mean is k.
    """

    model_skewness: float = Field(description="of the in-degrees in the model's layer")
    reference_skewness: float = Field(description="in the reference's layer")
    model_orphans: float = Field(description="share of the items that are nobody's neighbour")
    reference_orphans: float
    model_largest: float = Field(description="largest in-degree, in units of its mean k")
    reference_largest: float
    carried: float = Field(
        description="share of the score that the 1 % of the items carry that carry most of it"
    )
    without: float | None = Field(None, description="score of the other items among themselves")
    warning: str | None = Field(None, description="a sentence where a few hubs carry the score")


class Findings(_Part):
    """An alignment with its chance, error, controls and curves. Layers are counted from 0.

    What is None was not computed, or the file is of a version that did not.
    """

    n: int = Field(ge=1, description="number of items")
    k: int = Field(ge=1, description="neighbourhood size")
    metric: str
    protocol: str | None = None
    pooling: str | None = None
    chance: float | None = Field(None, description="expected score of one unrelated layer pair")
    layers: tuple[int, int] = Field(description="the best pair: of the model, of the reference")
    last_layers: tuple[int, int] | None = None
    layer_grid: list[list[float]] = Field(description="score of every layer pair, rounded")
    score: float | None = None
    stderr: float | None = None
    interval: tuple[float, float] | None = Field(
        None, description="95 % confidence interval, around the score less its flattery"
    )
    corrected: float | None = Field(None, description="(score - chance) / (1 - chance)")
    z: float | None = Field(None, description="of the best pair, by exact moments of its own null")
    z_grid: list[list[float]] | None = Field(None, description="of every pair, to three places")
    null: Null | None = None
    cross_fitted: CrossFitted | None = Field(None, description="None also for under 10 items")
    embedding: Chosen | None = Field(None, description="the model's layer 0 alone")
    last: Chosen | None = Field(None, description="the model's last layer alone")
    controls: dict[str, Control] = Field(
        default_factory=dict,
        description="those there are of shared_words, shared_tokens, reinitialized, shuffled and "
        "ceiling",
    )
    k_curve: list[AtK] | None = None
    n_curve: list[AtN] | None = None
    hubs: Hubs | None = None
    pairs: dict[str, Any] = Field(default_factory=dict)
    reference: dict[str, Any] = Field(default_factory=dict, description="header of its graphs")
    model: dict[str, Any] = Field(default_factory=dict, description="header of its graphs")
    versions: dict[str, str | int] = Field(default_factory=dict)
