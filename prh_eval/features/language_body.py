"""From a Hugging Face language model to the part that makes its hidden states, and its limits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prh_eval.errors import PrhEvalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Adapters that do part of their work in hooks on PEFT's wrapper or on the model with its head.
_WRAPPER_ADAPTERS = frozenset({"POLY", "SHADOW", "XLORA"})

# Packages whose quantised models only wrap the transformers model, as attribute `model`.
_QUANTISED_WRAPPERS = frozenset({"auto_gptq", "gptqmodel"})


def body(model: nn.Module) -> PreTrainedModel:
    """The part of a language model that makes hidden states, without the vocabulary head.

    Adapters that are injected into the model (LoRA and its like) stay active.

    Args:
        model: A transformers model with or without a head; causal, masked or sequence-to-sequence
            (then its encoder is returned); possibly wrapped by PEFT, AutoGPTQ or GPTQModel.

    Returns:
        A module of the same weights; nothing is copied.

    Raises:
        PrhEvalError: If the model is not a transformers model, or if an adapter would be dropped.
    """
    # Slow to import, so only where a model is at hand anyway.
    from transformers import PreTrainedModel

    inner: Any = unwrapped(model)
    part: Any = inner.get_encoder() if inner.config.is_encoder_decoder else inner.base_model
    if part is inner and inner.get_output_embeddings() is not None:
        # Llama4ForCausalLM states a name of its body that is another class's.
        part = getattr(inner, "model", inner)
    assert isinstance(part, PreTrainedModel)
    return part


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model in a wrapper, head and all; arguments and errors as for `body`."""
    from transformers import PreTrainedModel

    _refuse_dropped_adapters(model)
    inner: Any = model
    if not isinstance(inner, PreTrainedModel) and hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if type(inner).__module__.partition(".")[0] in _QUANTISED_WRAPPERS:
        inner = inner.model
    if not isinstance(inner, PreTrainedModel):
        raise PrhEvalError(
            f"a model of class {type(inner).__name__} gives no hidden states: a transformers "
            "PreTrainedModel is needed"
        )
    return inner


def _refuse_dropped_adapters(model: nn.Module) -> None:
    """Raise where an adapter would have no effect on the body called by itself."""
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        invoked = getattr(config, "alora_invocation_tokens", None)
        if config.is_prompt_learning or kind in _WRAPPER_ADAPTERS or invoked:
            kind = "activated LoRA" if invoked else kind
            raise PrhEvalError(
                f"adapter {name!r} is of kind {kind}, which acts outside the model's own layers "
                "and would be dropped: use one that is injected into them, such as LoRA"
            )


def without_cache(model: PreTrainedModel) -> dict[str, bool]:
    """The argument that spares a forward pass keys and values for later, where there is one."""
    accepted = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in accepted else {}


def embedding_rows(part: PreTrainedModel) -> int:
    """Number of token ids that the input embedding knows."""
    return int(_embedding(part).weight.shape[0])


def input_device(part: PreTrainedModel) -> torch.device:
    """Where token ids must lie: with the embedding, or where accelerate brings it to run."""
    embedding = _embedding(part)
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    hook = getattr(embedding, "_hf_hook", None)
    # Accelerate chains several hooks of one module in a SequentialHook.
    for each in getattr(hook, "hooks", [hook]):
        execution_device = getattr(each, "execution_device", None)
        if execution_device is not None:
            # A number n stands for the n-th accelerator, as in device maps.
            return torch.empty(0, device=execution_device).device
    raise PrhEvalError("the input embedding's weights are on the meta device: load them first")


def _embedding(part: Any) -> Any:
    """The module that turns token ids into vectors."""
    try:
        return part.get_input_embeddings()
    except NotImplementedError:
        # Lone decoders of sequence-to-sequence families (BartForCausalLM) have it one level down.
        return part.get_decoder().get_input_embeddings()


def context_length(
    part: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int | None:
    """The largest number of tokens, special tokens included, that a caption may have.

    Args:
        part: What `body` returned.
        tokenizer: Its ``model_max_length`` counts unless it is transformers' "unknown" (1e30).
        max_length: The user's limit; ``None`` for the one in the model's configuration.

    Returns:
        The smallest limit that is known, or ``None`` where there is none.
    """
    config = part.config.get_text_config()
    stated = (
        [max_length]
        if max_length is not None
        else [getattr(config, name, None) for name in ("n_positions", "max_position_embeddings")]
    )
    limits = [*stated, tokenizer.model_max_length, _position_rows(part)]
    # XLNet states -1 for "no limit".
    return min((int(limit) for limit in limits if limit and 0 < limit < 1e9), default=None)


def _position_rows(part: PreTrainedModel) -> int | None:
    """Usable rows of a BERT-like position table; RoBERTa's starts after the padding index."""
    for name, module in part.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None
