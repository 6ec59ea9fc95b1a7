"""The task inside lm-eval's own evaluator: its score, its options, its errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from prh_eval import resources
from prh_eval.errors import PrhEvalError
from prh_eval.features import language

TASK = "prh_align_color"


def task_manager(*folders: str, **kwargs: Any) -> TaskManager:
    """Our tasks only: indexing lm-eval's thousands takes seconds."""
    return TaskManager(include_path=list(folders), include_defaults=False, **kwargs)


def evaluate(model: Path, metadata: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    """One run through lm-eval's evaluator, as ``--tasks prh_align_color`` would make it."""
    manager = task_manager(str(resources.folder("tasks")), metadata=metadata or {})
    settings: dict[str, Any] = {"task_manager": manager, "tasks": [TASK], "bootstrap_iters": 0}
    settings |= {"model_args": f"pretrained={model},dtype=float32", "batch_size": 64}
    return simple_evaluate(model="hf", device="cpu", **(settings | kwargs))


@pytest.fixture(scope="module")
def full_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRH_EVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return evaluate(model_folder)


def lab(code: str) -> np.ndarray:
    """CIELAB (D65) of a hex colour, written out from CIE 15 and IEC 61966-2-1."""
    srgb = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    ratio = np.array(matrix) @ linear / np.array([0.95047, 1.0, 1.08883])
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(similarity: np.ndarray, k: int) -> list[set[int]]:
    """Each row's k most similar other items; asserts that no tie makes the answer ambiguous."""
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1)
    return [set(row[:k].tolist()) for row in order]


