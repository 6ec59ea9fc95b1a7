"""Linear predictivity: how much of one layer a ridge regression on another layer explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prh_eval.alignment.feature_layers import centered, check_layers, normal, place, principal

FOLDS = 5
# In units of the mean squared length of the centred training items. The largest leaves hardly more
# than the mean of the training items; the smallest is next to no penalty.
PENALTIES = tuple(10.0**exponent for exponent in range(-6, 7))
_SEED = 0


def linear_predictivity(x: Tensor, y: Tensor) -> float:
    """The share of the variance of layer y that a linear map of layer x explains on held-out items.

    A linear map with intercept is fitted by ridge regression (Hoerl and Kennard 1970, Technometrics
    12) on four fifths of the items and predicts the last fifth, five times, so that each item is
    predicted once by a map that has not seen it. Neural predictivity is measured so (Yamins et al.
    2014, PNAS 111; Schrimpf et al. 2018, bioRxiv 407007); it is a small cousin of model stitching
    (Lenc and Vedaldi 2015, arXiv 1411.5908; Bansal et al. 2021, arXiv 2106.07682), where a layer of
    one network is fed, by a trained linear map, to another.

    The score is R^2 = 1 - sum ||y_i - p_i||^2 / sum ||y_i - m||^2 over all items and dimensions,
    with p_i the prediction of item i and m the mean of y: the mean of the dimensions' R^2, weighted
    by their variance. The penalty, one for all dimensions of y, is chosen in each fold among
    :data:`PENALTIES` by generalised cross-validation (Golub, Heath and Wahba 1979, Technometrics
    21) on that fold's training items; held-out items choose nothing. Folds are drawn from a fixed
    seed.

    The direction is from x, the model, to y, the reference: a layer that holds more than the other
    predicts it better than it is predicted.

    Args:
        x: Float, shape (n, dim_x): what predicts.
        y: Float, shape (n, dim_y), the same items in the same order: what is predicted.

    Returns:
        At most 1; higher is better. It is reported as it is: about 0, rather below, where x tells
        nothing of y, and negative where the map is worse than the mean of y; 0 where y is the same
        for all items. Not symmetric. Neither a rotation, a scale nor an origin of a layer changes
        it; the order of the items decides the folds. Items that occur twice may lie on both sides
        of a fold.

    Raises:
        PrhEvalError: If the layers are not finite float matrices of the same number of items, or
            there are fewer than 10.
    """
    return float(linear_predictivity_grid([x], [y], 1))


def linear_predictivity_grid(x: Sequence[Tensor], y: Sequence[Tensor], k: int) -> Tensor:
    """:func:`linear_predictivity` of every layer pair, from layers of x to layers of y.

    For each layer of x and fold, one eigendecomposition serves all layers of y and all penalties.
    R^2 over all dimensions does not change where y is rotated, so that y is turned into at most n
    dimensions first. So turned, the layers of y are held in float64, and in float32 for a fold:
    12 n min(n, dim) bytes a layer. Products are in float32, so that a score is good to 1e-6.

    Args:
        x: Layers of the model, each float (n, dim); dimensions may differ.
        y: Layers of the reference, of the same n items.
        k: Not used.

    Returns:
        float64, shape (layers_x, layers_y), on the device of x.

    Raises:
        PrhEvalError: As :func:`linear_predictivity`.
    """
    check_layers(x, y, least=2 * FOLDS, metric="linear_predictivity")
    device, n = place(x), len(x[0])
    held_out = torch.randperm(n, generator=torch.Generator().manual_seed(_SEED)).to(device)
    targets = [normal(layer, device) for layer in y]
    errors = torch.zeros(len(x), len(targets), dtype=torch.float64, device=device)
    for test in held_out.tensor_split(FOLDS):
        train = torch.ones(n, dtype=torch.bool, device=device)
        train[test] = False
        folds = [_Fold.of(target[train], target[test]) for target in targets]
        for row, layer in zip(errors, x, strict=True):
            z = centered(layer, device)
            ridge = _Ridge.fit(z[train])
            items = ridge.project(z[test])
            row += torch.stack([ridge.error(items, fold) for fold in folds])
    # Of normal targets the sum of squares is 1.
    return torch.where(torch.stack([target.any() for target in targets]), 1.0 - errors, 0.0)


@dataclass(frozen=True)
class _Fold:
    """What is predicted, less the mean of the training items.

    Attributes:
        train: Of the training items, float32 (items, dim).
        test: Of the held-out items, float32 (items, dim).
        total: The sum of squares of the training items' values, float64 ().
    """

    train: Tensor
    test: Tensor
    total: Tensor

    @staticmethod
    def of(train: Tensor, test: Tensor) -> _Fold:
        mean = train.mean(dim=0)
        z = train - mean
        return _Fold(z.float(), (test - mean).float(), z.square().sum())


@dataclass(frozen=True)
class _Ridge:
    """Ridge regression on the same training items for any targets.

    With the centred training items' singular vectors U and squared singular values s, the
    prediction of an item z is z X^T U diag(1 / (s + penalty)) U^T Y.

    Attributes:
        mean: Of the training items, float64 (dim,).
        maps: X^T U, float64 (dim, rank).
        vectors: U, float32 (items, rank).
        values: s, float64 (rank,).
    """

    mean: Tensor
    maps: Tensor
    vectors: Tensor
    values: Tensor

    @staticmethod
    def fit(x: Tensor) -> _Ridge:
        """Of training items (items, dim)."""
        mean = x.mean(dim=0)
        z = centered(x, x.device)
        vectors, values = principal(z)
        return _Ridge(mean, z.T @ vectors, vectors.float(), values)

    def project(self, x: Tensor) -> Tensor:
        """Items to be predicted (items, dim), as (items, rank)."""
        return (x - self.mean) @ self.maps

    def error(self, items: Tensor, fold: _Fold) -> Tensor:
        """The sum of squared errors on held-out items, by the penalty that training items choose.

        Args:
            items: The held-out items, projected, (items, rank).
            fold: The targets.
        """
        # Nearly all the time is spent in these two products, and float32 halves it.
        coefficients = self.vectors.T @ fold.train
        energies = coefficients.square().sum(dim=1).double()
        penalty = self._penalty(energies, fold.total, len(fold.train))
        predicted = (items / (self.values + penalty)).float() @ coefficients
        return (fold.test - predicted).square().sum().double()

    def _penalty(self, energies: Tensor, total: Tensor, n: int) -> Tensor:
        """The penalty of least generalised cross-validation error, the largest of equal ones.

        Args:
            energies: Sums of squares of the targets along each singular vector, (rank,).
            total: Sum of squares of the targets.
            n: Number of training items.
        """
        penalties = self.values.new_tensor(PENALTIES[::-1]) * self.values.sum() / n
        # What is left of the targets along each singular vector; all is left beyond them.
        left = penalties[:, None] / (self.values + penalties[:, None])
        beyond = n - 1 - len(self.values)
        outside = (total - energies.sum()).clamp(min=0.0) if beyond else 0.0
        residual = left.square() @ energies + outside
        return penalties[(residual / (left.sum(dim=1) + beyond).square()).argmin()]
