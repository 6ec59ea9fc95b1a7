"""What captions' words alone say about which items are alike: the control for every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prh_eval.alignment.graph import NeighborGraph
from prh_eval.alignment.ranking import TIE_TOLERANCE, nearest

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Similarities that are held at once; ranking and weighing them takes about 150 bytes each.
_SIMILARITIES = 1 << 21


def word_features(captions: Sequence[Sequence[str]]) -> csr_array:
    """TF-IDF of the captions' words, by scikit-learn's TfidfVectorizer with its defaults.

    Where df of m captions have a word, its value in a caption is its count there times
    (ln((1 + m) / (1 + df)) + 1); captions are then normalised to length 1. There are no stop
    words, no n-grams and no limits on the vocabulary.

    Words are those of BERT's basic tokenizer (Devlin et al. 2019): in lower case, with their
    accents, split at white space and punctuation, every Chinese character a word of its own.
    Words of one letter count; what has neither letter nor digit is no word.

    Values are not clipped, whatever the protocol: clipping is for the few large dimensions of a
    network's activations, and the 0.95 quantile of a bag of words is 0.

    Args:
        captions: The captions of each of n items, at least one an item. The features of an item
            that has several are the mean of theirs.

    Returns:
        float64, sparse, shape (n, words). Rows have length 1, or 0 where the item has no word,
        which makes it equally similar to every other.
    """
    # Imported here, because listing tasks needs none of them.
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = _words([caption for texts in captions for caption in texts])
    if not any(words):
        return csr_array((len(captions), 1))
    rows = TfidfVectorizer(analyzer=list).fit_transform(words)
    item = [index for index, texts in enumerate(captions) for _ in texts]
    # A sum points where the mean does.
    total = csr_array(([1.0] * len(item), (item, range(len(item)))), (len(captions), len(item)))
    return csr_array(normalize(total @ rows))


def shared_words(captions: Sequence[Sequence[str]], reference: NeighborGraph, k: int) -> float:
    """The mutual k-nearest-neighbour alignment that the captions' words alone have.

    It is the score of a model whose only layer is :func:`word_features`, with cosine similarity
    and ties shared: sum_ij a_ij b_ij / (n k) of the weights that
    :func:`~prh_eval.alignment.metrics.overlap` speaks of. An item that shares words with fewer
    than k others is tied with all the rest, so that a whole graph would have n^2 entries; each
    block of items is scored and forgotten instead.

    Args:
        captions: The captions of each of n items, at least one an item.
        reference: Graph of the reference, the same n items in the same order.
        k: Neighbourhood size, 1 <= k <= ``reference.k``.

    Returns:
        The score with the best layer of the reference, in [0, 1].

    Raises:
        ValueError: If the reference is of another number of items, or does not answer for k.
    """
    n = len(captions)
    if reference.n != n:
        raise ValueError(f"the reference is of {reference.n} items and the captions of {n}")
    features, reference = word_features(captions), reference.trimmed(k)
    shared = torch.zeros(reference.layers, dtype=torch.float64)
    every = features.T.tocsr()
    step = max(1, _SIMILARITIES // n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        nearness = torch.from_numpy((features[rows] @ every).toarray())
        nearness.diagonal(start).fill_(-torch.inf)
        weights = _table(*nearest(nearness, k, TIE_TOLERANCE)[:2], k, n)
        theirs = NeighborGraph(reference.indices[:, rows].cpu(), reference.tied[:, rows].cpu(), k)
        for layer, their_weights in enumerate(theirs.weights(k)):
            # Padding names no item; its weight is 0.
            found = weights.gather(1, theirs.indices[layer].clamp(min=0).long())
            shared[layer] += (found * their_weights).sum()
    return float(shared.max()) / (n * k)


def _table(indices: Tensor, tied: Tensor, k: int, n: int) -> Tensor:
    """Neighbours' weights (rows, width), laid out by item: (rows, n)."""
    weights = NeighborGraph(indices[None], tied[None], k).weights(k)[0]
    table = torch.zeros(len(indices), n + 1, dtype=torch.float64)
    return table.scatter_(1, torch.where(indices < 0, n, indices).long(), weights)[:, :n]


def _words(texts: Sequence[str]) -> list[list[str]]:
    from tokenizers.normalizers import NFC, BertNormalizer
    from tokenizers.normalizers import Sequence as InOrder
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer = InOrder([NFC(), BertNormalizer(lowercase=True, strip_accents=False)])
    splitter = BertPreTokenizer()
    pieces = (splitter.pre_tokenize_str(normalizer.normalize_str(text)) for text in texts)
    return [[word for word, _ in of_text if any(map(str.isalnum, word))] for of_text in pieces]