def layer_features(model_folder: Path, names: Iterable[str], pooling: str) -> np.ndarray:
    """Every layer of the model called on one caption at a time, as neighbours are ranked by.

    Float64, shape (layers, n, dim).
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for name in names:
            out = model(**tokenizer(name, return_tensors="pt"), output_hidden_states=True)
            stack = torch.stack(out.hidden_states)[:, 0].double().numpy()
            rows.append(stack.mean(axis=1) if pooling == "mean" else stack[:, -1])
    features = np.stack(rows, axis=1)
    bound = np.sort(np.abs(features).ravel())[int(0.95 * features.size)]
    features = np.clip(features, -bound, bound)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def brute_force(model_folder: Path, colors: dict[str, str], k: int, pooling: str) -> np.ndarray:
    """The layer grid from the model called on one caption at a time, in NumPy float64."""
    features = layer_features(model_folder, colors, pooling)
    space = np.stack([lab(code) for code in colors.values()])
    distance = ((space[:, None] - space[None]) ** 2).sum(-1)
    reference = nearest(-distance, k)
    grid = []
    for layer in features:
        mine = nearest(layer @ layer.T, k)
        grid.append(np.mean([len(a & b) / k for a, b in zip(mine, reference, strict=True)]))
    return np.array(grid)[:, None]


def test_score_is_that_of_the_model_called_directly(
    full_run: dict[str, Any], model_folder: Path, colors: dict[str, str]
) -> None:
    result = full_run["results"][TASK]
    expected = brute_force(model_folder, colors, k=10, pooling="mean")
    recorded = full_run["configs"][TASK]["metadata"]["alignment"]
    # The oracle breaks ties by index (colours and names do tie), we share them.
    assert np.array(recorded["layer_grid"]) == pytest.approx(expected, abs=2e-3)
    assert result["mnn,none"] == pytest.approx(expected.max(), abs=2e-3)
    assert result["mnn_layer,none"] == int(expected.argmax())
    assert result["mnn_last_layer,none"] == pytest.approx(expected[-1, 0], abs=2e-3)
    assert result["mnn_chance,none"] == pytest.approx(10 / 948)
    assert 0 < result["mnn_stderr,none"] < 0.02
    assert result["mnn_reference_layer,none"] == 0


def test_results_file_says_what_was_measured(full_run: dict[str, Any], model_folder: Path) -> None:
    config = full_run["configs"][TASK]
    recorded = config["metadata"]["alignment"]
    assert (recorded["n"], recorded["k"]) == (949, 10)
    assert recorded["protocol"] == "paper"
    assert recorded["model"]["model"] == str(model_folder)
    assert recorded["model"]["dtype"] == "float32"
    assert recorded["pairs"]["items"] == 949
    assert len(recorded["pairs"]["fingerprint"]) == 64
    assert recorded["reference"]["reference"] == "cielab"
    assert full_run["versions"][TASK] == 1.0
    assert full_run["n-shot"][TASK] == 0
    better = full_run["higher_is_better"][TASK]
    assert better.pop("mnn_p") is False
    named = ("", "_calibrated", "_z", "_cross_fitted", "_last_layer")
    assert better == {f"mnn{name}": True for name in named}
    assert full_run["n-samples"][TASK] == {"original": 949, "effective": 949}
    json.dumps(full_run["configs"])


def test_every_sample_carries_its_own_overlap(
    full_run: dict[str, Any], colors: dict[str, str]
) -> None:
    samples = full_run["samples"][TASK]
    assert [sample["doc"]["caption"] for sample in samples] == list(colors)
    overlaps = [sample["mnn"] for sample in samples]
    assert np.mean(overlaps) == pytest.approx(full_run["results"][TASK]["mnn,none"], abs=1e-12)
    assert len(set(overlaps)) > 2
    assert all(len(str(sample["resps"])) < 300 for sample in samples)


@pytest.mark.parametrize(
    ("key", "value", "pooling"), [("prh_k", 5, "mean"), ("prh_pooling", "last", "last")]
)
def test_options_from_metadata(
    model_folder: Path, colors: dict[str, str], key: str, value: Any, pooling: str
) -> None:
    run = evaluate(model_folder, {key: value})
    k = value if key == "prh_k" else 10
    expected = brute_force(model_folder, colors, k, pooling)
    grid = run["configs"][TASK]["metadata"]["alignment"]["layer_grid"]
    assert np.array(grid)[1:] == pytest.approx(expected[1:], abs=2e-3)
    assert run["configs"][TASK]["metadata"][key] == value


def test_limit_ranks_among_the_chosen_items_only(model_folder: Path) -> None:
    run = evaluate(model_folder, {"prh_k": 5}, limit=40)
    assert run["results"][TASK]["mnn_chance,none"] == pytest.approx(5 / 39)
    assert run["n-samples"][TASK]["effective"] == 40
    picked = evaluate(model_folder, {"prh_k": 5}, samples={TASK: list(range(40))})
    assert picked["results"][TASK]["mnn,none"] == run["results"][TASK]["mnn,none"]


def test_unsorted_samples_keep_their_overlaps(model_folder: Path) -> None:
    wanted = [17, 3, 400, 8, 90, 21, 5, 300, 301, 302, 303, 30, 31, 2]
    run = evaluate(model_folder, {"prh_k": 3}, samples={TASK: wanted})
    again = evaluate(model_folder, {"prh_k": 3}, samples={TASK: sorted(wanted)})
    overlaps = [
        {sample["doc"]["id"]: sample["mnn"] for sample in each["samples"][TASK]}
        for each in (run, again)
    ]
    assert overlaps[0] == overlaps[1]
    assert len(overlaps[0]) == len(wanted)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"prh_kk": 5}, f"task {TASK}: unknown key 'prh_kk'; did you mean 'prh_k'"),
        ({"prh_k": 0}, f"task {TASK}: the key 'prh_k' is 0; it should be greater"),
        ({"prh_k": "many"}, "the key 'prh_k' is 'many'; it should be a valid integer"),
        ({"prh_pooling": "meen"}, "the key 'prh_pooling' is 'meen'; did you mean 'mean'"),
        ({"prh_protocol": "papper"}, "the key 'prh_protocol' is 'papper'; did you mean 'paper'"),
        ({"prh_metric": "mutual_kn"}, "the key 'prh_metric' is .*; did you mean 'mutual_knn'"),
        ({"prh_caption": -1}, "the key 'prh_caption' is -1; it should be the number of a caption"),
        ({"prh_caption": "men"}, "the key 'prh_caption' is 'men'; it should be .*, or mean"),
        ({"prh_caption": True}, "the key 'prh_caption' is True; it should be the number"),
        ({"prh_caption": 1}, "has 1 caption, so there is no caption 1"),
        ({"prh_reference": "cielap"}, "did you mean 'cielab'"),
        ({"prh_k": 948}, "too few for k = 948"),
    ],
)
def test_wrong_options_get_one_sentence(
    model_folder: Path, metadata: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PrhEvalError, match=sentence) as caught:
        evaluate(model_folder, metadata)
    assert "\n" not in str(caught.value)


def test_too_few_items(model_folder: Path) -> None:
    with pytest.raises(PrhEvalError, match="11 items are too few for k = 10; at least 12"):
        evaluate(model_folder, limit=11)


def test_two_tasks_share_one_pass(
    model_folder: Path, colors: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = language.language_features

    def counting(model: Any, tokenizer: Any, captions: list[str], **kwargs: Any) -> Any:
        seen.append(len(captions))
        return real(model, tokenizer, captions, **kwargs)

    monkeypatch.setattr("prh_eval.harness.requests.language_features", counting)
    twin = {"task": "twin", "class": _task_class(), "metadata": {"version": 1}}
    twin["metadata"] |= {"prh_reference": "cielab", "prh_k": 5}
    run = evaluate(model_folder, tasks=[TASK, twin])
    assert seen == [len(colors)]
    assert run["results"]["twin"]["mnn_chance,none"] == pytest.approx(5 / 948)


def test_tasks_on_different_items_do_not_disturb_each_other(model_folder: Path) -> None:
    twin = {"task": "twin", "class": _task_class()}
    twin["metadata"] = {"prh_reference": "cielab", "prh_k": 5}
    items = {TASK: list(range(100, 150)), "twin": list(range(140, 170))}
    args = f"pretrained={model_folder},dtype=float32,max_length=2"

    def alignments(tasks: list[Any]) -> dict[str, Any]:
        run = evaluate(model_folder, tasks=tasks, samples=items, model_args=args)
        return {name: c["metadata"]["alignment"] for name, c in run["configs"].items()}

    together = alignments([TASK, twin])
    alone = alignments([TASK]) | alignments([twin])
    assert together == alone
    counts = [alone[name]["model"]["truncated_captions"] for name in (TASK, "twin")]
    assert 0 < counts[1] < counts[0]


def _task_class() -> type:
    from prh_eval.harness.task import AlignmentTask

    return AlignmentTask


def test_model_graphs_are_kept_for_later_references(model_folder: Path, cache_folder: Path) -> None:
    from prh_eval.store import read_artifact

    run = evaluate(model_folder)
    (path,) = (cache_folder / "models").glob("*.safetensors")
    assert path.stat().st_size < 4_000_000
    artifact = read_artifact(path)
    assert (artifact.graph.n, artifact.graph.layers, artifact.graph.k) == (949, 3, 100)
    pairs = run["configs"][TASK]["metadata"]["alignment"]["pairs"]
    header = artifact.header
    assert header["kind"] == "language model"
    assert header["pairs"]["captions"] == pairs["fingerprint"]
    assert (header["pairs"]["name"], header["pairs"]["n"]) == ("xkcd_colors", 949)
    assert (header["pooling"], header["protocol"], header["graph_k"]) == ("mean", "paper", 100)
    assert header["model"] == str(model_folder)
    # What a reference on the same items says of them, so that the two can be compared.
    assert header["pairs"] == run["configs"][TASK]["metadata"]["alignment"]["reference"]["pairs"]


def test_use_cache_runs_the_model_once(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "responses")
    first = evaluate(model_folder, use_cache=cache)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran although its graphs are cached")

    monkeypatch.setattr("prh_eval.harness.requests.language_features", never)
    second = evaluate(model_folder, use_cache=cache)
    assert second["results"] == first["results"]
    # Another pooling is another graph.
    with pytest.raises(AssertionError, match="the model ran"):
        evaluate(model_folder, {"prh_pooling": "last"}, use_cache=cache)


def test_memory_that_runs_out_in_the_search_is_told(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("prh_eval.harness.requests.FEW_ITEMS", 0)
    monkeypatch.setattr("prh_eval.harness.requests.neighbor_graph", search)
    expected = "memory ran out on cpu in the search of the captions' neighbours (CUDA out of memory"
    with pytest.raises(PrhEvalError, match=re.escape(expected)):
        evaluate(model_folder)


def test_use_cache_tells_models_apart(
    model_folder: Path, colors: dict[str, str], tmp_path: Path
) -> None:
    from tiny_models import save_model

    cache = str(tmp_path / "responses")
    evaluate(model_folder, use_cache=cache)
    other = save_model(tmp_path / "other", colors, seed=1)
    cached = evaluate(other, use_cache=cache)
    assert cached["results"] == evaluate(other)["results"]


def test_cached_requests_of_other_options_are_not_used(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    plain = evaluate(model_folder, cache_requests=True)
    again = evaluate(model_folder, cache_requests=True)
    assert again["results"] == plain["results"]
    limited = evaluate(model_folder, cache_requests=True, samples={TASK: list(range(50, 90))})
    fresh = evaluate(model_folder, samples={TASK: list(range(50, 90))})
    assert limited["results"] == fresh["results"]
    last = evaluate(model_folder, {"prh_pooling": "last"}, cache_requests=True)
    assert last["results"] == evaluate(model_folder, {"prh_pooling": "last"})["results"]


def test_predict_only_needs_no_reference(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("built a reference that nothing is compared with")

    monkeypatch.setattr("prh_eval.harness.task.reference_artifact", never)
    run = evaluate(model_folder, predict_only=True, limit=30)
    samples = run["samples"][TASK]
    assert len(samples) == 30
    assert "nearest in the last of 3 layers" in str(samples[0]["resps"])


def test_write_out_prints_a_caption(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        evaluate(model_folder, write_out=True, limit=20)
    assert "cloudy blue" in caplog.text


BITS = {"prh_bits_per_byte": True}


def test_bits_per_byte_is_lm_evals_own(model_folder: Path, colors: dict[str, str]) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    run = evaluate(model_folder, BITS, limit=20)
    names = list(colors)[:20]
    lm = HFLM(pretrained=str(model_folder), device="cpu", dtype="float32")
    asked = [
        Instance("loglikelihood_rolling", {}, (name,), idx, metadata=("t", idx, 1))
        for idx, name in enumerate(names)
    ]
    nats = -np.array(lm.loglikelihood_rolling(asked, disable_tqdm=True))
    size = np.array([len(name.encode()) for name in names])
    expected = nats.sum() / size.sum() / np.log(2)
    listed = [metric["metric"] for metric in run["configs"][TASK]["metric_list"]]
    assert listed[-2:] == ["bits_per_byte", "bits_per_byte_stderr"]
    found = run["results"][TASK]
    assert found["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert run["higher_is_better"][TASK]["bits_per_byte"] is False
    recorded = run["configs"][TASK]["metadata"]["alignment"]
    assert recorded["nats"] == pytest.approx(nats.sum(), rel=1e-5)
    assert recorded["bytes"] == size.sum()
    # The jackknife over captions, which for a ratio of sums is nearly the same.
    without = (nats.sum() - nats) / (size.sum() - size) / np.log(2)
    jackknife = np.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())
    assert found["bits_per_byte_stderr,none"] == pytest.approx(jackknife, rel=0.1)
    # And the alignment is what it is without.
    plain = evaluate(model_folder, limit=20)["results"][TASK]
    assert {name: found[name] for name in plain if name != "alias"} == {
        name: value for name, value in plain.items() if name != "alias"
    }


def test_use_cache_keeps_bits_per_byte(
    model_folder: Path, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, passes = str(tmp_path / "responses"), []
    real = language.language_features

    def counting(*args: Any, **kwargs: Any) -> Any:
        passes.append(kwargs["prefix"])
        return real(*args, **kwargs)

    monkeypatch.setattr("prh_eval.harness.requests.language_features", counting)
    plain = evaluate(model_folder, limit=30, use_cache=cache)
    asked = evaluate(model_folder, BITS, limit=30, use_cache=cache)
    again = evaluate(model_folder, BITS, limit=30, use_cache=cache)
    assert again["results"] == asked["results"]
    # Graphs without them do not answer; graphs with them answer both.
    assert [prefix is None for prefix in passes] == [True, False]
    assert evaluate(model_folder, limit=30, use_cache=cache)["results"] == plain["results"]
    assert len(passes) == 2
    other = {"model_args": f"pretrained={model_folder},dtype=float32,prefix_token_id=5"}
    moved = evaluate(model_folder, BITS, limit=30, use_cache=cache, **other)
    assert passes[2:] == [5]
    name = "bits_per_byte,none"
    assert moved["results"][TASK][name] != asked["results"][TASK][name]
    # All of these are one graph.
    assert len(list((cache_folder / "models").glob("*.safetensors"))) == 1


def test_bits_per_byte_of_a_model_without_them_is_one_sentence(
    colors: dict[str, str], tmp_path: Path
) -> None:
    from tiny_models import save_model

    folder = save_model(tmp_path / "bert", colors, "bert")
    with pytest.raises(PrhEvalError, match="BertLMHeadModel reads what comes after a token"):
        evaluate(folder, BITS, limit=20)


def test_bits_per_byte_need_a_token_to_begin_with(model_folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model_folder), device="cpu", dtype="float32")
    lm.tokenizer.eos_token = None
    with pytest.raises(PrhEvalError, match="the tokenizer has no beginning or end of text"):
        simple_evaluate(
            model=lm,
            tasks=[TASK],
            task_manager=task_manager(str(resources.folder("tasks")), metadata=BITS),
            limit=20,
        )


def test_prompts_of_other_tasks_do_not_touch_the_captions(
    model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = evaluate(model_folder, limit=30)
    with caplog.at_level("WARNING"):
        prompted = evaluate(model_folder, limit=30, system_instruction="Be kind.", num_fewshot=5)
    assert prompted["results"] == plain["results"]
    assert prompted["n-shot"][TASK] == 0
    assert "captions are read as they are" in caplog.text


def test_groups_aggregate_it(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "group.yaml").write_text(
        "group: both\ntask:\n  - prh_align_color\n"
        "aggregate_metric_list:\n  - metric: mnn\n    weight_by_size: true\n"
        "metadata:\n  version: 1\n"
    )
    folders = [str(resources.folder("tasks")), str(tmp_path)]
    manager = task_manager(*folders)
    run = evaluate(model_folder, tasks=["both"], task_manager=manager)
    group, task = run["groups"]["both"], run["results"][TASK]
    assert group["mnn,none"] == pytest.approx(task["mnn,none"])
    assert group["mnn_stderr,none"] == pytest.approx(task["mnn_stderr,none"])


def test_wandb_sample_table(full_run: dict[str, Any]) -> None:
    from lm_eval.loggers.wandb_logger import WandbLogger

    logger = object.__new__(WandbLogger)
    table = logger._generate_dataset(full_run["samples"][TASK], full_run["configs"][TASK])
    assert len(table) == 949
    assert table["mnn"].mean() == pytest.approx(full_run["results"][TASK]["mnn,none"])


def test_backends_without_hidden_states_are_refused() -> None:
    manager = task_manager(str(resources.folder("tasks")))
    with pytest.raises(PrhEvalError, match="DummyLM gives no hidden states"):
        simple_evaluate(model="dummy", tasks=[TASK], task_manager=manager, limit=20)


def test_a_body_that_is_no_transformers_model_is_refused(model_folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model_folder), device="cpu", dtype="float32")
    lm._model = torch.nn.Linear(2, 2)
    manager = task_manager(str(resources.folder("tasks")))
    with pytest.raises(PrhEvalError, match="class Linear gives no hidden states"):
        simple_evaluate(model=lm, tasks=[TASK], task_manager=manager, limit=20)


def test_steered_models_are_refused(model_folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(model_folder), device="cpu", dtype="float32")
    lm.hook_to_steer = {}
    manager = task_manager(str(resources.folder("tasks")))
    with pytest.raises(PrhEvalError, match="steers activations"):
        simple_evaluate(model=lm, tasks=[TASK], task_manager=manager, limit=20)


def test_a_constant_layer_is_named(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prh_eval.features.language import LanguageFeatures

    def collapsed(model: Any, tokenizer: Any, captions: list[str], **kwargs: Any) -> Any:
        good = torch.randn(len(captions), 4)
        return LanguageFeatures([good, torch.ones(len(captions), 4)], truncated=[], batch_size=1)

    monkeypatch.setattr("prh_eval.harness.requests.language_features", collapsed)
    with pytest.raises(PrhEvalError, match="layer 1"):
        evaluate(model_folder, limit=30)
