"""How fast a GPU copies within its memory, by the driver's own copy. Not run on a GPU so far."""

from __future__ import annotations

from typing import Any

from rusteeze.runtime.ceilings import Ceilings
from rusteeze.runtime.cuda.driver import call, release
from rusteeze.runtime.cuda.session import Session

COPY_BYTES = 1 << 30
ROUNDS = 20


def measure_copying(session: Session, stream: Any) -> Ceilings:
    """The best of a few rounds; bytes read and bytes written both count. As much memory is used as is
    free, at most COPY_BYTES each way. Arithmetic is not measured: the driver has none."""
    size = min(COPY_BYTES, session.free_bytes() // 4)
    source = call("cuMemAlloc", 2 * size, purpose="measuring")
    try:
        begin, end = session.event(timing=True), session.event(timing=True)
        call("cuMemsetD8Async", source, 1, 2 * size, stream)
        return Ceilings(2 * size / _best_seconds(int(source), size, begin, end, stream), {}, "copying")
    finally:
        release("cuMemFree", source)


def _best_seconds(source: int, size: int, begin: Any, end: Any, stream: Any) -> float:
    found = []
    for _ in range(ROUNDS):
        call("cuEventRecord", begin, stream)
        call("cuMemcpyDtoDAsync", source + size, source, size, stream)
        call("cuEventRecord", end, stream)
        call("cuStreamSynchronize", stream)
        found.append(float(call("cuEventElapsedTime", begin, end)) / 1e3)
    return min(found)
