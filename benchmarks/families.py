"""How fast products with each weight family are: bytes of weights a second at one row, operations at 512.

    .venv/bin/python benchmarks/families.py [--formats F ...] [--threads N] [--append]

Each format is measured alone: as many matrices of 4096 x 4096 as make 256 MB, one step through all of them, random
codes. The reading of 256 MB of memory is measured with the same threads right before. ``--append`` adds the rows to
families.csv. Steps are whole: rounding of activations and the start of a step are part of the time.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import commit, cores, cpu_model

from rusteeze.codegen.cpu.build import build_library
from rusteeze.codegen.cpu.isa import ALL, Isa
from rusteeze.codegen.cpu.lower import LoweringOptions, lower
from rusteeze.ir import Graph, TensorType
from rusteeze.ir.storage import rounding_for
from rusteeze.ir.types import ROWS, DType
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import CpuExecutor, aligned_bytes
from rusteeze.runtime.launch import runs_here
from rusteeze.weights import Affine, Codebook, Dense, Float8, Weight, parse_format
from rusteeze.weights.e4m3 import NAN_CODE
from rusteeze.weights.formats import SCALE_DTYPES

FORMATS = {
    "affine8g32s-f16": "Q8_0", "affine4g32m-f16": "Q4_1", "float8g128-f32": "FP8 in blocks",
    "affine6g16s-f32": "Q6_K", "codebook4g32i-f16": "IQ4_NL", "codebook4g64-f32": "nf4, fp4",
    "affine5g32m-f32": "Q5_K", "affine3g128m-f32": "GPTQ", "affine2g128m-f32": "GPTQ",
    "codebook4g32i-f32": "MXFP4, IQ4_XS", "affine3g16s-f32": "Q3_K", "affine2g16m-f32": "Q2_K",
    "float8g4096-f32": "FP8, a scale a row", "affine4g128m-f32": "GPTQ, AWQ", "bf16": "bf16",
}  # fmt: skip
SIZE, BYTES, PREFILL = 4096, 256 << 20, 512
SECONDS, FEWEST = 0.7, 3
FILE = Path(__file__).with_name("families.csv")
COLUMNS = (
    "date", "commit", "cpu", "isa", "threads", "format", "as in", "bits", "GB/s", "read GB/s", "of read",
    "prefill GOP/s", "of affine8g32s-f16",
)  # fmt: skip


def drawn(format: str, shape: tuple[int, int], rng: np.random.Generator) -> Weight:
    """A random matrix whose products with numbers of about one are of about one."""
    f, size = parse_format(format), 1 / np.sqrt(shape[1])
    if f.family == "dense":
        return Dense(rng.standard_normal(shape, np.float32) * np.float32(size), "f32").converted(f.dtype)
    codes = rng.integers(0, 1 << f.bits, shape, np.uint8)
    step = size / (1 << f.bits)
    scale = (rng.uniform(2, 4, (shape[0], shape[1] // f.group)) * step).astype(SCALE_DTYPES[f.dtype])
    if f.family == "float8":
        codes[codes & NAN_CODE == NAN_CODE] = 0
        return Float8(f.group, codes, scale)
    if f.family == "codebook":
        table = np.arange(-8, 8) if f.integral else rng.standard_normal(16)
        return Codebook(f.group, codes, table.astype(np.float32), scale)
    minimum = None if f.symmetric else -(scale * np.float32((1 << f.bits) / 2)).astype(scale.dtype)
    return Affine(f.bits, f.group, codes, scale, minimum, f.zero)


class Products:
    """A step of products of the same x with different matrices; it takes the place of a weight file, too."""

    def __init__(self, format: str, isa: Isa, threads: int, folder: Path) -> None:
        rng, graph = np.random.default_rng(0), Graph()
        rows = graph.input("rows", TensorType(DType.i32, (ROWS,)))
        weights: dict[str, Weight] = {"x": Dense(rng.standard_normal((PREFILL, SIZE), np.float32), "f32")}
        x = graph.add("embedding", rows, graph.weight("x", TensorType(DType.f32, (PREFILL, SIZE)), "f32"))
        if to := rounding_for(format):
            x = graph.add("quantize", x, to=to)
        weight = drawn(format, (SIZE, SIZE), rng)
        per_matrix = SIZE * SIZE * parse_format(format).bits // 8
        self.count = -(-BYTES // per_matrix)
        for i in range(self.count):
            w = graph.weight(f"w{i}", TensorType(DType.f32, (SIZE, SIZE)), format)
            weights[w.name] = weight
            y = graph.add("linear", x, w, None)
        graph.outputs = [y]
        lowered = lower(graph, LoweringOptions(PREFILL))
        self.data: dict[str, np.ndarray] = {}
        self.bytes = 0
        for name in lowered.statics.entries:
            packed = name.startswith("w") and ".tiles" in name
            shared = f"w0{name[name.index('.') :]}"
            source = self.data[shared] if packed and shared in self.data else lowered.statics.data(name, weights.get)
            self.data[name] = aligned_bytes(source.nbytes)
            self.data[name][:] = source
            self.bytes += source.nbytes if packed else 0
        library = build_library(lowered.kernels, isa, folder)
        self.executor = CpuExecutor(
            lowered.plan, self, library, num_threads=threads, num_blocks=1,
            max_batched_tokens=PREFILL, max_sequences=PREFILL,
        )  # fmt: skip

    def address(self, name: str) -> int:
        return self.data[name].ctypes.data

    def nbytes(self, name: str) -> int:
        return self.data[name].nbytes

    def seconds(self, rows: int) -> float:
        """The median time of a step."""
        each = np.arange(rows, dtype=np.int32)
        batch = Batch(each, each, each, each, np.array([0, rows], np.int32), np.array([rows], np.int32),
                      np.zeros((1, 1), np.int32))  # fmt: skip
        self.executor.execute(batch)
        found: list[float] = []
        while len(found) < FEWEST or sum(found) < SECONDS:
            start = time.perf_counter()
            self.executor.execute(batch)
            found.append(time.perf_counter() - start)
        return statistics.median(found)


def measure(format: str, isa: Isa, threads: int) -> tuple[float, float, float, float]:
    """(bits of a weight, GB/s at one row, GB/s of reading, GOP/s at 512 rows)"""
    with tempfile.TemporaryDirectory() as folder:
        products = Products(format, isa, threads, Path(folder))
        elements = products.count * SIZE * SIZE
        try:
            read = products.executor.ceilings().read / 1e9
            rate = products.bytes / products.seconds(1) / 1e9
            prefill = 2 * elements * PREFILL / products.seconds(PREFILL) / 1e9
        finally:
            products.executor.close()
        return 8 * products.bytes / elements, rate, read, prefill


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--isa", default=None)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    isa = next(i for i in ALL if runs_here(i.machine, i.requires) and options.isa in (None, i.name))
    where = (time.strftime("%F"), commit(Path(__file__).parent.parent), cpu_model(), isa.name, options.threads)
    base = measure("affine8g32s-f16", isa, options.threads)[3]
    for format in options.formats:
        bits, rate, read, prefill = measure(format, isa, options.threads)
        figures = [round(bits, 2), *(f"{v:.3g}" for v in (rate, read, rate / read, prefill, prefill / base))]
        row = (*where, format, FORMATS.get(format, ""), *figures)
        print(*row[3:], sep="\t", flush=True)
        if options.append:
            new = not FILE.exists()
            with FILE.open("a", newline="") as f:
                writer = csv.writer(f, lineterminator="\n")
                writer.writerows([COLUMNS, row] if new else [row])


if __name__ == "__main__":
    main()
