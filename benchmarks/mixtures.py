"""How fast mixtures of experts are, beside the reading of memory: random models of real widths, a few layers deep.

    .venv/bin/python benchmarks/mixtures.py [--models mixtral qwen3-moe] [--format F] [--threads N] [--append]

One token with 128 in the cache, and a chunk of 512: the bytes that all calls, and those of experts alone, have to
move (a weight counts once a step, at most as often as there are tokens) in the time that they take; the
operations of experts. All experts of a layer hold the same numbers, each in memory of its own; which of them a
token goes to is the router's choice. ``--append`` adds rows to mixtures.csv.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from families import drawn
from machine import commit, cores, cpu_model
from transformers import AutoConfig

from rusteeze.codegen.cpu.build import build_library
from rusteeze.codegen.cpu.isa import ALL, Isa
from rusteeze.codegen.cpu.lower import LoweringOptions, lower
from rusteeze.codegen.cpu.tiles import pack
from rusteeze.codegen.statics import plain
from rusteeze.compiler import choose_kv_dtype, optimize
from rusteeze.config import CompileOptions
from rusteeze.frontend.trace import trace
from rusteeze.ir import Value
from rusteeze.ir.storage import rounding_for
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import CpuExecutor, aligned_bytes
from rusteeze.runtime.launch import runs_here
from rusteeze.runtime.profile import Profile, decode_batches, prefill_batches, take_profile
from rusteeze.weights import Dense, Weight

COMMON = {"vocab_size": 4096, "max_position_embeddings": 4096, "num_key_value_heads": 8, "num_attention_heads": 32}
MODELS = {
    "mixtral": COMMON | {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen3-moe": COMMON | {
        "model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 4,
        "num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4, "head_dim": 128,
        "norm_topk_prob": True,
    },
}  # fmt: skip
CONTEXT, CHUNK, LONGEST, BLOCKS, SECONDS = 128, 512, 1024, 64, 4.0
PLAIN = ("embed_tokens.weight", "mlp.gate.weight")
FILE = Path(__file__).with_name("mixtures.csv")
COLUMNS = (
    "date", "commit", "cpu", "isa", "threads", "model", "format", "tokens", "ms", "GB/s", "read GB/s",
    "expert GB/s", "expert GOP/s",
)  # fmt: skip


class Mixture:
    """A compiled model with weights in memory; it takes the place of a weight file, too."""

    def __init__(self, name: str, format: str, isa: Isa, threads: int, folder: Path) -> None:
        settings = dict(MODELS[name])
        traced = trace(AutoConfig.for_model(settings.pop("model_type"), **settings), LONGEST)
        rng, graph = np.random.default_rng(0), traced.graph

        def load(weight: str) -> Weight:
            if weight in traced.constants:
                return plain(traced.constants[weight])
            value = graph.weights[weight]
            if value.type.rank == 1:
                return Dense(np.ones(value.type.shape, np.float32), "f32")
            return drawn(value.format, value.type.shape[-2:], rng)

        for weight, value in graph.weights.items():
            codes = value.type.rank > 1 and weight not in traced.constants and not weight.endswith(PLAIN)
            value.format = format if codes else "f32"
        activations = rounding_for(format) or "f32"
        optimize(graph, traced.constants, activations, choose_kv_dtype(activations, CompileOptions()))
        lowered = lower(graph, LoweringOptions(LONGEST))
        self.data: dict[str, np.ndarray] = {}
        for entry, (value, _) in lowered.statics.entries.items():
            self.data[entry] = aligned_bytes(lowered.statics.nbytes(entry))
            self.data[entry][:] = _experts(value, load) if value.type.rank == 3 else lowered.statics.data(entry, load)
        library = build_library(lowered.kernels, isa, folder)
        self.executor = CpuExecutor(
            lowered.plan, self, library, num_threads=threads, num_blocks=BLOCKS, max_batched_tokens=CHUNK
        )

    def address(self, name: str) -> int:
        return self.data[name].ctypes.data

    def nbytes(self, name: str) -> int:
        return self.data[name].nbytes

    def profile(self, batches: list[Batch]) -> Profile:
        """With random tokens, so that the router has something to choose by."""
        rng, vocabulary = np.random.default_rng(1), COMMON["vocab_size"]
        drawn_ids = [rng.integers(0, vocabulary, b.num_tokens).astype(np.int32) for b in batches]
        with_ids = [replace(b, input_ids=ids) for b, ids in zip(batches, drawn_ids, strict=True)]
        return take_profile(self.executor, with_ids, SECONDS)


def _experts(value: Value, load) -> np.ndarray:
    """The tiles of a stack of experts."""
    experts = int(value.type.shape[0])
    return np.tile(pack(load(value.name)), experts)


def figures(profile: Profile, read: float) -> list[str]:
    experts = [c for c in profile.calls if c.kernel.startswith("expert_linear")]
    seconds = sum(c.ns for c in experts) / 1e9
    rates = [
        profile.ordinary_ns / 1e6, sum(c.bytes for c in profile.calls) / profile.ordinary_ns, read,
        sum(c.bytes for c in experts) / seconds / 1e9, sum(c.flops for c in experts) / seconds / 1e9,
    ]  # fmt: skip
    return [f"{v:.4g}" for v in rates]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--format", default="affine4g32s-f16")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    isa = next(i for i in ALL if runs_here(i.machine, i.requires))
    where = (time.strftime("%F"), commit(Path(__file__).parent.parent), cpu_model(), isa.name, options.threads)
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = Mixture(name, options.format, isa, options.threads, Path(folder))
            executor = model.executor
            batches = {1: decode_batches(executor, 1, CONTEXT), CHUNK: prefill_batches(executor, CHUNK)}
            for tokens, batch in batches.items():
                read = executor.ceilings().read / 1e9
                row = (*where, name, options.format, tokens, *figures(model.profile(batch), read))
                print(*row[3:], sep="\t", flush=True)
                if options.append:
                    new = not FILE.exists()
                    with FILE.open("a", newline="") as f:
                        csv.writer(f, lineterminator="\n").writerows([COLUMNS, row] if new else [row])
            executor.close()


if __name__ == "__main__":
    main()
