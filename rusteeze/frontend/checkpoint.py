"""Checkpoints: a model's configuration, weights and tokenizer, whatever files they are in.

    checkpoint = open_checkpoint(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    checkpoint.format_of("model.layers.0.mlp.up_proj.weight")      # "affine4g32m-f16"
    checkpoint.load("model.layers.0.mlp.up_proj.weight").to_f32()  # float32 [1536, 576]
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from transformers import PreTrainedConfig

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.folder_model import FolderCheckpoint
from rusteeze.frontend.gguf_model import GGUFCheckpoint
from rusteeze.frontend.stored_weight import SortedColumns
from rusteeze.weights import Weight


class Checkpoint(Protocol):
    """What compiling needs of a model. Every method raises CheckpointError for unusable files."""

    config: PreTrainedConfig

    def params(self) -> tuple[str, ...]:
        """Hugging Face names of all parameters and stored buffers; tied ones under each name."""

    def format_of(self, param: str) -> str:
        """Format that ``load`` will return (rusteeze.weights.formats), without reading the weight."""

    def load(self, param: str) -> Weight:
        """The weight, in the shape that transformers gives it. Reads or maps this one only."""

    def sorted_columns(self, param: str) -> SortedColumns | None:
        """The weight with its columns in another order, if only that keeps its codes."""

    def save_tokenizer(self, dest: Path) -> None:
        """Write tokenizer.json, chat_template.jinja and generation_config.json into a folder; see
        rusteeze.frontend.tokenizer_files."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file, or a folder with config.json and safetensors files.

    Only headers are read. CheckpointError when the path is neither, or the files are not usable."""
    if path.is_dir():
        return FolderCheckpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a model folder or a .gguf file")
    if path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    raise CheckpointError(f"{path} is neither a model folder nor a .gguf file")
