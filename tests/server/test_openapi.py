"""The document against the server: schemathesis sends what it allows and what it forbids."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live import MODEL, Live, PacedExecutor, live
from starlette.routing import Route
from tiny_tokenizers import tokenizer

from rusteeze.server.app import ROUTES, AppOptions
from rusteeze.server.limits import Limits

KEY = "secret"
# As many messages and tools as the schema allows must fit.
SHORT = "{% if tools %}+{% endif %}{% for m in messages %}{{ m.content }}\n{% endfor %}"


def test_every_route_is_in_the_document(tiny: Live) -> None:
    document = tiny.ask("GET", "/openapi.json").json()
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    routes = {
        (route.path.replace(":path", ""), method)
        for route in ROUTES
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == routes


def test_the_model_is_filled_in(tiny: Live) -> None:
    text = tiny.ask("GET", "/openapi.json").body.decode()
    assert f'"enum":["{MODEL}"]' in text
    assert "model-name" not in text
    assert "token-" not in text


class Terse(PacedExecutor):
    """Likes to end, so that requests without a limit do not take long."""

    end = tokenizer().token_id("</s>")

    def _logits(self, history: np.ndarray) -> np.ndarray:
        row = super()._logits(history)
        row[self.end] += 4
        return row


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Examples, coverage and fuzzing; valid and invalid data; every check that it has."""
    options = AppOptions(api_key=KEY)
    limits = Limits(max_request_tokens=10**12, max_body_bytes=2**28)
    with live(Terse(num_blocks=4096, max_model_len=2048), limits=limits, options=options, max_num_seqs=64, max_queue=10**6, template=SHORT) as server:
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json",
            "--phases", "examples,coverage,fuzzing", "--mode", "all", "--continue-on-failure",
            "--max-examples", os.environ.get("SCHEMATHESIS_EXAMPLES", "20"), "--seed", "7", "--request-timeout", "20",
            "--no-color", "-H", f"Authorization: Bearer {KEY}",
        ]  # fmt: skip
        hooks = {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **hooks}
        )
    assert done.returncode == 0, done.stdout[-60000:]
    assert "No issues found" in done.stdout
