"""Can a configuration be compiled? Answered by tracing it, without any weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.trace import trace

# Long enough for every kind of rotary table and window to show, short enough to be quick.
_MAX_TOKENS = 4096


def dry_run(path: Path) -> dict[str, Any]:
    """Facts of the graph that ``path``, a config.json or its folder, would compile to.

    CheckpointError when it cannot be read, FrontendError when it cannot be compiled faithfully."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    text = config.get_text_config()
    longest = min(getattr(text, "max_position_embeddings", _MAX_TOKENS), _MAX_TOKENS)
    traced = trace(config, longest)
    return {
        "model_type": config.model_type,
        "num_layers": text.num_hidden_layers,
        "num_nodes": len(traced.graph.nodes),
        "num_parameters": sum(math.prod(shape) for shape in traced.param_shapes.values()),
    }
