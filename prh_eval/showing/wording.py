"""Numbers and names as both the text and the figure of an alignment show them."""

from __future__ import annotations

import shlex

from prh_eval.findings import Findings, Null
from prh_eval.leaderboard.pages.escaping import one_line
from prh_eval.showing.read import Shown

# Of the controls: what a reader calls them, and what they are.
CONTROLS = {
    "shared_words": ("shared words", "TF-IDF of the captions' words as the model"),
    "shared_tokens": ("shared tokens", "the same, of the model's own tokens"),
    "reinitialized": ("re-initialised", "the same architecture, weights drawn anew"),
    "shuffled": ("weights shuffled", "the same model, each weight tensor shuffled"),
    "ceiling": ("ceiling", "the reference with a near relative of itself"),
}
CONFIDENCE = "95 %"
HEADLINE = "mutual_knn"  # as `alignment.registry` has it, which imports torch
_OF_NEIGHBOURS = (HEADLINE, "cycle_knn", "lcs_knn", "edit_distance_knn", "cknna")


def number(value: float) -> str:
    """A score to four decimals; a small one to three digits: 0.1600, 9.77e-05."""
    return f"{value:.4f}" if abs(value) >= 0.0005 or not value else f"{value:.3g}"


def control(name: str) -> tuple[str, str]:
    """What a control is called, and what it is; of one that is not known, its name."""
    return CONTROLS.get(name, (one_line(name).replace("_", " "), ""))


def neighbourhood(findings: Findings) -> list[str]:
    """What k is in the record's metric; nothing where it has no part in it."""
    if findings.metric in _OF_NEIGHBOURS:
        return [f"k = {findings.k} neighbours"]
    return [f"{findings.k} directions"] if findings.metric == "svcca" else []


def has_threshold(null: Null | None) -> bool:
    """Whether there are draws enough for any score to be significant at the test's level."""
    return null is not None and null.alpha * (null.draws + 1) >= 1 - 1e-9


def missing(findings: Findings) -> list[str]:
    """What a record of the headline metric can have and this one has not."""
    parts = {
        "standard error": findings.stderr,
        "interval": findings.interval,
        "threshold and calibrated score": has_threshold(findings.null) or None,
        "p": findings.null,
        "z": findings.z,
        "cross-fitted score": findings.cross_fitted,
        "curve over k": findings.k_curve,
        "curve over n": findings.n_curve,
        "hubs": findings.hubs,
    }
    return [name for name, part in parts.items() if part is None]


def remake(shown: Shown) -> str:
    """The command that makes a result file with everything of an alignment, from kept graphs."""
    findings = shown.findings
    arguments = [shown.given_reference or "REFERENCE", "--models", shown.model]
    for option, value, default in (
        ("--k", findings.k, 10),
        ("--protocol", findings.protocol, "paper"),
        ("--pooling", findings.pooling, "mean"),
        ("--caption", findings.pairs.get("caption"), 0),
    ):
        if value not in (None, default):
            arguments += [option, str(value)]
    command = ("prh-eval", "rescore", *map(one_line, arguments), "--output_path", "DIR")
    return " ".join(map(shlex.quote, command))
