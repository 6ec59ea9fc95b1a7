"""How often intervals hold what they are for, over fresh draws of the items.

``python tests/alignment/simulated_coverage.py`` is the long run; ``test_uncertainty.py`` runs short
ones. What it found is in the docstrings of :mod:`prh_eval.alignment.uncertainty`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from prh_eval.alignment.crossfit import cross_fitted
from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.metrics import overlap
from prh_eval.alignment.uncertainty import confidence_interval, paired_difference, standard_error

DIM = 24
KEPT = 100
_FIXED = np.random.default_rng(0)
MAPS = _FIXED.standard_normal((2, 8, DIM)) / 3
CENTRES = 1.5 * _FIXED.standard_normal((20, 8))
# Of worlds that had no part in the choice of the estimator.
_FRESH = np.random.default_rng(77)
FRESH_MAPS = _FRESH.standard_normal((2, 8, DIM)) / 3
FRESH_CENTRES = {count: 1.5 * _FRESH.standard_normal((count, 8)) for count in (6, 10, 50)}

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def isotropic(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Items without structure; all are as noisy."""
    return g.standard_normal((n, 8)), np.ones((n, 1))


def clustered(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Twenty clusters."""
    return CENTRES[g.integers(0, 20, n)] + 0.3 * g.standard_normal((n, 8)), np.ones((n, 1))


def hubby(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Three latent dimensions with heavy tails."""
    return g.standard_t(2.5, (n, 3)), np.ones((n, 1))


def uneven(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that grows 400-fold from one side of the space to the other."""
    z = g.standard_normal((n, 8))
    return z, np.exp(z[:, :1])


def half_aligned(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Twenty clusters, half of which have a tenth of the others' noise."""
    cluster = g.integers(0, 20, n)
    noise = np.where(cluster % 2, 2.0, 0.2)[:, None]
    return CENTRES[cluster] + 0.3 * g.standard_normal((n, 8)), noise


# A latent world, and noise that makes alignment strong and weak.
WORLDS: dict[str, tuple[Draw, float, float]] = {
    "isotropic": (isotropic, 0.2, 1.0),
    "clustered": (clustered, 0.2, 1.0),
    "hubby": (hubby, 0.2, 1.0),
    "uneven": (uneven, 0.2, 1.0),
    "half aligned": (half_aligned, 0.3, 1.0),
}


def fresh_clusters(count: int) -> Draw:
    """Clusters with other centres."""
    centres = FRESH_CENTRES[count]

    def draw(g: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        return centres[g.integers(0, count, n)] + 0.3 * g.standard_normal((n, 8)), np.ones((n, 1))

    return draw


FRESH_WORLDS: dict[str, tuple[Draw, float, float]] = {
    "isotropic": (isotropic, 0.4, 0.8),
    **{f"{count} clusters": (fresh_clusters(count), 0.4, 0.8) for count in FRESH_CENTRES},
    "hubby": (hubby, 0.4, 0.8),
    "uneven": (uneven, 0.4, 0.8),
}


def features(
    draw: Draw, g: np.random.Generator, n: int, noises: tuple[float, ...], maps: np.ndarray = MAPS
) -> list[np.ndarray]:
    """A reference's features of fresh items, then those of a model for every noise."""
    z, uneven_noise = draw(g, n)
    sides = [(maps[0], noises[0]), *((maps[1], noise) for noise in noises)]
    return [
        z @ mapped[: z.shape[1]] + noise * uneven_noise * g.standard_normal((n, DIM))
        for mapped, noise in sides
    ]


def graph(x: np.ndarray, kept: int = KEPT) -> NeighborGraph:
    """By ranking all similarities; drawn features have no ties."""
    unit = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True))
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-2)
    near = similarity.topk(min(kept, len(x) - 1), dim=1).indices[None].int()
    return NeighborGraph(near, torch.zeros_like(near, dtype=torch.bool), near.shape[2])


class Coverage(NamedTuple):
    """What was found.

    Attributes:
        mean: Mean of what was estimated.
        spread: Its standard deviation over draws.
        ratio: Mean standard error over that.
        covered: Share of the draws whose interval holds the mean.
        rejected: Share with p < 0.05; nan where there is no test.
    """

    mean: float
    spread: float
    ratio: float
    covered: float
    rejected: float


def score_coverage(
    draw: Draw,
    n: int,
    k: int,
    noise: float,
    draws: int,
    kept: int = KEPT,
    maps: np.ndarray = MAPS,
) -> Coverage:
    """Of intervals of one layer pair's score."""
    g = np.random.default_rng(1)
    found = []
    for _ in range(draws):
        y, x = (graph(each, kept) for each in features(draw, g, n, (noise,), maps))
        score, error = float(overlap(x, y, k)), standard_error(x, y, k)
        found.append((score, error, *confidence_interval(score, error), math.nan))
    return _coverage(np.array(found))


