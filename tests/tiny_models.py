"""Tiny language models of many families, and how to save one the way the hub keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast


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


def _gpt2(vocabulary: int, positions: int) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=positions
    )
    return transformers.GPT2LMHeadModel(config)


def _opt(vocabulary: int, positions: int) -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=positions,
        word_embed_proj_dim=16,
        pad_token_id=0,
    )
    return transformers.OPTForCausalLM(config)


def _bloom(vocabulary: int, positions: int) -> nn.Module:
    config = transformers.BloomConfig(vocab_size=vocabulary, hidden_size=16, n_layer=2, n_head=2)
    return transformers.BloomForCausalLM(config)


def _usual(
    config_class: type[transformers.PretrainedConfig], model_class: type[nn.Module]
) -> Callable[[int, int], nn.Module]:
    def make(vocabulary: int, positions: int) -> nn.Module:
        return model_class(
            config_class(
                vocab_size=vocabulary,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=32,
                max_position_embeddings=positions,
                pad_token_id=0,
            )
        )

    return make


def _mamba(vocabulary: int, positions: int) -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=vocabulary, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0
    )
    return transformers.MambaForCausalLM(config)


def _t5(vocabulary: int, positions: int) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def _bart_config(vocabulary: int, positions: int) -> transformers.BartConfig:
    return transformers.BartConfig(
        vocab_size=vocabulary,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=positions,
        pad_token_id=0,
    )


ZOO: dict[str, Callable[[int, int], nn.Module]] = {
    "gpt2": _gpt2,  # causal, learned positions
    "opt": _opt,  # causal, positions counted from the attention mask
    "bloom": _bloom,  # causal, ALiBi
    "gpt_neox": _usual(transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM),  # rotary
    "llama": _usual(transformers.LlamaConfig, transformers.LlamaForCausalLM),  # rotary, grouped
    "mamba": _mamba,  # state space, no attention
    "t5": _t5,  # sequence to sequence, relative positions
    "bart": lambda *size: transformers.BartForConditionalGeneration(_bart_config(*size)),
    "bart_decoder": lambda *size: transformers.BartForCausalLM(_bart_config(*size)),
    # Bidirectional, as lm-eval loads them: a causal class whose config says is_decoder = False.
    "bert": _usual(transformers.BertConfig, transformers.BertLMHeadModel),
    "roberta": _usual(transformers.RobertaConfig, transformers.RobertaForCausalLM),
    "masked": _usual(transformers.BertConfig, transformers.BertForMaskedLM),
    "headless": _usual(transformers.GPTNeoXConfig, transformers.GPTNeoXModel),
}


def tiny_model(kind: str, vocabulary: int, *, positions: int = 64, seed: int = 0) -> nn.Module:
    """A model in evaluation mode whose random weights are large enough for positions to matter."""
    torch.manual_seed(seed)
    model = ZOO[kind](vocabulary, positions)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.eval()


def save_model(folder: Path, texts: Iterable[str], kind: str = "gpt_neox", seed: int = 0) -> Path:
    """A model folder that ``lm_eval --model hf --model_args pretrained=FOLDER`` loads."""
    tokenizer = word_tokenizer(texts)
    model = tiny_model(kind, len(tokenizer), seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
