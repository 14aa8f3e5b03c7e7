"""From an artifact on disk to something that answers: backend, executor, tokenizer, template and engine."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rusteeze.artifact.contract import BLOCK_SIZE, Plan
from rusteeze.artifact.cuda_contract import CudaPlan
from rusteeze.artifact.store import Manifest, member, verify
from rusteeze.runtime.backend import Backend, DeviceExecutor, available_cores, open_backend
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.memory_plan import MemoryPlan, plan_memory
from rusteeze.runtime.template import ChatTemplate
from rusteeze.runtime.tokens import Tokenizer

_log = logging.getLogger(__name__)

DEFAULT_KV_BYTES = 1 << 30
DEFAULT_BATCHED_TOKENS = 512
MANY_THREADS = 2
"""Threads per core from which on a warning is due: steps become many times slower, not faster."""
DEFAULT_UTILIZATION = 0.9

NumBlocks = Callable[[Backend], int]
"""An opened artifact to the number of its cache blocks."""


@dataclass
class LLM:
    """A loaded model on ``device`` (cpu, cuda:0). ``close`` stops its threads and frees its memory."""

    engine: SyncEngine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    manifest: Manifest
    executor: DeviceExecutor
    device: str

    def close(self) -> None:
        self.executor.close()


def load(
    artifact: Path, threads: int | None = None, kv_bytes: int | None = None,
    config: EngineConfig | None = None, num_blocks: NumBlocks | None = None, device: str = "cpu",
) -> LLM:  # fmt: skip
    """Load an artifact after checking its files (ArtifactError).

    ``device``: cpu, cuda, cuda:auto, cuda:N or auto, see rusteeze.runtime.backend. ``threads``: CPU threads,
    by default one per core. ``kv_bytes``: memory for the cache; in main memory, where it is backed only
    as it is used, DEFAULT_KV_BYTES if not given, on a GPU most of what is free. At least one sequence of
    the longest length always fits, unless ``num_blocks`` decides by itself."""
    config = config or EngineConfig()
    if threads is not None and threads > MANY_THREADS * available_cores():
        _log.warning(
            "%d threads on %d cores: they wait for each other at every barrier; expect it to be slow",
            threads, available_cores(),
        )  # fmt: skip
    manifest = verify(artifact)
    backend = open_backend(artifact, manifest, device, threads)
    tokens = config.max_batched_tokens or DEFAULT_BATCHED_TOKENS
    try:
        blocks = num_blocks(backend) if num_blocks else _usual_blocks(backend, kv_bytes, config)
        executor = backend.executor(blocks, tokens, config.max_num_seqs)
    except BaseException:
        backend.close()
        raise
    try:
        return _with_engine(artifact, manifest, backend, executor, config)
    except BaseException:
        executor.close()
        raise


def fit_memory(
    backend: Backend, config: EngineConfig, utilization: float = DEFAULT_UTILIZATION,
    memory_bytes: int | None = None,
) -> MemoryPlan:  # fmt: skip
    """What the model takes where it was opened, and how much of what is left becomes cache (DoesNotFit)."""
    tokens = config.max_batched_tokens or DEFAULT_BATCHED_TOKENS
    return plan_memory(
        backend.plan, backend.weight_bytes, max_batched_tokens=tokens,
        available_bytes=backend.available_bytes(), utilization=utilization, memory_bytes=memory_bytes,
        fixed_bytes=backend.fixed_bytes(tokens, config.max_num_seqs),
        process_bytes=backend.process_bytes, most_unasked_bytes=backend.most_unasked_bytes,
    )  # fmt: skip


def _with_engine(
    artifact: Path, manifest: Manifest, backend: Backend, executor: DeviceExecutor, config: EngineConfig
) -> LLM:
    tokenizer = Tokenizer.from_file(member(artifact, manifest, "tokenizer.json"))
    generation = json.loads(member(artifact, manifest, "generation_config.json").read_text())
    template = None
    if "chat_template.jinja" in manifest.files:
        text = member(artifact, manifest, "chat_template.jinja").read_text(encoding="utf-8")
        template = ChatTemplate(text, generation.get("special_tokens") or {})
    eos = generation.get("eos_token_id") or []
    engine = SyncEngine(
        executor, tokenizer, [eos] if isinstance(eos, int) else eos, config,
        cache_layout=" ".join(backend.written_by()),
    )  # fmt: skip
    return LLM(engine, tokenizer, template, manifest, executor, backend.device)


def _usual_blocks(backend: Backend, kv_bytes: int | None, config: EngineConfig) -> int:
    if kv_bytes is None and backend.most_unasked_bytes is None:
        return fit_memory(backend, config).num_blocks
    return cache_blocks(backend.plan, kv_bytes or DEFAULT_KV_BYTES)


def cache_blocks(plan: Plan | CudaPlan, kv_bytes: int) -> int:
    """Pages that ``kv_bytes`` hold, and never fewer than the longest sequence needs."""
    longest = -(-plan.max_model_len // BLOCK_SIZE)
    per_block = plan.kv_bytes_per_block()
    return max(longest, kv_bytes // per_block if per_block else longest)
