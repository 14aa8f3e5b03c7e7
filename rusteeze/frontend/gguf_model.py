"""A GGUF file as a checkpoint: parameters under their Hugging Face names, decoded one at a time.

Names are paired through the table of the gguf package. Every parameter must be found, with its shape,
and every tensor be used: a model with a tensor too many is another model than transformers builds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map
from transformers import PreTrainedConfig

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.conversion import parameter_shapes
from rusteeze.frontend.gguf_blocks import decode, format_of_type
from rusteeze.frontend.gguf_config import architecture_name, gguf_config
from rusteeze.frontend.gguf_file import GGUFFile, open_gguf
from rusteeze.frontend.gguf_rope import ROPE_TENSORS
from rusteeze.frontend.gguf_transforms import Change, change_of, decoded
from rusteeze.frontend.stored_weight import SortedColumns
from rusteeze.frontend.tokenizer_files import save_gguf_tokenizer
from rusteeze.weights import Dense, Weight, concat_rows


@dataclass(frozen=True)
class Recipe:
    """A parameter: its tensors joined by rows, a converter's change undone, then its own shape."""

    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    change: Change | None = None


class GGUFCheckpoint:
    """See rusteeze.frontend.checkpoint.Checkpoint."""

    def __init__(self, path: Path) -> None:
        self.file = open_gguf(path)
        _refuse_parts(self.file)
        self.config: PreTrainedConfig = gguf_config(self.file)

    @cached_property
    def _recipes(self) -> dict[str, Recipe]:
        return plan(self.file, self.config)

    def params(self) -> tuple[str, ...]:
        return tuple(self._recipes)

    def format_of(self, param: str) -> str:
        recipe = self.recipe(param)
        layouts = {format_of_type(self.file.tensors[t].type) for t in recipe.tensors}
        if len(layouts) > 1:
            return "f32"
        (layout,) = layouts
        dense = layout.family == "dense"
        return recipe.change.format(str(layout), dense) if recipe.change else str(layout)

    def load(self, param: str) -> Weight:
        recipe = self.recipe(param)
        parts = [decode(self.file.blocks(t), self.file.tensors[t].type) for t in recipe.tensors]
        weight = _joined(parts)
        if recipe.change:
            weight = recipe.change.apply(weight)
        if weight.shape != recipe.shape:  # a vector that transformers holds as a matrix of one row
            weight = Dense(decoded(weight).values.reshape(recipe.shape), decoded(weight).dtype)
        return weight

    def sorted_columns(self, param: str) -> SortedColumns | None:
        return None

    def save_tokenizer(self, dest: Path) -> None:
        save_gguf_tokenizer(self.file, dest)

    def recipe(self, param: str) -> Recipe:
        """How a parameter is made of the file's tensors. CheckpointError if there is none of that name."""
        if param not in self._recipes:
            raise CheckpointError(f"{self.file.path} has no parameter {param!r}")
        return self._recipes[param]


def _refuse_parts(file: GGUFFile) -> None:
    count = file.metadata.get("split.count", 1)
    if count not in (0, 1):
        raise CheckpointError(f"{file.path} is one of {count} parts; join them with llama-gguf-split --merge")


def _joined(parts: list[Weight]) -> Weight:
    """Parts of different formats meet as plain numbers."""
    if len({p.format for p in parts}) > 1:
        parts = [Dense(p.to_f32(), "f32") for p in parts]
    return parts[0] if len(parts) == 1 else concat_rows(parts)


def plan(file: GGUFFile, config: PreTrainedConfig) -> dict[str, Recipe]:
    """A recipe for every parameter of the model. CheckpointError when file and model do not match."""
    architecture = architecture_name(file)
    codes = {name: code for code, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(codes[architecture], config.num_hidden_layers)
    recipes, missing = {}, []
    for param, shape in parameter_shapes(config).items():
        tensors = _tensors_of(param, names, file, config)
        if tensors is None:
            missing.append(param)
            continue
        change = change_of(architecture, tensors[0], config)
        recipes[param] = _checked(file, param, Recipe(tensors, shape, change))
    if missing:
        raise CheckpointError(f"{file.path} lacks {len(missing)} weights of the model, e.g. {missing[0]}")
    _refuse_unused(file, recipes)
    return recipes


_GATE_UP = re.compile(r"(.+)\.experts\.gate_up_proj")


def _tensors_of(
    param: str, names: TensorNameMap, file: GGUFFile, config: PreTrainedConfig
) -> tuple[str, ...] | None:
    """Names of the tensors that make up a parameter, or None when the file lacks one."""
    base, dot, suffix = param.rpartition(".")
    if suffix not in ("weight", "bias"):
        base, dot, suffix = param, ".", "weight"
    if (m := _GATE_UP.fullmatch(base)) is not None:
        found = [names.get_name(f"{m[1]}.experts.{half}_proj") for half in ("gate", "up")]
    else:
        found = [names.get_name(base)]
    tensors = tuple(f"{name}{dot}{suffix}" for name in found if name)
    if len(tensors) == len(found) and all(t in file.tensors for t in tensors):
        return tensors
    if config.tie_word_embeddings and base == "lm_head":
        return ("token_embd.weight",)
    return None


def _checked(file: GGUFFile, param: str, recipe: Recipe) -> Recipe:
    shapes = [file.tensors[t].shape for t in recipe.tensors]
    for t in recipe.tensors:
        format_of_type(file.tensors[t].type)
    if len({(s[:-2], s[-1:]) for s in shapes}) == 1:
        rows = sum(s[-2] for s in shapes) if len(shapes[0]) > 1 else None
        stored = shapes[0] if rows is None else (*shapes[0][:-2], rows, shapes[0][-1])
        if _same_numbers(stored, recipe):
            return recipe
    raise CheckpointError(f"{file.path} holds {param} as {shapes}, but the model wants {list(recipe.shape)}")


def _same_numbers(stored: tuple[int, ...], recipe: Recipe) -> bool:
    """Equal shapes after undoing a transposition; axes of one element may come and go."""
    transposed = recipe.change is not None and recipe.change.decodes
    shape = stored[::-1] if transposed else stored
    return [n for n in shape if n != 1] == [n for n in recipe.shape if n != 1]


def _refuse_unused(file: GGUFFile, recipes: dict[str, Recipe]) -> None:
    used = {t for recipe in recipes.values() for t in recipe.tensors}
    unused = [t for t in file.tensors if t not in used and t not in ROPE_TENSORS]
    if unused:
        raise CheckpointError(
            f"{file.path} holds {len(unused)} tensors that its model does not have, e.g. {unused[0]}"
        )
