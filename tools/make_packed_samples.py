"""Writes tests/unit/frontend/packed_samples.json: small weights as other projects pack and unpack them.

    python tools/make_packed_samples.py QLINEAR_CUDA.py PACKING_UTILS.py

QLINEAR_CUDA.py is auto_gptq/nn_modules/qlinear/qlinear_cuda.py of auto-gptq 0.7.1, PACKING_UTILS.py is
awq/utils/packing_utils.py of autoawq 0.2.9; neither package can be installed beside a current transformers,
but these files run alone. Tensors are base64 of their little-endian bytes, with their shape; ``weight_sha256``
is that of the weight float32 [K, N] that the other project's own code reads from them.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.pytorch_utils  # noqa: F401  (the first file takes it for loaded)

OUT = Path(__file__).parents[1] / "tests/unit/frontend/packed_samples.json"
K, N, GROUP = 96, 64, 64  # the last group is half full


def module_of(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("foreign", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample(tensors: dict[str, torch.Tensor], weight: torch.Tensor, **facts: Any) -> dict[str, Any]:
    stored = {
        name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch."),
               "base64": base64.b64encode(t.contiguous().numpy().tobytes()).decode()}
        for name, t in tensors.items()
    }  # fmt: skip
    digest = hashlib.sha256(weight.float().contiguous().numpy().tobytes()).hexdigest()
    return {**facts, "tensors": stored, "weight_sha256": digest}


def gptq(file: ModuleType, bits: int, act_order: bool) -> dict[str, Any]:
    groups = -(-K // GROUP)
    scale = (torch.rand(N, groups) * 0.1 + 0.05).half().float()
    zero = torch.randint(1, 1 << bits, (N, groups)).float()  # the packer breaks on 0
    index = torch.arange(K) // GROUP
    index = index[torch.randperm(K)] if act_order else index
    codes = torch.randint(0, 1 << bits, (N, K)).float()
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = (codes - zero[:, index]) * scale[:, index]
    layer = file.QuantLinear(bits, GROUP, K, N, False)
    layer.pack(linear, scale.clone(), zero.clone(), index.int())
    tensors = {
        "qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales.half(), "g_idx": layer.g_idx,
    }  # fmt: skip
    with torch.no_grad():
        weight = layer(torch.eye(K))  # scales are float32 in here, so that nothing is rounded
    return sample(tensors, weight, method="gptq", bits=bits, group=GROUP, act_order=act_order)


def awq(file: ModuleType) -> dict[str, Any]:
    group = 32
    tensors = {
        "qweight": torch.randint(-(2**31), 2**31 - 1, (K, N // 8), dtype=torch.int32),
        "qzeros": torch.randint(-(2**31), 2**31 - 1, (K // group, N // 8), dtype=torch.int32),
        "scales": (torch.rand(K // group, N) * 0.1).half(),
    }  # fmt: skip
    weight = file.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4, group)
    return sample(tensors, weight, method="awq", bits=4, group=group)


if __name__ == "__main__":
    torch.manual_seed(0)
    gptq_file, awq_file = map(module_of, sys.argv[1:3])
    samples = [gptq(gptq_file, bits, act_order) for bits in (2, 3, 4, 8) for act_order in (False, True)]
    OUT.write_text(json.dumps([*samples, awq(awq_file)], indent=1) + "\n")
