"""A tiny language model and its training on the coloured world's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from prh_eval.demo.world import ColouredWorld

CONTEXT = 64
BATCH_SIZE = 96
PEAK_LEARNING_RATE = 0.02
WARM_UP_STEPS = 50
FINAL_RATE = 0.1  # of the peak
WEIGHT_DECAY = 0.1
GRADIENT_NORM = 1.0

UNKNOWN, END, PADDING = "<unk>", "<eos>", "<pad>"


@dataclass(frozen=True)
class Shape:
    """The size of a model.

    Attributes:
        width: Size of a hidden state.
        layers: Number of blocks.
        heads: Attention heads of a block; they divide the width.
        inner: Width of a block's perceptron.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    inner: int = 128


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
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, shape: Shape | None = None
) -> GPTNeoXForCausalLM:
    """An untrained GPT-NeoX on the CPU.

    Args:
        tokenizer: What it reads.
        seed: Decides the weights; the caller's random state is left as it was.
        shape: The size; about 100 thousand parameters by default.
    """
    shape = shape or Shape()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # The customary 0.02 suits widths in the thousands; here it makes the start a plateau.
        initializer_range=shape.width**-0.5,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config)


def train(
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: ColouredWorld,
    *,
    steps: int,
    seed: int,
) -> Iterator[int]:
    """Train in place on fresh sentences with AdamW, warm-up and a linearly falling rate.

    Args:
        model: What is trained.
        tokenizer: Its tokenizer.
        world: Where the sentences come from.
        steps: Number of optimiser steps, at least 1.
        seed: Decides the sentences.

    Yields:
        The number of steps done: 0 before the first, then 1 to ``steps``.
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
    yield 0
    for step in range(1, steps + 1):
        loss = mean_loss(model, tokenizer, world.sentences(BATCH_SIZE, generator))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        yield step


def mean_loss(
    model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]
) -> torch.Tensor:
    """Cross-entropy of each next token, the end of the text included.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        sentences: At least one.

    Returns:
        Nats a token, a scalar that can be differentiated.
    """
    texts = [f"{sentence} {END}" for sentence in sentences]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    # No mask: padding stands on the right, where a causal model does not look.
    loss: torch.Tensor = model(input_ids=batch.input_ids, labels=labels).loss
    return loss
