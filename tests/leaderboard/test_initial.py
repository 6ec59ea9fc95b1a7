"""The board.yaml that is made for a person to finish: what it pins, and what it does not say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_results import alignment, alignment_record, model_result, result, write

from prh_eval.errors import PrhEvalError
from prh_eval.leaderboard.assemble import assemble
from prh_eval.leaderboard.config import BoardConfig, read_board
from prh_eval.leaderboard.initial import Found, HubFacts, board_yaml, cards_yaml, models
from prh_eval.leaderboard.results import Results, read_results

DATA = Path(__file__).parent / "data"


def read(folder: Path) -> Results:
    return read_results(folder, progress=False)


def uncommented(text: str) -> dict[str, Any]:
    """What the file says once a person has taken all suggestions of a family."""
    return yaml.safe_load(text.replace("# family: ", "family: "))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    write(tmp_path, model_result("org/tiny-7m", 0.1, 0.3, 0.02, parameters=7_000_000))
    write(tmp_path, model_result("org/tiny-1.5B", 0.12, 0.4, 0.04, parameters=1_500_000_000))
    write(tmp_path, model_result("/home/me/own", 0.11, 0.35, 0.03, parameters=-1))
    return tmp_path


# ---------------------------------------------------------------- the file


def test_what_is_found_is_pinned(three: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(board_yaml(read(three), {}))
    (reference,) = content["references"]
    assert {key: value for key, value in reference.items() if key != "label"} == {
        "task": "prh_align",
        "metric": "mnn",
        "version": "1",
        "captions": "a" * 64,
        "k": 10,
        "protocol": "paper",
        "pooling": "mean",
    }
    hellaswag, gsm8k = content["tasks"]
    assert hellaswag == {
        "task": "hellaswag",
        "label": "HellaSwag",
        "metric": "acc_norm",
        "version": "1",
        "num_fewshot": 10,
        "chance": 0.25,
    }
    assert (gsm8k["metric"], gsm8k["num_fewshot"]) == ("exact_match,strict-match", 5)
    assert content["primary"] == {"reference": "prh_align", "task": "hellaswag"}


def test_a_card_for_every_model_and_no_family_is_stated(three: Path) -> None:
    text = board_yaml(read(three), {})
    assert yaml.safe_load(text)["models"] == [
        {
            "name": "org/tiny-1.5B",
            "parameters": 1_500_000_000,
            "link": "https://huggingface.co/org/tiny-1.5B",
        },
        {
            "name": "org/tiny-7m",
            "parameters": 7_000_000,
            "link": "https://huggingface.co/org/tiny-7m",
        },
        {"name": "own"},
    ]
    assert "/home" not in text
    families = {card["name"]: card["family"] for card in uncommented(text)["models"]}
    assert families == {"org/tiny-1.5B": "tiny", "org/tiny-7m": "tiny", "own": "own"}


def test_it_makes_the_board_that_is_made_without(three: Path, tmp_path: Path) -> None:
    results = read(three)
    file = tmp_path / "board.yaml"
    file.write_text(board_yaml(results, {}), encoding="utf-8")
    made, without = assemble(results, read_board(file)), assemble(results)
    assert made.columns == without.columns
    assert [row.cells for row in made.rows] == [row.cells for row in without.rows]


def test_the_same_file_each_time(three: Path) -> None:
    assert board_yaml(read(three), {}) == board_yaml(read(three), {})


def test_other_tasks_are_offered(tmp_path: Path) -> None:
    scores = {"prh_align": alignment(0.1), "arc": {"acc,none": 0.5, "acc_norm,none": 0.6}}
    scores |= {f"more_{number:02}": {"acc,none": 0.5} for number in range(20)}
    records = {"prh_align": alignment_record([[0.1]])}
    write(tmp_path, result("org/m", scores, records=records))
    text = board_yaml(read(tmp_path), {})
    content = yaml.safe_load(text)
    assert content["tasks"] == []
    assert "primary" not in content
    assert "#  - task: arc\n#    metric: acc  # or acc_norm\n" in text
    assert "# and 9 more\n" in text
    BoardConfig.model_validate(content)


def test_only_limited_runs(tmp_path: Path) -> None:
    write(tmp_path, model_result("org/m", 0.1, 0.3, limit=10))
    content = yaml.safe_load(board_yaml(read(tmp_path), {}))
    (reference,) = content["references"]
    assert (reference["task"], reference["metric"]) == ("prh_align", "mnn")
    assert "captions" not in reference
    assert [card["name"] for card in content["models"]] == ["org/m"]


def test_without_an_alignment_score_there_is_no_board() -> None:
    with pytest.raises(PrhEvalError, match="none of the 9 result files has an alignment score"):
        board_yaml(read(DATA), {})


def test_models_of_real_files() -> None:
    found = {model.name: model.parameters for model in models(read(DATA))}
    assert found == {
        "bigscience/bloom-560m": (),
        "bigscience/bloom-7b1": (),
        "google/gemma-2-2b": (2614341888,),
        "state-spaces/mamba2-130m": (128989632,),
    }


def test_models_that_have_a_card_are_not_found(three: Path) -> None:
    config = BoardConfig.model_validate(
        {
            "references": [{"task": "prh_align"}],
            "models": [
                {"name": "a title", "aliases": ["org/tiny-7m"]},
                {"name": "/home/me/own"},
            ],
        }
    )
    assert [model.name for model in models(read(three), config)] == ["org/tiny-1.5B"]


# ---------------------------------------------------------------- cards


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("EleutherAI/pythia-160m", "pythia"),
        ("EleutherAI/pythia-1.4b-deduped", "pythia"),
        ("google/gemma-2-2b", "gemma-2"),
        ("Qwen/Qwen2.5-1.5B", "Qwen2.5"),
        ("bigscience/bloom-7b1", "bloom"),
        ("fla-hub/rwkv7-1.5B-world", "rwkv7"),
        ("gpt2", "gpt2"),
        ("7B", None),
        ("x/-", "-"),
    ],
)
def test_a_family_is_suggested_and_never_stated(name: str, family: str | None) -> None:
    text = cards_yaml([Found(name, ())], {})
    (card,) = yaml.safe_load(text)["models"]
    assert "family" not in card
    (card,) = uncommented(text)["models"]
    assert card.get("family") == family


def test_a_folder_here_has_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "huggingface.co" in cards_yaml([Found("runs/one", ())], {})
    (tmp_path / "runs" / "one").mkdir(parents=True)
    assert "huggingface.co" not in cards_yaml([Found("runs/one", ())], {})


def test_several_numbers_of_parameters_are_for_the_person_to_choose() -> None:
    text = cards_yaml([Found("org/m", (10, 20))], {"org/m": HubFacts(parameters=30)})
    assert "parameters" not in yaml.safe_load(text)["models"][0]
    assert "10, 20" in text


def test_what_the_hub_tells() -> None:
    facts = {
        "org/a": HubFacts("apache-2.0", "2023-04-05", 123, True),
        "org/b": HubFacts("mit", "2022-03-02", 456, False),
    }
    text = cards_yaml([Found("org/a", ()), Found("org/b", (5,))], facts)
    config = BoardConfig.model_validate(
        {"references": [{"task": "prh_align"}], **yaml.safe_load(text)}
    )
    a, b = config.models
    assert (a.licence, str(a.release_date), a.parameters) == ("apache-2.0", "2023-04-05", 123)
    assert a.kind is None and "# kind: instruct" in text
    assert (b.licence, b.release_date, b.parameters) == ("mit", None, 5)
    assert "# release_date: 2022-03-02 or earlier" in text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
def test_any_name_is_read_again_as_it_was(names: list[str]) -> None:
    text = cards_yaml([Found(name, (7,)) for name in names], {})
    assert [card["name"] for card in yaml.safe_load(text)["models"]] == names
    assert [card["parameters"] for card in yaml.safe_load(text)["models"]] == [7] * len(names)
    uncommented(text)


# ---------------------------------------------------------------- the hub


class _Hub(BaseHTTPRequestHandler):
    """Knows one model, has none of another's name, and fails on a third."""

    asked: list[str]

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):  # the client may ask more on its own account
            self.asked.append(self.path)
        body, status, code = b"", 500, "Internal"
        if self.path.startswith("/api/models/org/known"):
            body, status, code = json.dumps(KNOWN).encode(), 200, ""
        elif self.path.startswith("/api/models/org/missing"):
            status, code = 401, "RepoNotFound"
        elif self.path.startswith("/api/models/org/page"):
            body, status, code = b"<html>a proxy's page</html>", 200, ""
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


