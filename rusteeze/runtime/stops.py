"""Stop strings in streamed text: nothing of a stop string is emitted, and nothing is held for
longer than it might still be the beginning of one.

The first stop string to be *completed* ends the text, of several completed by one character the
longest; that makes the result independent of how the text is cut into pieces.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopMatcher:
    """Filters the text of one request."""

    def __init__(self, stops: Iterable[str]) -> None:
        # Longest first: among stops completed at the same place the one that starts first wins.
        self._patterns = [_Pattern(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """What may be emitted now; "" after a match, when ``matched`` names the stop string."""
        if not self._patterns or self.matched is not None:
            return text if self.matched is None else ""
        buffer = self._held + text
        for position, character in enumerate(text, len(self._held) + 1):
            completed = [p for p in self._patterns if p.advance(character)]
            if completed:
                self.matched, self._held = completed[0].stop, ""
                return buffer[: position - len(completed[0].stop)]
        cut = len(buffer) - max(pattern.length for pattern in self._patterns)
        self._held = buffer[cut:]
        return buffer[:cut]

    def finish(self) -> str:
        """The text still held back; it turned out not to be part of a stop string."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """Knuth-Morris-Pratt: the last ``length`` characters read begin the stop string, no more do."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._borders = _borders(stop)

    def advance(self, character: str) -> bool:
        """Read one character; True when it completes the stop string."""
        while self.length and self.stop[self.length] != character:
            self.length = self._borders[self.length]
        self.length += self.stop[self.length] == character
        return self.length == len(self.stop)


def _borders(text: str) -> list[int]:
    """For each length n the longest proper prefix of text[:n] that is its suffix as well."""
    borders = [0, 0]
    length = 0
    for character in text[1:]:
        while length and text[length] != character:
            length = borders[length]
        length += text[length] == character
        borders.append(length)
    return borders
