"""Captions through a reference's language model, against the same model called directly."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from features.language_zoo import (
    CAPTIONS,
    POSITIONS,
    VOCABULARY,
    assert_close,
    plain_features,
    tiny_model,
    word_tokenizer,
)
from tiny_hub import cache_model
from torch import Tensor, nn

from prh_eval.errors import PrhEvalError
from prh_eval.features import sentences
from prh_eval.features.language_loading import load_language_model, load_sentence_transformer
from prh_eval.features.parts import Parts
from prh_eval.features.sentences import SentenceFeatures, sentence_features
from prh_eval.schema import LanguageEncoder

KNOWN = [caption for caption in CAPTIONS if "unicorn" not in caption]
MANY = [f"{a} {b} {c}" for a in KNOWN for b in KNOWN for c in ("moon", "cat", "dog")]
DISTINCT = len({tuple(caption.split()[:POSITIONS]) for caption in MANY})


def saved(folder: Path, kind: str = "gpt_neox") -> tuple[nn.Module, Any]:
    """A model with its head and its tokenizer, saved in a folder."""
    model, tokenizer = tiny_model(kind), word_tokenizer(special=kind == "bert")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def described(path: Path | str, **changes: Any) -> LanguageEncoder:
    return LanguageEncoder(**{"path": str(path), "pooling": "mean", **changes})


def features(path: Path | str, captions: Sequence[str] = CAPTIONS, **options: Any) -> Any:
    fields = {key: options.pop(key) for key in list(options) if key in LanguageEncoder.model_fields}
    return sentence_features(described(path, **fields), captions, **{"progress": False, **options})


def refusal(path: Path | str, captions: Sequence[str] = CAPTIONS, **options: Any) -> str:
    with pytest.raises(PrhEvalError) as caught:
        features(path, captions, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of every batch that reaches an input embedding."""
    seen: list[int] = []
    forward = nn.Embedding.forward

    def counted(module: nn.Embedding, ids: Tensor) -> Tensor:
        if module.num_embeddings == VOCABULARY:
            seen.append(len(ids))
        return forward(module, ids)

    monkeypatch.setattr(nn.Embedding, "forward", counted)
    return seen


# Hidden states through transformers