KNOWN = {
    "id": "org/known-7m",
    "createdAt": "2024-05-06T07:08:09.000Z",
    "tags": ["conversational"],
    "cardData": {"license": "apache-2.0"},
    "safetensors": {"parameters": {"F32": 7_000_001}, "total": 7_000_001},
}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def endpoint(asked: list[str]) -> Iterator[str]:
    handler = type("_HubOfThisTest", (_Hub,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def init(folder: Path, *more: str, endpoint: str, offline: str = "0") -> tuple[str, str]:
    """Run ``prh-eval leaderboard init`` as a process; what it wrote, and its stderr."""
    file = folder / "board" / "board.yaml"
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": offline,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = ["-m", "prh_eval", "leaderboard", "init", str(folder), "--output", str(file), *more]
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return file.read_text(encoding="utf-8"), done.stderr


def test_the_hub_is_asked_where_it_can_be_reached(
    tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    for name in ("org/known-7m", "org/missing-7m", "/home/me/own", "no-organisation"):
        write(tmp_path, model_result(name, 0.1, parameters=-1))
    text, said = init(tmp_path, endpoint=endpoint)
    cards = {card["name"]: card for card in yaml.safe_load(text)["models"]}
    assert {**cards["org/known-7m"], "release_date": None} == {
        "name": "org/known-7m",
        "parameters": 7_000_001,
        "release_date": None,
        "licence": "apache-2.0",
        "link": "https://huggingface.co/org/known-7m",
    }
    assert cards["org/known-7m"]["release_date"].isoformat() == "2024-05-06"
    assert len(cards["org/missing-7m"]) == 2  # name and link
    assert said == "the hub has no model 'org/missing-7m'\n"
    assert [path.partition("?")[0] for path in asked] == [
        "/api/models/org/known-7m",
        "/api/models/org/missing-7m",
    ]


@pytest.mark.parametrize("name", ["org/broken", "org/page"])
def test_after_one_failure_it_is_asked_no_more(
    name: str, tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    for member in range(3):
        write(tmp_path, model_result(f"{name}-{member}", 0.1))
    text, said = init(tmp_path, endpoint=endpoint)
    assert len(yaml.safe_load(text)["models"]) == 3
    assert len(asked) == 1
    assert said.startswith("the hub was not asked for licences and dates: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("more", "offline", "lines"), [(["--offline"], "0", 0), ([], "1", 1)])
def test_offline_it_is_not_asked(
    more: list[str], offline: str, lines: int, tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    for member in range(3):
        write(tmp_path, model_result(f"org/known-{member}", 0.1))
    text, said = init(tmp_path, *more, endpoint=endpoint, offline=offline)
    assert len(yaml.safe_load(text)["models"]) == 3
    assert asked == []
    assert said.count("\n") == lines
