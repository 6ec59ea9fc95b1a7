"""The chance level against every re-pairing of a few items."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from alignment.oracles import nearness, weights

from prh_eval.alignment.chance import chance_level


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("decimals", [0, 6], ids=["ties", "no ties"])
def test_is_the_mean_over_all_permutations(k, decimals):
    g = np.random.default_rng(k)
    n = 6
    x, y = (
        weights(nearness(g.standard_normal((n, 2)).round(decimals), "euclidean"), k)
        for _ in range(2)
    )
    scores = [
        (x * y[np.ix_(order, order)]).sum() / (n * k) for order in itertools.permutations(range(n))
    ]
    assert np.mean(scores) == pytest.approx(chance_level(n, k), rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(10, 0), (10, 10), (1, 1)])
def test_impossible_sizes(n, k):
    with pytest.raises(ValueError, match=f"k = {k} is outside"):
        chance_level(n, k)
