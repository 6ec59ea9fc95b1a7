"""What captions' words alone say about which items are alike: the control for every score."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.ranking import TIE_TOLERANCE, nearest

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# The words of each caption of each item, in any order: strings, or a tokenizer's token ids.
Bags = Sequence[Sequence[Sequence[Hashable]]]

# Similarities that are held at once; ranking and weighing them takes about 150 bytes each.
_SIMILARITIES = 1 << 21
# Items that are compared with all at once: so few that their words stay in the processor's cache.
_COMPARED = 16


def word_bags(captions: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """The words of each caption of each item.

    Words are those of BERT's basic tokenizer (Devlin et al. 2019): in lower case, with their
    accents, split at white space and punctuation, every Chinese character a word of its own.
    Words of one letter count; what has neither letter nor digit is no word.

    Args:
        captions: The captions of each item.
    """
    from tokenizers.normalizers import NFC, BertNormalizer
    from tokenizers.normalizers import Sequence as InOrder
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer = InOrder([NFC(), BertNormalizer(lowercase=True, strip_accents=False)])
    splitter = BertPreTokenizer()

    def words(text: str) -> list[str]:
        pieces = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        return [word for word, _ in pieces if any(map(str.isalnum, word))]

    return [[words(text) for text in texts] for texts in captions]


def bag_features(bags: Bags) -> csr_array:
    """TF-IDF of bags of words, by scikit-learn's TfidfVectorizer with its defaults.

    Where df of m captions have a word, its value in a caption is its count there times
    (ln((1 + m) / (1 + df)) + 1); captions are then normalised to length 1. There are no stop
    words, no n-grams and no limits on the vocabulary.

    Values are not clipped, whatever the protocol: clipping is for the few large dimensions of a
    network's activations, and the 0.95 quantile of a bag of words is 0.

    Args:
        bags: The words of each caption of n items, at least one caption an item. The features of
            an item that has several are the mean of theirs.

    Returns:
        float64, sparse, shape (n, words). Rows have length 1, or 0 where the item has no word,
        which makes it equally similar to every other.
    """
    # Imported here, because listing tasks needs none of them.
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = [bag for of_item in bags for bag in of_item]
    if not any(words):
        return csr_array((len(bags), 1))
    rows = TfidfVectorizer(analyzer=list).fit_transform(words)
    item = [index for index, of_item in enumerate(bags) for _ in of_item]
    # A sum points where the mean does.
    total = csr_array(([1.0] * len(item), (item, range(len(item)))), (len(bags), len(item)))
    return csr_array(normalize(total @ rows))


def word_features(captions: Sequence[Sequence[str]]) -> csr_array:
    """As :func:`bag_features` of the captions' :func:`word_bags`."""
    return bag_features(word_bags(captions))


def shared_words(captions: Sequence[Sequence[str]], reference: NeighborGraph, k: int) -> float:
    """As :func:`shared_bags` of the captions' :func:`word_bags`."""
    return shared_bags(word_bags(captions), reference, k)


def shared_bags(bags: Bags, reference: NeighborGraph, k: int) -> float:
    """The mutual k-nearest-neighbour alignment that bags of words alone have.

    It is the score of a model whose only layer is :func:`bag_features`, with cosine similarity
    and ties shared: sum_ij a_ij b_ij / (n k) of the weights that
    :func:`~prh_eval.alignment.metrics.overlap` speaks of. An item that shares words with fewer
    than k others is tied with all the rest, so that a whole graph would have n^2 entries; each
    block of items is scored and forgotten instead.

    Args:
        bags: The words of each caption of n items, at least one caption an item.
        reference: Graph of the reference, the same n items in the same order.
        k: Neighbourhood size, 1 <= k <= ``reference.k``.

    Returns:
        The score with the best layer of the reference, in [0, 1].

    Raises:
        ValueError: If the reference is of another number of items, or does not answer for k.
    """
    n = len(bags)
    if reference.n != n:
        raise ValueError(f"the reference is of {reference.n} items and the captions of {n}")
    features, reference = bag_features(bags), reference.trimmed(k)
    shared = torch.zeros(reference.layers, dtype=torch.float64)
    step = max(1, _SIMILARITIES // n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        nearness = _similarities(features, rows)
        nearness.diagonal(start).fill_(-torch.inf)
        weights = _table(*nearest(nearness, k, TIE_TOLERANCE)[:2], k, n)
        theirs = NeighborGraph(reference.indices[:, rows].cpu(), reference.tied[:, rows].cpu(), k)
        for layer, their_weights in enumerate(theirs.weights(k)):
            # Padding names no item; its weight is 0.
            found = weights.gather(1, theirs.indices[layer].clamp(min=0).long())
            shared[layer] += (found * their_weights).sum()
    return float(shared.max()) / (n * k)


def _similarities(features: csr_array, rows: slice) -> Tensor:
    """Of some items with all n: float64, shape (rows, n)."""
    chosen = features[rows]
    found = torch.empty(chosen.shape[0], features.shape[0], dtype=torch.float64)
    for start in range(0, len(found), _COMPARED):
        few = slice(start, start + _COMPARED)
        # Most pairs share some word, so a sparse product would be slower than one into a table.
        found[few] = torch.from_numpy(features @ chosen[few].T.toarray(order="C")).T
    return found


def _table(indices: Tensor, tied: Tensor, k: int, n: int) -> Tensor:
    """Neighbours' weights (rows, width), laid out by item: (rows, n)."""
    weights = NeighborGraph(indices[None], tied[None], k).weights(k)[0]
    table = torch.zeros(len(indices), n + 1, dtype=torch.float64)
    return table.scatter_(1, torch.where(indices < 0, n, indices).long(), weights)[:, :n]
