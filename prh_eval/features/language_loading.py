"""Loading a language model or sentence encoder that is a reference."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from prh_eval.errors import PrhEvalError
from prh_eval.features.language_body import body
from prh_eval.features.loading import (
    check_remote_code,
    encoder_folder,
    encoder_name,
    failed,
)
from prh_eval.schema import LanguageEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Modules of a base model that make no hidden states, and that causal checkpoints lack.
_UNREAD = re.compile(r"(^|\.)pooler\.")


def load_language_model(
    encoder: LanguageEncoder, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model, without its vocabulary head, and its tokenizer.

    Args:
        encoder: What the reference's file says; its loader is ``transformers``.
        trust_remote_code: Whether the command line allows code from the model's repository, which
            is run only if the file asks for it too.

    Returns:
        The model in evaluation mode, on the CPU, and its tokenizer.

    Raises:
        PrhEvalError: If it cannot be found, reached or read, needs code that is not allowed, or
            lacks weights of the part that makes hidden states.
    """
    from transformers import AutoModel, AutoTokenizer

    check_remote_code(encoder, trust_remote_code)
    path, what = str(encoder_folder(encoder) or encoder.path), encoder_name(encoder)
    options = {"revision": encoder.revision, "trust_remote_code": encoder.trust_remote_code}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **options)
        model, report = AutoModel.from_pretrained(
            path, dtype=getattr(torch, encoder.dtype), output_loading_info=True, **options
        )
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise failed(encoder, error) from error
    _refuse_made_up(model, sorted(report["missing_keys"]), what)
    return model.eval(), tokenizer


def load_sentence_transformer(
    encoder: LanguageEncoder, *, trust_remote_code: bool = False
) -> SentenceTransformer:
    """Load a sentence encoder with all of its own modules.

    Args:
        encoder: What the reference's file says; its loader is ``sentence_transformers``.
        trust_remote_code: As for `load_language_model`.

    Returns:
        The encoder in evaluation mode, on the CPU.

    Raises:
        PrhEvalError: If sentence_transformers is not installed, or the encoder cannot be found,
            reached or read, needs code that is not allowed, or is no sentence encoder.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.util import is_sentence_transformer_model
    except ImportError as error:
        raise PrhEvalError(
            "encoder.loader is sentence_transformers, which cannot be imported "
            f"({error}); install it with `pip install 'prh_eval[sentence-transformers]'`"
        ) from error
    check_remote_code(encoder, trust_remote_code)
    path, what = str(encoder_folder(encoder) or encoder.path), encoder_name(encoder)
    try:
        # Of any other model it would make one, whose pooled output is not the model's own.
        own = is_sentence_transformer_model(path, revision=encoder.revision)
        if own:
            model = SentenceTransformer(
                path,
                revision=encoder.revision,
                trust_remote_code=encoder.trust_remote_code,
                device="cpu",
            )
    # Any failure here comes from the person's path, revision or network, whatever its class.
    except Exception as error:
        raise failed(encoder, error) from error
    if not own:
        raise PrhEvalError(
            f"{what} is no sentence encoder (it has no modules.json); 'encoder.loader' should be "
            "transformers, with 'encoder.pooling' mean or last"
        )
    loaded: SentenceTransformer = model.to(getattr(torch, encoder.dtype)).eval()
    return loaded


def _refuse_made_up(model: PreTrainedModel, missing: list[str], what: str) -> None:
    """Raise where weights are random because the checkpoint has none for them."""
    read = {id(weight) for weight in body(model).state_dict(keep_vars=True).values()}
    weights = model.state_dict(keep_vars=True)
    lacking = [
        name for name in missing if id(weights.get(name)) in read and not _UNREAD.search(name)
    ]
    if lacking:
        raise PrhEvalError(
            f"{what} has no weights for {lacking[0]} (the first of {len(lacking)}), so that its "
            f"features would be random; its architecture, {type(model).__name__}, should be that "
            "of the checkpoint"
        )
