"""From an artifact on disk to something that answers: executor, tokenizer, template and engine."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rusteeze.artifact.contract import BLOCK_SIZE, Plan, decode_plan
from rusteeze.artifact.store import Manifest, member, verify
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.launch import choose_library
from rusteeze.runtime.template import ChatTemplate
from rusteeze.runtime.tokens import Tokenizer
from rusteeze.runtime.weights import WeightFile

_log = logging.getLogger(__name__)

DEFAULT_KV_BYTES = 1 << 30
DEFAULT_BATCHED_TOKENS = 512
MANY_THREADS = 2
"""Threads per core from which on a warning is due: steps become many times slower, not faster."""

NumBlocks = Callable[[Plan, int], int]
"""Plan and bytes of weights to the number of cache blocks."""


@dataclass
class LLM:
    """A loaded model. ``close`` stops its threads."""

    engine: SyncEngine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    manifest: Manifest
    executor: CpuExecutor

    def close(self) -> None:
        self.executor.close()


def load(
    artifact: Path, threads: int | None = None, kv_bytes: int | None = None,
    config: EngineConfig | None = None, num_blocks: NumBlocks | None = None,
) -> LLM:  # fmt: skip
    """Load an artifact after checking its files (ArtifactError).

    ``threads``: CPU threads, by default one per core. ``kv_bytes``: memory for the cache; it is backed
    only as it is used. At least one sequence of the longest length always fits, unless ``num_blocks``
    decides by itself, from the plan and the size of the weights."""
    config = config or EngineConfig()
    if threads is not None and threads > MANY_THREADS * available_cores():
        _log.warning(
            "%d threads on %d cores: they wait for each other at every barrier; expect it to be slow",
            threads, available_cores(),
        )  # fmt: skip
    manifest = verify(artifact)
    plan = decode_plan(member(artifact, manifest, "plan.json").read_bytes())
    weights = WeightFile(member(artifact, manifest, "weights.safetensors"))
    library = choose_library(artifact / "cpu", plan.libraries)
    executor = CpuExecutor(
        plan, weights, library, num_threads=threads or available_cores(),
        num_blocks=num_blocks(plan, weights.total_bytes)
        if num_blocks
        else cache_blocks(plan, kv_bytes or DEFAULT_KV_BYTES),
        max_batched_tokens=config.max_batched_tokens or DEFAULT_BATCHED_TOKENS,
        max_sequences=config.max_num_seqs,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(member(artifact, manifest, "tokenizer.json"))
    generation = json.loads(member(artifact, manifest, "generation_config.json").read_text())
    template = None
    if "chat_template.jinja" in manifest.files:
        text = member(artifact, manifest, "chat_template.jinja").read_text(encoding="utf-8")
        template = ChatTemplate(text, generation.get("special_tokens") or {})
    eos = generation.get("eos_token_id") or []
    written_by = [manifest.files[name].sha256 for name in ("plan.json", f"cpu/{library.name}")]
    engine = SyncEngine(
        executor, tokenizer, [eos] if isinstance(eos, int) else eos, config,
        cache_layout=" ".join(written_by),
    )  # fmt: skip
    return LLM(engine, tokenizer, template, manifest, executor)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cache_blocks(plan: Plan, kv_bytes: int) -> int:
    """Pages that ``kv_bytes`` hold, and never fewer than the longest sequence needs."""
    longest = -(-plan.max_model_len // BLOCK_SIZE)
    per_block = plan.kv_bytes_per_block()
    return max(longest, kv_bytes // per_block if per_block else longest)
