"""Models of well-known shapes without a checkpoint: plan and machine code made here, weights drawn on the device.

    make_plan("llama2-7b", folder, ("sm_90",), jobs=8)     needs torch, transformers and triton, no GPU
    open_model(folder, ...)                                needs a GPU and cuda-bindings

A plan takes a few MB, so it can be made on one machine and measured on another. Drawn weights have the size
of real ones and ordinary values; what such a model says means nothing.
"""

from __future__ import annotations

import json
import math
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rusteeze.artifact.cuda_contract import PLAN_FILE, decode_cuda_plan, encode_cuda_plan
from rusteeze.runtime.batch import build_batch
from rusteeze.runtime.cuda.device import choose_architecture, choose_device
from rusteeze.runtime.cuda.driver import call
from rusteeze.runtime.cuda.executor import CudaExecutor
from rusteeze.runtime.cuda.kernels import load_kernels
from rusteeze.runtime.cuda.session import Session
from rusteeze.runtime.scheduler import Chunk, Step

SIZES, ROWS = "sizes.json", "rows"
MAX_LEN = 4096
INT4 = "affine4g128m-f16"
MOST_STORED = 64 << 20
PATTERN_BYTES = 16 << 20

# hidden, intermediate, layers, heads, key heads, head size, vocabulary
SHAPES = {
    "llama2-7b": (4096, 11008, 32, 32, 32, 128, 32000),
    "llama3-8b": (4096, 14336, 32, 32, 8, 128, 128256),
    "smollm2": (576, 1536, 30, 9, 3, 64, 49152),
    "tiny": (64, 128, 2, 4, 2, 16, 256),
}


def config_of(name: str) -> Any:
    """A LlamaConfig of that shape."""
    from transformers import LlamaConfig

    hidden, inner, layers, heads, key_heads, head, vocabulary = SHAPES[name]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, head_dim=head, vocab_size=vocabulary, max_position_embeddings=MAX_LEN,
        tie_word_embeddings=False,
    )  # fmt: skip


def make_plan(
    name: str, folder: Path, architectures: tuple[str, ...], jobs: int, matrices: str = "bf16"
) -> dict[str, Any]:
    """Plan, machine code and sizes of weights into ``folder``; returns what was made, for the record.

    ``matrices``: the format of the layers' matrices; embedding and head are bf16."""
    from rusteeze.codegen.gpu.build import build_kernels
    from rusteeze.codegen.gpu.plan import make_cuda_plan

    lowered, load = lower_model(name, matrices)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        binaries = build_kernels(lowered.kernels, architectures, folder, Path(cache), jobs, lambda _: None)
    plan = make_cuda_plan(lowered, binaries, architectures)
    (folder / PLAN_FILE).write_bytes(encode_cuda_plan(plan))
    statics = lowered.statics
    sizes = {n: (statics.nbytes(n), layout) for n, (_, layout) in statics.entries.items()}
    (folder / ROWS).mkdir(exist_ok=True)
    for number, (weight, (size, layout)) in enumerate(sizes.items()):
        if layout == "rows" and size <= MOST_STORED:  # tables that indices are looked up in, norms
            (folder / ROWS / f"{number}.bin").write_bytes(statics.data(weight, load).tobytes())
    (folder / SIZES).write_text(json.dumps(sizes))
    return {
        "kernels": len(plan.kernels), "calls": len(plan.calls), "weight_bytes": sum(s for s, _ in sizes.values()),
    }  # fmt: skip


def lower_model(name: str, matrices: str) -> tuple[Any, Any]:
    """The lowered graph, and a function that gives constants and, for every other vector, ones."""
    from rusteeze.codegen.gpu.lower import GpuOptions, lower_for_gpu
    from rusteeze.codegen.statics import plain
    from rusteeze.compiler import optimize_for_cuda
    from rusteeze.frontend.trace import trace

    traced = trace(config_of(name), MAX_LEN)
    graph, constants = traced.graph, traced.constants
    for weight, value in graph.weights.items():
        layers = value.type.rank > 1 and ".layers." in weight
        value.format = matrices if layers else "bf16"
        if weight in constants:
            value.format = plain(constants[weight]).format
    shapes = {weight: tuple(map(int, value.type.shape)) for weight, value in graph.weights.items()}
    optimize_for_cuda(graph, constants, "bf16")

    def load(weight: str) -> Any:
        if weight in constants:
            return plain(constants[weight])
        return plain(np.ones(shapes[weight], np.float32)).converted("bf16")

    return lower_for_gpu(graph, GpuOptions("bf16", MAX_LEN)), load


