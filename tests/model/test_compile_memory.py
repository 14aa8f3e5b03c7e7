"""Compiling packs one weight at a time: the model is never in memory twice."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from smollm2 import MARKS, MODEL

from rusteeze import compiler
from rusteeze.config import CompileOptions

pytestmark = MARKS


def test_packing_needs_less_than_the_model_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks: list[int] = []
    write_weights = compiler.write_weights

    def measured(*args: object) -> None:
        tracemalloc.start()
        write_weights(*args)  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(compiler, "write_weights", measured)
    out = compiler.compile_model(MODEL, tmp_path / "out.rz", CompileOptions(), lambda *_: None)
    (peak,) = peaks
    assert 0 < peak < (out / "weights.safetensors").stat().st_size
