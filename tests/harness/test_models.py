"""Kinds of models and model arguments, through lm-eval's own loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import save_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from prh_eval import resources
from prh_eval.errors import PrhEvalError

TASK = "prh_align_color"
ITEMS = 60


def run(model: Path, batch_size: int | str = 7, **model_args: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(resources.folder("tasks")), include_defaults=False)
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"} | model_args,
        tasks=[TASK],
        task_manager=manager,
        device="cpu",
        batch_size=batch_size,
        limit=ITEMS,
        bootstrap_iters=0,
    )


def recorded(result: dict[str, Any]) -> dict[str, Any]:
    return result["configs"][TASK]["metadata"]["alignment"]


def grid(result: dict[str, Any]) -> np.ndarray:
    return np.array(recorded(result)["layer_grid"])


def kept_neighbors(folder: Path) -> torch.Tensor:
    from prh_eval.store import read_artifact

    (path,) = (folder / "models").glob("*.safetensors")
    return read_artifact(path).graph.indices[..., :10]


def direct_neighbors(model: Any, tokenizer: Any, names: list[str], **tokenize: Any) -> torch.Tensor:
    """Ten nearest in each layer, from the model called on one caption at a time."""
    rows = []
    with torch.no_grad():
        for text in names:
            encoded = tokenizer(text, return_tensors="pt", **tokenize)
            inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            states = model(**inputs, output_hidden_states=True).hidden_states
            rows.append(torch.stack([state[0].double().mean(dim=0) for state in states]))
    features = torch.stack(rows, dim=1)
    bound = features.abs().flatten().sort().values[int(0.95 * features.numel())]
    features = torch.nn.functional.normalize(features.clamp(-bound, bound), dim=-1)
    similarity = features @ features.mT
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return similarity.topk(10).indices


def shared(a: torch.Tensor, b: torch.Tensor) -> float:
    """The least share of neighbours in common of any layer; ties keep it a little under 1."""
    common = (a.long()[..., :, None] == b[..., None, :]).any(-1).double()
    return float(common.mean(dim=(1, 2)).min())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "t5", "bert"])
def test_causal_encoder_decoder_and_masked_models(
    kind: str, colors: dict[str, str], tmp_path: Path, cache_folder: Path
) -> None:
    folder = save_model(tmp_path / kind, colors, kind)
    names = list(colors)[:ITEMS]
    result = run(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    body = model.get_encoder() if kind == "t5" else model
    assert recorded(result)["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert shared(kept_neighbors(cache_folder), direct_neighbors(body, tokenizer, names)) > 0.97


def test_batch_size_auto_gives_the_same(model_folder: Path) -> None:
    assert grid(run(model_folder, "auto")) == pytest.approx(grid(run(model_folder, 1)), abs=2e-3)


def test_a_lora_adapter_counts(
    model_folder: Path, colors: dict[str, str], tmp_path: Path, cache_folder: Path
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["query_key_value"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    result = run(model_folder, peft=str(tmp_path / "adapter"))
    names = list(colors)[:ITEMS]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    merged = adapted.merge_and_unload().eval()
    kept = kept_neighbors(cache_folder)
    assert shared(kept, direct_neighbors(merged, tokenizer, names)) > 0.97
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    assert shared(kept, direct_neighbors(plain, tokenizer, names)) < 0.9
    assert recorded(result)["model"]["peft"] == str(tmp_path / "adapter")


def test_a_prompt_tuning_adapter_is_refused(model_folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(base, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(PrhEvalError, match="PROMPT_TUNING"):
        run(model_folder, peft=str(tmp_path / "prompt"))


def test_special_tokens_are_the_tokenizers_unless_add_bos_token_is_set(
    model_folder: Path, colors: dict[str, str], tmp_path: Path, cache_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    plain: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model_folder)
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(tmp_path / "with_special")
    names = list(colors)[:ITEMS]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    default = run(model_folder, tokenizer=str(tmp_path / "with_special"))
    assert recorded(default)["model"]["add_bos_token"] is None
    with_special = direct_neighbors(model, tokenizer, names)
    assert shared(kept_neighbors(cache_folder), with_special) > 0.97
    for path in (cache_folder / "models").glob("*.safetensors"):
        path.unlink()
    # Handed over as it is: transformers gives a tokenizer it loads the same setting itself.
    run(model_folder, tokenizer=tokenizer, add_bos_token=False)
    assert shared(kept_neighbors(cache_folder), direct_neighbors(model, plain, names)) > 0.97


def test_max_length_cuts_with_one_warning(
    model_folder: Path, colors: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    long = sum(len(name.split()) > 2 for name in list(colors)[:ITEMS])
    with caplog.at_level("WARNING"):
        result = run(model_folder, max_length=2)
    cut = [r.getMessage() for r in caplog.records if "were cut" in r.getMessage()]
    assert len(cut) == 1
    assert cut[0].startswith(f"{long} of {ITEMS} captions")
    assert recorded(result)["model"]["truncated_captions"] == long


def test_dtype_is_recorded_and_half_precision_never_ranks(model_folder: Path) -> None:
    full, half = run(model_folder), run(model_folder, dtype="bfloat16")
    assert recorded(half)["model"]["dtype"] == "bfloat16"
    assert grid(half) == pytest.approx(grid(full), abs=0.03)


def test_an_unwritable_cache_folder_is_one_warning(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = run(model_folder)["results"]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRH_EVAL_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level("WARNING"):
        assert run(model_folder)["results"] == expected
    assert "cannot write to the cache folder" in caplog.text


def test_a_damaged_model_graph_is_written_anew(model_folder: Path, cache_folder: Path) -> None:
    from prh_eval.store import read_artifact

    expected = run(model_folder)["results"]
    for path in cache_folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-5])
    assert run(model_folder)["results"] == expected
    for path in cache_folder.rglob("*.safetensors"):
        read_artifact(path)
