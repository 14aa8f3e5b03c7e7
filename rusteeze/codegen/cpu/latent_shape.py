"""Static facts of attention whose values are part of its keys, and how its cache pages lie in memory.

There is one key head, which all query heads read: the latent and what is rotated beside it. A page holds
16 tokens of one layer, a row of words each: float32 elements, or pairs of bf16. Values are the beginning
of the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.cpu.emit import LANES

PAGE = BLOCK_SIZE
WORD = 4


@dataclass(frozen=True)
class LatentShape:
    """``cache`` is "f32" or "bf16"; pairs need an even ``width``."""

    heads: int
    width: int
    value_width: int
    scale: float
    cache: str

    @property
    def heads_per_item(self) -> int:
        return min(self.heads, LANES)

    @property
    def chunks(self) -> int:
        """Work items per tile of tokens."""
        return -(-self.heads // LANES)

    @property
    def query_tokens(self) -> int:
        return LANES // self.heads_per_item

    @property
    def per_word(self) -> int:
        return 1 if self.cache == "f32" else 2

    @property
    def key_words(self) -> int:
        return self.width // self.per_word

    @property
    def value_vectors(self) -> int:
        """Vectors of words that hold a token's values."""
        return -(-self.value_width // (self.per_word * LANES))

    @property
    def row_words(self) -> int:
        """Words from token to token: whole vectors of values are read."""
        return max(self.key_words, self.value_vectors * LANES)

    @property
    def page_bytes(self) -> int:
        return PAGE * self.row_words * WORD

    def label(self) -> str:
        return f"h{self.heads}_d{self.width}v{self.value_width}_{self.cache}"
