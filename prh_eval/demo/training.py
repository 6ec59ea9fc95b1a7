"""Tiny language models of several architectures, and their training on the world's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prh_eval.demo.world import ColouredWorld

CONTEXT = 64
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.02
WARM_UP_STEPS = 50
FINAL_RATE = 0.1  # of the peak
WEIGHT_DECAY = 0.1
GRADIENT_NORM = 1.0
HEAD_WIDTH = 16

UNKNOWN, END, PADDING = "<unk>", "<eos>", "<pad>"


@dataclass(frozen=True)
class Size:
    """The size of a model.

    Attributes:
        width: Size of a hidden state, a multiple of 16: attention heads have that width.
        layers: Number of blocks.
    """

    width: int
    layers: int


def build_tokenizer(world: ColouredWorld) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of the world's text; it adds no special tokens."""
    words = sorted({word for name in world.names for word in name.split()})
    vocabulary = [UNKNOWN, END, PADDING, "looks", "like", ".", *words]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token=END,
        pad_token=PADDING,
        padding_side="right",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],  # no segments, which GPT-2 would read
        clean_up_tokenization_spaces=False,
    )


def build_model(
    architecture: str, size: Size, tokenizer: PreTrainedTokenizerFast, seed: int
) -> PreTrainedModel:
    """An untrained model on the CPU.

    Args:
        architecture: transformers' name of it (``model_type``).
        size: Its size; the blocks' perceptrons have twice its width where that can be chosen.
        tokenizer: What it reads.
        seed: Decides the weights; the caller's random state is left as it was.
    """
    width, heads = size.width, size.width // HEAD_WIDTH
    # The customary 0.02 suits widths in the thousands; here it makes the start a plateau.
    spread = width**-0.5
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=spread,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
        **{
            "gemma": {"num_key_value_heads": heads, "head_dim": HEAD_WIDTH},
            "gpt2": {"n_inner": 2 * width},
            "mpt": {"expansion_ratio": 2, "max_seq_len": CONTEXT},
            "opt": {"ffn_dim": 2 * width, "word_embed_proj_dim": width, "init_std": spread},
        }.get(architecture, {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval()  # no dropout: every sentence is a fresh one
    return model


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    world: ColouredWorld,
    *,
    steps: int,
    seed: int,
) -> Iterator[tuple[int, int]]:
    """Train in place on fresh sentences with AdamW, warm-up and a linearly falling rate.

    Args:
        model: What is trained.
        tokenizer: Its tokenizer.
        world: Where the sentences come from.
        steps: Number of optimiser steps, at least 1.
        seed: Decides the sentences.

    Yields:
        The number of steps done and of tokens read so far: before the first step, then after each.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda done: (
            min(1.0, (done + 1) / WARM_UP_STEPS) * (1 - (1 - FINAL_RATE) * min(1.0, done / steps))
        ),
    )
    tokens = 0
    yield 0, tokens
    for step in range(1, steps + 1):
        ids, real = _encode(tokenizer, world.sentences(BATCH_SIZE, generator))
        loss = _mean_loss(model, ids, real)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        tokens += int(real.sum())
        yield step, tokens


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> float:
    """Cross-entropy of each next token, the end of the text included.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        sentences: At least one.

    Returns:
        Nats a token.
    """
    return _mean_loss(model, *_encode(tokenizer, sentences)).item()


def _encode(
    tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of sentences with their ends, and which of them are not padding."""
    texts = [f"{sentence} {END}" for sentence in sentences]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask.bool()


def _mean_loss(model: PreTrainedModel, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    # No mask: padding stands on the right, where a causal model does not look.
    logits = model(input_ids=ids).logits[:, :-1]
    following = real[:, 1:]
    return cross_entropy(logits[following], ids[:, 1:][following])
