"""The options that decide how an answer is drawn, shared by `generate` and `chat`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from rusteeze.errors import UserError
from rusteeze.runtime.params import SamplingParams

Function = Callable[..., Any]

# What counts when neither the caller nor the model says anything: the likeliest token, repeatably.
GREEDY = {"temperature": 0.0}
_MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_OPTIONS: dict[str, dict[str, Any]] = {
    "max_tokens": {"type": int, "default": 512, "show_default": True, "help": "Longest answer."},
    "temperature": {"type": float, "help": "0 is greedy.  [default: the model's own, or 0]"},
    "top_p": {"type": float, "help": "Keep the likeliest tokens of this total probability."},
    "top_k": {"type": int, "help": "Keep this many of the likeliest tokens; 0 keeps all."},
    "min_p": {"type": float, "help": "Drop tokens below this share of the likeliest one."},
    "seed": {"type": int, "help": "Makes a drawn answer repeatable."},
    "stop": {"multiple": True, "metavar": "TEXT", "help": "End before TEXT; may be repeated."},
}


@dataclass(frozen=True)
class Sampling:
    """What the caller asked for, by the names of SamplingParams; what is missing the model decides."""

    asked: Mapping[str, Any]

    def params(self, model_defaults: Mapping[str, Any]) -> SamplingParams:
        """The whole set. UserError names the value that is out of range."""
        own = {k: model_defaults[k] for k in _MODEL_DEFAULTS if model_defaults.get(k) is not None}
        try:
            return SamplingParams(**{**GREEDY, **own, **self.asked})
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error


def sampling_options(function: Function) -> Function:
    """Add the options and pass them as one ``sampling: Sampling``."""

    @functools.wraps(function)
    def collected(*args: Any, **options: Any) -> Any:
        asked = {name: options.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in asked.items() if value not in (None, ())}
        return function(*args, sampling=Sampling(given), **options)

    for name, settings in reversed(_OPTIONS.items()):
        click.option(f"--{name.replace('_', '-')}", **settings)(collected)
    return collected
