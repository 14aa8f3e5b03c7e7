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
MOST_CHARACTERS = 8
"""Of a token, in most texts."""


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
    """Token ids int32 [window], spread evenly over the text, ``tokens`` in all or as many as there are. Of
    a long text only these are tokenised. UserError for a text of less than one window."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_tokenizer(Path(folder))
        tokenizer = Tokenizer.from_file(str(Path(folder) / TOKENIZER))
    tokenizer.no_truncation()
    count = tokens // window
    part = len(text) // count
    found = [_beginning(tokenizer, text[i * part : (i + 1) * part], window) for i in range(count)]
    return found if all(len(ids) == window for ids in found) else _of_all(tokenizer, text, count, window)


def _beginning(tokenizer: Tokenizer, text: str, window: int) -> Tensor:
    """The first ``window`` ids, or fewer, of a text from its first space on; no more of it is read than that takes."""
    start = max(text.find(" "), 0)
    length = MOST_CHARACTERS * window
    while True:
        piece = text[start : start + length]
        ids = _ids(tokenizer, piece)
        if len(ids) > window or start + length >= len(text):  # the last one may be cut
            return ids[:window]
        length *= 2


def _of_all(tokenizer: Tokenizer, text: str, count: int, window: int) -> list[Tensor]:
    """As many windows as a short text has."""
    ids = _ids(tokenizer, text)
    if len(ids) < window:
        raise UserError(f"the text has {len(ids)} tokens, but at least {window} are needed; give a longer one")
    whole = ids[: len(ids) // window * window].view(-1, window)
    count = min(count, len(whole))
    return [whole[i * len(whole) // count] for i in range(count)]


def _ids(tokenizer: Tokenizer, text: str) -> Tensor:
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int32)
