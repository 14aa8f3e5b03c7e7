"""Chat templates: messages in, prompt text out. The only door to ``minijinja``.

Renders what ``transformers.apply_chat_template`` renders, from the same template and with the same
globals. A template comes with the model or from the operator, never from a request; a request
supplies messages, tools and named values, as plain JSON types. Instructions, input and output are
bounded; memory inside one instruction is not, so a template from an untrusted source still needs a
memory limit around the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import minijinja

FUEL = 2_000_000
MAX_CHARACTERS = 8 * 2**20

# transformers marks assistant turns with {% generation %}; for rendering the mark means nothing.
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class TemplateError(ValueError):
    """The template refused the messages (``raise_exception``), or it could not be rendered."""

    user_error = True


class ChatTemplate:
    """One compiled chat template; ``source`` is its text.

    ``special_tokens`` are its ``bos_token``, ``eos_token`` and so on. TemplateError on a syntax
    error. ``now`` gives the time of ``strftime_now``.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, fuel: int = FUEL,
        max_characters: int = MAX_CHARACTERS, now: Callable[[], datetime] = datetime.now,
    ) -> None:  # fmt: skip
        self.source = source
        self._max_characters = max_characters
        self._special_tokens = dict(special_tokens or {})
        self._environment = _environment(fuel, now)
        try:
            self._environment.add_template("chat", _GENERATION.sub(_as_condition, source))
        except minijinja.TemplateError as error:
            raise TemplateError(f"the chat template cannot be parsed: {error.message}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None, **values: Any,
    ) -> str:  # fmt: skip
        """The prompt. ``values`` are further variables, such as ``enable_thinking``.

        TemplateError when the template refuses the messages or a limit is exceeded.
        """
        context = {
            "messages": messages, "tools": tools, "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }  # fmt: skip
        self._check_values(values)
        try:
            plain = json.loads(json.dumps({**values, **context}, allow_nan=False))
            text = self._environment.render_template("chat", **self._special_tokens, **plain)
        except minijinja.TemplateError as error:
            raise TemplateError(_reason(error)) from error
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, TemplateError):
                raise
            raise TemplateError(f"messages must be plain JSON values: {error}") from error
        return self._bounded(text)

    def _check_values(self, values: Mapping[str, Any]) -> None:
        taken = sorted(values.keys() & (_GLOBALS | self._special_tokens.keys()))
        if taken:
            raise TemplateError(f"template variables cannot be replaced: {', '.join(taken)}")

    def _bounded(self, text: str) -> str:
        if len(text) > self._max_characters:
            raise TemplateError(
                f"the prompt has {len(text)} characters; at most {self._max_characters} are allowed"
            )
        return text


_GLOBALS = frozenset({"raise_exception", "strftime_now", "namespace", "range", "dict"})


def _environment(fuel: int, now: Callable[[], datetime]) -> minijinja.Environment:
    """An environment with the settings, filters and globals that transformers provides."""
    environment = minijinja.Environment(
        fuel=fuel, trim_blocks=True, lstrip_blocks=True, debug=False
    )
    environment.add_filter("tojson", _tojson)
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", lambda format: now().strftime(format))
    return environment


def _as_condition(mark: re.Match[str]) -> str:
    left, end, right = mark.groups()
    return f"{{%{left} {'endif' if end else 'if true'} {right}%}}"


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _reason(error: minijinja.TemplateError) -> str:
    if error.kind == "OutOfFuel":
        return "the chat template takes too many instructions for these messages"
    return f"the chat template cannot be rendered: {error.message}"