def difference_coverage(
    draw: Draw,
    n: int,
    k: int,
    noises: tuple[float, float],
    draws: int,
    kept: int = KEPT,
    maps: np.ndarray = MAPS,
) -> Coverage:
    """Of intervals of the difference of two models; none on average where noises are the same."""
    g = np.random.default_rng(2)
    found = []
    for _ in range(draws):
        y, a, b = (graph(each, kept) for each in features(draw, g, n, noises, maps))
        d = paired_difference(a, y, b, y, k)
        found.append((d.difference, d.stderr, d.low, d.high, d.p))
    target = 0.0 if noises[0] == noises[1] else None
    return _coverage(np.array(found), target)


def chosen_coverage(draw: Draw, n: int, k: int, noise: float, draws: int, layers: int) -> Coverage:
    """Of intervals of the best of several layers, for the expectation of the layer that was chosen.

    The layers differ in noise by a tenth, so that now one is the best and now another. Intervals
    are around the score less its flattery, and so are the mean and spread of what is left of it.
    """
    g = np.random.default_rng(3)
    noises = tuple(noise * (1 + 0.1 * layer / layers) for layer in range(layers))
    every, chosen = [], []
    for _ in range(draws):
        y, *x = (graph(each) for each in features(draw, g, n, noises))
        together = NeighborGraph(
            torch.cat([each.indices for each in x]), torch.cat([each.tied for each in x]), y.k
        )
        scores = overlap(together, y, k)[:, 0].tolist()
        best = int(np.argmax(scores))
        error = standard_error(x[best], y, k)
        crossed = cross_fitted(together, y, k, seed=0)
        assert crossed is not None
        around = scores[best] - crossed.flattery
        every.append(scores)
        chosen.append((around, error, *confidence_interval(around, error), best))
    means, found = np.mean(every, axis=0), np.array(chosen)
    targets = means[found[:, 4].astype(int)]
    held = (found[:, 2] <= targets) & (targets <= found[:, 3])
    spread = float((found[:, 0] - targets).std())
    bias = float((found[:, 0] - targets).mean())
    return Coverage(bias, spread, float(found[:, 1].mean()) / spread, float(held.mean()), math.nan)


def _coverage(found: np.ndarray, target: float | None = None) -> Coverage:
    estimates, errors, low, high, p = found.T
    mean, spread = float(estimates.mean()), float(estimates.std(ddof=1))
    target = mean if target is None else target
    held = float(((low <= target) & (target <= high)).mean())
    rejected = math.nan if np.isnan(p).all() else float((p < 0.05).mean())
    return Coverage(mean, spread, float(errors.mean()) / spread, held, rejected)


def main() -> None:
    """Print a line for every number of items, neighbourhood size, world and noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--n", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--k", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--kept", type=int, default=KEPT, help="neighbours that graphs keep")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="scores and no difference, in other worlds, which had no part in the choice of the "
        "estimator",
    )
    kinds = ("score", "no difference", "difference", "chosen")
    parser.add_argument("--of", nargs="+", choices=kinds, default=kinds, help="which intervals")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draws, kept = arguments.draws, arguments.kept
    if arguments.fresh:
        for n, k, world in itertools.product(arguments.n, arguments.k, FRESH_WORLDS):
            draw, *strengths = FRESH_WORLDS[world]
            for noise in strengths:
                at = f"{world:13} n {n:5} k {k:3} noise {noise:.1f}"
                found = score_coverage(draw, n, k, noise, draws, kept, FRESH_MAPS)
                print(f"score          {at}: {_line(found)}", flush=True)
                found = difference_coverage(draw, n, k, (noise,) * 2, draws, kept, FRESH_MAPS)
                print(f"no difference  {at}: {_line(found)}", flush=True)
        return
    for n, k, world in itertools.product(arguments.n, arguments.k, arguments.worlds):
        draw, *strengths = WORLDS[world]
        for noise, kind in itertools.product(strengths, arguments.of):
            if kind == "score":
                found = score_coverage(draw, n, k, noise, draws, kept)
            elif kind == "chosen":
                found = chosen_coverage(draw, n, k, noise, draws, layers=12)
            else:
                other = noise if kind == "no difference" else 1.3 * noise
                found = difference_coverage(draw, n, k, (noise, other), draws, kept)
            at = f"{kind:14} {world:13} n {n:5} k {k:3} noise {noise:.1f}"
            print(f"{at}: {_line(found)}", flush=True)


def _line(found: Coverage) -> str:
    return (
        f"mean {found.mean:+.4f} spread {found.spread:.4f} ratio {found.ratio:.2f} covered "
        f"{found.covered:.3f} rejected {found.rejected:.3f}"
    )


if __name__ == "__main__":
    main()
