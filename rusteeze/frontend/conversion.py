"""Names and shapes of the parameters that transformers gives a model, and how stored tensors become them.

A checkpoint may spell a parameter otherwise, or hold it in pieces (one tensor per expert, gate and up
apart). transformers knows the rules; they are applied here to names alone, on a model without
storage, so that a parameter's numbers are touched only when it is loaded. The functions used are
internal to transformers, which is pinned; nothing else imports them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.join_weights import join_rows, joined_format
from rusteeze.ir.storage import is_quantized
from rusteeze.weights import Dense, Weight

Load = Callable[[str], Weight]


@dataclass(frozen=True)
class Conversion:
    """A parameter as an expression over stored tensors: one of them as it is, or the result of a
    converter's operations on all of them. ``sources`` pairs each tensor with the pattern it matched."""

    param: str
    sources: tuple[tuple[str, str], ...]
    converter: WeightConverter | None = None
    first_param: str = ""  # the name by which the converter knows its results

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.sources)


@dataclass(frozen=True)
class ConversionPlan:
    """Conversions by parameter. ``aliases`` maps tied names that are not stored to stored ones;
    ``missing`` are parameters, ``unused`` stored tensors (as they would be called) without a partner."""

    model: PreTrainedModel
    conversions: Mapping[str, Conversion]
    aliases: Mapping[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def conversion(self, param: str) -> Conversion:
        """How a parameter is made, under whichever of its names."""
        return self.conversions[self.aliases.get(param, param)]

    def format_of(self, param: str, format_of: Callable[[str], str]) -> str:
        """The format of a parameter, given those of the stored tensors."""
        conversion = self.conversion(param)
        if conversion.converter is None:
            return format_of(conversion.tensors[0])
        return joined_format(conversion.converter, param, set(map(format_of, conversion.tensors)))

    def load(self, param: str, load: Load, format: str) -> Weight:
        """Evaluate one parameter, reading tensors through ``load``; ``format`` is what ``format_of`` said.
        CheckpointError if it does not fit."""
        conversion = self.conversion(param)
        if conversion.converter is None:
            return load(conversion.tensors[0])
        if is_quantized(format):
            parts = [(pattern, load(name)) for name, pattern in conversion.sources]
            return join_rows(conversion.converter, param, parts)
        return _convert(conversion, self.model, lambda name: _plain(load(name)))


def parameter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters and stored buffers, tied ones under each of their names."""
    return {name: tuple(t.shape) for name, t in meta_model(config).state_dict().items()}


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of that configuration, without storage. CheckpointError when
    transformers cannot build it."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception as e:  # whatever a model class objects to in the configuration
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        raise CheckpointError(
            f"transformers builds no model of this {type(config).__name__} ({reason}); correct it"
        ) from e


def plan_conversions(model: PreTrainedModel, tensors: Iterable[str]) -> ConversionPlan:
    """Pair the names of stored tensors with the parameters of the model."""
    builder = _Planner(model)
    for name in sorted(tensors, key=dot_natural_key):
        builder.add(name)
    return builder.finish()


@dataclass
class _Planner:
    model: PreTrainedModel
    sources: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    converters: dict[str, WeightConverter] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rules = get_model_conversion_mapping(self.model)
        self.state = self.model.state_dict()
        self.renamings = [r for r in rules if isinstance(r, WeightRenaming)]
        self.rules = [r for r in rules if isinstance(r, WeightConverter)]
        self.rule_of = {pattern: rule for rule in self.rules for pattern in rule.source_patterns}

    def add(self, name: str) -> None:
        param, pattern = self.rename(name, self.renamings, self.rules)
        if param not in self.state and name in self.state:
            param, pattern = self.rename(name, [], [])  # it already has its final name
        if param not in self.state:
            self.unused.append(param)
            return
        if pattern is not None:
            self.converters[param] = self.rule_of[pattern]
        self.sources.setdefault(param, []).append((name, pattern or name))

    def rename(self, name: str, renamings: list, rules: list) -> tuple[str, str | None]:
        prefix = self.model.base_model_prefix
        return rename_source_key(name, renamings, rules, prefix, self.state)

    def finish(self) -> ConversionPlan:
        found: dict[str, Conversion] = {}
        for param, sources in self.sources.items():
            rule = self.converters.get(param)
            if rule is None and len(sources) > 1:
                both = " and ".join(name for name, _ in sources[:2])
                raise CheckpointError(f"{both} are both stored for {param}; which one counts?")
            for target in _targets(param, rule):
                found[target] = Conversion(target, tuple(sources), rule, param)
        aliases = _aliases(self.model, found)
        missing = tuple(n for n in self.state if n not in found and n not in aliases)
        return ConversionPlan(self.model, found, aliases, missing, tuple(self.unused))


def _targets(param: str, rule: WeightConverter | None) -> list[str]:
    """All parameters that a converter makes at once; ``param`` is named by its first pattern."""
    if rule is None:
        return [param]
    return [param.replace(rule.target_patterns[0], target) for target in rule.target_patterns]


def _aliases(model: PreTrainedModel, found: Mapping[str, Conversion]) -> dict[str, str]:
    """Tied names of which only the other one is stored."""
    aliases = {}
    for target, source in (model.all_tied_weights_keys or {}).items():
        if source in found and target not in found:
            aliases[target] = source
        elif target in found and source not in found:
            aliases[source] = target
    return aliases


def _plain(weight: Weight) -> Dense:
    return weight if isinstance(weight, Dense) else Dense(weight.to_f32(), "f32")


def _convert(
    conversion: Conversion, model: PreTrainedModel, load: Callable[[str], Dense]
) -> Dense:
    converter = copy.deepcopy(conversion.converter)
    assert converter is not None
    for name, pattern in conversion.sources:
        converter.add_tensor(conversion.first_param, name, pattern, partial(_torch, load, name))
    try:
        made = converter.convert(conversion.first_param, model=model, config=model.config)
        result = made[conversion.param]
    except CheckpointError:
        raise
    except Exception as e:  # operations on tensors of unexpected number or shape
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{conversion.param} cannot be made of its stored parts: {reason}") from e
    return _dense(result[0] if isinstance(result, list) else result)


def _torch(load: Callable[[str], Dense], name: str) -> torch.Tensor:
    """The stored tensor over the same memory; it is only read."""
    weight = load(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "not writable", which is as it should be
        if weight.dtype == "bf16":
            return torch.from_numpy(weight.values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(weight.values)


def _dense(tensor: torch.Tensor) -> Dense:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return Dense(tensor.view(torch.int16).numpy().view(np.uint16), "bf16")
    names = {torch.float32: "f32", torch.float16: "f16"}
    return Dense(tensor.numpy(), names[tensor.dtype])
