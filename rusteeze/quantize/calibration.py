"""The text that a model reads while it is quantised, as windows of token ids."""

from __future__ import annotations

import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer

from rusteeze.errors import UserError
from rusteeze.frontend.checkpoint import Checkpoint
from rusteeze.frontend.tokenizer_files import TOKENIZER

Tensor = torch.Tensor


def own_text() -> str:
    """The text that is read unless another is given: the language reference that comes with Python."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: Path | None) -> str:
    """UserError for a file that holds no text."""
    if path is None:
        return own_text()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is no text in UTF-8; give one that the model could have written") from e
    if not text.strip():
        raise UserError(f"{path} is empty; give some pages of text")
    return text


def windows(checkpoint: Checkpoint, text: str, tokens: int, window: int) -> list[Tensor]:
    """Token ids int32 [window], spread evenly over the text, ``tokens`` in all or as many as there are.
    UserError for a text of less than one window."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(Path(folder))
        tokenizer = Tokenizer.from_file(str(Path(folder) / TOKENIZER))
    tokenizer.no_truncation()
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int32)
    if len(ids) < window:
        raise UserError(f"the text has {len(ids)} tokens, but at least {window} are needed; give a longer one")
    whole = ids[: len(ids) // window * window].view(-1, window)
    count = min(tokens // window, len(whole))
    return [whole[i * len(whole) // count] for i in range(count)]
