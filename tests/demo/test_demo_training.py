"""The tiny models: every name in their vocabulary, ordinary folders, training that learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from prh_eval.demo.ladder import FAMILIES, LARGE, SMALL
from prh_eval.demo.training import build_model, build_tokenizer, mean_loss, train
from prh_eval.demo.world import ColouredWorld, coloured_world


@pytest.fixture(scope="module")
def world() -> ColouredWorld:
    return coloured_world()


@pytest.fixture(scope="module")
def tokenizer(world: ColouredWorld) -> PreTrainedTokenizerFast:
    return build_tokenizer(world)


def test_every_name_survives_the_tokenizer(
    world: ColouredWorld, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for reader in (tokenizer, loaded):
        sentences = [f"{name} looks like {name} ." for name in world.names]
        for text in (*world.names, *sentences):
            tokens = reader(text).input_ids
            assert reader.unk_token_id not in tokens
            assert len(tokens) == len(text.split())  # one a word, no special tokens
            assert reader.decode(tokens) == text
    assert loaded.pad_token_id not in (None, loaded.eos_token_id)
    assert loaded("ultraviolet").input_ids == [loaded.unk_token_id]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_familys_models_have_their_sizes(
    tokenizer: PreTrainedTokenizerFast, architecture: str
) -> None:
    small, large = (build_model(architecture, size, tokenizer, seed=0) for size in (SMALL, LARGE))
    assert 1.5e4 < small.num_parameters() < 3.5e4
    assert 0.8e5 < large.num_parameters() < 1.3e5
    assert small.config.model_type == large.config.model_type == architecture
    assert small.get_input_embeddings().weight.shape == (len(tokenizer), SMALL.width)
    output = large.get_output_embeddings().weight
    assert output.data_ptr() == large.get_input_embeddings().weight.data_ptr()  # tied


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_saved_folder_is_an_ordinary_one(
    world: ColouredWorld, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, architecture: str
) -> None:
    model = build_model(architecture, SMALL, tokenizer, seed=0)
    list(train(model, tokenizer, world, steps=2, seed=0))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(loaded) is type(model)
    batch = AutoTokenizer.from_pretrained(tmp_path)(
        ["sea blue looks like", "rust"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = loaded(**batch).logits
        expected = model(input_ids=batch.input_ids).logits  # as it is trained, without a mask
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_mean_over_real_tokens(
    world: ColouredWorld, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model("gpt_neox", LARGE, tokenizer, seed=0)
    sentences = ["rust looks like brick .", "bright sky blue looks like robin's egg blue ."]
    total, tokens = 0.0, 0
    for sentence in sentences:
        ids = torch.tensor([*tokenizer(sentence).input_ids, tokenizer.eos_token_id])
        with torch.no_grad():
            chances = model(input_ids=ids[None]).logits[0].double().log_softmax(dim=-1)
        total -= sum(chances[i, ids[i + 1]].item() for i in range(len(ids) - 1))
        tokens += len(ids) - 1
    assert mean_loss(model, tokenizer, sentences) == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_few_steps_lower_the_loss_on_sentences_not_trained_on(
    world: ColouredWorld, tokenizer: PreTrainedTokenizerFast, architecture: str
) -> None:
    model = build_model(architecture, SMALL, tokenizer, seed=0)
    held_out = world.sentences(256, torch.Generator().manual_seed(99))
    before = mean_loss(model, tokenizer, held_out)
    list(train(model, tokenizer, world, steps=20, seed=0))
    assert before == pytest.approx(math.log(len(tokenizer)), abs=1)
    assert mean_loss(model, tokenizer, held_out) < before - 1


def test_the_tokens_are_counted(world: ColouredWorld, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("gpt_neox", SMALL, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(7)
    expected = [(0, 0)]
    for step in (1, 2, 3):
        # A word a token, and one for the end of the text.
        words = sum(len(sentence.split()) + 1 for sentence in world.sentences(64, generator))
        expected.append((step, expected[-1][1] + words))
    assert list(train(model, tokenizer, world, steps=3, seed=7)) == expected


def test_a_seed_decides_everything(
    world: ColouredWorld, tokenizer: PreTrainedTokenizerFast
) -> None:
    def weights(model_seed: int, data_seed: int) -> list[torch.Tensor]:
        torch.manual_seed(torch.seed())  # whatever the caller's random state is
        # GPT-2, for by its own settings it would be trained with dropout.
        model = build_model("gpt2", SMALL, tokenizer, model_seed)
        list(train(model, tokenizer, world, steps=3, seed=data_seed))
        return [weight.detach() for weight in model.parameters()]

    first, again = weights(5, 6), weights(5, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (weights(4, 6), weights(5, 7)):
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_callers_random_state_is_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_model("gpt_neox", SMALL, tokenizer, seed=0)
    assert torch.equal(torch.rand(3), expected)
