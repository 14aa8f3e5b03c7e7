"""validate, and the arithmetic of comparing two models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from rusteeze.cli import conversation
from rusteeze.cli.accuracy import CHUNK_TOKENS, compare, compiled_logits
from rusteeze.runtime.batch import Batch

Run = Callable[..., Result]

VOCABULARY = 128


class PositionExecutor:
    """Logits that favour the next letter of the alphabet, plus a trace of the position."""

    num_blocks, block_size, max_batched_tokens, max_model_len = 64, 4, 48, 200
    vocab_size = VOCABULARY

    def __init__(self) -> None:
        self.num_steps = 0
        self.logits = np.zeros((48, VOCABULARY), np.float32)

    def execute(self, batch: Batch) -> np.ndarray:
        self.num_steps += 1
        assert batch.context_len[0] == batch.positions[-1] + 1
        assert (batch.slot_mapping == batch.positions).all()
        self.logits[:] = 0
        for row, index in enumerate(batch.rows):
            self.logits[row] = expected_row(batch.input_ids[index], batch.positions[index])
        return self.logits[: len(batch.rows)]


def expected_row(token_id: int, position: int) -> np.ndarray:
    row = np.full(VOCABULARY, position / 1000, np.float32)
    row[(token_id + 1) % VOCABULARY] += 3
    return row


def test_logits_are_gathered_over_chunks() -> None:
    executor = PositionExecutor()
    tokens = list(range(100))
    logits = compiled_logits(executor, tokens)
    assert logits.shape == (100, VOCABULARY)
    np.testing.assert_array_equal(logits, [expected_row(t, t) for t in tokens])
    assert executor.num_steps == -(-100 // min(CHUNK_TOKENS, 48))


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="201 tokens"):
        compiled_logits(PositionExecutor(), [0] * 201)


def test_equal_models_differ_by_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 30)).astype(np.float32)
    found = compare(logits + 5, logits, list(range(9)))
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.top1_agreement == 1
    assert found.max_logit_error < 1e-5
    assert found.perplexity == pytest.approx(found.reference_perplexity)
    assert found.num_tokens == 8


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    found = compare(np.zeros((5, 40)), np.zeros((5, 40)), [1, 2, 3, 4, 5])
    assert found.perplexity == pytest.approx(40)


def test_divergence_and_disagreement_are_measured() -> None:
    reference = np.log(np.array([[0.75, 0.25]] * 3, np.float32))
    ours = np.log(np.array([[0.25, 0.75]] * 3, np.float32))
    found = compare(ours, reference, [0, 0, 0])
    assert found.mean_kl == pytest.approx(0.75 * np.log(3) + 0.25 * np.log(1 / 3), rel=1e-5)
    assert found.top1_agreement == 0
    assert found.perplexity == pytest.approx(4, rel=1e-5)
    assert found.reference_perplexity == pytest.approx(4 / 3, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 4), (4, 5)])
def test_logits_of_other_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        compare(np.zeros(shape), np.zeros((4, 4)), [0, 1, 2, 3])


def test_validate_an_artifact(run: Run, artifact: Path, engine: Any) -> None:
    result = run("validate", artifact, "--json")
    files, ran = json.loads(result.stdout)
    assert (files["check"], files["files"]) == ("files", 3)
    assert (ran["check"], ran["text"]) == ("run", "The capital is Paris.")
    assert "run: ok" in run("validate", artifact).stdout


def test_validate_finds_a_changed_byte(run: Run, artifact: Path, engine: Any) -> None:
    (artifact / "weights.safetensors").write_bytes(b"v" * 2048)
    result = run("validate", artifact)
    assert result.exit_code == 2
    assert "weights.safetensors" in result.stderr


def test_an_artifact_cannot_be_compared_alone(run: Run, artifact: Path, engine: Any) -> None:
    result = run("validate", artifact, "--against", "hf")
    assert result.exit_code == 2
    assert "needs the model itself" in result.stderr


@pytest.fixture
def model(artifact: Path, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that compiles to the sample artifact and that "transformers" agrees with."""
    loaded: SimpleNamespace = conversation.llm.load(artifact, None)
    loaded.executor = PositionExecutor()
    compiler, reference = ModuleType("rusteeze.compiler"), ModuleType("rusteeze.frontend.reference")
    compiler.compile_model = lambda *_: artifact  # type: ignore[attr-defined]
    reference.reference_logits = lambda _, ids: np.stack(  # type: ignore[attr-defined]
        [expected_row(t, p) for p, t in enumerate(ids)]
    )
    monkeypatch.setitem(sys.modules, "rusteeze.compiler", compiler)
    monkeypatch.setitem(sys.modules, "rusteeze.frontend.reference", reference)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_accuracy_against_transformers(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcdefgh")
    result = run("validate", model, "--against", "hf", "--text", tmp_path / "text", "--json")
    accuracy = json.loads(result.stdout)[-1]
    assert accuracy["check"] == "accuracy"
    assert accuracy["num_tokens"] == 8
    assert accuracy["max_logit_error"] == 0
    assert accuracy["top1_agreement"] == 1


def test_a_text_too_long_for_the_model_is_a_user_error(run: Run, model: Path) -> None:
    result = run("validate", model, "--against", "hf")
    assert result.exit_code == 2
    assert "more than the model takes" in result.stderr


def test_a_config_alone_is_traced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dry_run = ModuleType("rusteeze.frontend.dry_run")
    dry_run.dry_run = lambda path: {"path": str(path)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rusteeze.frontend.dry_run", dry_run)
    config = tmp_path / "config.json"
    config.write_text("{}")
    expected = [{"check": "config", "path": str(config)}]
    assert json.loads(run("validate", config, "--json").stdout) == expected
    assert json.loads(run("validate", tmp_path, "--json").stdout) == expected
