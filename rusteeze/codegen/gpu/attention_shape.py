"""Static facts of attention, and how its cache pages lie in memory.

A page holds 16 tokens of one layer: keys [kv heads][16][D], values [kv heads][16][DV], in the cache's
element type. Where values are the beginning of the keys (latents, which all heads share), keys [16][D] are all.
"""

from __future__ import annotations

from dataclasses import dataclass

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.gpu.source import power_of_two

PAGE = BLOCK_SIZE
LEAST_ROWS = 64
"""Query rows (tokens times heads of a group) of one program: what Hopper's tensor instructions take."""
MOST_WIDE = 256
"""Elements of a head beyond which a loop trip takes the fewest keys."""
SPLIT = 512
"""Keys whose softmax is one part: parts are joined in order, by whoever computes them."""
SPLIT_TOKENS = 32
"""Up to how many tokens of a step the parts are programs of their own."""


@dataclass(frozen=True)
class AttentionShape:
    """Static facts of one attention op. ``cache`` is "f32" or "bf16". Of ``latent`` attention ``kv_heads`` counts the
    groups of heads that are programs of their own, though all read the same keys."""

    heads: int
    kv_heads: int
    width: int  # D
    value_width: int  # DV
    scale: float
    window: int
    softcap: float
    sinks: bool
    cache: str
    latent: bool = False

    @property
    def key_columns(self) -> int:
        """Of a key, without those behind its values: what the first product takes."""
        return self.value_width if self.latent else self.width

    @property
    def more_columns(self) -> int:
        """Columns of a key behind its values."""
        return self.width - self.key_columns

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def query_tokens(self) -> int:
        """Tokens whose heads of a group fill the rows of a program."""
        return max(1, LEAST_ROWS // self.group)

    def rows(self, query_tokens: int) -> int:
        return max(LEAST_ROWS, power_of_two(self.group * query_tokens))

    @property
    def block(self) -> int:
        """Keys of one loop trip: fewer of wide heads, whose sums take more registers."""
        widest = max(self.width, self.value_width)
        return 64 if widest <= 64 else 32 if widest <= MOST_WIDE else 16

    @property
    def num_warps(self) -> int:
        """The same for all kernels of a shape: it decides in which order a row's sums are made."""
        return 4 if self.cache == "bf16" and max(self.width, self.value_width) <= 128 else 8

    @property
    def element_bytes(self) -> int:
        return 4 if self.cache == "f32" else 2

    @property
    def key_page_bytes(self) -> int:
        return (1 if self.latent else self.kv_heads) * PAGE * self.width * self.element_bytes

    @property
    def value_page_bytes(self) -> int:
        return 0 if self.latent else self.kv_heads * PAGE * self.value_width * self.element_bytes

    def label(self) -> str:
        extra = (f"_w{self.window}" if self.window else "") + ("_cap" if self.softcap else "")
        extra += ("_sink" if self.sinks else "") + ("_latent" if self.latent else "")
        return f"h{self.heads}x{self.kv_heads}_d{self.width}x{self.value_width}_{self.cache}{extra}"
