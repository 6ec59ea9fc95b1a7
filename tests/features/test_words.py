"""What words alone score: against counts by hand, scikit-learn's own words, and brute force."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.layers import align
from prh_eval.alignment.neighbors import neighbor_graph
from prh_eval.features import words
from prh_eval.features.words import bag_features, shared_bags, shared_words, word_features

VOCABULARY = ("red", "blue", "green", "a", "light", "robin's", "...")
TEXT = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4).map(" ".join)


def dense(captions: list[list[str]]) -> np.ndarray:
    return word_features(captions).toarray()


def similarity(*texts: str) -> np.ndarray:
    rows = dense([[text] for text in texts])
    return rows @ rows.T


# ---------------------------------------------------------------- the oracles


def tfidf(captions: list[list[str]]) -> np.ndarray:
    """Unit rows, counted in Python: (items, words)."""
    bags = [[Counter(re.findall(r"\w+", text)) for text in texts] for texts in captions]
    every = [bag for texts in bags for bag in texts]
    vocabulary = sorted(set().union(*every)) or ["none"]
    idf = [log((1 + len(every)) / (1 + sum(w in bag for bag in every))) + 1 for w in vocabulary]

    def unit(row: np.ndarray) -> np.ndarray:
        length = sqrt(row @ row)
        return row / length if length else row

    rows = [
        np.mean([unit(np.array([b[w] for w in vocabulary]) * idf) for b in texts], axis=0)
        for texts in bags
    ]
    return np.array([unit(row) for row in rows])


def places(nearness: np.ndarray, k: int) -> np.ndarray:
    """How much each item is among the k nearest of each other: (n, n), rows sum to k."""
    n = len(nearness)
    weights = np.zeros((n, n))
    for i, row in enumerate(np.round(nearness, 9)):
        others = [j for j in range(n) if j != i]
        for j in others:
            nearer = sum(row[o] > row[j] for o in others)
            ties = sum(row[o] == row[j] for o in others)
            weights[i, j] = min(max(k - nearer, 0) / ties, 1)
    return weights


def brute_force(captions: list[list[str]], layers: list[np.ndarray], k: int) -> float:
    """The best mean overlap with layers of integer coordinates, compared by distance."""
    rows = tfidf(captions)
    mine = places(rows @ rows.T, k)
    theirs = [places(-((x[:, None] - x[None]) ** 2).sum(-1), k) for x in layers]
    return max((mine * weights).sum() / (k * len(captions)) for weights in theirs)


def reference(layers: list[np.ndarray], k: int) -> NeighborGraph:
    return neighbor_graph([torch.from_numpy(x).double() for x in layers], k, similarity="euclidean")


def drawn_layers(n: int, count: int = 3, seed: int = 0) -> list[np.ndarray]:
    # On a small grid, so that distances tie.
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 4, size=(n, 2)) for _ in range(count)]


# ---------------------------------------------------------------- features


def test_values_by_hand() -> None:
    # 3 captions: red is in 2 of them, dark and sky in 1.
    red, rare = log(4 / 3) + 1, log(4 / 2) + 1
    rows = dense([["red dark red"], ["RED"], ["sky"]])
    length = sqrt((2 * red) ** 2 + rare**2)
    # Columns are in alphabetical order: dark, red, sky.
    expected = [[rare / length, 2 * red / length, 0], [0, 1, 0], [0, 0, 1]]
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows, expected, atol=1e-15)


@given(st.lists(TEXT, min_size=1, max_size=12))
def test_same_as_scikit_learn_splitting_words_itself(texts: list[str]) -> None:
    texts = [*texts, "red"]
    expected = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(texts).toarray()
    np.testing.assert_allclose(dense([[text] for text in texts]), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Robin's EGG-blue/green", "green, blue egg: s (robin)"),
        ("na\u00efve caf\u00e9", "cafe\u0301 nai\u0308ve"),  # composed or not
        ("天蓝色", "蓝 天 色"),
        ("тёмно-синий", "СИНИЙ тёмно"),
        ("हिन्दी भाषा।", "भाषा हिन्दी"),
        ("x 1", "1 x"),
    ],
)
def test_the_same_words(one: str, other: str) -> None:
    assert similarity(one, other, "something else")[0, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe", "caf\u00e9"),
        ("हिन्दी", "हिन्दू"),  # Devanagari vowels are marks, not letters
        ("blue-", "-green"),
        ("red ...", "... blue!"),
        ("a_b", "c_d"),
        ("blueish", "blue"),
    ],
)
def test_no_word_in_common(one: str, other: str) -> None:
    assert similarity(one, other, "something else")[0, 1] == 0


def test_captions_without_a_word_are_zero() -> None:
    rows = dense([["..."], ["red"], ["!?"]])
    assert rows.tolist() == [[0], [1], [0]]
    assert dense([["..."], ["_"], ["🙂"]]).tolist() == [[0], [0], [0]]


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=9))
def test_token_ids_are_words_like_any_other(tokens: list[list[int]]) -> None:
    bags = [[tuple(of_item)] for of_item in tokens]
    spelt = [[" ".join(f"t{token}" for token in of_item)] for of_item in tokens]
    mine, theirs = bag_features(bags).toarray(), dense(spelt)
    np.testing.assert_allclose(mine @ mine.T, theirs @ theirs.T, atol=1e-15)


def test_several_captions_are_averaged() -> None:
    captions = [["red", "dark red sky"], ["blue"], ["...", "red"], ["sky", "sky"]]
    np.testing.assert_allclose(dense(captions), tfidf(captions), atol=1e-15)


# ---------------------------------------------------------------- the score


@settings(max_examples=60)
@given(st.data())
def test_the_score_is_that_of_brute_force(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 14))
    item = st.lists(TEXT, min_size=1, max_size=data.draw(st.sampled_from([1, 3])))
    captions = data.draw(st.lists(item, min_size=n, max_size=n))
    k = data.draw(st.integers(1, n - 2))
    layers = drawn_layers(n, seed=data.draw(st.integers(0, 1000)))
    found = shared_words(captions, reference(layers, data.draw(st.integers(k, n - 2))), k)
    assert found == pytest.approx(brute_force(captions, layers, k), abs=1e-9)


def numbered(n: int) -> list[list[str]]:
    """Captions that share words with many, few or no others, some of them twice."""
    return [[f"a{i % 3} b{i % 7} c{i % 11 if i % 5 else i}"] for i in range(n - 2)] + [["?"]] * 2


@pytest.mark.parametrize("similarities", [1, 61 * 7, 61 * 60, 1 << 21])
def test_it_is_the_score_of_a_model_with_these_features(
    similarities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k = 61, 5
    captions, graph = numbered(n), reference(drawn_layers(n), 20)
    monkeypatch.setattr(words, "_SIMILARITIES", similarities)
    model = neighbor_graph([torch.from_numpy(dense(captions))], k)
    assert shared_words(captions, graph, k) == pytest.approx(
        align(model, graph, k).score, abs=1e-12
    )


@pytest.mark.parametrize("compared", [1, 7, 100])
def test_how_many_are_compared_at_once_does_not_matter(
    compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions, graph = numbered(61), reference(drawn_layers(61), 20)
    expected = shared_words(captions, graph, 5)
    monkeypatch.setattr(words, "_COMPARED", compared)
    assert shared_words(captions, graph, 5) == expected


def test_the_score_of_token_ids_is_that_of_words() -> None:
    captions, graph = numbered(40), reference(drawn_layers(40), 6)
    ids: dict[str, int] = {}
    bags = [
        [tuple(ids.setdefault(word, 50_000 - len(ids)) for word in re.findall(r"\w+", text))]
        for (text,) in captions
    ]
    assert shared_bags(bags, graph, 6) == shared_words(captions, graph, 6)


def test_words_that_say_it_all_score_one() -> None:
    layer = np.repeat(np.eye(5, dtype=int), 4, axis=0)
    captions = [[f"group{i // 4}"] for i in range(20)]
    unrelated = np.random.default_rng(0).normal(size=(20, 3))
    assert shared_words(captions, reference([unrelated, layer], 3), 3) == pytest.approx(1)


@pytest.mark.parametrize("text", ["!", "red"])
def test_words_that_say_nothing_score_chance(text: str) -> None:
    graph = reference(drawn_layers(12), 4)
    assert shared_words([[text]] * 12, graph, 4) == pytest.approx(4 / 11)


def test_the_order_of_the_items_does_not_matter() -> None:
    captions, (layer,) = numbered(40), drawn_layers(40, 1)
    order = np.random.default_rng(3).permutation(40)
    there = shared_words(captions, reference([layer], 6), 6)
    back = shared_words([captions[i] for i in order], reference([layer[order]], 6), 6)
    assert back == pytest.approx(there, abs=1e-12)


@pytest.mark.parametrize(("n", "k", "sentence"), [(11, 3, "12 items and .* 11"), (12, 5, "1..4")])
def test_a_reference_that_does_not_fit(n: int, k: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        shared_words([["red"]] * n, reference(drawn_layers(12), 4), k)


def test_importing_it_does_not_import_scikit_learn() -> None:
    code = "import prh_eval.features.words, sys; print('sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "False", run.stderr
