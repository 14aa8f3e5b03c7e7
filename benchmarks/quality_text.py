"""Two texts in English that come with Python and share no long paragraph: one to predict, one to calibrate on."""

from __future__ import annotations

import ast
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer

from rusteeze.frontend.checkpoint import Checkpoint
from rusteeze.quantize.calibration import own_text

WINDOW = 512
SHORTEST = 400
"""Characters of a docstring that is worth reading."""
APART = ("site-packages", "dist-packages", "test", "tests", "pydoc_data")
"""Folders that are no part of the library, and the one that holds the other text."""


def held_out(checkpoint: Checkpoint, tokens: int) -> torch.Tensor:
    """Token ids [n, WINDOW] of Python's language reference, at least ``tokens`` of them to predict."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(Path(folder))
        ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(own_text(), add_special_tokens=False).ids
    count = -(-tokens // (WINDOW - 1))
    assert len(ids) >= count * WINDOW, f"the text has only {len(ids)} tokens"
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def docstrings() -> str:
    """The longer docstrings of the standard library, in the order of its files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(root.rglob("*.py")) if not set(APART) & set(f.relative_to(root).parts)]
    return "\n\n".join(text for file in files for text in _docstrings(file))


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # templates of code are among the files
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield text
