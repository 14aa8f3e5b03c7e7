from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rusteeze.runtime.stops import StopMatcher

LETTERS = st.text(alphabet="ab", max_size=30)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=6), max_size=4)


def cut_at_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rule, said directly: the first place where a stop ends, there the longest one."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held_back(text: str, stops: list[str]) -> int:
    """Length of the longest suffix that is a proper prefix of a stop string."""
    prefixes = {stop[:n] for stop in stops for n in range(1, len(stop))}
    return max((n for n in range(len(text) + 1) if text[len(text) - n :] in prefixes), default=0)


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_result_is_that_of_the_whole_text_for_every_chunking(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    matcher = StopMatcher(stops)
    deltas = [*map(matcher.push, pieces), matcher.finish()]
    assert ("".join(deltas), matcher.matched) == cut_at_stop(text, stops)


@given(LETTERS, STOPS)
def test_exactly_what_may_still_become_a_stop_is_held(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted, read = "", ""
    for character in text:
        emitted += matcher.push(character)
        read += character
        if matcher.matched is not None:
            break
        assert len(read) - len(emitted) == held_back(read, stops)


def test_nothing_is_held_without_stops() -> None:
    matcher = StopMatcher(())
    assert [matcher.push("abc"), matcher.finish()] == ["abc", ""]


def test_nothing_is_emitted_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push("xE"), matcher.push("NDy"), matcher.push("z")] == ["x", "", ""]
    assert matcher.finish() == ""
    assert matcher.matched == "END"


def test_of_several_completed_together_the_longest_counts() -> None:
    for stops in (["b", "ab"], ["ab", "b"]):
        matcher = StopMatcher(stops)
        assert (matcher.push("xab"), matcher.matched) == ("x", "ab")


def test_the_first_to_be_completed_counts_though_another_began_earlier() -> None:
    matcher = StopMatcher(["abcd", "c"])
    assert (matcher.push("abcd"), matcher.matched) == ("ab", "c")
