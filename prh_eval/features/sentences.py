"""Features of captions from a language model or sentence encoder that is a reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features.ahead import batched
from prh_eval.features.batching import Plan, tokenize
from prh_eval.features.language_body import body, context_length, embedding_rows
from prh_eval.features.language_loading import load_language_model, load_sentence_transformer
from prh_eval.features.language_loss import Run
from prh_eval.features.language_pooling import Pooling
from prh_eval.features.language_reader import Reader
from prh_eval.features.loading import chosen_layers
from prh_eval.features.parts import Parts, pieces, shared
from prh_eval.hub import cached_commit
from prh_eval.schema import LanguageEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

_PART = 256  # captions that a process loses when it is killed, beside those of one batch

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
    rank: int = 0,
    world_size: int = 1,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> SentenceFeatures:
    """Load an encoder and run it over captions, each with the encoder's prompt before it.

    With the loader transformers the reading is that of `language_features`, by which models are
    scored; with sentence_transformers it is the encoder's own pooled output. Equal captions get
    equal bits.

    Args:
        encoder: What the reference's file says.
        captions: n texts, n >= 1.
        device: Where to compute.
        batch_size: Captions at once; halved, down to 1, when memory runs out.
        progress: Whether to show a progress bar, in process 0.
        trust_remote_code: Whether the command line allows code from the model's repository.
        parts: Where finished pieces are kept, and those of an earlier run are found, whatever its
            number of processes.
        rank: This process's number, 0 <= rank < world_size.
        world_size: Number of processes. Each is given all captions, runs its share and returns all
            features, bit for bit those of one process with the same batches.
        all_gather: Concatenates equal-shaped tensors of all processes along the first dimension;
            needed where ``world_size`` > 1.

    Raises:
        PrhEvalError: If the encoder cannot be loaded, cannot take captions, has no hidden state of
            a number in ``encoder.layers``, a caption has no token, or one caption alone does not
            fit in memory.
        ValueError: If ``all_gather`` is missing.
    """
    run = _own_output if encoder.loader == "sentence_transformers" else _hidden_states
    sharing = {
        "progress": progress,
        "parts": parts,
        "rank": rank,
        "world_size": world_size,
        "all_gather": all_gather,
    }
    return run(encoder, captions, device, batch_size, trust_remote_code, sharing)


def _hidden_states(
    encoder: LanguageEncoder,
    captions: Sequence[str],
    device: torch.device | str,
    batch_size: int,
    trust_remote_code: bool,
    sharing: dict[str, Any],
) -> SentenceFeatures:
    """The reading of the models that are scored."""
    model, tokenizer = load_language_model(encoder, trust_remote_code=trust_remote_code)
    commit = _commit(encoder, sharing["parts"])
    module: nn.Module = model.to(device)  # type: ignore[arg-type]
    name = type(model).__name__
    prompt = encoder.prompt or ""
    try:
        part = body(module)
        limit, rows = context_length(part, tokenizer, encoder.max_length), embedding_rows(part)
        texts = [prompt + caption for caption in captions]
        tokens = tokenize(tokenizer, texts, limit=limit, rows=rows, add_special_tokens=None)
        runs = [Run(sequence) for sequence in tokens.sequences]
        pad_id = tokenizer.pad_token_id
        reader = Reader(
            part,
            # Padding is masked; its id need only be one that the model can embed.
            pad_id=pad_id if pad_id is not None and 0 <= pad_id < rows else 0,
            pooling=cast(Pooling, encoder.pooling),
            autocast_dtype=None,
            example=runs[-2:],
        )
        # One caption tells what is wrong before the many are run; if memory is too small, the
        # longest.
        (first,) = _batches(reader.features, runs, [range(1)], 1, device)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise PrhEvalError(
            f"the encoder {encoder.path!r} ({name}) takes no text: {error}"
        ) from error
    chosen = chosen_layers(encoder, len(first), "hidden state")
    lengths = [len(sequence) for sequence in tokens.sequences]

    def fitting(size: int, row: int) -> int:
        return Plan(lengths, size).stop(row) - row

    def run(missing: list[range]) -> Generator[list[Tensor], None, None]:
        for layers in _batches(reader.features, runs, missing, batch_size, device, fitting):
            yield [layers[number] for number in chosen]

    layers = _shared(run, len(runs), sharing)
    truncated = len(tokens.truncated)
    _warn_truncated(truncated, len(captions), limit, sharing["rank"])
    return SentenceFeatures(
        [layers.pop(0)[tokens.index] for _ in chosen],
        {
            "commit": commit,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "input": {"class": name, "prompt": prompt, "max_length": limit},
            "truncated_captions": truncated,
        },
    )


def _own_output(
    encoder: LanguageEncoder,
    captions: Sequence[str],
    device: torch.device | str,
    batch_size: int,
    trust_remote_code: bool,
    sharing: dict[str, Any],
) -> SentenceFeatures:
    """A sentence encoder's own pooled output."""
    model = load_sentence_transformer(encoder, trust_remote_code=trust_remote_code).to(device)
    commit = _commit(encoder, sharing["parts"])
    usual = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    prompt = (usual or "") if encoder.prompt is None else encoder.prompt
    model.default_prompt_name = None
    if encoder.max_length is not None:
        model.max_seq_length = min(encoder.max_length, model.max_seq_length or encoder.max_length)
    # Longest first, so that what does not fit in memory is found at once.
    texts = sorted(set(captions), key=lambda text: (-len(text), text))

    def encode(batch: list[str]) -> list[Tensor]:
        output = model.encode(
            batch,
            prompt=prompt or None,
            batch_size=len(batch),
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=False,
        )
        return [output.to(torch.float32)]

    def run(missing: list[range]) -> Generator[list[Tensor], None, None]:
        yield from _batches(encode, texts, missing, batch_size, device)

    (features,) = _shared(run, len(texts), sharing)
    place = {text: row for row, text in enumerate(texts)}
    truncated = _truncated(model, [prompt + caption for caption in captions])
    _warn_truncated(truncated, len(captions), model.max_seq_length, sharing["rank"])
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


def _commit(encoder: LanguageEncoder, parts: Parts | None) -> str | None:
    """The commit that was loaded; parts of another one are not to be read."""
    commit = cached_commit(encoder.path, encoder.revision)
    if parts is not None:
        parts.commit = commit
    return commit


def _warn_truncated(truncated: int | None, count: int, limit: int | None, rank: int) -> None:
    if truncated and rank == 0:
        logger.warning(
            "%d of %d captions are longer than %s tokens and were cut", truncated, count, limit
        )


def _shared(
    run: Callable[[list[range]], Generator[list[Tensor], None, None]],
    count: int,
    sharing: dict[str, Any],
) -> list[Tensor]:
    cut = pieces(count, _PART)
    return shared(run, cut, description="Language features", unit="caption", **sharing)


def _batches(
    run: Callable[[list[_T]], list[Tensor]],
    items: Sequence[_T],
    missing: Sequence[range],
    batch_size: int,
    device: torch.device | str,
    fitting: Callable[[int, int], int] = lambda batch_size, row: batch_size,
) -> Iterator[list[Tensor]]:
    """Some pieces of all items through an encoder, as `batched` says."""
    return batched(
        lambda rows: run([items[row] for row in rows]),
        (row for piece in missing for row in piece),
        map(len, missing),
        batch_size,
        device=device,
        what=lambda row: "one caption",
        instead="use another device, or set 'encoder.max_length'",
        fitting=fitting,
    )
