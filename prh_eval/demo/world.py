"""The coloured world: text in which colours that look alike are named together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.colors import cielab
from prh_eval.pairs.load import load_pairs
from prh_eval.schema import EmbeddedPairs

# The colour difference, in CIELAB units, at which a partner is e^(-1/2) times as likely as one
# that looks the same.
CLOSENESS = 8.0


@dataclass(frozen=True)
class ColouredWorld:
    """Colours, and how often one is said to look like another.

    Attributes:
        names: The n colour names.
        partners: float64, shape (n, n). Row i is the distribution of what colour i is said to look
            like; a colour is never its own partner.
    """

    names: tuple[str, ...]
    partners: Tensor

    def sentences(self, count: int, generator: torch.Generator) -> list[str]:
        """Draw sentences: the first colour uniformly, the second among its partners.

        Args:
            count: How many.
            generator: The source of randomness, on the CPU.

        Returns:
            ``"<colour> looks like <colour> ."``, independent of each other.
        """
        first = torch.randint(len(self.names), (count,), generator=generator)
        second = torch.multinomial(self.partners[first], 1, generator=generator).squeeze(1)
        return [
            f"{self.names[a]} looks like {self.names[b]} ."
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ]


def coloured_world() -> ColouredWorld:
    """The world of the xkcd colour survey: the colours that ``prh_align_color`` asks about."""
    pairs = load_pairs(EmbeddedPairs(kind="embedded", name="xkcd_colors"))
    assert pairs.targets is not None  # these pairs have colours, not images
    names = tuple(name for (name,) in pairs.captions)
    return ColouredWorld(names, partner_probabilities(cielab(pairs.targets)))


def partner_probabilities(lab: Tensor) -> Tensor:
    """How likely each colour is to be said to look like each other one.

    Row i is the softmax over j != i of -(d_ij / 8)^2 / 2, where d is the Euclidean distance in
    CIELAB (the colour difference CIE76).

    Args:
        lab: float64, shape (n, 3): CIELAB coordinates, n >= 2.

    Returns:
        float64, shape (n, n): rows sum to 1, the diagonal is 0.
    """
    # The matrix-product shortcut loses the digits of small distances.
    distance = torch.cdist(lab, lab, compute_mode="donot_use_mm_for_euclid_dist")
    closeness = -((distance / CLOSENESS) ** 2) / 2
    return closeness.fill_diagonal_(-torch.inf).softmax(dim=1)
