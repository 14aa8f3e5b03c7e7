"""The compiler on one page: checkpoint → trace → passes → kernels → artifact.

compile_model("SmolLM2-135M-Instruct.Q4_1.gguf", Path("smol.rz"), CompileOptions(), report)
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rusteeze.source
from rusteeze.artifact import cache
from rusteeze.artifact.contract import encode_plan
from rusteeze.artifact.cuda_contract import PLAN_FILE, WEIGHTS_FILE, encode_cuda_plan
from rusteeze.artifact.files import require_free_bytes
from rusteeze.artifact.plan_text import plan_text
from rusteeze.artifact.store import publish
from rusteeze.artifact.tuned import TUNING, fingerprint, processor, user_table
from rusteeze.codegen.bodies import attention_of
from rusteeze.codegen.cpu.isa import ALL, Isa
from rusteeze.codegen.gpu.build import build_kernels
from rusteeze.codegen.gpu.lower import GpuOptions, lower_for_gpu
from rusteeze.codegen.gpu.lowering import Lowering as GpuLowering
from rusteeze.codegen.gpu.plan import make_cuda_plan
from rusteeze.codegen.gpu.weights import GpuStatics
from rusteeze.codegen.statics import Statics
from rusteeze.config import CompileOptions
from rusteeze.errors import UserError
from rusteeze.frontend.checkpoint import Checkpoint, open_checkpoint
from rusteeze.frontend.trace import trace
from rusteeze.ir import Graph, print_graph
from rusteeze.ir.storage import is_quantized, rounding_for
from rusteeze.model_weights import Weights
from rusteeze.observe import Observer
from rusteeze.passes.pipeline import fusing, lowering, raising, rounding, run_passes
from rusteeze.passes.sort_columns import SortedWeight
from rusteeze.source import Source
from rusteeze.version import compiler_version
from rusteeze.weights import Weight

if TYPE_CHECKING:  # TVM is loaded where kernels for processors are wanted, and nowhere else
    from rusteeze.codegen.cpu.lower import Lowered
    from rusteeze.codegen.cpu.tuning_table import ProcessorTable

Report = Callable[[str, float], None]
DEFAULT_MODEL_LEN = 4096
LONGEST_MODEL_LEN = 32768


def compile_model(
    source: str | Path, out: Path | None, options: CompileOptions, progress: Report
) -> Path:
    """Compile a model into the folder ``out``, or into the cache; returns the artifact's folder.

    Reuses a cached artifact of the same model and options. Errors of the rooms below pass through; all
    that a user can mend carry ``user_error``."""
    model = rusteeze.source.resolve(source)
    key = rusteeze.source.key(model, options, compiler_version(), fingerprint())
    facts: dict[str, Any] = {}

    def build(folder: Path) -> None:
        _build(model, folder, options, facts, progress)

    if out is None:
        return cache.get_or_build(key, build, facts=facts)
    publish(out, build, key=key, facts=facts)
    return out


def _build(
    model: Source, folder: Path, options: CompileOptions, facts: dict[str, Any], progress: Report
) -> None:
    observer = Observer.from_environment()
    if options.cpu and find_spec("tvm") is None:
        raise UserError("compiling for processors needs the package apache-tvm; run: pip install 'rusteeze[compile]'")
    progress("reading the checkpoint", 0.0)
    checkpoint = open_checkpoint(model.path)
    # what is wrong with the files is told before any long work
    checkpoint.params()
    checkpoint.save_tokenizer(folder)
    max_model_len = model_len(checkpoint.config, options.max_model_len)
    progress("tracing", 0.05)
    traced = trace(checkpoint.config, max_model_len)
    weights = Weights(checkpoint, traced.constants, options.dtype)
    graph = traced.graph
    for name, value in graph.weights.items():
        value.format = weights.format_of(name, value.type.rank)
    columns = weights.sorted_weights() if options.cpu else {}
    facts |= describe(model, checkpoint, graph, columns, options, max_model_len)
    if options.architectures:
        gpu_graph = graph.copy() if options.cpu else graph
        gpu = lower_for_cuda(gpu_graph, traced.constants, options, max_model_len, observer)
        (folder / "cuda").mkdir()
        build_cuda(gpu, folder, options, progress, observer)
        write_weights(folder / WEIGHTS_FILE, gpu.statics, weights.load, progress)
        (folder / "cuda" / "graph.ir").write_text(print_graph(gpu_graph), encoding="utf-8")
        facts |= cuda_facts(gpu)
    if options.cpu:
        progress("rewriting", 0.35)
        activations = choose_activations(graph, options, columns)
        kv_dtype = choose_kv_dtype(activations, options)
        optimize(graph, traced.constants, activations, kv_dtype, observer, columns)
        progress("generating kernels", 0.45)
        lowered = lower_for_host(graph, max_model_len, known_schedules())
        with building(lowered, folder, options.jobs, observer):
            write_weights(folder / "weights.safetensors", lowered.statics, weights.load, progress)
        (folder / "graph.ir").write_text(print_graph(graph), encoding="utf-8")
        facts |= cpu_facts(lowered) | {"activations": activations, "kv_dtype": kept_as(graph)}


def optimize(
    graph: Graph,
    constants: dict[str, np.ndarray],
    activations: str,
    kv_dtype: str,
    observer: Observer | None = None,
    columns: Mapping[str, SortedWeight] | None = None,
) -> None:
    """All passes, in place, up to the graph that is lowered. ``columns``: see SortColumns."""
    passes = [*raising(constants), *lowering(columns=columns), *rounding(activations, kv_dtype), *fusing()]
    run_passes(graph, passes, observer)


def optimize_for_cuda(
    graph: Graph,
    constants: Mapping[str, np.ndarray],
    activations: str,
    observer: Observer | None = None,
) -> None:
    """The same for GPUs, where codes are multiplied by bf16 activations. ``activations``: f32 or bf16."""
    passes = [*raising(constants), *lowering(), *rounding(activations, "f32", codes="bf16"), *fusing()]
    run_passes(graph, passes, observer)


def known_schedules() -> tuple[ProcessorTable, ...]:
    """What was measured on this processor."""
    from rusteeze.codegen.cpu.tuning_table import tables_for

    return tables_for(processor(), user_table())


def lower_for_host(
    graph: Graph, max_model_len: int, tables: tuple[ProcessorTable, ...]
) -> Lowered:
    """Kernels and plan for this kind of machine, with the schedules in ``tables``."""
    from rusteeze.codegen.cpu.lower import LoweringOptions, lower

    options = LoweringOptions(max_model_len, host_isas(), tables)
    return lower(graph, options)


def lower_for_cuda(
    graph: Graph, constants: Mapping[str, np.ndarray], options: CompileOptions, max_model_len: int,
    observer: Observer,
) -> GpuLowering:  # fmt: skip
    """Passes and kernels for GPUs; the graph is rewritten in place."""
    activations = cuda_activations(graph, options)
    optimize_for_cuda(graph, constants, activations, observer)
    return lower_for_gpu(graph, GpuOptions(choose_kv_dtype(activations, options), max_model_len))


def build_cuda(
    lowered: GpuLowering, folder: Path, options: CompileOptions, progress: Report, observer: Observer
) -> None:
    """Write plan and machine code for GPUs into an artifact."""
    binaries = build_kernels(
        lowered.kernels, options.architectures, folder, cache.kernels_dir(),
        options.jobs or len(os.sched_getaffinity(0)),
        lambda done: progress("compiling GPU kernels", 0.35 + 0.15 * done), observer,
    )  # fmt: skip
    plan = make_cuda_plan(lowered, binaries, options.architectures)
    (folder / PLAN_FILE).write_bytes(encode_cuda_plan(plan))


@contextmanager
def building(
    lowered: Lowered, folder: Path, jobs: int | None, observer: Observer
) -> Iterator[None]:  # fmt: skip
    """Write the plan, the schedules and, beside what the block does, the libraries into an artifact."""
    from rusteeze.codegen.cpu.build import LibraryBuilds
    from rusteeze.codegen.cpu.tuning_table import encode_table, used_entries

    (folder / "plan.json").write_bytes(encode_plan(lowered.plan))
    (folder / TUNING).write_bytes(encode_table(used_entries(lowered.kernels.values(), lowered.options)))
    if observer.folder:
        observer.dump_as("plan.txt", plan_text(lowered.plan, lowered.statics.nbytes))
    jobs = jobs or len(os.sched_getaffinity(0))
    with LibraryBuilds(lowered.kernels, lowered.options.isas, folder / "cpu", jobs, observer):
        yield


def model_len(config: Any, asked: int | None = None) -> int:
    """The longest sequence to compile for: what the user asks, else the model's own limit, bounded.

    UserError for more positions than the model was made for: it would answer, but with nonsense."""
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    if asked is None:
        return min(int(own or DEFAULT_MODEL_LEN), LONGEST_MODEL_LEN)
    if own and asked > own:
        raise UserError(f"max_model_len is {asked}; the model was made for {own} positions")
    return asked


def choose_activations(
    graph: Graph, options: CompileOptions, columns: Mapping[str, SortedWeight] | None = None
) -> str:
    """What "auto" means: the coarsest rounding that some matrix asks for by its format, sorted or not."""
    if options.activations != "auto":
        return options.activations
    formats = {v.format for v in graph.weights.values() if v.type.rank > 1}
    wanted = set(map(rounding_for, formats | {s.format for s in (columns or {}).values()}))
    return next((kind for kind in ("int8", "bf16") if kind in wanted), "f32")


def cuda_activations(graph: Graph, options: CompileOptions) -> str:
    """What "auto" means for GPUs: bf16 as soon as some matrix is bf16 or quantised, else f32."""
    if options.activations != "auto":
        return options.activations
    formats = {v.format for v in graph.weights.values() if v.type.rank > 1}
    return "bf16" if any(f == "bf16" or is_quantized(f) for f in formats) else "f32"


def kept_as(graph: Graph) -> str:
    """What the caches of a lowered graph hold: not all attentions take what was asked for."""
    attentions = filter(None, map(attention_of, graph.nodes))
    return ", ".join(sorted({str(node.attrs["cache"]) for node in attentions}))


def choose_kv_dtype(activations: str, options: CompileOptions) -> str:
    """What "auto" means: rounded activations go with a bf16 cache, exact ones with float32."""
    if options.kv_dtype != "auto":
        return options.kv_dtype
    return "f32" if activations == "f32" else "bf16"


def host_isas() -> tuple[Isa, ...]:
    """Instruction sets of this kind of machine; its own linker can link these."""
    machine = os.uname().machine
    return tuple(isa for isa in ALL if isa.machine == machine)


def write_weights(
    path: Path, statics: Statics | GpuStatics, load: Callable[[str], Weight], progress: Report
) -> None:
    """A safetensors file of the packed weights, written one weight at a time, each 64-byte aligned."""
    header: dict[str, Any] = {}
    end = 0
    for name in statics.entries:
        size = statics.nbytes(name)
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    require_free_bytes(path.parent, 8 + len(text) + end)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for i, name in enumerate(statics.entries):
            data = statics.data(name, load)
            assert data.nbytes == statics.nbytes(name), name
            f.write(memoryview(data))
            progress("packing weights", 0.5 + 0.49 * (i + 1) / len(statics.entries))


def describe(
    model: Source, checkpoint: Checkpoint, graph: Graph, columns: Mapping[str, SortedWeight],
    options: CompileOptions, max_model_len: int,
) -> dict[str, Any]:  # fmt: skip
    """Facts for the manifest, for people and for the server. ``graph``: as traced."""
    formats = Counter(
        columns[n].format if n in columns else v.format for n, v in graph.weights.items() if v.type.rank > 1
    )
    architectures = getattr(checkpoint.config, "architectures", None) or [
        checkpoint.config.model_type
    ]
    return {
        "model": model.name,
        "architecture": architectures[0],
        "layers": sum(node.op.name == "attention" for node in graph.nodes),
        "vocab_size": int(graph.outputs[0].type.shape[1]),
        "max_model_len": max_model_len,
        "weights": dict(formats.most_common()),
        "targets": targets_of(options),
    }


def targets_of(options: CompileOptions) -> list[str]:
    """What the artifact has machine code for: "cpu/<instruction set>" and "cuda/<architecture>"."""
    cpu = [f"cpu/{isa.name}" for isa in host_isas()] if options.cpu else []
    return cpu + [f"cuda/{a}" for a in options.architectures]


def cpu_facts(lowered: Lowered) -> dict[str, Any]:
    return {
        "kernels": len(lowered.kernels),
        "calls": len(lowered.plan.calls),
    }


def cuda_facts(lowered: GpuLowering) -> dict[str, Any]:
    return {
        "cuda_cache": lowered.options.cache_dtype,
        "cuda_kernels": len(lowered.kernels),
        "cuda_calls": len(lowered.calls),
    }
