"""Keep in the cache the latent from which a model computes the keys and values of all its heads.

Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2): keys and values are products of one narrow
row per token. A product with the queries and one with the results do the same, so that the row is all
there is to remember; the paper calls that absorption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rusteeze.ir.graph import Graph
from rusteeze.ir.op import AttrValue
from rusteeze.ir.rewrite import Match, Rule, rewrite
from rusteeze.passes.pass_base import Pass, PassResult


@dataclass(frozen=True)
class _Sizes:
    """Of latent attention: elements of a head's key from the latent (``nope``) and not (``rope``)."""

    heads: int
    rank: int
    nope: int
    rope: int
    value: int

    @staticmethod
    def of(match: Match) -> _Sizes:
        _, heads, both = match.attrs["heads"]  # type: ignore[misc, str-unpack]
        nope: int = match.attrs["n"]  # type: ignore[assignment]
        rank, rope = (int(match.values[v].type.shape[-1]) for v in ("x", "p"))
        return _Sizes(int(heads), rank, nope, rope, int(both) - nope)

    @property
    def is_smaller(self) -> bool:
        return self.rank + self.rope < self.heads * (self.nope + self.rope + self.value)


def _size(compute: Callable[[_Sizes], AttrValue]) -> Callable[[Match], AttrValue]:
    return lambda match: compute(_Sizes.of(match))


def _rows(*dims: str) -> Callable[[Match], AttrValue]:
    """The shape of one row per token: products of sizes, such as "heads nope"; of none: 1."""

    def shape(match: Match) -> AttrValue:
        sizes = _Sizes.of(match)
        found: list[int | str] = [match.values["x"].type.shape[0]]
        for dim in dims:
            size = 1
            for name in dim.split():
                size *= getattr(sizes, name)
            found.append(size)
        return tuple(found)

    return shape


def _is_shared(match: Match) -> bool:
    return match.values["p"].type.shape[1] == 1


def _halves_meet(match: Match) -> bool:
    return match.attrs["end"] == match.attrs["heads"][2]  # type: ignore[index]


_BOTH = "reshape(linear(x, @w, _)) {shape=?heads}"
_WEIGHT = "reshape(w) {shape=?by_head}"
_QUERY = "slice(q) {axis=-1, start=0, stop=?n}"
_LATENT_QUERY = (
    f"block_linear(reshape({_QUERY}) {{shape=?plain}},"
    f" permute(slice({_WEIGHT}) {{axis=1, start=0, stop=?n}}) {{perm=[0, 2, 1]}})"
)

ABSORB = Rule(
    f"attention(q, concat(slice({_BOTH}) {{axis=-1, start=0, stop=?n, step=1}}, broadcast_to(p)) {{axis=-1}},"
    f" slice({_BOTH}) {{axis=-1, start=?n, stop=?end, step=1}}, _)"
    " {layer=?l, scale=?c, window=0, softcap=0.0}"
    " => reshape(block_linear(reshape(attention("
    f"concat(reshape({_LATENT_QUERY}) {{shape=?turned}}, slice(q) {{axis=-1, start=?n, stop=?d}}) {{axis=-1}},"
    " concat(reshape(x) {shape=?one}, p) {axis=-1}, _, _) {layer=?l, scale=?c, value_width=?rank})"
    f" {{shape=?latent}}, slice({_WEIGHT}) {{axis=1, start=?n, stop=?end}})) {{shape=?out}}",
    where={
        "the rest of a key differs from head to head": _is_shared,
        "keys and values leave some of the product unused": _halves_meet,
        "the latent is no smaller than the heads": lambda m: _Sizes.of(m).is_smaller,
    },
    let={
        "by_head": _size(lambda s: (s.heads, s.nope + s.value, s.rank)),
        "plain": _rows("heads nope"),
        "turned": _rows("heads", "rank"),
        "one": _rows("", "rank"),
        "latent": _rows("heads rank"),
        "out": _rows("heads", "value"),
        "rank": _size(lambda s: s.rank),
        "d": _size(lambda s: s.nope + s.rope),
    },
)  # fmt: skip


def _is_before_rotation(match: Match) -> bool:
    x = match.values["x"].type.shape[-1]
    return int(match.attrs["stop"]) <= int(x) - int(match.attrs["w"])  # type: ignore[arg-type]


def _is_rotation(match: Match) -> bool:
    x = match.values["x"].type.shape[-1]
    return (match.attrs["start"], match.attrs["stop"]) == (int(x) - int(match.attrs["w"]), x)  # type: ignore[arg-type]


PARTS_OF_ROTATIONS = [
    Rule(
        "slice(rope(x, c, s) {width=?w, at_end=True}) {axis=-1, start=0, stop=?stop, step=1}"
        " => slice(x) {axis=-1, start=0, stop=?stop}",
        where={"it is rotated in part": _is_before_rotation},
    ),
    Rule(
        "slice(rope(x, c, s) {style=?y, width=?w, at_end=True}) {axis=-1, start=?start, stop=?stop, step=1}"
        " => rope(slice(x) {axis=-1, start=?start, stop=?stop}, c, s) {style=?y, width=?w}",
        where={"it is not what is rotated": _is_rotation},
    ),
]


@dataclass(frozen=True)
class CacheLatents(Pass):
    """Before: canonical, rotations raised. After: where the keys and values of all heads come from one
    product of a row per token, attention keeps that row, beside the part of keys that heads share, as
    its only key head; values are the first part of it. Every rewrite was run on drawn data."""

    name: ClassVar[str] = "cache-latents"

    def run(self, graph: Graph) -> PassResult:
        absorbed = rewrite(graph, [ABSORB], probed=True)
        if not absorbed.firings:
            return PassResult.of(absorbed)
        return PassResult.of(absorbed, rewrite(graph, PARTS_OF_ROTATIONS, probed=True))
