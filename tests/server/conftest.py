from __future__ import annotations

from collections.abc import Iterator

import pytest
from live import Live, live


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    """One server for the tests of a file that leave it as it was."""
    with live() as server:
        yield server
