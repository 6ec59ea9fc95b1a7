"""Checks and protocols, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prh_eval.alignment import preprocess as room
from prh_eval.alignment import selection
from prh_eval.alignment.preprocess import (
    PROTOCOLS,
    mean_item_quantile,
    preprocess,
    protocol,
    validate_features,
)
from prh_eval.errors import PrhEvalError


def layers(*widths: int, n: int = 30, seed: int = 0, dtype=torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, w, generator=g) * (1 + i)).to(dtype) for i, w in enumerate(widths)]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def limit(features: list[torch.Tensor], name: str) -> float:
    """The clip of each protocol as its definition reads, by sorting everything."""
    magnitudes = [np.abs(x.double().numpy()) for x in features]
    if name == "paper":
        ranked = np.sort(np.concatenate([m.ravel() for m in magnitudes]))
        return float(ranked[int(0.95 * len(ranked))])
    if name == "paper_loose":
        return float(np.quantile(np.concatenate(magnitudes, axis=1), 0.95, axis=1).mean())
    return np.inf


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_protocols_follow_their_definitions(name, dtype):
    features = layers(5, 17, 1, dtype=dtype)
    q = limit(features, name)
    result = preprocess(features, protocol(name))
    assert len(result) == 3
    for x, rows in zip(features, result, strict=True):
        got = rows[:]
        assert got.dtype == torch.float64
        expected = unit(np.clip(x.double().numpy(), -q, q))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-13, atol=0)


def test_clipping_does_something():
    features = layers(20)
    clipped, whole = (preprocess(features, protocol(p))[0][:] for p in ("paper", "unclipped"))
    assert float((clipped - whole).abs().max()) > 0.01


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_zero_rows_stay_zero_and_inputs_stay_as_they_were(name):
    (x,) = layers(6)
    x[3] = 0
    before = x.clone()
    result = preprocess([x], protocol(name))[0][:]
    assert torch.equal(result[3], torch.zeros(6, dtype=torch.float64))
    assert torch.equal(x, before)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_item_quantile_depends_on_neither_blocks_nor_order(seed, chunk):
    features = layers(7, 3, n=11, seed=seed)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_CHUNK", chunk)
        in_blocks = mean_item_quantile([x[order] for x in features])
    assert in_blocks == mean_item_quantile(features)
    assert in_blocks == pytest.approx(limit(features, "paper_loose"), rel=1e-14)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 20),
    st.lists(
        st.tuples(
            st.integers(1, 30),
            st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_item_quantile_is_that_of_sorted_values(seed, n, kinds, few):
    g = torch.Generator().manual_seed(seed)
    features = [torch.randn(n, width, generator=g) for width, _ in kinds]
    if few:  # equal magnitudes, of either sign
        features = [(3 * x).round() for x in features]
    features = [x.to(dtype) for x, (_, dtype) in zip(features, kinds, strict=True)]
    ranked = torch.cat([x.double().abs() for x in features], dim=1).sort(dim=1).values
    position = 0.95 * (ranked.shape[1] - 1)
    low, high = (ranked[:, edge(position)] for edge in (math.floor, math.ceil))
    expected = torch.lerp(low, high, position - math.floor(position))
    # The same bits, not only nearly.
    assert mean_item_quantile(features) == math.fsum(expected.tolist()) / n


def test_item_quantile_of_more_values_than_a_partition_sorts():
    features = layers(9000, n=400, dtype=torch.float16)
    expected = pytest.approx(limit(features, "paper_loose"), rel=1e-14)
    assert mean_item_quantile(features) == expected


@pytest.mark.parametrize("readers", [1, 3])
def test_limits_do_not_depend_on_the_threads(readers, monkeypatch):
    features = layers(9, 4, 6, n=50)
    expected = [PROTOCOLS[name].limit(features) for name in ("paper", "paper_loose")]
    monkeypatch.setattr(room, "READERS", readers)
    monkeypatch.setattr(selection, "READERS", readers)
    monkeypatch.setattr(room, "_CHUNK", 40)
    monkeypatch.setattr(selection, "_CHUNK", 40)
    assert [PROTOCOLS[name].limit(features) for name in ("paper", "paper_loose")] == expected


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(PrhEvalError, match=r"'papr'.*did you mean 'paper'.*unclipped"):
        protocol("papr")


def test_each_protocol_knows_its_name():
    assert set(PROTOCOLS) == {"paper", "paper_loose", "unclipped"}
    assert all(protocol(name).name == name for name in PROTOCOLS)


class TestValidate:
    def test_good_features_pass(self):
        validate_features(layers(4, 5, n=12), k=10)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
    def test_names_layer_and_first_bad_item(self, value):
        features = layers(4, 5, dtype=torch.float64)
        features[1][[9, 7, 20], [0, 3, 2]] = value
        with pytest.raises(PrhEvalError, match=r"layer 1 of the model .*item 7, the first of 3 "):
            validate_features(features, k=10, name="the model")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_one_bad_value_of_any_type_is_found(self, value, dtype):
        features = layers(4, 5, dtype=dtype)
        features[0][29, 3] = value
        with pytest.raises(PrhEvalError, match=r"layer 0 .*item 29, the first of 1 "):
            validate_features(features, k=10)

    @pytest.mark.parametrize("item", [0, 1, 15, 29])
    def test_one_item_that_differs_is_not_constant(self, item, monkeypatch):
        monkeypatch.setattr(room, "_CHUNK", 12)
        features = [torch.full((30, 3), 0.5)]
        features[0][item, 2] = 0.25
        validate_features(features, k=10)

    def test_too_few_items(self):
        with pytest.raises(PrhEvalError, match=r"have 11 items.* at least 12"):
            validate_features(layers(4, n=11), k=10)

    def test_layers_of_different_items(self):
        with pytest.raises(PrhEvalError, match=r"layer 1 .* has 29 items and layer 0 has 30"):
            validate_features([*layers(4), *layers(4, n=29)], k=10)

    def test_no_layers(self):
        with pytest.raises(PrhEvalError, match="no layers"):
            validate_features([], k=10)

    @pytest.mark.parametrize(
        "x", [torch.ones(30, 2, 2), torch.ones(30), torch.ones(30, 0), torch.ones(30, 2).int()]
    )
    def test_not_a_float_matrix(self, x):
        with pytest.raises(PrhEvalError, match=r"layer 1 .*shape \(30"):
            validate_features([*layers(4), x], k=10)

    def test_constant_layer(self):
        features = [*layers(4), torch.full((30, 3), 0.5)]
        with pytest.raises(PrhEvalError, match=r"layer 1 .* is the same for all 30 items"):
            validate_features(features, k=10)
        validate_features(features, k=10, constant="allow")
