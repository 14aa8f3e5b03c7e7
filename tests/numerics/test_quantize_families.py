"""Quantised checkpoints of every family: what the text went through, what was written, and who reads it."""

from __future__ import annotations

import json
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import SUPPORTED, tiny
from harness import (
    draw_sequences,
    make_config,
    random_model,
    reference_logits,
    relative_error,
    weights_of,
)
from made_models import later_text, model_of, numbers, quantized, save_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.trace import trace
from rusteeze.ir import KVState, interpret
from rusteeze.passes.pipeline import raising, run_passes
from rusteeze.quantize.activations import Activations
from rusteeze.quantize.find_sites import find_sites
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.method import Inputs
from rusteeze.quantize.rtn import round_to_nearest

WINDOW = 21
QUICK = ("llama3.1", "qwen2-moe", "gemma2")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def each(names: object, quick: tuple[str, ...] = QUICK) -> list[object]:
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", each(SUPPORTED))
def test_torch_computes_what_the_interpreter_says(name: str) -> None:
    """The logits of a whole sequence; every op in the traces of all families passes by."""
    config = make_config(tiny(name))
    model, traced = random_model(config), trace(config, 60)
    run_passes(traced.graph, raising(traced.constants))
    weights = weights_of(model, traced)
    ids = draw_sequences()[0][:WINDOW]
    order = np.arange(WINDOW, dtype=np.int32)
    inputs = {"input_ids": ids, "positions": order, "rows": order}
    (wanted,) = interpret(traced.graph, inputs, weights, KVState([(0, WINDOW)]))
    activations = Activations(traced.graph, traced.graph.nodes, [torch.from_numpy(ids)])
    activations.last_use[traced.graph.outputs[0]] = len(traced.graph.nodes)
    activations.advance(len(traced.graph.nodes), lambda n: torch.from_numpy(np.array(weights[n])))
    (found,) = activations.rows(traced.graph.outputs[0])
    assert relative_error([found.numpy()], [wanted]) <= 1e-5


@pytest.mark.parametrize("name", each(SUPPORTED))
def test_what_is_written_is_what_was_rounded(name: str, tmp_path: Path) -> None:
    """Error 0, whatever the matrices are called and however experts are stored; the rest is as it was."""
    model = save_model(name, tmp_path)
    if name in ("gpt2", "gpt-oss"):
        pytest.skip("stores its matrices transposed, or stacked")
    before, after = numbers(model), numbers(quantized(model, "rtn"))
    traced = trace(open_checkpoint(model).config, WINDOW)
    sites, _ = find_sites(traced.graph, lambda param: True)
    params = {param for site in sites for param in site.params}
    assert params
    for param, weight in before.items():
        wanted = weight
        if param in params:
            rows = weight.reshape(-1, weight.shape[-1])
            wanted = round_to_nearest(rows, GridSpec(4, 16, False, torch.float16)).to_f32().reshape(weight.shape)
            assert not torch.equal(wanted, weight)
        assert torch.equal(after[param], wanted), param


FOLDED = ("llama3.1", "smollm2", "qwen1.5", "gemma2", "qwen2-moe", "opt", "starcoder2", "falcon-7b", "phi2", "olmo2")


@pytest.mark.parametrize("name", each(FOLDED, ("llama3.1",)))
def test_folding_factors_into_producers_changes_nothing_else(name: str, tmp_path: Path) -> None:
    """At 8 bits little is lost; a factor in the wrong place would cost far more than rounding does."""
    model = save_model(name, tmp_path)
    original, plain = numbers(model), numbers(quantized(model, "rtn", bits=8))
    after = numbers(quantized(model, "awq", bits=8))
    sequences = draw_sequences()
    wanted = reference_logits(model_of(model, original), sequences)
    folded, nearest = (
        relative_error(reference_logits(model_of(model, v), sequences), wanted) for v in (after, plain)
    )
    assert any("norm" in n and not torch.equal(after[n], w) for n, w in original.items()) or name == "olmo2"
    assert folded <= 2 * nearest + 1e-3


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_read_text_lose_less(method: str, tmp_path: Path) -> None:
    model = save_model("smollm2", tmp_path)
    sequences = later_text(model)
    wanted = reference_logits(model_of(model, numbers(model)), sequences)

    def loss(folder: Path) -> float:
        found = reference_logits(model_of(folder, numbers(folder)), sequences)
        return float(np.mean([np.square(f - w).mean() for f, w in zip(found, wanted, strict=True)]))

    assert loss(quantized(model, method)) < loss(quantized(model, "rtn"))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_second_moments_of_experts_are_held_one_at_a_time(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A layer has as many as experts, each of the square of its width."""
    made: list[weakref.ref[torch.Tensor]] = []
    compute = Inputs.second_moments

    def watched(inputs: Inputs) -> torch.Tensor:
        assert not any(moments() is not None for moments in made)
        found = compute(inputs)
        made.append(weakref.ref(found))
        return found

    model = save_model("qwen2-moe", tmp_path)
    experts = open_checkpoint(model).config.num_experts
    monkeypatch.setattr(Inputs, "second_moments", watched)
    quantized(model, method)
    assert len(made) > 2 * experts


# Symmetric ones: transformers 5.23 makes no room for packed zero points, though compressed-tensors packs them.
LAYOUTS = {
    "integers": ("rtn", {"symmetric": True}), "ordered": ("gptq", {"symmetric": True, "act_order": True}),
    "scaled": ("awq", {"symmetric": True}), "float8": ("fp8", {}),
    "mixed": ("rtn", {"symmetric": True, "target_bits": 4.0}),
}  # fmt: skip


@pytest.mark.parametrize("layout", each(LAYOUTS, ("integers", "float8", "mixed")))
def test_transformers_reads_compressed_tensors(layout: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    method, options = LAYOUTS[layout]
    folder = quantized(save_model("llama3.1", tmp_path, torch.float16), method, **options)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    sequences = draw_sequences()
    ours = model_of(folder, numbers(folder))
    assert relative_error(reference_logits(theirs, sequences), reference_logits(ours, sequences)) <= 1e-3


def test_a_mixture_keeps_its_budget(tmp_path: Path) -> None:
    folder = quantized(save_model("llama3.1", tmp_path), "gptq", format="gptq", target_bits=3.0)
    stored = load_file(folder / "model.safetensors")
    codes = {name.removesuffix(".qweight"): t for name, t in stored.items() if name.endswith(".qweight")}
    values = numbers(folder)
    bits = {name: words.numel() * 32 / values[f"{name}.weight"].numel() for name, words in codes.items()}
    total = sum(bits[name] * values[f"{name}.weight"].numel() for name in bits)
    assert 2.7 < total / sum(values[f"{name}.weight"].numel() for name in bits) <= 3.0
    table = json.loads((folder / "config.json").read_text())["quantization_config"]
    for name, width in bits.items():
        others = [rule["bits"] for pattern, rule in table["dynamic"].items() if re.match(pattern[2:], name)]
        assert (others or [table["bits"]]) == [width]
