"""Static facts of attention, and how its cache pages lie in memory.

A page holds 16 tokens of one layer. float32: K page [heads][D][16], V page [heads][16][DVp].
bf16: K page [heads][D/2][16] of pairs of dims, V page [heads][8][DVp] of pairs of tokens, as 32-bit
words, so that a bf16 dot product reads both without conversion. int8: a head begins with the scales of
its 16 tokens, of a key for each group of dims; then K page [heads][D/4][16] of four dims a word, each plus 128 and so unsigned, V page
[heads][4][DVp] of four tokens a word, signed, as an int8 dot product wants them. DVp is DV rounded up to
16, D/4 is rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.cpu.emit import LANES
from rusteeze.ir.ops.attention import key_group

PAGE = BLOCK_SIZE
WORD = 4
MOST_ROWS = 12
"""Query rows (tokens times heads of a group) that one work item holds."""


@dataclass(frozen=True)
class AttentionShape:
    """Static facts of one attention op. ``cache`` is "f32", "bf16" or "int8"."""

    heads: int
    kv_heads: int
    width: int  # D
    value_width: int  # DV
    scale: float
    window: int
    softcap: float
    sinks: bool
    cache: str

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def chunks(self) -> int:
        """Work items per key head."""
        return -(-self.group // MOST_ROWS)

    @property
    def heads_per_item(self) -> int:
        return -(-self.group // self.chunks)

    @property
    def query_tokens(self) -> int:
        return max(1, MOST_ROWS // self.heads_per_item)

    @property
    def padded_value_width(self) -> int:
        return -(-self.value_width // LANES) * LANES

    @property
    def per_word(self) -> int:
        """Elements that share 32 bits."""
        return {"f32": 1, "bf16": 2, "int8": 4}[self.cache]

    @property
    def key_steps(self) -> int:
        """Words of a key."""
        return -(-self.width // self.per_word)

    @property
    def value_steps(self) -> int:
        """Rows of words of a page's values."""
        return PAGE // self.per_word

    @property
    def key_groups(self) -> int:
        """Scales of a key."""
        return self.width // key_group(self.width) if self.cache == "int8" else 0

    @property
    def value_groups(self) -> int:
        """Scales of a value."""
        return int(self.cache == "int8")

    @property
    def key_head_bytes(self) -> int:
        """A key head's part of a page."""
        return (self.key_groups + self.key_steps) * PAGE * WORD

    @property
    def value_head_bytes(self) -> int:
        return (self.value_groups * PAGE + self.value_steps * self.padded_value_width) * WORD

    @property
    def key_page_bytes(self) -> int:
        return self.kv_heads * self.key_head_bytes

    @property
    def value_page_bytes(self) -> int:
        return self.kv_heads * self.value_head_bytes

    def label(self) -> str:
        extra = (f"_w{self.window}" if self.window else "") + ("_cap" if self.softcap else "")
        extra += "_sink" if self.sinks else ""
        return f"h{self.heads}x{self.kv_heads}_d{self.width}x{self.value_width}_{self.cache}{extra}"
