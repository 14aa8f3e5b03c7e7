"""profile: groups, trace and picture from a profile by hand, and the command on the small model."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from mock_executor import MockExecutor
from smollm2 import MARKS, rusteeze

from rusteeze.cli.kernel_groups import grouped
from rusteeze.cli.profile import _batches, _check_room
from rusteeze.cli.roofline import draw
from rusteeze.cli.trace_file import trace_events
from rusteeze.errors import UserError
from rusteeze.runtime.ceilings import Ceilings
from rusteeze.runtime.profile import CallProfile, Profile

Run = Callable[..., Result]
PNG = b"\x89PNG"
CEILINGS = Ceilings(10e9, {"int8": 100e9, "bf16": 50e9, "f32": 25e9})
STAMPS = np.array([[[1000, 1400, 1500], [1500, 2500, 2500]], [[1000, 1500, 1500], [1500, 2400, 2500]]])


@pytest.fixture
def profile() -> Profile:
    calls = [
        CallProfile("copy_0123abcd", "layer.0", 450.0, 50.0, 10, 2500, "f32"),
        CallProfile("linear_4567abcd", "layer.0", 900.0, 100.0, 50_000, 100, "int8"),
        CallProfile("linear_89ababcd", "layer.1", 800.0, 200.0, 50_000, 100, "int8"),
    ]
    return Profile(calls, [STAMPS], 1500.0, 1400.0, 1, 2)


def test_kernels_are_grouped_by_share_and_bound_by_the_nearer_limit(profile: Profile) -> None:
    linear, copy = grouped(profile, CEILINGS)
    assert (linear.kernel, linear.calls, linear.bound) == ("linear", 2, "int8")
    assert (copy.kernel, copy.calls, copy.bound) == ("copy", 1, "memory")
    assert linear.share == pytest.approx(0.8)
    assert linear.waiting == pytest.approx(0.15)
    assert linear.flops_per_s == pytest.approx(50e9)
    assert linear.of_limit == pytest.approx(0.5)
    assert copy.bytes_per_s == pytest.approx(5e9)
    assert copy.of_limit == pytest.approx(0.5)


def test_the_trace_has_every_call_of_every_thread_and_its_waiting(profile: Profile) -> None:
    two = Profile(profile.calls[:2], profile.stamps, 1.0, 1.0, 1, 2)
    events = json.loads(json.dumps(trace_events(two)))["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert [(e["tid"], e["name"].split("_")[0], e["ts"], e["dur"]) for e in spans] == [
        (0, "copy", 0.0, 0.4), (0, "wait", 0.4, 0.1), (0, "linear", 0.5, 1.0),
        (1, "copy", 0.0, 0.5), (1, "linear", 0.5, 0.9), (1, "wait", 1.4, 0.1),
    ]  # fmt: skip
    assert spans[0]["args"] == {"origin": "layer.0", "bytes": 2500, "flops": 10}


def test_the_roofline_is_a_picture(profile: Profile, tmp_path: Path) -> None:
    draw(tmp_path / "r.png", grouped(profile, CEILINGS), CEILINGS)
    assert (tmp_path / "r.png").read_bytes().startswith(PNG)


def test_without_matplotlib_the_command_says_what_to_install(
    run: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "rusteeze.cli.roofline":
            raise ModuleNotFoundError("gone", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = run("profile", artifact, "--roofline", tmp_path / "r.png")
    assert result.exit_code == 2
    assert result.stderr == "error: --roofline needs matplotlib; run: pip install 'rusteeze[plot]'\n"


@pytest.mark.parametrize(
    ("sequences", "length", "fits"), [(4, 16, True), (2, 17, True), (3, 17, False), (1, 65, False)]
)
def test_each_sequence_needs_whole_blocks(sequences: int, length: int, fits: bool) -> None:
    executor = MockExecutor(num_blocks=4, block_size=16)
    executor.max_sequences = 8  # type: ignore[attr-defined]
    with nullcontext() if fits else pytest.raises(UserError, match="do not fit into a cache of 64"):
        _check_room(executor, sequences, length)  # type: ignore[arg-type]
    with nullcontext() if fits else pytest.raises(ValueError, match="do not fit into the cache"):
        (batch,) = _batches(executor, sequences, length, None)  # type: ignore[arg-type]
        assert batch.slot_mapping.max() < 64


class TestSmallModel:
    pytestmark = MARKS

    def test_a_decoding_step_reads_all_weights_once(self, smollm2: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.json"
        for _ in range(3):  # on a crowded machine a step may wait between its calls
            facts = json.loads(
                rusteeze("profile", smollm2, "--json", "--seconds", "0.3", "--threads", "2", "--trace", trace)
            )
            busy = sum(c["busy_us"] + c["wait_us"] for c in facts["calls"])
            if busy == pytest.approx(facts["timed_us"], rel=0.5):
                break
        assert facts["threads"] == 2
        assert sum(k["share"] for k in facts["kernels"]) == pytest.approx(1)
        weights = (smollm2 / "weights.safetensors").stat().st_size
        matmuls = sum(c["bytes"] for c in facts["calls"] if c["kernel"].startswith("linear"))
        # all of the file but the tables of positions; the embedding is the last matmul's weight
        assert 0.9 * weights < matmuls < 1.05 * weights
        assert busy == pytest.approx(facts["timed_us"], rel=0.5)
        assert len(json.loads(trace.read_text())["traceEvents"]) > 2 * len(facts["calls"])
        assert facts["read_gb_per_s"] > 0.5

    def test_a_prompt_and_a_batch(self, smollm2: Path) -> None:
        fast = ("--json", "--seconds", "0.1")
        prompt = json.loads(rusteeze("profile", smollm2, "--prefill", "600", *fast))
        batch = json.loads(rusteeze("profile", smollm2, "--batch", "8", "--context", "300", *fast))
        assert (prompt["tokens"], batch["tokens"]) == (600, 8)
        flops = [sum(c["flops"] for c in f["calls"]) for f in (prompt, batch)]
        assert flops[0] > 30 * flops[1]

    def test_more_than_the_cache_holds_is_refused(self, smollm2: Path, run: Run) -> None:
        result = run("profile", smollm2, "--batch", "200", "--context", "8000")
        assert result.exit_code == 2
        assert "do not fit" in result.stderr
