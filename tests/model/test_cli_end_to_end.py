"""The commands on the small real model: compiled once, then asked and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from smollm2 import MARKS, MODEL, rusteeze

pytestmark = MARKS

QUESTION = ["--chat", "--system", "Answer in English, in one sentence.", "--max-tokens", "32"]
QUESTION += ["-p", "What is the capital of France?", "--json"]


@pytest.fixture(autouse=True)
def _cache(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUSTEEZE_CACHE", str(shared_folder / "cache"))


def test_the_capital_of_france(smollm2: Path) -> None:
    answer = json.loads(rusteeze("generate", smollm2, *QUESTION))
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "stop"
    assert answer["tokens_per_second"] > 0


def test_the_model_and_its_artifact_answer_alike(smollm2: Path) -> None:
    answers = [json.loads(rusteeze("generate", m, *QUESTION))["text"] for m in (MODEL, smollm2)]
    assert answers[0] == answers[1]


def test_a_chat_remembers(smollm2: Path) -> None:
    lines = rusteeze(
        "chat", smollm2, "--json", "--max-tokens", "24", stdin="My name is Bob.\nHi.\n/exit\n"
    ).splitlines()
    first, second = (json.loads(line) for line in lines)
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"]


def test_info_knows_the_model(smollm2: Path) -> None:
    facts = json.loads(rusteeze("info", smollm2, "--json"))
    assert facts["facts"]["layers"] == 30
    assert facts["memory"]["kv_bytes_per_token"] > 0
    assert sum(facts["kernels"].values()) > 30


def test_predictions_are_those_of_transformers(smollm2: Path) -> None:
    checks: list[dict[str, Any]] = json.loads(
        rusteeze("validate", MODEL, "--against", "hf", "--json")
    )
    accuracy = checks[-1]
    assert accuracy["num_tokens"] > 100
    assert accuracy["perplexity"] < 1.05 * accuracy["reference_perplexity"]
    assert accuracy["mean_kl"] < 0.02
    assert accuracy["top1_agreement"] > 0.85
