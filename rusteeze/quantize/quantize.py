"""Quantising on one page: checkpoint → graph → sites → codes, layer by layer → checkpoint.

quantize_model("SmolLM2-135M", Path("smol-gptq"), QuantizeOptions("gptq", group=64), None, report)
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import rusteeze.source
from rusteeze.artifact.files import disk_errors, require_free_bytes
from rusteeze.config import CompileOptions
from rusteeze.errors import UserError
from rusteeze.quantize.allocate import allocate
from rusteeze.quantize.assemble import Assembly
from rusteeze.quantize.calibration import read_text, windows
from rusteeze.quantize.find_sites import GraphSite, Left, find_sites, num_weights, weight_of
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.layerwise import Plan, make_plan, quantize_sites
from rusteeze.quantize.methods import method_of
from rusteeze.quantize.options import BITS, QuantizeOptions
from rusteeze.quantize.sensitivity import sensitivities
from rusteeze.quantize.source_model import SourceModel, open_source
from rusteeze.quantize.work import Work, open_work
from rusteeze.quantize.write_awq import AwqWriter
from rusteeze.quantize.write_compressed import CompressedWriter
from rusteeze.quantize.write_folder import write_folder
from rusteeze.quantize.write_gguf import gguf_source, plain_gguf_bytes, write_gguf
from rusteeze.quantize.write_gptq import GptqWriter
from rusteeze.quantize.writer import Writer
from rusteeze.version import compiler_version, source_hash

Tensor = torch.Tensor
Report = Callable[[str, float], None]
COMMON_GROUPS = (128, 64, 32, 16)
SCALE_BYTES = 2


def quantize_model(
    model: str | Path, out: Path, options: QuantizeOptions, calibration: Path | None, report: Report
) -> dict[str, Any]:
    """Write the quantised model into the new folder ``out``; facts about it. Work that a killed run has
    finished is reused. UserError for what a user can mend."""
    start, out = time.monotonic(), out.absolute()
    found = rusteeze.source.resolve(model)
    _require_new(out)
    needs_text = method_of(options).reads_inputs or options.target_bits is not None
    text = read_text(calibration) if needs_text else ""
    out.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(out.parent), open_work(out, _key(found, options, text)) as work:
        report("tracing", 0.0)
        source = open_source(found, options.window)
        plan, left = _plan(source, options)
        _quantize(plan, source, options, text, work, report)
        report("writing", 1.0)
        output = work.new_output()
        facts = _write(output, Assembly(plan, source, work), source, options, left)
        work.publish(output, out)
    reasons = [f"{product.param}: {product.reason}" for product in left]
    return {"output": str(out), **facts, "seconds": round(time.monotonic() - start, 1), "left": reasons}


def _quantize(
    plan: Plan, source: SourceModel, options: QuantizeOptions, text: str, work: Work, report: Report
) -> None:  # fmt: skip
    """Leave the codes of every site in ``work``."""
    chunks = windows(source.checkpoint, text, options.tokens, options.window) if text else []
    _require_room(work, plan, source, options)
    scales = _scale_dtype(source, options)
    widths = _widths(plan, source, options, chunks, work, report)
    specs = [GridSpec(bits, options.group, options.symmetric, scales) for bits in widths]
    quantize_sites(plan, source, method_of(options), specs, chunks, work, report)


def _write(
    output: Path, assembly: Assembly, source: SourceModel, options: QuantizeOptions, left: Sequence[Left]
) -> dict[str, Any]:  # fmt: skip
    """Fill an empty folder with the new checkpoint; facts about it."""
    if options.format == "gguf":
        return write_gguf(output, assembly, gguf_source(source.checkpoint), options.bits)
    return write_folder(output, assembly, source, _writer(options), options, _stored(source, left))


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another folder, or remove it")


def _key(source: rusteeze.source.Source, options: QuantizeOptions, text: str) -> str:
    """What decides the result: model, options, text, and the source of compiler and quantiser."""
    model = rusteeze.source.key(source, CompileOptions(), compiler_version())
    facts = [model, options.facts, hashlib.sha256(text.encode()).hexdigest(), source_hash(("quantize",))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _plan(source: SourceModel, options: QuantizeOptions) -> tuple[Plan, list[Left]]:
    """The sites of the model, and the products that stay. UserError where groups or format do not fit them."""
    graph = source.traced.graph
    sites, left = find_sites(graph, lambda param: source.parts(param) is not None)
    if options.method != "fp8":
        _check_groups(sites, options.group)
    plan = make_plan(graph, sites, source)
    _check_layout(plan, source, options)
    return plan, left


def _check_groups(sites: Sequence[GraphSite], group: int) -> None:
    """UserError, with the groups that would do, where some matrix cannot be cut into groups."""
    widths = {int(weight_of(node).type.shape[-1]): weight_of(node).name for site in sites for node in site.nodes}
    for width, name in widths.items():
        if width % group:
            fitting = [str(g) for g in COMMON_GROUPS if g < group and not any(w % g for w in widths)]
            hint = f"use --group {' or '.join(fitting)}" if fitting else "no common group does"
            raise UserError(f"{name} has {width} columns, no multiple of the group {group}; {hint}")


def _widths(
    plan: Plan, source: SourceModel, options: QuantizeOptions, chunks: Sequence[Tensor], work: Work, report: Report
) -> list[int]:  # fmt: skip
    """Bits for each site: the same for all, or a mixture, which an earlier run may have found."""
    if options.target_bits is None:
        return [options.bits] * len(plan.sites)
    if work.bits is None:
        spec = GridSpec(options.bits, options.group, options.symmetric, _scale_dtype(source, options))
        costs = sensitivities(plan.graph, plan.sites, spec, BITS, chunks, source.weight, report)
        sizes = [num_weights(site) for site in plan.sites]
        work.choose_bits(allocate(costs.tolist(), sizes, BITS, options.target_bits))
    assert work.bits is not None
    return work.bits


def _check_layout(plan: Plan, source: SourceModel, options: QuantizeOptions) -> None:
    """UserError for what the format could not hold, before any long work."""
    if options.format == "gguf":
        gguf_source(source.checkpoint)
        return
    writer = _writer(options)
    for weight in (weight_of(node) for site in plan.sites for node in site.nodes):
        for part in source.parts(weight.name) or ():
            for bits in (options.bits,) if options.target_bits is None else BITS:
                writer.check(part.name, part.rows.stop - part.rows.start, int(weight.type.shape[-1]), bits)


def _scale_dtype(source: SourceModel, options: QuantizeOptions) -> torch.dtype:
    """compressed-tensors stores scales in the model's own type, the others in f16."""
    own = options.format == "compressed-tensors" and source.dtype == torch.bfloat16
    return torch.bfloat16 if own else torch.float16


