"""From a loaded model and settings to a service that may be served."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rusteeze.runtime.backend import Backend
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.interface import SamplingParams
from rusteeze.runtime.llm import LLM, fit_memory, load
from rusteeze.runtime.memory_plan import MemoryPlan
from rusteeze.server.config import ServeConfig
from rusteeze.server.limits import Limits
from rusteeze.server.metrics import Memory, Metrics
from rusteeze.server.replies import AsyncEngine
from rusteeze.server.service import ServedModel, Service

GENERATION = "generation_config.json"


def load_model(artifact: Path, config: ServeConfig) -> tuple[LLM, MemoryPlan]:
    """Load an artifact with as much cache as settings and machine allow (DoesNotFit), and try it once."""
    engine = config.engine
    made: list[MemoryPlan] = []

    def num_blocks(backend: Backend) -> int:
        made.append(fit_memory(backend, limits, engine.gpu_memory_utilization, config.memory_bytes))
        return made[0].num_blocks

    limits = EngineConfig(
        engine.max_num_seqs, engine.max_num_batched_tokens, prefix_caching=engine.prefix_caching,
        max_queue=config.server.max_queue,
    )
    model = load(artifact, engine.threads, config=limits, num_blocks=num_blocks, device=config.model.device)
    model.engine.generate([[0]], SamplingParams(temperature=0, max_tokens=1))
    return model, made[0]


def service_of(model: LLM, name: str, artifact: Path, config: ServeConfig, memory: MemoryPlan) -> Service:
    """The service of a loaded model; it begins to run with the application."""
    path = artifact / GENERATION
    defaults = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    limits = model.engine.scheduler.limits
    served = ServedModel(
        name, int(time.time()), model.tokenizer, model.template, defaults, limits.max_sequence_len,
        model.executor.vocab_size,
    )  # fmt: skip
    metrics = Metrics(name, model.engine.stats, _memory(model, memory), model.device)
    server = config.server
    engine = AsyncEngine(model.engine, metrics)
    return Service(
        served, engine, metrics, strict=server.strict_params,
        limits=Limits(
            max_body_bytes=server.max_body_bytes,
            max_request_tokens=server.max_request_tokens, write_seconds=server.write_seconds,
            drain_seconds=server.drain_seconds,
        ),
    )  # fmt: skip


def _memory(model: LLM, memory: MemoryPlan) -> Memory:
    """What the gauge counts: a GPU's memory is taken at the start, cache blocks and all; main memory is
    backed as blocks are used."""
    taken = model.executor.device_bytes
    if taken is not None:
        return Memory(taken, 0)
    return Memory(memory.weight_bytes + memory.scratch_bytes, memory.block_bytes)
