"""What a person is told when the hub refuses, by a server on this machine that answers as it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ANSWERS = {
    "gated": (403, "GatedRepo", "Access to this is restricted and you are not in the list."),
    "missing": (401, "RepoNotFound", "Invalid username or password."),
    "revision": (404, "RevisionNotFound", "Invalid rev id: nowhere"),
}
TOLD = {
    "gated": "it is gated: ask for access on its hub page, then log in with `hf auth login`",
    "missing": "the hub has nothing of this name, or it is private and you are not logged in",
    "revision": "it has no such revision on the hub",
}
LOADERS = {
    "vision": """
from prh_eval.features.vision import load_vision_model
from prh_eval.schema import VisionEncoder
load_vision_model(VisionEncoder(path=path, token="class", preprocessing="processor"))
""",
    "language": """
from prh_eval.features.language_loading import load_language_model
from prh_eval.schema import LanguageEncoder
load_language_model(LanguageEncoder(path=path, pooling="mean"))
""",
    "sentences": """
from prh_eval.features.language_loading import load_sentence_transformer
from prh_eval.schema import LanguageEncoder
load_sentence_transformer(
    LanguageEncoder(path=path, loader="sentence_transformers", pooling="pooled")
)
""",
    "pairs": """
from prh_eval.pairs.load import load_pairs
from prh_eval.schema import HubPairs
load_pairs(HubPairs(kind="hub", path=path))
""",
}
PROGRAM = """
import sys
from prh_eval.errors import PrhEvalError
for path in sys.argv[2:]:
    try:
        exec(sys.argv[1])
    except PrhEvalError as error:
        print(error)
"""


class _Hub(BaseHTTPRequestHandler):
    """Refuses everything below ``<why>/model`` in the way that its name says."""

    def do_GET(self) -> None:
        why = next((each for each in ANSWERS if f"/{each}/model" in self.path), "missing")
        status, code, message = ANSWERS[why]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET
    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("loader", LOADERS)
def test_what_the_hub_refuses(loader: str, endpoint: str, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, LOADERS[loader], *(f"{why}/model" for why in ANSWERS)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for why, line in zip(ANSWERS, done.stdout.splitlines(), strict=True):
        assert f"'{why}/model'" in line
        assert line.endswith(f"could not be loaded: {TOLD[why]}")
