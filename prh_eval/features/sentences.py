"""Features of captions from a language model or sentence encoder that is a reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from prh_eval.errors import PrhEvalError
from prh_eval.features.language import LanguageFeatures, Pooling, language_features
from prh_eval.features.language_body import body, context_length
from prh_eval.features.language_loading import load_language_model, load_sentence_transformer
from prh_eval.features.memory import halved
from prh_eval.features.parts import Parts, resumed
from prh_eval.hub import cached_commit
from prh_eval.schema import LanguageEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class SentenceFeatures:
    """What a reference makes of n captions.

    Attributes:
        layers: One float32 tensor (n, width_l) on the CPU for each layer that was asked for.
        facts: What is known only once the encoder is loaded, in JSON values: ``commit``,
            ``parameters`` (of the encoder without a vocabulary head), ``input`` (class, prompt and
            the largest number of tokens), ``truncated_captions``.
    """

    layers: list[Tensor]
    facts: dict[str, Any]


def sentence_features(
    encoder: LanguageEncoder,
    captions: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    progress: bool = True,
    trust_remote_code: bool = False,
    parts: Parts | None = None,
) -> SentenceFeatures:
    """Load an encoder and run it over captions, each with the encoder's prompt before it.

    With the loader transformers the reading is `language_features`, that of the models which are
    scored; with sentence_transformers it is the encoder's own pooled output. Equal captions get
    equal bits.

    Args:
        encoder: What the reference's file says.
        captions: n texts, n >= 1.
        device: Where to compute.
        batch_size: Captions at once; halved, down to 1, when memory runs out.
        progress: Whether to show a progress bar.
        trust_remote_code: Whether the command line allows code from the model's repository.
        parts: Where finished batches are kept, and read if they are there.

    Raises:
        PrhEvalError: If the encoder cannot be loaded, cannot take captions, has no hidden state of
            a number in ``encoder.layers``, a caption has no token, or one caption alone does not
            fit in memory.
    """
    run = _own_output if encoder.loader == "sentence_transformers" else _hidden_states
    return run(encoder, captions, device, batch_size, progress, trust_remote_code, parts)


def _hidden_states(
    encoder: LanguageEncoder,
    captions: Sequence[str],
    device: torch.device | str,
    batch_size: int,
    progress: bool,
    trust_remote_code: bool,
    parts: Parts | None,
) -> SentenceFeatures:
    """The reading of the models that are scored."""
    model, tokenizer = load_language_model(encoder, trust_remote_code=trust_remote_code)
    commit = _commit(encoder, parts)
    module: nn.Module = model.to(device)  # type: ignore[arg-type]
    name = type(model).__name__
    prompt = encoder.prompt or ""
    texts = [prompt + caption for caption in captions]

    def run(texts: list[str], size: int, progress: bool, parts: Parts | None) -> LanguageFeatures:
        return language_features(
            module,
            tokenizer,
            texts,
            pooling=cast(Pooling, encoder.pooling),
            batch_size=size,
            max_length=encoder.max_length,
            progress=progress,
            parts=parts,
        )

    # One caption tells what is wrong before the many are run.
    try:
        first = _halving(lambda size: run(texts[:1], size, False, None), 1, device)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise PrhEvalError(
            f"the encoder {encoder.path!r} ({name}) takes no text: {error}"
        ) from error
    chosen = _numbers(encoder, len(first.layers))
    features = _halving(lambda size: run(texts, size, progress, parts), batch_size, device)
    return SentenceFeatures(
        [features.layers[number] for number in chosen],
        {
            "commit": commit,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "input": {
                "class": name,
                "prompt": prompt,
                "max_length": context_length(body(module), tokenizer, encoder.max_length),
            },
            "truncated_captions": len(features.truncated),
        },
    )


def _commit(encoder: LanguageEncoder, parts: Parts | None) -> str | None:
    """The commit that was loaded; parts of another one are not to be read."""
    commit = cached_commit(encoder.path, encoder.revision)
    if parts is not None:
        parts.commit = commit
    return commit


def _numbers(encoder: LanguageEncoder, count: int) -> list[int]:
    """The hidden states to keep, from 0."""
    if isinstance(encoder.layers, str):
        return list(range(count))
    for number in encoder.layers:
        if not -count <= number < count:
            raise PrhEvalError(
                f"encoder.layers names the hidden state {number} and {encoder.path!r} has {count}; "
                f"it should be from 0 to {count - 1}, or from -{count} to -1"
            )
    chosen = [number % count for number in encoder.layers]
    for place, number in enumerate(chosen):
        if number in chosen[:place]:
            raise PrhEvalError(
                f"encoder.layers names the hidden state {number} of {encoder.path!r} twice, as "
                f"{number} and {number - count}; each should be there once"
            )
    return chosen


def _own_output(
    encoder: LanguageEncoder,
    captions: Sequence[str],
    device: torch.device | str,
    batch_size: int,
    progress: bool,
    trust_remote_code: bool,
    parts: Parts | None,
) -> SentenceFeatures:
    """A sentence encoder's own pooled output."""
    model = load_sentence_transformer(encoder, trust_remote_code=trust_remote_code).to(device)
    commit = _commit(encoder, parts)
    usual = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    prompt = (usual or "") if encoder.prompt is None else encoder.prompt
    model.default_prompt_name = None
    if encoder.max_length is not None:
        model.max_seq_length = min(encoder.max_length, model.max_seq_length or encoder.max_length)
    # Longest first, so that what does not fit in memory is found at once.
    texts = sorted(set(captions), key=lambda text: (-len(text), text))

    def run(batch: Sequence[str]) -> list[Tensor]:
        output = model.encode(
            list(batch),
            prompt=prompt or None,
            batch_size=len(batch),
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=False,
        )
        return [output.to(torch.float32).cpu()]

    def run_all(size: int) -> Tensor:
        pieces = []
        with tqdm(
            total=len(texts), desc="Language features", unit="caption", disable=not progress
        ) as bar:
            for piece in resumed(run, texts, size, parts):
                pieces.append(piece[0])
                bar.update(len(piece[0]))
        return torch.cat(pieces)

    features = _halving(run_all, batch_size, device)
    place = {text: row for row, text in enumerate(texts)}
    truncated = _truncated(model, [prompt + caption for caption in captions])
    if truncated:
        logger.warning(
            "%d of %d captions are longer than %d tokens and were cut",
            truncated,
            len(captions),
            model.max_seq_length,
        )
    return SentenceFeatures(
        [features[[place[caption] for caption in captions]]],
        {
            "commit": commit,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "input": {
                "class": [type(module).__name__ for module in model],
                "prompt": prompt,
                "max_length": model.max_seq_length,
            },
            "truncated_captions": truncated,
        },
    )


def _truncated(model: SentenceTransformer, texts: list[str]) -> int | None:
    """How many texts are longer than the encoder's limit; None where its tokenizer does not say."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(model.tokenizer, PreTrainedTokenizerBase) or not model.max_seq_length:
        return None
    ids = model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    return sum(len(tokens) > model.max_seq_length for tokens in ids)


def _halving(run: Callable[[int], _T], batch_size: int, device: torch.device | str) -> _T:
    """Run with a batch size, halved as long as memory runs out."""
    from accelerate.utils.memory import clear_device_cache

    instead = "use another device, or set 'encoder.max_length'"
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            batch_size = halved(batch_size, error, device, "one caption", instead)
        clear_device_cache(garbage_collection=True)
