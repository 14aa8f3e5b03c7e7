"""Scratch memory: what lives at the same time lies apart, and threads meet before they would clash."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rusteeze.codegen.cpu.lowering import PageSet, PendingCall
from rusteeze.codegen.cpu.plan_calls import barriers, repeats
from rusteeze.codegen.memory import Lifetime, assign_offsets
from rusteeze.codegen.views import Storage

MANY = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
Memory = Storage | PageSet


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    lives = []
    for i in range(draw(st.integers(1, 16))):
        first = draw(st.integers(0, 12))
        last = first + draw(st.integers(0, 6))
        size = 32 * draw(st.integers(1, 40))
        lives.append(Lifetime(Storage("buffer", str(i), draw(st.sampled_from("TR")), size), first, last))
    return lives


def live_together(a: Lifetime, b: Lifetime) -> bool:
    return a.storage.space == b.storage.space and a.first <= b.last and b.first <= a.last


def span(storage: Storage, offsets: dict[Storage, int]) -> range:
    return range(offsets[storage], offsets[storage] + storage.row_bytes)


def overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


@MANY
@given(lifetimes())
def test_buffers_that_live_together_lie_apart(lives):
    offsets, sizes = assign_offsets(lives)
    for a, b in combinations(lives, 2):
        if live_together(a, b):
            assert not overlap(span(a.storage, offsets), span(b.storage, offsets))
    for life in lives:
        assert offsets[life.storage] >= 0
        assert span(life.storage, offsets).stop <= sizes[life.storage.space]


@MANY
@given(lifetimes())
def test_an_arena_is_no_larger_than_all_buffers_and_no_smaller_than_what_lives_at_once(lives):
    _, sizes = assign_offsets(lives)
    for space in "TR":
        inside = [life for life in lives if life.storage.space == space]
        at_once = max(
            (sum(b.storage.row_bytes for b in inside if b.first <= t <= b.last) for t in range(20)),
            default=0,
        )
        assert at_once <= sizes[space] <= sum(b.storage.row_bytes for b in inside)


def test_a_chain_of_equal_buffers_needs_two():
    chain = [Lifetime(Storage("buffer", str(i), "T", 64), i, i + 1) for i in range(10)]
    assert assign_offsets(chain)[1] == {"T": 128, "R": 0}


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[PendingCall], dict[Storage, int]]:
    """Calls over a few buffers, some at the same addresses, and pages, weights and inputs."""
    buffers = [Storage("buffer", str(i), draw(st.sampled_from("TR")), 64) for i in range(6)]
    offsets = {b: 32 * draw(st.integers(0, 8)) for b in buffers}
    pages: list[Memory] = [PageSet("key_pages", 0), PageSet("value_pages", 0), PageSet("key_pages", 1)]
    constant = [Storage("weight", "w"), Storage("input", "positions")]
    calls = []
    for _ in range(draw(st.integers(1, 14))):
        reads = draw(st.sets(st.sampled_from([*buffers, *pages, *constant]), max_size=3))
        writes = draw(st.sets(st.sampled_from([*buffers, *pages]), min_size=1, max_size=2))
        rowwise = draw(st.booleans())
        calls.append(PendingCall("k", (), frozenset(reads), frozenset(writes), "", rowwise))
    return calls, offsets


def share_bytes(a: Memory, b: Memory, offsets: dict[Storage, int]) -> bool:
    if isinstance(a, PageSet) or isinstance(b, PageSet) or "buffer" not in (a.kind, b.kind):
        return a == b
    same_space = a.kind == b.kind and a.space == b.space
    return same_space and overlap(span(a, offsets), span(b, offsets))


def conflict(first: PendingCall, second: PendingCall, offsets: dict[Storage, int]) -> bool:
    """One writes what the other touches."""
    pairs = [(w, m) for w in first.writes for m in second.reads | second.writes]
    pairs += [(w, m) for w in second.writes for m in first.reads]
    return any(share_bytes(a, b, offsets) for a, b in pairs)


@MANY
@given(programs())
def test_a_barrier_lies_between_calls_that_conflict(program):
    calls, offsets = program
    meets = barriers(calls, offsets)
    assert meets[-1]
    for i, j in combinations(range(len(calls)), 2):
        if conflict(calls[i], calls[j], offsets):
            assert any(meets[i:j])


@MANY
@given(programs())
def test_what_every_thread_repeats_is_written_to_memory_of_its_own(program):
    calls, offsets = program
    out = next(iter(offsets))
    repeated, private = repeats(calls, [out])
    assert out not in private
    for call, whole in zip(calls, repeated, strict=True):
        assert call.rowwise or not whole
        assert (call.writes <= private) if whole else not (call.writes & private)


@MANY
@given(programs())
def test_threads_with_memory_of_their_own_meet_where_they_share_some(program):
    calls, offsets = program
    _, private = repeats(calls, [next(iter(offsets))])
    meets = barriers(calls, offsets, private)
    assert sum(meets) <= sum(barriers(calls, offsets))
    shared = [replace(c, reads=c.reads - private, writes=c.writes - private) for c in calls]
    for i, j in combinations(range(len(calls)), 2):
        if conflict(shared[i], shared[j], offsets):
            assert any(meets[i:j])


@MANY
@given(programs())
def test_no_barrier_is_superfluous(program):
    calls, offsets = program
    meets = barriers(calls, offsets)
    for b in range(len(calls) - 1):
        if meets[b]:
            fewer = [*meets[:b], False, *meets[b + 1 :]]
            assert any(
                conflict(calls[i], calls[j], offsets) and not any(fewer[i:j])
                for i in range(b + 1)
                for j in range(b + 1, len(calls))
            )
