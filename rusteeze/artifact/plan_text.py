"""A plan as text, for people: what is called on what, and where scratch memory lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rusteeze.artifact.contract import Arg, Plan

WeightBytes = Callable[[str], int]


def plan_text(plan: Plan, weight_bytes: WeightBytes) -> str:
    """Calls in order, then buffers. ``weight_bytes``: the size of a weight by name."""
    return "\n".join([*call_lines(plan, weight_bytes), "", *_buffer_lines(plan)]) + "\n"


def call_lines(plan: Plan, weight_bytes: WeightBytes) -> Iterator[str]:
    """One line a call: number, kernel, arguments, whether threads meet behind it, origin."""
    for number, call in enumerate(plan.calls):
        args = ", ".join(_argument(plan, arg, weight_bytes) for arg in call.args)
        read = sum(weight_bytes(str(arg.which)) for arg in call.args if arg.kind == "weight")
        about = f"  weights {read}" if read else ""
        barrier = "  barrier" if call.barrier else ""
        if call.barrier and not call.lone_barrier:
            barrier += " (not with one token)"
        yield f"{number:4} {call.kernel}({args}){about}{barrier}  # {call.origin}"


def _argument(plan: Plan, arg: Arg, weight_bytes: WeightBytes) -> str:
    """``b3:T[2304]+64``: buffer 3, rows of 2304 bytes a token, from byte 64 on; or what else it is."""
    offset = f"+{arg.offset}" if arg.offset else ""
    if arg.kind == "buffer":
        buffer = plan.buffers[int(arg.which)]
        return f"b{arg.which}:{buffer.space}[{buffer.row_bytes}]{offset}"
    if arg.kind == "weight":
        return f"{arg.which}[{weight_bytes(str(arg.which))}]{offset}"
    return f"{arg.which}{offset}" if arg.kind == "input" else f"{arg.kind}.{arg.which}{offset}"


def _buffer_lines(plan: Plan) -> Iterator[str]:
    """Buffers by where they begin, in bytes per row of capacity, and from which call to which they live."""
    yield "buffer  space  offset  row bytes  calls"
    uses: dict[int, list[int]] = {}
    for number, call in enumerate(plan.calls):
        for arg in call.args:
            if arg.kind == "buffer":
                uses.setdefault(int(arg.which), []).append(number)
    uses.setdefault(plan.logits, []).append(len(plan.calls))
    for which in sorted(uses, key=lambda n: (plan.buffers[n].space, plan.buffers[n].offset, n)):
        b = plan.buffers[which]
        name = f"b{which}"
        yield f"{name:6}  {b.space:5}  {b.offset:6}  {b.row_bytes:9}  {uses[which][0]}-{uses[which][-1]}"
    for space, size in plan.arena_row_bytes.items():
        yield f"all of {space}: {size} bytes per row"
