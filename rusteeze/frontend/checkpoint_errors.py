"""The one exception of everything that reads checkpoint files."""

from __future__ import annotations

from rusteeze.errors import UserError


class CheckpointError(UserError):
    """The files of a model cannot be used. The message is one line: what is wrong and what to do."""
