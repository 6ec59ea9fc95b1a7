"""Triplet agreement: whether two layers agree which of two items is nearer to a third."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prh_eval.alignment.feature_layers import check_layers, place
from prh_eval.alignment.rows import Rows

# Triplets that are drawn where there are more; the sampling error is then at most 0.0005.
TRIPLETS = 1_000_000
_SEED = 0
# Similarities within this of each other tie, as in neighbour graphs.
_TIE = 1e-12
# Values of a block of rows that are multiplied together.
_BLOCK = 1 << 22


def triplet_agreement(x: Tensor, y: Tensor) -> float:
    """The share of triplets of items that two layers order alike.

    A triplet (i; j, l) asks which of j and l is nearer to i by cosine similarity, the question by
    which human similarity is measured too (Schultz and Joachims 2003, NeurIPS 16; van der Maaten
    and Weinberger 2012, MLSP). Layers agree if they answer alike; where either says that both are
    equally near, within 1e-12, the triplet counts half.

    Over all triplets it is (1 + t) / 2, with t the mean over items i of Kendall's tau-a between the
    two layers' similarities of i to the others. Under a random re-pairing of the items it is
    exactly 1/2 in expectation.

    Up to n = 126 every one of the n (n - 1) (n - 2) / 2 triplets is asked. Beyond, a million are
    drawn from a fixed seed, with replacement: the score then differs from that over all by a
    standard deviation of at most 0.0005, and two layer pairs, which see the same triplets, mostly
    by less.

    Args:
        x: Float, shape (n, dim_x).
        y: Float, shape (n, dim_y), the same items in the same order.

    Returns:
        In [0, 1]; higher is more alike; 1/2 where a layer is the same for all items. Symmetric.
        Where triplets are drawn, the order of the items decides which.

    Raises:
        PrhEvalError: If the layers are not finite float matrices of the same number of items, or
            there are fewer than 3.
    """
    return float(triplets_grid([x], [y], 1))


def triplets_grid(
    x: Sequence[Tensor], y: Sequence[Tensor], k: int, *, count: int = TRIPLETS
) -> Tensor:
    """:func:`triplet_agreement` of every layer pair.

    A layer answers all triplets once, a byte each; all pairs are one product of the answers.

    Args:
        x: Layers of one model, each float (n, dim); dimensions may differ.
        y: Layers of the other, of the same n items.
        k: Not used.
        count: How many triplets to draw where there are more.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x.

    Raises:
        PrhEvalError: As :func:`triplet_agreement`.
    """
    check_layers(x, y, least=3, metric="triplets")
    device = place(x)
    asked = _triplets(len(x[0]), count).to(device)
    mine, theirs = (
        torch.stack([_answers(Rows(layer, unit=True, device=device)[:], asked) for layer in side])
        for side in (x, y)
    )
    agreement = torch.zeros(len(x), len(y), dtype=torch.float64, device=device)
    for start in range(0, asked.shape[1], _BLOCK // 64):
        part = slice(start, start + _BLOCK // 64)
        # Sums of at most 65,536 times -1, 0 or 1: exact in float32.
        agreement += (mine[:, part].float() @ theirs[:, part].float().T).double()
    return (1.0 + agreement / asked.shape[1]) / 2.0


def _triplets(n: int, count: int) -> Tensor:
    """Triplets (3, m) of different items: all of them, the last two rising, or ``count`` drawn."""
    if n * (n - 1) * (n - 2) // 2 <= count:
        near, far = torch.triu_indices(n, n, offset=1).repeat(1, n)
        anchor = torch.arange(n).repeat_interleave(n * (n - 1) // 2)
        return torch.stack([anchor, near, far])[:, (anchor != near) & (anchor != far)]
    generator = torch.Generator().manual_seed(_SEED)
    anchor, near, far = (
        torch.randint(n - taken, (count,), generator=generator) for taken in range(3)
    )
    # Numbered among the items that are not taken yet.
    near += near >= anchor
    far += far >= torch.minimum(anchor, near)
    far += far >= torch.maximum(anchor, near)
    return torch.stack([anchor, near, far])


def _answers(unit: Tensor, asked: Tensor) -> Tensor:
    """For each triplet 1 or -1 by which of the two is nearer, 0 if they tie: int8 (triplets,)."""
    anchor, near, far = asked
    difference = _similarities(unit, anchor, near) - _similarities(unit, anchor, far)
    return (difference > _TIE).to(torch.int8) - (difference < -_TIE).to(torch.int8)


def _similarities(unit: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarities of pairs of items, float64 (pairs,)."""
    if len(unit) ** 2 <= 4 * len(first):
        return (unit @ unit.T)[first, second]
    similarities = unit.new_empty(len(first))
    rows = max(1, _BLOCK // unit.shape[1])
    for start in range(0, len(first), rows):
        part = slice(start, start + rows)
        similarities[part] = (unit[first[part]] * unit[second[part]]).sum(dim=1)
    return similarities
