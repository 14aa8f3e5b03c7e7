"""The truth that compiled models are measured against: transformers itself, eager, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rusteeze.frontend.checkpoint_errors import CheckpointError


def reference_logits(path: Path, token_ids: Sequence[int]) -> np.ndarray:
    """Logits float32 [T, V] after each of T tokens of one sequence.

    ``path`` is a model folder or a GGUF file, read by transformers and not by us. Code that comes with a
    model is never run. Needs the whole model in memory, at four bytes a parameter. CheckpointError for
    models that transformers does not run here, as for want of a package or a device."""
    folder, gguf = (path, None) if path.is_dir() else (path.parent, path.name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf, dtype=torch.float32, attn_implementation="eager",
            local_files_only=True, trust_remote_code=False, use_safetensors=True if gguf is None else None,
        )  # fmt: skip
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
    except (ImportError, RuntimeError) as e:  # what a package lacks, or its kernels object to
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} cannot be compared: transformers does not run it here ({reason})") from e
    return logits.float().numpy()
