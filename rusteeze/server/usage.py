"""Token counts of one HTTP request, gathered from its sequences."""

from __future__ import annotations

from rusteeze.runtime.interface import Usage
from rusteeze.server.common_schema import PromptTokensDetails, UsageBody


class UsageCount:
    """Prompt tokens count once for each prompt, completion tokens for each choice.

    ``num_choices`` sequences belong to one prompt, in order."""

    def __init__(self, num_choices: int) -> None:
        self._num_choices = num_choices
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0

    def add(self, index: int, usage: Usage) -> None:
        """Sequence ``index`` has ended."""
        self._completion_tokens += usage.completion_tokens
        if index % self._num_choices == 0:
            self._prompt_tokens += usage.prompt_tokens
            self._cached_tokens += usage.cached_tokens

    def body(self) -> UsageBody:
        total = self._prompt_tokens + self._completion_tokens
        details = PromptTokensDetails(self._cached_tokens)
        return UsageBody(self._prompt_tokens, self._completion_tokens, total, details)
