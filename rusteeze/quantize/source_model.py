"""The model to quantise: its graph, its stored tensors, and the files that go with them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rusteeze.errors import UserError
from rusteeze.frontend.checkpoint import Checkpoint, open_checkpoint
from rusteeze.frontend.conversion import meta_model
from rusteeze.frontend.folder_model import CONFIG, FolderCheckpoint, read_quantisation
from rusteeze.frontend.gguf_model import GGUFCheckpoint
from rusteeze.frontend.stored_parts import StoredPart
from rusteeze.frontend.tokenizer_files import save_gguf_tokenizer_for_others
from rusteeze.frontend.trace import Traced, trace
from rusteeze.passes.pipeline import raising, run_passes
from rusteeze.source import MODEL_SUFFIXES, Source
from rusteeze.weights import Dense, Weight, parse_format

Tensor = torch.Tensor
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".gguf")


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A checkpoint and its raised graph."""

    checkpoint: Checkpoint
    traced: Traced

    def weight(self, name: str) -> Tensor:
        """A weight of the graph: f32, or as it is where it holds integers. UserError for one that is not finite."""
        if name in self.traced.constants:
            return torch.from_numpy(np.array(self.traced.constants[name]))
        values = torch.from_numpy(np.array(self.checkpoint.load(name).to_f32()))
        if not torch.isfinite(values).all():
            raise UserError(f"{name} holds a number that is not finite; nothing can be made of this model")
        return values

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All stored tensors. A GGUF file's are called as transformers calls them."""
        if isinstance(self.checkpoint, FolderCheckpoint):
            return tuple(self.checkpoint.weights)
        return tuple(self.traced.param_shapes)

    def tensor(self, name: str) -> Tensor:
        """A stored tensor as it is; out of a GGUF file as f16, which is what its numbers fit into best."""
        if isinstance(self.checkpoint, FolderCheckpoint):
            return as_torch(self.checkpoint.weights[name].load())
        return torch.from_numpy(np.array(self.checkpoint.load(name).to_f32())).half()

    def num_bytes(self, name: str) -> int:
        """Of what ``tensor`` gives."""
        if isinstance(self.checkpoint, FolderCheckpoint):
            stored = self.checkpoint.weights[name]
            return math.prod(stored.shape) * parse_format(stored.format).bits // 8
        return math.prod(self.traced.param_shapes[name]) * torch.half.itemsize

    def parts(self, param: str) -> tuple[StoredPart, ...] | None:
        """The stored matrices whose rows make up a parameter; None if there are none."""
        if param in self.traced.constants:
            return None
        if isinstance(self.checkpoint, FolderCheckpoint):
            parts = self.checkpoint.parts(param)
            stored = self.checkpoint.weights
            # experts that are stored stacked have no matrices of their own
            return None if parts is None or any(len(stored[p.name].shape) > 2 for p in parts) else parts
        shape = self.traced.param_shapes.get(param, ())
        return (StoredPart(param, slice(0, shape[0])),) if len(shape) in (1, 2) else None

    def is_whole(self, param: str) -> bool:
        """Whether a parameter is one stored tensor."""
        parts = self.parts(param)
        return parts is not None and len(parts) == 1 and parts[0].expert is None

    def stored_dtype(self, param: str) -> torch.dtype:
        """The type of the numbers of a parameter that is one stored tensor."""
        parts = self.parts(param)
        assert parts is not None
        return self.tensor(parts[0].name).dtype

    @property
    def dtype(self) -> torch.dtype:
        """The type of most of the model, by that of its largest matrix: f32, f16 or bf16."""
        shapes = self.traced.param_shapes
        largest = max((p for p in shapes if self.parts(p)), key=lambda p: np.prod(shapes[p]))
        return self.stored_dtype(largest)

    def config(self) -> dict[str, Any]:
        """The config.json, as a table."""
        if isinstance(self.checkpoint, FolderCheckpoint):
            table: dict[str, Any] = json.loads((self.checkpoint.folder / CONFIG).read_text(encoding="utf-8"))
            return table
        config = self.checkpoint.config
        architecture = type(meta_model(config)).__name__
        return {**config.to_dict(), "architectures": [architecture], "dtype": "float16"}

    def save_companions(self, dest: Path) -> None:
        """Everything of a model folder but config and weights: tokenizer, chat template, generation config."""
        if isinstance(self.checkpoint, GGUFCheckpoint):
            save_gguf_tokenizer_for_others(self.checkpoint.file, dest)
            return
        assert isinstance(self.checkpoint, FolderCheckpoint)
        for path in sorted(self.checkpoint.folder.iterdir()):
            if path.suffix in MODEL_SUFFIXES and path.name != CONFIG and not path.name.endswith(_WEIGHT_FILES):
                shutil.copyfile(path, dest / path.name)


def open_source(source: Source, window: int) -> SourceModel:
    """Trace the model for texts of ``window`` tokens. UserError for an artifact, and for a folder that is
    quantised already."""
    if source.kind == "artifact":
        raise UserError(f"{source.name} is an artifact; quantise the model that it was made of")
    if source.path.is_dir() and (stated := read_quantisation(source.path)):
        raise UserError(f"{source.path} is quantised already ({stated.description}); start from the original")
    checkpoint = open_checkpoint(source.path)
    checkpoint.params()
    traced = trace(checkpoint.config, window)
    run_passes(traced.graph, raising(traced.constants))
    return SourceModel(checkpoint, traced)


def as_torch(weight: Weight) -> Tensor:
    """A plain weight as a tensor of its own."""
    assert isinstance(weight, Dense)
    if weight.dtype == "bf16":
        return torch.from_numpy(weight.values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(weight.values))
