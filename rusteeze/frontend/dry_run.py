"""Can a configuration be compiled? Answered by tracing it, without any weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rusteeze.frontend.folder_model import read_config
from rusteeze.frontend.trace import trace

# Long enough for every kind of rotary table and window to show, short enough to be quick.
_MAX_TOKENS = 4096


def dry_run(path: Path) -> dict[str, Any]:
    """Facts of the graph that ``path``, a config.json, would compile to.

    CheckpointError when it cannot be read, FrontendError when it cannot be compiled faithfully."""
    config = read_config(path.parent)
    text = config.get_text_config()
    longest = min(getattr(text, "max_position_embeddings", None) or _MAX_TOKENS, _MAX_TOKENS)
    traced = trace(config, longest)
    return {
        "model_type": config.model_type,
        "num_layers": text.num_hidden_layers,
        "num_nodes": len(traced.graph.nodes),
        "num_parameters": sum(math.prod(shape) for shape in traced.param_shapes.values()),
    }
