"""The one exception of everything that reads checkpoint files."""

from __future__ import annotations

from rusteeze.errors import UserError


class CheckpointError(UserError):
    """The files of a model cannot be used. The message is one line: what is wrong and what to do.

    Messages quote names that files contain; what cannot be printed in them is written as an escape."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))