def open_model(
    folder: Path, tokens_in_cache: int, max_batched_tokens: int, max_sequences: int,
    weights: Mapping[str, np.ndarray] | None = None,
) -> CudaExecutor:  # fmt: skip
    """A made plan on a GPU, with packed ``weights`` or drawn ones. Not run on a GPU so far."""
    plan = decode_cuda_plan((folder / PLAN_FILE).read_bytes())
    chosen = choose_device("cuda")
    architecture = choose_architecture(chosen, plan.architectures)
    session = Session(chosen)
    try:
        addresses = place_weights(session, folder, weights)
        kernels = load_kernels(session, plan, architecture, lambda file: (folder / file).read_bytes())
        return CudaExecutor(
            session, plan, kernels, addresses, num_blocks=-(-tokens_in_cache // 16),
            max_batched_tokens=max_batched_tokens, max_sequences=max_sequences,
        )  # fmt: skip
    except BaseException:
        session.close()
        raise


def place_weights(
    session: Session, folder: Path, weights: Mapping[str, np.ndarray] | None
) -> dict[str, int]:
    """Addresses of the plan's weights. Without ``weights``, those stored with the plan are what they are, and
    all others a repeated random pattern."""
    sizes: dict[str, tuple[int, str]] = json.loads((folder / SIZES).read_text())
    stream, addresses = session.stream(), {}
    patterns = {layout: _pinned(session, _pattern(layout)) for layout in {layout for _, layout in sizes.values()}}
    for number, (name, (size, layout)) in enumerate(sizes.items()):
        addresses[name] = session.allocate(size, "weights")
        stored = folder / ROWS / f"{number}.bin"
        source = patterns[layout]
        if weights is not None:
            source = _pinned(session, weights[name])
        elif stored.is_file():
            source = _pinned(session, np.frombuffer(stored.read_bytes(), np.uint8))
        for start in range(0, size, len(source)):
            part = min(len(source), size - start)
            call("cuMemcpyHtoDAsync", addresses[name] + start, source.ctypes.data, part, stream)
    call("cuStreamSynchronize", stream)
    return addresses


def packed(name: str, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of the model's plan from its parameters, matrices as bf16."""
    from rusteeze.codegen.statics import plain

    lowered, constant = lower_model(name, "bf16")

    def load(weight: str) -> Any:
        if weight in parameters:
            return plain(parameters[weight]).converted("bf16")
        return constant(weight)

    return {weight: lowered.statics.data(weight, load) for weight in lowered.statics.entries}


def logits_of(executor: Any, ids: np.ndarray, prompt: int) -> np.ndarray:
    """f32 [len(ids), V]: a prompt of ``prompt`` tokens in one step, then one token a step."""
    blocks = array("i", range(-(-len(ids) // executor.block_size)))
    starts = [0, *range(prompt, len(ids))]
    rows = []
    for start, end in pairwise([*starts, len(ids)]):
        tokens = tuple(map(int, ids[start:end]))
        step = Step((Chunk("0", start, tokens, blocks, num_rows=len(tokens), samples=True),))
        rows.append(executor.execute(build_batch(step, executor.block_size)).copy())
    return np.concatenate(rows)


def _pinned(session: Session, data: np.ndarray) -> np.ndarray:
    memory = session.pinned(data.nbytes)
    memory[:] = data.view(np.uint8)
    return memory


def _pattern(layout: str) -> np.ndarray:
    """Random values of a layout (rusteeze.codegen.gpu.weights), as bytes."""
    rng = np.random.default_rng(0)
    if layout == "codes":
        return rng.integers(0, 256, PATTERN_BYTES, np.uint8)
    values = 0.02 * rng.standard_normal(PATTERN_BYTES // 4, np.float32)
    if layout == "matrix":  # bf16: the upper halves
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if layout == "scales":
        values = np.abs(values) / math.sqrt(8)
    return values.view(np.uint8)


def plan_folder(plans: Path, name: str, matrices: str) -> Path:
    return plans / f"{name}-{matrices}"


def names_with_plans(plans: Path, wanted: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of ``wanted`` whose plan is whole."""
    return [w for w in wanted if (plan_folder(plans, *w) / SIZES).is_file()]
