"""What an alignment score would be by chance."""

from __future__ import annotations


def chance_level(n: int, k: int) -> float:
    """The expected mutual k-nearest-neighbour score of two unrelated models, k / (n - 1).

    It is the exact mean over all re-pairings of the items, for any two neighbour graphs: each of
    an item's k neighbours is one of the n - 1 others with equal probability.

    Args:
        n: Number of items, at least 2.
        k: Neighbourhood size, 1 <= k <= n - 1.

    Returns:
        A value in (0, 1].

    Raises:
        ValueError: If k is outside 1..n - 1.
    """
    if not 1 <= k <= n - 1:
        raise ValueError(f"k = {k} is outside 1..{n - 1}, the neighbourhood sizes of {n} items")
    return k / (n - 1)
