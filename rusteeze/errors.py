"""The errors a person can act on. The CLI prints each as one line; everything else is a bug of ours."""

from __future__ import annotations


class UserError(Exception):
    """Something about the request, the model or the machine is wrong, and the message says what.

    The CLI recognises such errors by ``user_error``, so that a room may keep its own hierarchy.
    """

    user_error = True


class ArtifactError(UserError):
    """An artifact cannot be stored or must not be trusted; the message names the file."""


class BrokenArtifact(ArtifactError):
    """An artifact is damaged or of another version. The message ends with what to do about it."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}; compile the model again")
