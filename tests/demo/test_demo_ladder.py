"""The ladder: what is planned is trained, saved and told truly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prh_eval.demo.ladder import FAMILIES, LARGE, SMALL, Model, climb, plan


def test_each_family_has_a_small_model_and_two_checkpoints_of_a_larger_one() -> None:
    planned = plan(families=len(FAMILIES), steps=300)
    assert planned[:4] == [
        ("gpt_neox", LARGE, [0, 100, 300]),
        ("gpt_neox", SMALL, [300]),
        ("gpt2", LARGE, [100, 300]),
        ("gpt2", SMALL, [300]),
    ]
    assert len(planned) == 2 * len(FAMILIES) and len(set(FAMILIES.values())) >= 8
    # One untrained model, which the test over families does not count.
    assert sum(checkpoints.count(0) for _, _, checkpoints in planned) == 1


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_few_steps_are_enough(steps: int) -> None:
    for _, _, checkpoints in plan(families=2, steps=steps):
        assert checkpoints == sorted(set(checkpoints)) and checkpoints[-1] == steps


def trained(folder: Path, families: int, seed: int) -> list[Model]:
    return [model for model in climb(folder, plan(families, 2), seed) if model is not None]


def test_what_is_saved_is_what_is_told(tmp_path: Path) -> None:
    models = trained(tmp_path, families=2, seed=0)
    assert [model.name for model in models] == [
        *("gpt_neox-64-step0", "gpt_neox-64-step1", "gpt_neox-64-step2", "gpt_neox-32-step2"),
        *("gpt2-64-step1", "gpt2-64-step2", "gpt2-32-step2"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(m.name for m in models)
    for model in models:
        config = json.loads((tmp_path / model.name / "config.json").read_text())
        assert FAMILIES[config["model_type"]] == model.family
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / model.name)
        assert loaded.num_parameters() == model.parameters
        assert loaded.config.hidden_size == model.size.width
        assert loaded.config.num_hidden_layers == model.size.layers
        assert (model.tokens == 0) == (model.steps == 0)
        # 64 sentences a step, of 6 to 15 tokens.
        assert 6 * 64 * model.steps <= model.tokens <= 15 * 64 * model.steps
        assert str(model.steps) in model.title and model.family in model.title
    assert len({model.title for model in models}) == len(models)
    losses = [model.loss for model in models[:3]]
    assert losses == sorted(losses, reverse=True) and losses[2] < losses[0] - 0.1


def test_a_seed_decides_every_model(tmp_path: Path) -> None:
    def weights(folder: str, families: int, seed: int) -> dict[str, torch.Tensor]:
        models = trained(tmp_path / folder, families, seed)
        return {
            model.name: AutoModelForCausalLM.from_pretrained(tmp_path / folder / model.name)
            .get_input_embeddings()
            .weight.detach()
            for model in models
        }

    first, other = weights("first", 1, 5), weights("other", 1, 6)
    more = weights("more", 2, 5)  # the first family's are the same
    for name, values in first.items():
        assert torch.equal(values, more[name])
        assert not torch.equal(values, other[name])
