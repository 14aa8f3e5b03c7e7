"""One request's tokens and the states it goes through. Knows neither scheduler policy nor text.

    waiting ──admit──► running ──finish──► finished(stop | length | abort | error)
       ▲                  │ │
       └────preempt───────┘ └ append(token), advance(count)

A waiting sequence can finish too (abort). Preemption forgets the KV cache, never a token.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from enum import StrEnum

from rusteeze.runtime.blocks import BlockTable, new_block_table


class FinishReason(StrEnum):
    """Why a request ended: a stop token or string, the length limit, a cancel, or a fault."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Prompt and output tokens with their KV blocks.

    ``num_computed`` counts the leading tokens whose KV is in the cache. ``next_row`` is the first
    position whose logits are wanted and have not been computed: the last of the prompt, or the
    first when ``prompt_rows`` asks for those of the prompt too. ``arrival`` orders sequences; the
    scheduler sets it. ``num_cached_tokens`` of the prompt were in the prefix cache when the sequence
    was first admitted; ``cache_salt`` keeps its cache apart from that of other salts.
    ``priority``: lower goes first.
    """

    __slots__ = (
        "_state", "arrival", "block_keys", "block_table", "cache_salt", "finish_reason", "id",
        "next_row", "num_cached_tokens", "num_computed", "num_prompt_tokens", "priority", "token_ids",
    )  # fmt: skip

    def __init__(
        self, id: str, prompt_ids: SequenceOf[int], prompt_rows: bool = False,
        cache_salt: str = "", priority: int = 0,
    ) -> None:  # fmt: skip
        if not prompt_ids:
            raise ValueError("the prompt has no tokens")
        self.id = id
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.next_row = 0 if prompt_rows else len(prompt_ids) - 1
        self.num_computed = 0
        self.block_table: BlockTable[int] = new_block_table()
        self.block_keys: list[bytes] = []
        self.cache_salt = cache_salt
        self.priority = priority
        self.num_cached_tokens: int | None = None
        self.arrival = 0
        self.finish_reason: FinishReason | None = None
        self._state = State.WAITING

    @property
    def state(self) -> State:
        return self._state

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def append(self, token_id: int) -> None:
        """Add a sampled token; its KV is computed in the next step."""
        self._expect(State.RUNNING, "append")
        self.token_ids.append(token_id)

    def advance(self, count: int) -> None:
        """The KV of the next ``count`` tokens is in the cache now."""
        self._expect(State.RUNNING, "advance")
        computed = self.num_computed + count
        if computed > len(self.token_ids):
            raise RuntimeError(f"sequence {self.id}: {count} > {self.num_uncomputed} tokens")
        self.num_computed = computed
        if computed > self.next_row:
            self.next_row = computed

    def admit(self, num_cached: int = 0) -> None:
        """The KV of ``num_cached`` tokens is in the cache already."""
        self._expect(State.WAITING, "admit")
        self._state = State.RUNNING
        self.num_computed = num_cached
        if self.num_cached_tokens is None:
            self.num_cached_tokens = num_cached

    def preempt(self) -> None:
        """Back to waiting with an empty cache. The blocks must have been released."""
        self._expect(State.RUNNING, "preempt")
        self._state = State.WAITING
        self._forget_cache()

    def finish(self, reason: FinishReason) -> None:
        """The end. The blocks must have been released."""
        if self._state is State.FINISHED:
            raise RuntimeError(f"sequence {self.id} has finished already")
        self._state = State.FINISHED
        self.finish_reason = reason
        self._forget_cache()

    def _forget_cache(self) -> None:
        # A new table, not a cleared one: a Step handed out earlier may still refer to the old.
        self.block_table = new_block_table()
        self.num_computed = 0

    def _expect(self, state: State, verb: str) -> None:
        if self._state is not state:
            raise RuntimeError(f"cannot {verb} sequence {self.id}: it is {self._state}")

    def __repr__(self) -> str:
        return f"<Sequence {self.id} {self._state} {self.num_computed}/{self.num_tokens}>"
