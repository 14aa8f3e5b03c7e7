"""A Hugging Face folder as a checkpoint: config.json and safetensors files.

Parameters are converted one at a time, from mapped files; quantised ones keep their codes. Pickled
weights are refused, and code that comes with a model is never run.
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
from rusteeze.frontend.quantised import method_of, read_weights
from rusteeze.frontend.quantised_config import QuantConfig, quantisation_of
from rusteeze.frontend.safetensors_file import open_safetensors_model, parse_json_object
from rusteeze.frontend.stored_parts import StoredPart, stored_parts
from rusteeze.frontend.stored_weight import SortedColumns
from rusteeze.frontend.tokenizer_files import save_folder_tokenizer
from rusteeze.weights import Dense, Weight

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
        stored = open_safetensors_model(folder)
        self.weights = read_weights(stored, read_quantisation(folder))
        layers, tensors = self.config.get_text_config().num_hidden_layers, len(stored.home)
        if layers > tensors:
            raise CheckpointError(f"{folder / CONFIG} states {layers} layers, but {tensors} tensors are stored")

    @cached_property
    def _plan(self) -> ConversionPlan:
        plan = plan_conversions(meta_model(self.config), self.weights)
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
        return self._plan.format_of(param, self._stored_format)

    def load(self, param: str) -> Weight:
        self._require(param)
        weight = self._load(self._plan, param)
        self._match(param, weight.shape)
        return weight

    def parts(self, param: str) -> tuple[StoredPart, ...] | None:
        """The stored matrices whose rows make up a parameter; None if it is made otherwise."""
        self._require(param)
        return stored_parts(self._plan.conversion(param), {n: w.shape for n, w in self.weights.items()})

    def sorted_columns(self, param: str) -> SortedColumns | None:
        self._require(param)
        conversion = self._plan.conversion(param)
        return self.weights[conversion.tensors[0]].find_sorted() if conversion.converter is None else None

    def _load(self, plan: ConversionPlan, param: str) -> Weight:
        format = plan.format_of(param, self._stored_format)
        return plan.load(param, lambda name: self.weights[name].load(), format)

    def _stored_format(self, name: str) -> str:
        return self.weights[name].format

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
            stored = self.weights[name].shape
            if conversion.converter is None and stored != shapes[param]:
                raise CheckpointError(
                    f"{self.folder} holds {name} as {list(stored)}, but {CONFIG} makes {param} "
                    f"{list(shapes[param])}; config and weights are of different models"
                )
        for name in _missed(plan):
            if self._is_zero_bias(name):
                continue  # packers write one for every layer
            raise CheckpointError(
                f"{self.folder} stores {name}, but {CONFIG} makes a model without it; "
                "config and weights are of different models"
            )
        for target, source in (plan.model.all_tied_weights_keys or {}).items():
            if target in plan.conversions and source in plan.conversions:
                self._check_tie(plan, target, source)

    def _is_zero_bias(self, name: str) -> bool:
        return name.endswith(".bias") and name in self.weights and not self.weights[name].load().to_f32().any()

    def _check_tie(self, plan: ConversionPlan, target: str, source: str) -> None:
        a, b = self._load(plan, target), self._load(plan, source)
        if a.format != b.format or not np.array_equal(_values(a), _values(b)):
            raise CheckpointError(
                f"{self.folder} ties {target} to {source} in {CONFIG} but stores different values; "
                "set tie_word_embeddings to false"
            )


def _values(weight: Weight) -> np.ndarray:
    return weight.values if isinstance(weight, Dense) else weight.to_f32()


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
    if quantisation := quantisation_of(path, table):
        method_of(quantisation)
    _check_model_type(path, table.get("model_type"))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:  # whatever a configuration class objects to
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} is not understood by transformers: {reason}") from e
    _check_counts(path, config.get_text_config())
    vars(config).pop("quantization_config", None)  # the model is that of the numbers, however stored
    return config


def read_quantisation(folder: Path) -> QuantConfig | None:
    """What the configuration of a model folder says of quantised weights."""
    path = folder / CONFIG
    return quantisation_of(path, parse_json_object(path.read_bytes(), path))


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


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return
    pickles = [p.name for pattern in _PICKLES for p in sorted(folder.glob(pattern))]
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code when read; "
            "convert them to safetensors"
        )