def _require_room(work: Work, plan: Plan, source: SourceModel, options: QuantizeOptions) -> None:
    """For the sites that are not finished, at a byte a code, for as much of a result of all, and for what stays plain."""
    sizes = [_site_bytes(site, options) for site in plan.sites]
    wanted = sum(size for i, size in enumerate(sizes) if not work.is_saved(i))
    require_free_bytes(work.folder, wanted + sum(sizes) + _plain_bytes(plan, source, options))


def _site_bytes(site: GraphSite, options: QuantizeOptions) -> int:
    """Of codes, scales and zero points as ``work`` keeps them."""
    if options.method == "fp8":
        rows = sum(math.prod(int(d) for d in weight_of(node).type.shape[:-1]) for node in site.nodes)
        return num_weights(site) + SCALE_BYTES * rows
    return num_weights(site) + (SCALE_BYTES + 1) * num_weights(site) // options.group


def _plain_bytes(plan: Plan, source: SourceModel, options: QuantizeOptions) -> int:
    """Of the tensors that go into the result without codes: embeddings, head, norms and others."""
    params = (param for site in plan.sites for param in site.params)
    quantised = {part.name for param in params for part in source.parts(param) or ()}
    if options.format == "gguf":
        return plain_gguf_bytes(gguf_source(source.checkpoint), quantised)
    return sum(source.num_bytes(name) for name in source.names if name not in quantised)


def _writer(options: QuantizeOptions) -> Writer:
    if options.format == "gptq":
        return GptqWriter(options)
    return AwqWriter() if options.format == "awq" else CompressedWriter(options.symmetric)


def _stored(source: SourceModel, left: Sequence[Left]) -> set[str]:
    """Under which names the matrices lie that stay plain."""
    return {part.name for product in left for part in source.parts(product.param) or ()}
