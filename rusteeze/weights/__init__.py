"""Weight families: the contract between checkpoint readers and kernel packing. Knows numpy only."""

from rusteeze.weights.families import Affine, Codebook, Dense, Float8, Weight, concat_rows, stack
from rusteeze.weights.formats import DENSE_DTYPES, Format, dense_format, parse_format

__all__ = [
    "DENSE_DTYPES", "Affine", "Codebook", "Dense", "Float8", "Format", "Weight", "concat_rows", "dense_format",
    "parse_format", "stack",
]  # fmt: skip
