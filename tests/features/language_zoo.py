"""Captions, their tokenizer, and the plain way to features of the tiny models."""

from __future__ import annotations

from collections.abc import Sequence

import tiny_models
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


def tiny_model(kind: str) -> nn.Module:
    """One of ``tiny_models.ZOO`` that knows the tokenizer's words, with few positions."""
    return tiny_models.tiny_model(kind, VOCABULARY, positions=POSITIONS)


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
