"""64 clients on the real model, a tenth of which leave. RUSTEEZE_LOAD_SECONDS makes it longer."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from load import CLIENTS, run
from server_process import serve
from smollm2 import MARKS

log = logging.getLogger(__name__)
pytestmark = MARKS

SECONDS = float(os.environ.get("RUSTEEZE_LOAD_SECONDS", "20"))
BUDGET = 2**30
"""The memory that server_process.py gives to the server."""
ENOUGH = 3000
"""Requests after which a slope means something."""
P = "rusteeze_inference_"


def test_nothing_is_lost_mixed_up_or_left_behind(smollm2: Path) -> None:
    with serve(smollm2) as served:
        found = asyncio.run(run(served, SECONDS))
        log.info("%s", found.summary())
        assert found.answered > CLIENTS
        assert found.left > 0
        assert found.wrong == []
        assert found.metrics[f"{P}requests_active"] == 0
        assert found.metrics[f"{P}kv_cache_usage_ratio"] == 0
        assert found.metrics[f"{P}requests_total error"] == 0
        ended = sum(v for name, v in found.metrics.items() if name.startswith(f"{P}requests_total "))
        assert found.metrics[f"{P}requests_started_total"] == ended
        # What was promised to fit does, and what has been touched once is used again.
        assert max(bytes for _, _, bytes in found.memory) < BUDGET
        if found.answered > ENOUGH:
            assert found.bytes_per_request() < 1000
        assert served.status("/health/ready") == 200
