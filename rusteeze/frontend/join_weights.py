"""A parameter made of several quantised weights: experts stacked, gate and up joined, codes kept.

transformers' converters compute on tensors of numbers. The two operations that mixture-of-experts models
need move whole rows only, so that quantised parts go through them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.ir.storage import is_quantized
from rusteeze.weights import Weight, concat_rows, stack


def joined_format(converter: WeightConverter, param: str, formats: set[str]) -> str:
    """The format of a parameter whose parts have these formats. Quantised parts that cannot keep theirs
    become float32; plain parts of different types are refused, since one of them may be a mistake."""
    if len(formats) == 1 and (moves_rows(converter) or not is_quantized(next(iter(formats)))):
        return next(iter(formats))
    if any(map(is_quantized, formats)):
        return "f32"
    raise CheckpointError(f"{param} is stored in parts of types {', '.join(sorted(formats))}")


def moves_rows(converter: WeightConverter) -> bool:
    """Whether a converter makes one parameter by stacking matrices and joining the rows of the stacks."""
    steps = [(type(op), op.dim) for op in converter.operations if isinstance(op, MergeModulelist | Concatenate)]
    known = len(steps) == len(converter.operations) and len(converter.target_patterns) == 1
    return known and steps in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


def join_rows(converter: WeightConverter, param: str, parts: Sequence[tuple[str, Weight]]) -> Weight:
    """What such a converter makes of weights of one format, each with the pattern that its name matched."""
    stacks = []
    try:
        for pattern in converter.source_patterns:
            if experts := [weight for found, weight in parts if found == pattern]:
                stacks.append(stack(experts))
        return concat_rows(stacks)
    except ValueError as e:
        raise CheckpointError(f"{param} cannot be made of its stored parts: {e}") from e
