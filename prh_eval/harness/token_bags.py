"""The captions' tokens as a model's own tokenizer makes them, kept for references of later days."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prh_eval import store
from prh_eval.features.batching import contents
from prh_eval.resources import cache_folder

# Of each item, of each of its captions: token ids, whole and without special tokens.
TokenBags = list[list[tuple[int, ...]]]

log = logging.getLogger(__name__)


def token_bags(tokenizer: Any, items: Sequence[Sequence[str]]) -> TokenBags:
    """The tokens of each caption of each item.

    Args:
        tokenizer: A Hugging Face tokenizer.
        items: The captions of each item.
    """
    tokens = iter(contents(tokenizer, [caption for captions in items for caption in captions]))
    return [list(itertools.islice(tokens, len(captions))) for captions in items]


def keep_tokens(header: Mapping[str, Any], bags: TokenBags) -> None:
    """Write them if the cache folder allows it; models of one tokenizer share a file.

    Args:
        header: Of a model's graphs.
        bags: What its tokenizer makes of the captions.
    """
    captions = [caption for of_item in bags for caption in of_item]
    ids = [token for caption in captions for token in caption]
    lengths = [len(caption) for caption in captions]
    counts = [len(of_item) for of_item in bags]
    path = _path(header)
    try:
        with store.locked(path), store.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, ids=_small(ids), lengths=_small(lengths), counts=_small(counts)
            )
    except OSError as error:
        store.warn_unwritable(path, error)


def kept_tokens(header: Mapping[str, Any]) -> TokenBags | None:
    """What was kept beside a model's graphs; None where nothing was, or it is damaged.

    Args:
        header: Of the model's graphs.
    """
    path = _path(header)
    try:
        # A zip file has a checksum of everything in it.
        with np.load(path, allow_pickle=False) as file:
            ids, lengths, counts = (file[name].tolist() for name in ("ids", "lengths", "counts"))
    except FileNotFoundError:
        return None
    except Exception as error:  # of NumPy, zipfile and zlib there are a dozen
        log.warning("%s is damaged, and the tokens in it are left out: %s", path, error)
        return None
    every = iter(ids)
    of_captions = iter([tuple(itertools.islice(every, count)) for count in lengths])
    return [list(itertools.islice(of_captions, count)) for count in counts]


def _small(numbers: list[int]) -> npt.NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def _path(header: Mapping[str, Any]) -> Path:
    identity = store.fingerprint([header["tokenizer"], header["pairs"]["captions"]])
    return cache_folder() / "tokens" / f"{identity[:32]}.npz"
