"""The benchmark command on the small model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result
from smollm2 import MARKS, rusteeze

Run = Callable[..., Result]
pytestmark = MARKS
SMALL = ("--batch", "1", "--batch", "3", "--prefill", "64", "--new-tokens", "8")


def test_json_has_rates_percentiles_and_memory(smollm2: Path) -> None:
    facts = json.loads(rusteeze("benchmark", smollm2, *SMALL, "--budget", "3", "--json"))
    one, three, prompt = facts["measured"]
    assert [f["what"] for f in (one, three, prompt)] == ["decode 1", "decode 3", "prefill 64"]
    for found in (one, three, prompt):
        assert found["runs"] >= 1
        assert found["tokens_per_s"] > 1
        assert 0 < found["first_token_ms"]["p50"] <= found["first_token_ms"]["p99"]
    # of one sequence alone, rate and latency are two words for the same thing
    assert 200 < one["tokens_per_s"] * one["between_tokens_ms"]["p50"] < 2000
    assert "between_tokens_ms" not in prompt
    weights = (smollm2 / "weights.safetensors").stat().st_size
    assert facts["memory"]["weights"] == weights < facts["memory"]["peak RSS"]


def test_what_the_budget_leaves_no_time_for_is_said(smollm2: Path, run: Run) -> None:
    result = run("benchmark", smollm2, *SMALL, "--budget", "0.01")
    assert result.exit_code == 0
    assert "no time left" in result.stdout


def test_a_prompt_longer_than_the_model_takes_is_refused(smollm2: Path, run: Run) -> None:
    result = run("benchmark", smollm2, "--prefill", "100000")
    assert (result.exit_code, "more than the model's" in result.stderr) == (2, True)
