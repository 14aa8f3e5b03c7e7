"""The commands on the small real model: compiled once into the user's cache, then asked and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = Path(os.environ.get("RUSTEEZE_TEST_MODEL") or Path.home() / ".cache/rusteeze/models" / NAME)

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_file(), reason="run tools/fetch_model.py first"),
]

QUESTION = ["--chat", "--system", "Answer in English, in one sentence.", "--max-tokens", "32"]
QUESTION += ["-p", "What is the capital of France?", "--json"]


def rusteeze(*arguments: str | Path, stdin: str = "") -> str:
    command = [sys.executable, "-m", "rusteeze", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def artifact() -> Path:
    return Path(rusteeze("compile", MODEL).strip())


def test_the_capital_of_france(artifact: Path) -> None:
    answer = json.loads(rusteeze("generate", artifact, *QUESTION))
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "stop"
    assert answer["tokens_per_second"] > 0


def test_the_model_and_its_artifact_answer_alike(artifact: Path) -> None:
    answers = [json.loads(rusteeze("generate", m, *QUESTION))["text"] for m in (MODEL, artifact)]
    assert answers[0] == answers[1]


def test_a_chat_remembers(artifact: Path) -> None:
    lines = rusteeze(
        "chat", artifact, "--json", "--max-tokens", "24", stdin="My name is Bob.\nHi.\n/exit\n"
    ).splitlines()
    first, second = (json.loads(line) for line in lines)
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"]


def test_info_knows_the_model(artifact: Path) -> None:
    facts = json.loads(rusteeze("info", artifact, "--json"))
    assert facts["facts"]["layers"] == 30
    assert facts["memory"]["kv_bytes_per_token"] > 0
    assert sum(facts["kernels"].values()) > 30


def test_predictions_are_those_of_transformers(artifact: Path) -> None:
    checks: list[dict[str, Any]] = json.loads(
        rusteeze("validate", MODEL, "--against", "hf", "--json")
    )
    accuracy = checks[-1]
    assert accuracy["num_tokens"] > 100
    assert accuracy["perplexity"] < 1.05 * accuracy["reference_perplexity"]
    assert accuracy["mean_kl"] < 0.02
    assert accuracy["top1_agreement"] > 0.85
