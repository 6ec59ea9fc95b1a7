"""The documents of ``prh_color_choice``: which of four colours looks like this one?

They are made from the colours of the xkcd survey by a rule without chance, so that a version of the
task has the same documents everywhere.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from prh_eval.colors import cielab
from prh_eval.pairs.load import load_pairs
from prh_eval.schema import EmbeddedPairs

MARGIN = 10.0
"""How much further away than the answer a wrong choice is at least, in CIELAB units (CIE76)."""

DIFFICULTY = (0.1, 1 / 3)
"""Of what may be a wrong choice, by distance: one is of the nearest tenth, one further away but
within the nearest third, and one of the rest."""

_WORDS = 2  # of a choice, at most: there are too few longer names to choose among


def color_choice(**_: Any) -> DatasetDict:
    """The task's data, for lm-eval's ``custom_dataset``; takes and ignores all metadata."""
    return DatasetDict(test=Dataset.from_list(documents()))


def documents() -> list[dict[str, Any]]:
    """One document for each of the 949 colours, in the survey's order.

    The answer is the nearest colour in CIELAB. The wrong choices are the answers of other
    documents, so that a model that only knows which colours are named often is at chance. No choice
    shares a word with the question, and all four have equally many words: spelling does not help.

    Returns:
        Dicts of ``name`` (the colour asked about), ``choices`` (four colour names) and ``answer``
        (the index of the right one; each of 0..3 is as frequent).
    """
    pairs = load_pairs(EmbeddedPairs(kind="embedded", name="xkcd_colors"))
    assert pairs.targets is not None  # these pairs have colours, not images
    names = [name for (name,) in pairs.captions]
    lab = cielab(pairs.targets).numpy()
    # Rounded, so that another processor's last digits put nothing in another order.
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2).round(6)
    words = [frozenset(name.replace("/", " ").split()) for name in names]
    unrelated = np.array([[not a & b for b in words] for a in words])
    lengths = np.array([len(name.split()) for name in names])

    suited = unrelated & (lengths <= _WORDS)
    answers = np.where(suited, distances, np.inf).argmin(axis=1)
    shuffled = sorted(range(len(names)), key=lambda i: _digest(names[i]))
    made: list[dict[str, Any]] = [{}] * len(names)
    for rank, item in enumerate(shuffled):
        answer = answers[item]
        wrong = np.flatnonzero(
            unrelated[item]
            & np.isin(np.arange(len(names)), answers)
            & (lengths == lengths[answer])
            & (distances[item] >= distances[item, answer] + MARGIN)
        )
        wrong = wrong[np.argsort(distances[item, wrong], kind="stable")]
        ends = [round(share * len(wrong)) for share in DIFFICULTY]
        # The first of each range that is the answer of a document after this one, going round.
        following = answers[shuffled[rank + 1 :] + shuffled[:rank]]
        chosen = [following[np.isin(following, part)][0] for part in np.split(wrong, ends)]
        choices = sorted((names[index] for index in chosen), key=_digest)
        choices.insert(rank % 4, names[answer])
        made[item] = {"name": names[item], "choices": choices, "answer": rank % 4}
    return made


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
