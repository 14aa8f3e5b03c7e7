"""The real model at 3 bits, through compiled kernels: what it predicts of a text that it was not calibrated on."""

from __future__ import annotations

import math
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from smollm2 import MARKS, MODEL, rusteeze

from rusteeze.cli.accuracy import compiled_logits
from rusteeze.runtime.llm import load

pytestmark = MARKS
ROOT = Path(__file__).parents[2]
WINDOW, WINDOWS = 512, 4


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project's documents."""
    path = tmp_path_factory.mktemp("calibration") / "text.txt"
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    path.write_text("\n\n".join(d.read_text(encoding="utf-8") for d in documents), encoding="utf-8")
    return path


def perplexity(folder: Path) -> float:
    """Of Python's language reference, by the compiled model in float32."""
    artifact = folder.with_suffix(".rz")
    rusteeze("compile", folder, "-o", artifact, "--activations", "f32")
    model = load(artifact)
    ids = np.asarray(model.tokenizer.encode("\n\n".join(topics.values())[:20_000]))[: WINDOW * WINDOWS]
    loss = 0.0
    for window in ids.reshape(WINDOWS, WINDOW):
        logits = compiled_logits(model.executor, window.tolist())[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, window[1:, None], -1)[:, 0]
        loss += float((np.log(np.exp(logits).sum(-1)) - chosen).sum())
    model.close()
    return math.exp(loss / (WINDOWS * (WINDOW - 1)))


def test_gptq_predicts_better_than_nearest_codes(calibration: Path, tmp_path: Path) -> None:
    found = {}
    for method in ("rtn", "gptq"):
        folder = tmp_path / method
        rusteeze(
            "quantize", MODEL, "-o", folder, "--method", method, "--bits", "3", "--group", "64",
            "--calibration", calibration, "--tokens", "4096",
        )  # fmt: skip
        found[method] = perplexity(folder)
    sizes = {method: (tmp_path / method / "model.safetensors").stat().st_size for method in found}
    assert sizes["rtn"] == sizes["gptq"]
    assert found["gptq"] < 0.8 * found["rtn"]
