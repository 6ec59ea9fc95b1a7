"""Tiny language models saved the way the hub keeps them, for tests that load them for real."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)


def word_tokenizer(texts: Iterable[str], model_max_length: int = 64) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of the texts."""
    splitter = pre_tokenizers.WhitespaceSplit()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", "<pad>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=model_max_length,
    )


def tiny_model(kind: str, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """An untrained model of two layers and 16 dimensions: gpt_neox, gpt2, t5 or bert."""
    torch.manual_seed(seed)
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            )
        )
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        )
    if kind == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocabulary,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=2,
            )
        )
    if kind == "bert":
        return BertLMHeadModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
            )
        )
    raise ValueError(kind)


def save_model(folder: Path, texts: Iterable[str], kind: str = "gpt_neox", seed: int = 0) -> Path:
    """A model folder that ``lm_eval --model hf --model_args pretrained=FOLDER`` loads."""
    tokenizer = word_tokenizer(texts)
    model = tiny_model(kind, len(tokenizer), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
