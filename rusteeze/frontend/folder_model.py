"""A Hugging Face folder as a checkpoint: config.json and safetensors files.

Parameters are converted one at a time, from mapped files. Pickled weights and quantised folders are
refused, and code that comes with a model is never run.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.conversion import ConversionPlan, meta_model, plan_conversions
from rusteeze.frontend.safetensors_file import (
    SafetensorsModel,
    open_safetensors_model,
    parse_json_object,
)
from rusteeze.frontend.tokenizer_files import save_folder_tokenizer
from rusteeze.weights import Dense

CONFIG = "config.json"
MAX_LAYERS = 1 << 12  # keeps absurd numbers from reaching model constructors
MAX_POSITIONS = 1 << 40
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LAYER_NUMBER = re.compile(r"\.\d+\.")


class FolderCheckpoint:
    """See rusteeze.frontend.checkpoint.Checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: PreTrainedConfig = read_config(folder)
        _refuse_pickles(folder)
        self.stored: SafetensorsModel = open_safetensors_model(folder)
        layers, tensors = self.config.get_text_config().num_hidden_layers, len(self.stored.home)
        if layers > tensors:
            raise CheckpointError(f"{folder / CONFIG} states {layers} layers, but {tensors} tensors are stored")

    @cached_property
    def _plan(self) -> ConversionPlan:
        plan = plan_conversions(meta_model(self.config), self.stored.home)
        if plan.missing:
            raise CheckpointError(
                f"{self.folder} lacks {len(plan.missing)} weights of the model, e.g. {plan.missing[0]}"
            )
        self._check(plan)
        return plan

    def params(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(t.shape) for name, t in self._plan.model.state_dict().items()}

    def format_of(self, param: str) -> str:
        self._require(param)
        plan = self._plan
        tensors = plan.conversions[plan.aliases.get(param, param)].tensors
        formats = {self.stored.home[t].format_of(t) for t in tensors}
        if len(formats) > 1:
            raise CheckpointError(f"{param} is stored in parts of types {', '.join(sorted(formats))}")
        return formats.pop()

    def load(self, param: str) -> Dense:
        self.format_of(param)
        weight = self._plan.load(param, lambda name: self.stored.home[name].load(name))
        self._match(param, weight.shape)
        return weight

    def save_tokenizer(self, dest: Path) -> None:
        save_folder_tokenizer(self.folder, self.config, dest)

    def _require(self, param: str) -> None:
        if param not in self._shapes:
            raise CheckpointError(f"{self.folder} has no parameter {param!r}")

    def _match(self, param: str, shape: tuple[int, ...]) -> None:
        if shape != self._shapes[param]:
            wanted = list(self._shapes[param])
            raise CheckpointError(f"{self.folder} holds {param} as {list(shape)}, the model wants {wanted}")

    def _check(self, plan: ConversionPlan) -> None:
        """Shapes of what is stored as it is, no bias left over, and ties that hold."""
        shapes = {name: tuple(t.shape) for name, t in plan.model.state_dict().items()}
        for param, conversion in plan.conversions.items():
            name = conversion.tensors[0]
            stored = self.stored.home[name].entries[name].shape
            if conversion.converter is None and stored != shapes[param]:
                raise CheckpointError(
                    f"{self.folder} holds {name} as {list(stored)}, but {CONFIG} makes {param} "
                    f"{list(shapes[param])}; config and weights are of different models"
                )
        for name in _missed(plan):
            raise CheckpointError(
                f"{self.folder} stores {name}, but {CONFIG} makes a model without it; "
                "config and weights are of different models"
            )
        for target, source in (plan.model.all_tied_weights_keys or {}).items():
            if target in plan.conversions and source in plan.conversions:
                self._check_tie(plan, target, source)

    def _check_tie(self, plan: ConversionPlan, target: str, source: str) -> None:
        a, b = (plan.load(p, lambda name: self.stored.home[name].load(name)) for p in (target, source))
        if a.dtype != b.dtype or not np.array_equal(a.values, b.values):
            raise CheckpointError(
                f"{self.folder} ties {target} to {source} in {CONFIG} but stores different values; "
                "set tie_word_embeddings to false"
            )


def _missed(plan: ConversionPlan) -> list[str]:
    """Stored tensors without a partner that show the model to be another one: the bias of a layer that
    has none, or a layer too many. Others are leftovers of training or of older versions."""
    params = set(plan.model.state_dict())
    layered = {_LAYER_NUMBER.sub(".N.", name) for name in params}
    ignored = plan.model._keys_to_ignore_on_load_unexpected or ()
    return [
        name for name in plan.unused
        if not any(re.search(pattern, name) for pattern in ignored)
        and (_LAYER_NUMBER.sub(".N.", name) in layered or _weight_beside(name) in params)
    ]  # fmt: skip


def _weight_beside(name: str) -> str | None:
    return f"{name.removesuffix('bias')}weight" if name.endswith(".bias") else None


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder. CheckpointError when it is none that could be compiled."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; give the folder of a Hugging Face model")
    table = parse_json_object(path.read_bytes(), path)
    _refuse_quantised(path, table)
    _check_model_type(path, table.get("model_type"))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:  # whatever a configuration class objects to
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} is not understood by transformers: {reason}") from e
    _check_counts(path, config.get_text_config())
    return config


def _check_model_type(path: Path, stated: Any) -> None:
    if not isinstance(stated, str):
        raise CheckpointError(f"{path} states no model_type; is it the config of a transformers model?")
    if stated not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{path} states model_type {stated[:40]!r}, which is not understood without running "
            "the model's own code; choose another model or a newer transformers"
        )


def _check_counts(path: Path, config: PreTrainedConfig) -> None:
    """Numbers that transformers takes as they come."""
    for name, most in (("num_hidden_layers", MAX_LAYERS), ("max_position_embeddings", MAX_POSITIONS)):
        value = getattr(config, name, None)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise CheckpointError(f"{path} states {name} {str(value)[:40]}, which no model has; correct it")


def _refuse_quantised(path: Path, table: dict[str, Any]) -> None:
    stated = table.get("quantization_config") or table.get("compression_config")
    if stated:
        method = stated.get("quant_method", "unnamed") if isinstance(stated, dict) else "unnamed"
        raise CheckpointError(
            f"{path} says the weights are quantised ({str(method)[:40]}), which is not supported yet; "
            "use the original weights or a GGUF file"
        )


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return
    pickles = [p.name for pattern in _PICKLES for p in sorted(folder.glob(pattern))]
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code when read; "
            "convert them to safetensors"
        )
