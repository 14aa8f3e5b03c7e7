"""From Hugging Face's axis order to the token-major order of the IR.

Models compute on ``[1, T, H]`` or ``[1, heads, T, D]``. In the IR the token axis is always axis 0 and
the batch axis of size 1 is gone: ``[T, H]``, ``[T, heads, D]``. The IR shape is a function of the model's
shape alone, so nothing has to be remembered per value; permutations that only move the token axis vanish.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rusteeze.frontend.errors import UnsupportedLayout
from rusteeze.ir import Dim


@dataclass(frozen=True)
class Layout:
    """A model tensor's shape, and where each of its axes lies in the IR."""

    shape: tuple[Dim, ...]

    @cached_property
    def token_axis(self) -> int | None:
        """The axis whose size is a named dimension. UnsupportedLayout if there are several."""
        named = [i for i, d in enumerate(self.shape) if isinstance(d, str)]
        if len(named) > 1:
            raise UnsupportedLayout(f"a tensor of shape {list(self.shape)} has two token axes")
        return named[0] if named else None

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The model's axes in IR order: tokens first, then the others without a leading batch axis."""
        token = self.token_axis
        if token is None:
            return tuple(range(len(self.shape)))
        dropped = {token, 0} if token and self.shape[0] == 1 else {token}
        return (token, *(i for i in range(len(self.shape)) if i not in dropped))

    @cached_property
    def ir_shape(self) -> tuple[Dim, ...]:
        return tuple(self.shape[i] for i in self.order)

    def axis(self, model_axis: int) -> int:
        """The IR axis of one of the model's axes. UnsupportedLayout if it is the dropped batch axis."""
        if model_axis % len(self.shape) not in self.order:
            raise UnsupportedLayout(f"axis {model_axis} of {list(self.shape)} is the batch axis")
        return self.order.index(model_axis % len(self.shape))

    def elements_before_tokens(self) -> int:
        """How many elements precede the token axis, as a product of sizes (1 without a token axis)."""
        return math.prod(d for d in self.shape[: self.token_axis or 0] if isinstance(d, int))


def aligned_shape(operand: Layout, result: Layout) -> tuple[Dim, ...]:
    """The IR shape under which ``operand`` broadcasts to ``result`` by the model's (numpy's) rule.

    UnsupportedLayout when only a transposition of data could do that."""
    missing = len(result.shape) - len(operand.shape)
    wanted = [operand.shape[i - missing] if i >= missing else 1 for i in result.order]
    if _without_ones(wanted) != _without_ones(operand.ir_shape):
        raise UnsupportedLayout(
            f"{list(operand.shape)} does not broadcast to {list(result.shape)} with tokens in front"
        )
    return without_leading_ones(tuple(wanted))


def check_reshape(before: Layout, after: Layout) -> None:
    """UnsupportedLayout when the model's reshape moves elements across the token axis."""
    if (before.token_axis is None) != (after.token_axis is None) or (
        before.elements_before_tokens() != after.elements_before_tokens()
    ):
        raise UnsupportedLayout(
            f"reshape of {list(before.shape)} to {list(after.shape)} mixes tokens with other axes"
        )


def permutation(before: Layout, after: Layout, axes: Sequence[int]) -> tuple[int, ...]:
    """The IR permutation for the model's ``after = before.permute(axes)``.

    Axes of size 1 that only one of the two layouts drops are left for a reshape."""
    moved = [before.order.index(axes[i]) for i in after.order if axes[i] in before.order]
    return (*moved, *(i for i in range(len(before.order)) if i not in moved))


def without_leading_ones(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _without_ones(shape: Sequence[Dim]) -> list[Dim]:
    return [d for d in shape if d != 1]
