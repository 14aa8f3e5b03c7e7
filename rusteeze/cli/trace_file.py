"""A profile as a Chrome trace: JSON that Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rusteeze.runtime.profile import CallProfile, Profile

PROCESS = 1


def trace_events(profile: Profile) -> dict[str, Any]:
    """The last run of every batch, one behind the other; a row a thread, times in µs."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": PROCESS, "tid": n, "args": {"name": f"thread {n}"}}
        for n in range(profile.threads)
    ]
    origin = float(profile.stamps[0].min())
    for stamps in profile.stamps:
        for tid, thread in enumerate(stamps.tolist()):
            for call, (begin, end, met) in zip(profile.calls, thread, strict=True):
                events += _spans(call, tid, begin - origin, end - origin, met - origin)
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _spans(
    call: CallProfile, tid: int, begin: float, end: float, met: float
) -> Iterator[dict[str, Any]]:
    """The kernel, and the waiting behind it where there is a barrier."""
    about = {"origin": call.origin, "bytes": call.bytes, "flops": call.flops}
    place = {"ph": "X", "pid": PROCESS, "tid": tid}
    yield {**place, "name": call.kernel, "ts": begin / 1e3, "dur": (end - begin) / 1e3, "args": about}
    if met > end:
        yield {**place, "name": "wait", "ts": end / 1e3, "dur": (met - end) / 1e3}
