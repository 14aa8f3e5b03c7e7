"""A model without weights: built on torch's meta device, ready for export.

Parameters become fake tensors (a shape and a type, no storage), so that a 405B model needs no more
memory than a small one. Buffers are real: whatever a model computes at construction (rotary
frequencies, embedding scales) was lost on the meta device and is computed again.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rusteeze.frontend import operators  # noqa: F401  (registers the interface functions)
from rusteeze.frontend.errors import (
    ChunkedAttention,
    LostBuffer,
    UnknownArchitecture,
    UnsupportedAttention,
    UnusableConfig,
)
from rusteeze.frontend.masks import IMPLEMENTATION

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}


@dataclass
class BuiltModel:
    """A model that export can run. ``tied`` maps a second name of a parameter to its first one;
    ``param_shapes`` lists the tensors that a checkpoint holds, each under its first name."""

    model: PreTrainedModel
    num_layers: int
    intercepts_sdpa: bool
    tied: dict[str, str] = field(default_factory=dict)
    param_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fake_mode: FakeTensorMode = field(
        default_factory=lambda: FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    )


def build_model(config: PretrainedConfig) -> BuiltModel:
    """Build the causal LM of ``config`` in float32 with our attention and experts functions.

    The parameters are still on the meta device; see ``give_fake_storage``. FrontendError when the
    architecture is unknown or hides its attention."""
    config = copy.deepcopy(config)
    model_class = _model_class(config)
    _check_layer_types(config)
    intercepts = not _uses_interface(model_class)
    config._experts_implementation = IMPLEMENTATION
    model = _construct(model_class, config, "sdpa" if intercepts else IMPLEMENTATION)
    tied = _find_tied(model)
    built = BuiltModel(model, config.get_text_config().num_hidden_layers, intercepts, tied)
    built.param_shapes = {
        name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied
    }
    _recompute_buffers(model)
    return built


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UnknownArchitecture(
            f"{type(config).__name__} has no causal LM in transformers; pass the config of a text model"
        ) from None
    model_class: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found  # type: ignore[assignment]
    return model_class


def _construct(
    model_class: type[PreTrainedModel], config: PretrainedConfig, attention: str
) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return model_class._from_config(
                config, dtype=torch.float32, attn_implementation=attention
            ).eval()
    except Exception as e:  # whatever a model class objects to in the configuration
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        raise UnusableConfig(
            f"transformers builds no {model_class.__name__} of this configuration ({reason}); correct it"
        ) from e


def _check_layer_types(config: PretrainedConfig) -> None:
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if "chunked_attention" in kinds:
        raise ChunkedAttention("chunked attention is not supported; choose a model without it")
    if other := sorted(kinds - _ATTENTION_LAYERS):
        raise UnsupportedAttention(
            f"layers of type {', '.join(other)} are not supported; choose a model with attention only"
        )


def _uses_interface(model_class: type[PreTrainedModel]) -> bool:
    """Whether the attention of a model goes through transformers' interface; False: torch's function."""
    # The class attribute _supports_attention_backend is not set by every model that complies.
    if hasattr(sys.modules[model_class.__module__], "ALL_ATTENTION_FUNCTIONS"):
        return True
    if model_class._supports_sdpa:
        return False
    raise UnsupportedAttention(
        f"{model_class.__name__} computes attention by itself instead of through transformers'"
        " attention interface; choose another architecture"
    )


def _find_tied(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        seen = first.setdefault(id(parameter), name)
        if seen != name:
            tied[name] = seen
    return tied


def _recompute_buffers(model: PreTrainedModel) -> None:
    """Give every buffer its value again, by the model's own initialisation. LostBuffer if it has none.

    Persistent buffers come from the checkpoint, whatever is computed here."""
    persistent = set(model.state_dict())
    for path, module in model.named_modules():
        lost = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
        for name in lost:
            module._buffers[name] = _poisoned(module._buffers[name])
        if lost:
            model._init_weights(module)
        for name in lost:
            if f"{path}.{name}" not in persistent and _is_poisoned(module._buffers[name]):
                raise LostBuffer(
                    f"{path}.{name} is not set by the model's _init_weights; choose another model class"
                )
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise LostBuffer(
                    f"{path}.{name} is no registered buffer; choose another model class"
                )


def _poisoned(buffer: torch.Tensor) -> torch.Tensor:
    """A buffer whose content is recognisably missing (booleans cannot say that)."""
    if buffer.dtype is torch.bool:
        return torch.zeros_like(buffer, device="cpu")
    poison = float("nan") if buffer.is_floating_point() else torch.iinfo(buffer.dtype).min
    return torch.full_like(buffer, poison, device="cpu")


def _is_poisoned(buffer: torch.Tensor) -> bool:
    if buffer.is_floating_point():
        return bool(buffer.isnan().any())
    if buffer.dtype is torch.bool:
        return False
    return bool((buffer == torch.iinfo(buffer.dtype).min).any())


def give_fake_storage(built: BuiltModel) -> None:
    """Turn the meta parameters into fake CPU tensors; tied ones stay the same object."""
    replaced: dict[int, nn.Parameter] = {}
    with built.fake_mode:
        for module in built.model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in replaced:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    replaced[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                module._parameters[name] = replaced[id(parameter)]
