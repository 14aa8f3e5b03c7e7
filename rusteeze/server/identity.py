"""What names an answer: its id, its time and its model."""

from __future__ import annotations

import time
import uuid
from typing import NamedTuple


class Identity(NamedTuple):
    """``created`` is in seconds since the epoch."""

    id: str
    created: int
    model: str

    @staticmethod
    def new(prefix: str, model: str) -> Identity:
        return Identity(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)