@pytest.mark.parametrize("kind", ["gpt_neox", "bert", "t5", "mamba", "headless"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_hidden_states_are_those_of_the_model_itself(
    kind: str, pooling: str, tmp_path: Path
) -> None:
    model, tokenizer = saved(tmp_path, kind)
    result = features(tmp_path, pooling=pooling, batch_size=3)
    assert_close(result.layers, plain_features(model, tokenizer, CAPTIONS, pooling))
    assert torch.equal(result.layers[0][0], result.layers[0][3])
    assert not result.layers[0].is_inference()


def test_layers_are_chosen_by_number(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path)
    oracle = plain_features(model, tokenizer, CAPTIONS)
    for layers in ([0, 2], [-1], [2, 0, -2]):
        result = features(tmp_path, layers=layers)
        assert_close(result.layers, [oracle[number] for number in layers])


@pytest.mark.parametrize("number", [3, -4])
def test_a_layer_that_is_not_there_is_named_before_the_run(
    number: int, tmp_path: Path, sizes: list[int]
) -> None:
    saved(tmp_path)
    message = refusal(tmp_path, MANY, layers=[0, number])
    assert f"hidden state {number} and {str(tmp_path)!r} has 3; it should be from 0 to 2" in message
    assert sum(sizes) < len(MANY) / 2


def test_a_layer_that_is_named_twice_by_two_numbers(tmp_path: Path) -> None:
    saved(tmp_path)
    assert "the hidden state 2" in refusal(tmp_path, layers=[2, -1])


def test_the_prompt_stands_before_every_caption(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path)
    prompted = [f"the moon sees {caption}" for caption in CAPTIONS]
    result = features(tmp_path, prompt="the moon sees ")
    assert_close(result.layers, plain_features(model, tokenizer, prompted))
    assert result.facts["input"]["prompt"] == "the moon sees "


def test_facts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = saved(tmp_path)
    result = features(tmp_path, max_length=6)
    assert result.facts == {
        "commit": None,
        "parameters": sum(weight.numel() for weight in model.gpt_neox.parameters()),
        "input": {"class": "GPTNeoXModel", "prompt": "", "max_length": 6},
        "truncated_captions": 2,
    }
    assert json.loads(json.dumps(result.facts)) == result.facts
    cut = [" ".join(caption.split()[:6]) for caption in CAPTIONS]
    assert_close(result.layers, plain_features(model, tokenizer, cut))
    assert "2 of 7 captions are longer than 6 tokens" in caplog.text
    assert features(tmp_path).facts["input"]["max_length"] == POSITIONS
    assert features(tmp_path).facts["truncated_captions"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_computes_in_the_type_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path)
    oracle = plain_features(model.to(getattr(torch, dtype)), tokenizer, CAPTIONS)
    # One caption is never padded.
    for row, caption in enumerate(CAPTIONS):
        result = features(tmp_path, [caption], dtype=dtype)
        for got, wanted in zip(result.layers, oracle, strict=True):
            assert torch.equal(got[0], wanted[row].float())


def test_memory_that_runs_out_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = saved(tmp_path)
    oracle = plain_features(model, tokenizer, CAPTIONS)
    longest = max(len(caption.split()) for caption in CAPTIONS)
    limit_tokens(monkeypatch, 2 * longest)
    result = features(tmp_path, batch_size=5)
    assert_close(result.layers, oracle)
    assert [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()] == [
        "out of memory on cpu: batches of 3 now",
        "out of memory on cpu: batches of 2 now",
    ]


def test_a_caption_that_never_fits_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    limit_tokens(monkeypatch, 0)
    assert "one caption does not fit into the memory of cpu" in refusal(tmp_path)


def limit_tokens(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Fail as CUDA does on larger batches."""
    forward = nn.Embedding.forward

    def limited(module: nn.Embedding, ids: Tensor) -> Tensor:
        if ids.numel() > most and module.num_embeddings == VOCABULARY:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")
        return forward(module, ids)

    monkeypatch.setattr(nn.Embedding, "forward", limited)


def test_a_stopped_run_goes_on(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "model")
    monkeypatch.setattr(sentences, "_PART", 16)
    assert DISTINCT > 4 * 16
    whole = features(tmp_path / "model", MANY, batch_size=4).layers
    write = Parts.write

    def stop(parts: Parts, start: int, layers: Sequence[Tensor]) -> None:
        write(parts, start, layers)
        if start:
            raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", stop)
    parts = Parts(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        features(tmp_path / "model", MANY, batch_size=4, parts=parts)
    monkeypatch.setattr(Parts, "write", write)
    sizes.clear()
    resumed = features(tmp_path / "model", MANY, batch_size=4, parts=parts).layers
    first = sum(sizes)
    assert all(map(torch.equal, resumed, whole))
    sizes.clear()
    again = features(tmp_path / "model", MANY, batch_size=3, parts=parts).layers
    # Some captions are run first, to see what is wrong.
    assert first == sum(sizes) + DISTINCT - 2 * 16
    assert sum(sizes) < 16
    assert all(map(torch.equal, again, whole))


def test_one_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path)
    capsys.readouterr()
    features(tmp_path, progress=True)
    bar = capsys.readouterr().err
    assert "6/6" in bar
    assert "1/1" not in bar


# Loading


def test_the_model_is_loaded_for_reading(tmp_path: Path) -> None:
    saved(tmp_path)
    model, tokenizer = load_language_model(described(tmp_path, dtype="bfloat16"))
    assert type(model).__name__ == "GPTNeoXModel"
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer("moon")["input_ids"]


def test_paths_that_cannot_be_loaded(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert f"the encoder '{tmp_path}/empty' could not be loaded" in refusal(tmp_path / "empty")
    message = refusal("nobody/nothing-of-the-kind", revision="v9")
    assert "'nobody/nothing-of-the-kind' (revision 'v9') could not be loaded" in message
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize("loader", ["transformers", "sentence_transformers"])
def test_the_commit_is_known(loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "transformers":
        saved(tmp_path / "st")
    else:
        sentence_encoder(tmp_path, pytest.importorskip("sentence_transformers"))
    commits = ["0123456789abcdef0123456789abcdef01234567", "f" * 40]
    for commit in commits:
        cache_model(tmp_path, tmp_path / "st", "someone/model", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    # transformers 4 has a copy of it.
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", None, raising=False)
    pooling = {"transformers": "mean", "sentence_transformers": "pooled"}[loader]
    for commit in commits:
        result = features("someone/model", loader=loader, pooling=pooling, revision=commit)
        assert result.facts["commit"] == commit


def test_an_encoder_without_text_is_one_sentence(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(
        text_config={"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 1,
                     "num_attention_heads": 1, "intermediate_size": 8, "projection_dim": 4},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                       "intermediate_size": 8, "image_size": 8, "patch_size": 4,
                       "projection_dim": 4},
        projection_dim=4,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert "(CLIPModel) takes no text" in refusal(tmp_path)


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    model, _ = saved(tmp_path)
    state = model.state_dict()
    del state["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    message = refusal(tmp_path)
    assert "no weights for layers.1.mlp.dense_4h_to_h.weight (the first of 1)" in message


def test_a_pooler_or_decoder_that_is_missing_is_no_matter(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path / "bert", "masked")
    assert not any("pooler" in name for name in model.state_dict())
    oracle = plain_features(model, tokenizer, CAPTIONS)
    assert_close(features(tmp_path / "bert").layers, oracle)
    model, tokenizer = saved(tmp_path / "t5", "t5")
    oracle = plain_features(model, tokenizer, CAPTIONS)
    encoder = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")}
    model.save_pretrained(tmp_path / "t5", state_dict=encoder)
    assert_close(features(tmp_path / "t5").layers, oracle)


CODE = """
from pathlib import Path
Path({target!r}).mkdir(exist_ok=True)
from transformers import GPTNeoXConfig, GPTNeoXModel
class OwnConfig(GPTNeoXConfig):
    model_type = "own_neox"
class Own(GPTNeoXModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model folder with code in it, and the folder which that code makes when it runs."""
    folder, target = tmp_path / "model", tmp_path / "ran"
    saved(folder)
    (folder / "own.py").write_text(CODE.format(target=str(target)))
    config = json.loads((folder / "config.json").read_text())
    config.update(
        model_type="own_neox",
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    return folder, target


@pytest.mark.parametrize(
    ("asked", "allowed", "said"),
    [
        (False, False, "set 'encoder.trust_remote_code: true' in the file and pass --trust_remote"),
        (False, True, "set 'encoder.trust_remote_code: true' in the file and pass --trust_remote"),
        (True, False, "allow it with --trust_remote_code"),
    ],
)
def test_code_in_the_repository_needs_both(
    own_code: tuple[Path, Path], asked: bool, allowed: bool, said: str
) -> None:
    folder, target = own_code
    with pytest.raises(PrhEvalError, match=said):
        load_language_model(described(folder, trust_remote_code=asked), trust_remote_code=allowed)
    assert not target.exists()


def test_code_that_both_allow_is_run(own_code: tuple[Path, Path]) -> None:
    folder, target = own_code
    model, _ = load_language_model(
        described(folder, trust_remote_code=True), trust_remote_code=True
    )
    assert type(model).__name__ == "Own"
    assert target.exists()


# Sentence encoders


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    message = refusal(tmp_path, loader="sentence_transformers", pooling="pooled")
    assert "pip install 'prh_eval[sentence-transformers]'" in message


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("sentence_transformers")


def sentence_encoder(folder: Path, library: Any, *, normalise: bool = False, **options: Any) -> Any:
    """A tiny BERT with mean pooling, saved as a sentence encoder and loaded by its own library."""
    saved(folder / "bert", "bert")
    modules = importlib.import_module("sentence_transformers.models")
    layers = [modules.Transformer(str(folder / "bert")), modules.Pooling(16, "mean")]
    if normalise:
        layers.append(modules.Normalize())
    library.SentenceTransformer(modules=layers, device="cpu", **options).save(str(folder / "st"))
    return library.SentenceTransformer(str(folder / "st"), device="cpu")


def pooled(folder: Path, captions: Sequence[str] = CAPTIONS, **options: Any) -> SentenceFeatures:
    result: SentenceFeatures = features(
        folder / "st", captions, loader="sentence_transformers", pooling="pooled", **options
    )
    return result


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_pooled_output_is_that_of_the_library(
    normalise: bool, batch_size: int, library: Any, tmp_path: Path
) -> None:
    model = sentence_encoder(tmp_path, library, normalise=normalise)
    result = pooled(tmp_path, batch_size=batch_size)
    alone = [model.encode([caption], convert_to_tensor=True)[0] for caption in CAPTIONS]
    assert_close(result.layers, [torch.stack(alone).double()])
    (layer,) = result.layers
    assert torch.equal(layer[0], layer[3])
    assert not layer.is_inference()
    lengths = layer.norm(dim=1)
    assert bool(((lengths - 1).abs() < 1e-5).all()) == normalise


def test_facts_of_a_sentence_encoder(library: Any, tmp_path: Path) -> None:
    model = sentence_encoder(tmp_path, library)
    result = pooled(tmp_path, max_length=6)
    assert result.facts == {
        "commit": None,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "input": {"class": ["Transformer", "Pooling"], "prompt": "", "max_length": 6},
        "truncated_captions": 3,
    }
    # Two of the six tokens are special.
    cut = [" ".join(caption.split()[:4]) for caption in CAPTIONS]
    assert_close(result.layers, [torch.tensor(model.encode(cut)).double()])
    assert pooled(tmp_path).facts["truncated_captions"] == 0
    prompted = pooled(tmp_path, max_length=6, prompt="moon moon moon ")
    assert prompted.facts["truncated_captions"] == 6
    assert pooled(tmp_path, max_length=10**6).facts["input"]["max_length"] == model.max_seq_length


def test_the_prompt_of_a_sentence_encoder(library: Any, tmp_path: Path) -> None:
    model = sentence_encoder(
        tmp_path, library, prompts={"usual": "the moon "}, default_prompt_name="usual"
    )
    result = pooled(tmp_path)
    assert_close(result.layers, [torch.tensor(model.encode(CAPTIONS)).double()])
    assert result.facts["input"]["prompt"] == "the moon "
    for prompt in ("", "a star "):
        result = pooled(tmp_path, prompt=prompt)
        assert_close(result.layers, [torch.tensor(model.encode(CAPTIONS, prompt=prompt)).double()])
        assert result.facts["input"]["prompt"] == prompt


def test_a_sentence_encoder_in_low_precision(library: Any, tmp_path: Path) -> None:
    model = sentence_encoder(tmp_path, library).to(torch.bfloat16)
    (layer,) = pooled(tmp_path, dtype="bfloat16", batch_size=1).layers
    wanted = [model.encode([caption], convert_to_tensor=True)[0].float() for caption in CAPTIONS]
    assert layer.dtype == torch.float32
    assert torch.equal(layer, torch.stack(wanted))


def test_a_sentence_encoder_out_of_memory_and_resumed(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    model = sentence_encoder(tmp_path, library)
    wanted = torch.tensor(model.encode(CAPTIONS)).double()
    limit_tokens(monkeypatch, 2 * POSITIONS)
    parts = Parts(tmp_path / "parts")
    assert_close(pooled(tmp_path, batch_size=5, parts=parts).layers, [wanted])
    sizes.clear()
    assert_close(pooled(tmp_path, batch_size=5, parts=parts).layers, [wanted])
    assert not sizes


def test_each_distinct_text_runs_once(library: Any, tmp_path: Path, sizes: list[int]) -> None:
    sentence_encoder(tmp_path, library)
    sizes.clear()
    pooled(tmp_path, batch_size=4)
    assert sizes == [4, 2]


def test_a_model_that_is_no_sentence_encoder(library: Any, tmp_path: Path) -> None:
    saved(tmp_path / "st", "bert")
    with pytest.raises(PrhEvalError, match=r"is no sentence encoder .* should be transformers"):
        pooled(tmp_path)
    shutil.rmtree(tmp_path / "st")
    with pytest.raises(PrhEvalError, match="there is no folder"):
        pooled(tmp_path)
    with pytest.raises(PrhEvalError, match="--trust_remote_code"):
        load_sentence_transformer(
            described(
                tmp_path, loader="sentence_transformers", pooling="pooled", trust_remote_code=True
            )
        )


def test_other_failures_are_not_taken_for_lack_of_memory(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_encoder(tmp_path, library)
    monkeypatch.setattr(nn.Embedding, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pooled(tmp_path)
