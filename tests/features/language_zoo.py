"""Tiny language models of many families, a word-level tokenizer, and the plain way to features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "under", "red", "blue", "mat", "moon"]
WORDS += ["sees", "and", "big", "small"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
VOCABULARY = len(SPECIAL) + len(WORDS)
POSITIONS = 24

CAPTIONS = [
    "a cat",
    "the big red dog ran under the blue moon and sat on the small mat",
    "the cat sat on the mat",
    "a cat",
    "moon",
    "the dog sees a cat and the cat sees the dog",
    "a unicorn",
]


def word_tokenizer(
    *, special: bool = False, padding_side: str = "right", model_max_length: int | None = None
) -> transformers.PreTrainedTokenizerFast:
    """Word-level; with ``special`` it writes <s> before and </s> after each text, as BERT does."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side=padding_side,
        **limit,
    )


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS
    )
    return transformers.GPT2LMHeadModel(config)


def _opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=16,
        pad_token_id=0,
    )
    return transformers.OPTForCausalLM(config)


def _bloom() -> nn.Module:
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)
    return transformers.BloomForCausalLM(config)


def _usual(
    config_class: type[transformers.PretrainedConfig], model_class: type[nn.Module]
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return model_class(
            config_class(
                vocab_size=VOCABULARY,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=32,
                max_position_embeddings=POSITIONS,
                pad_token_id=0,
            )
        )

    return make


def _mamba() -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0
    )
    return transformers.MambaForCausalLM(config)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def _bart_config() -> transformers.BartConfig:
    return transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
    )


ZOO: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,  # causal, learned positions
    "opt": _opt,  # causal, positions counted from the attention mask
    "bloom": _bloom,  # causal, ALiBi
    "gpt_neox": _usual(transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM),  # rotary
    "llama": _usual(transformers.LlamaConfig, transformers.LlamaForCausalLM),  # rotary, grouped
    "mamba": _mamba,  # state space, no attention
    "t5": _t5,  # sequence to sequence, relative positions
    "bart": lambda: transformers.BartForConditionalGeneration(_bart_config()),
    "bart_decoder": lambda: transformers.BartForCausalLM(_bart_config()),
    # Bidirectional, as lm-eval loads them: a causal class whose config says is_decoder = False.
    "bert": _usual(transformers.BertConfig, transformers.BertLMHeadModel),
    "roberta": _usual(transformers.RobertaConfig, transformers.RobertaForCausalLM),
    "masked": _usual(transformers.BertConfig, transformers.BertForMaskedLM),
    "headless": _usual(transformers.GPTNeoXConfig, transformers.GPTNeoXModel),
}


def tiny_model(kind: str) -> nn.Module:
    """A model in evaluation mode whose random weights are large enough for positions to matter."""
    torch.manual_seed(0)
    model = ZOO[kind]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return model.eval()


def plain_features(
    model: nn.Module,
    tokenizer: transformers.PreTrainedTokenizerBase,
    captions: Sequence[str],
    pooling: str = "mean",
) -> list[Tensor]:
    """The oracle: the model itself, head and all, on each caption alone, unpadded; float64."""
    rows: list[list[Tensor]] = []
    for caption in captions:
        ids = torch.tensor([tokenizer(caption)["input_ids"]])
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                states = model(
                    input_ids=ids, decoder_input_ids=ids[:, :1], output_hidden_states=True
                ).encoder_hidden_states
            else:
                states = model(input_ids=ids, output_hidden_states=True).hidden_states
        tokens = [state[0].double() for state in states]
        rows.append([t.mean(dim=0) if pooling == "mean" else t[-1] for t in tokens])
    return [torch.stack(layer) for layer in zip(*rows, strict=True)]


def assert_close(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Layer by layer within 1e-5 of the layer's largest value."""
    assert len(got) == len(wanted)
    for layer, oracle in zip(got, wanted, strict=True):
        assert layer.dtype == torch.float32
        assert layer.device.type == "cpu"
        assert layer.shape == oracle.shape
        assert (layer.double() - oracle).abs().max() <= 1e-5 * oracle.abs().max()
