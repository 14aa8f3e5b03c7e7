"""Folders of quantised weights, compiled, against Hugging Face's model of the dequantised weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiled import CompiledStep
from configs import tiny
from harness import (
    MAX_MODEL_LEN,
    draw_sequences,
    drive,
    make_config,
    random_model,
    reference_logits,
    relative_error,
)
from quantised_folders import (
    Packer,
    awq_packer,
    bitsandbytes_packer,
    compressed_packer,
    compressed_table,
    float8_packer,
    gptq_packer,
    mxfp4_packer,
    save_quantised,
)
from transformers import AutoModelForCausalLM

from rusteeze.frontend.checkpoint import Checkpoint, open_checkpoint
from rusteeze.frontend.trace import trace
from rusteeze.model_weights import Weights
from rusteeze.weights import Weight

TOLERANCE = 1e-4  # of the largest logit
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
ORDERED = GPTQ | {"desc_act": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
NF4, FP4 = bitsandbytes_packer("nf4", nested=True), bitsandbytes_packer("fp4")
FP8 = {"quant_method": "fp8", "weight_block_size": [48, 40]}
FLOAT = compressed_table("float-quantized", num_bits=8, type="float", strategy="channel")
INT4 = compressed_table("pack-quantized", num_bits=4, type="int", group_size=32, strategy="group")
INT8 = compressed_table("int-quantized", num_bits=8, type="int", strategy="channel")
FBGEMM = {"quant_method": "fbgemm_fp8"}
MXFP4 = {"quant_method": "mxfp4"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class FolderWeights(Mapping[str, Any]):
    """A checkpoint's weights and a trace's constants by name."""

    def __init__(self, checkpoint: Checkpoint, constants: Mapping[str, np.ndarray]) -> None:
        self.checkpoint, self.constants = checkpoint, constants
        self.weights = Weights(checkpoint, constants, "auto")

    def __getitem__(self, name: str) -> Weight | np.ndarray:
        return self.constants[name] if name in self.constants else self.weights.load(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.checkpoint.params(), *self.constants))

    def __len__(self) -> int:
        return len(self.checkpoint.params()) + len(self.constants)


def error_and_formats(
    name: str, table: Mapping[str, Any], pack: Packer, folder: Path, activations: str = "f32", **options: Any
) -> tuple[float, set[str]]:
    """How far the compiled folder is from the dequantised model, and the formats of all its matrices."""
    plain = save_quantised(random_model(make_config(tiny(name))), folder, table, pack, **options)
    checkpoint = open_checkpoint(folder / "quantised")
    traced = trace(checkpoint.config, MAX_MODEL_LEN)
    weights = FolderWeights(checkpoint, traced.constants)
    columns = weights.weights.sorted_weights()
    step = CompiledStep(traced.graph, weights, traced.constants, folder, activations, columns=columns)
    sequences = draw_sequences()
    found = drive(step, sequences)
    step.close()
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    matrices = [p for p in checkpoint.params() if not p.endswith("norm.weight")]
    formats = {columns[p].format if p in columns else checkpoint.format_of(p) for p in matrices}
    return relative_error(found, reference_logits(model, sequences)), formats


CASES: dict[str, tuple[str, Mapping[str, Any], Packer, str]] = {
    "gptq-llama": ("llama3.1", GPTQ, gptq_packer(4, 32, symmetric=True, act_order=False), "affine4g32s-f16"),
    "gptq-act-order-llama": ("llama3.1", ORDERED, gptq_packer(4, 32, symmetric=True, act_order=True), "affine4g32s-f16"),
    "gptq-act-order-mistral": (
        "mistral", ORDERED, gptq_packer(3, 32, symmetric=False, act_order=True), "affine3g32m-f32",
    ),
    "gptq-act-order-qwen2": ("qwen1.5", ORDERED, gptq_packer(2, 32, symmetric=False, act_order=True), "affine2g32m-f32"),
    "gptq-act-order-deepseek": (
        "deepseek-v2", ORDERED | {"group_size": 16}, gptq_packer(4, 16, symmetric=True, act_order=True),
        "affine4g16s-f16",
    ),
    "gptq-act-order-mixtral": ("mixtral", ORDERED, gptq_packer(8, 32, symmetric=True, act_order=True), "affine8g32s-f16"),
    "gptq-mixtral": ("mixtral", GPTQ, gptq_packer(2, 32, symmetric=False, act_order=False), "affine2g32m-f32"),
    "gptq-8-qwen2": ("qwen1.5", GPTQ, gptq_packer(8, 32, symmetric=True, act_order=False), "affine8g32s-f16"),
    "gptq-deepseek": (
        "deepseek-v2", GPTQ | {"group_size": 16}, gptq_packer(4, 16, symmetric=True, act_order=False),
        "affine4g16s-f16",
    ),
    "awq-llama": ("llama2-gqa", AWQ, awq_packer(32), "affine4g32m-f32"),
    "awq-mistral": ("mistral", AWQ, awq_packer(32), "affine4g32m-f32"),
    "awq-mixtral": ("mixtral", AWQ, awq_packer(32), "affine4g32m-f32"),
    "nf4-llama": ("llama3.1", BNB, NF4, "codebook4g64-f32"),
    "fp4-qwen2": ("qwen1.5", BNB, FP4, "codebook4g64-f32"),
    "nf4-mixtral": ("mixtral", BNB, NF4, "codebook4g64-f32"),
    "int8-llama": ("llama3.1", BNB, bitsandbytes_packer("int8"), "affine8g64s-f32"),
    "int8-mistral": ("mistral", BNB, bitsandbytes_packer("int8"), "affine8g64s-f32"),
    "int8-mixtral": ("mixtral", BNB, bitsandbytes_packer("int8"), "affine8g64s-f32"),
    "fp8-llama": ("llama3.1", FP8, float8_packer(".weight_scale_inv", 48, 40), "float8g8-f32"),
    "fp8-powers-mixtral": ("mixtral", FP8, float8_packer(".weight_scale_inv", 48, 40, powers=True), "float8g8-f32"),
    "fp8-qwen2": ("qwen1.5", FP8, float8_packer(".weight_scale_inv", 48, 40), "float8g8-f32"),
    "fbgemm-llama": ("llama3.1", FBGEMM, float8_packer(".weight_scale", 1, None), "float8g64-f32"),
    "fbgemm-mistral": ("mistral", FBGEMM, float8_packer(".weight_scale", 1, None), "float8g64-f32"),
    "float8-llama": ("llama3.1", FLOAT, float8_packer(".weight_scale", 1, None), "float8g64-f32"),
    "float8-qwen2": ("qwen1.5", FLOAT, float8_packer(".weight_scale", 1, None), "float8g64-f32"),
    "open-llama": ("llama3.1", INT8, compressed_packer(8, None, symmetric=True, packed=False), "affine8g64s-f32"),
    "packed-llama": ("llama3.1", INT4, compressed_packer(4, 32, symmetric=True), "affine4g32s-f32"),
    "packed-qwen2": ("qwen1.5", INT4, compressed_packer(4, 32, symmetric=False), "affine4g32m-f32"),
    "packed-mixtral": ("mixtral", INT4, compressed_packer(4, 32, symmetric=False), "affine4g32m-f32"),
    "mxfp4-gpt-oss": ("gpt-oss", MXFP4, mxfp4_packer(), "codebook4g32it-f32"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [c if c == "gptq-llama" else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_compiled_folder_matches_the_dequantised_model(case: str, tmp_path: Path) -> None:
    name, table, pack, format = CASES[case]
    if table is BNB:
        pytest.importorskip("bitsandbytes")
    if table is INT4 or table is INT8:
        pytest.importorskip("compressed_tensors")
    error, formats = error_and_formats(name, table, pack, tmp_path, rank=3 if table is MXFP4 else 2)
    assert error <= TOLERANCE
    assert format in formats


@pytest.mark.parametrize("name", ["llama3.1", "llama3.2"])  # with a head of its own, and a tied one
def test_quantised_embeddings_and_heads(name: str, tmp_path: Path) -> None:
    pack = gptq_packer(4, 32, symmetric=False, act_order=False)
    error, formats = error_and_formats(name, GPTQ, pack, tmp_path, kept=())
    assert error <= TOLERANCE
    assert formats == {"affine4g32m-f32"}


@pytest.mark.parametrize("case", ["gptq-llama", pytest.param("awq-llama", marks=pytest.mark.slow)])
def test_rounded_activations_are_near(case: str, tmp_path: Path) -> None:
    """Without experts: rounding may send a token to other ones, and then its logits are others."""
    name, table, pack, _ = CASES[case]
    error, _ = error_and_formats(name, table, pack, tmp_path, "int8")
    assert TOLERANCE < error <= 0.1


@pytest.mark.parametrize("name", ["llama3.1", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_bits_that_differ_from_tensor_to_tensor(name: str, tmp_path: Path) -> None:
    """Neighbours that would be joined (queries and keys, experts) cannot keep their codes together."""
    packers = cycle(
        gptq_packer(bits, 32, symmetric=bits == 4, act_order=bits == 3) for bits in (4, 8, 3, 2)
    )
    error, formats = error_and_formats(name, GPTQ, lambda weight: next(packers)(weight), tmp_path)
    assert error <= TOLERANCE
    assert {"f32", "affine4g32s-f16", "affine8g32m-f32", "affine2g32m-f32"} <= formats or name == "mixtral"
