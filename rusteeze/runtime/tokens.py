"""Text to token ids and back, one token at a time. The only door to the ``tokenizers`` package.

Decoding goes through bytes: every token stands for some bytes, and the text is their UTF-8
decoding, in which a character appears once its last byte is there and U+FFFD stands for what can
never become one. ``Tokenizer.decode`` is the same computation over all tokens at once, so streamed
text always adds up.

It differs from ``tokenizers`` in one case: a run of byte tokens such as ``<0xF0>`` that is partly
invalid keeps its valid characters here, whereas there every byte of the run becomes U+FFFD, which
cannot be streamed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as Backend

from rusteeze.runtime.byte_alphabet import byte_level_bytes
from rusteeze.runtime.token_bound import TokenBound, token_bound

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANY = "a"  # stands for whatever precedes a token; decoders treat only the first token differently
# The longest unfinished character has three bytes, and each visible token has at least one.
_PRIMING_TOKENS = 16


class Tokenizer:
    """A Hugging Face ``tokenizer.json``.

    ValueError when it cannot be read, or when its decoder needs more than one token at a time (CTC,
    and BPE with word suffixes, which no current language model uses).
    """

    def __init__(self, backend: Backend) -> None:
        # Files may carry the truncation and padding of somebody's training run.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._byte_level = _decodes(backend, ["Ċ", "é"], "\n\ufffd")
        self._byte_tokens = _decodes(backend, ["<0x41>"], "A")
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.pieces: dict[int, bytes] = {}  # the bytes of tokens that have been asked for
        self.texts: dict[int, str] = {}  # of those that were pushed, what is text by itself
        self._first_pieces: dict[int, bytes] = {}
        self._check_local()

    @staticmethod
    def from_file(path: str | Path) -> Tokenizer:
        """Load a ``tokenizer.json``. Read by the package: its text is never a Python string."""
        return Tokenizer(_backend(Backend.from_file, str(path)))

    @staticmethod
    def from_json(text: str) -> Tokenizer:
        """Load the contents of a ``tokenizer.json``."""
        return Tokenizer(_backend(Backend.from_str, text))

    def to_json(self) -> str:
        """The contents of a ``tokenizer.json`` that gives this tokenizer."""
        return str(self._backend.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of tokens including the added ones."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids. A rendered chat template has its special tokens already: pass False."""
        # As a batch: other threads go on meanwhile, and no offsets are computed.
        (found,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = found.ids
        return ids

    def fewest_tokens(self, text: str) -> int:
        """A text has at least so many tokens: known at once, however long it is."""
        bound = self._token_bound
        return 0 if bound is None else bound.fewest_tokens(text)

    @cached_property
    def _token_bound(self) -> TokenBound | None:
        return token_bound(self.to_json())

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. Ids outside the vocabulary have none."""
        detokenizer = Detokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join([*map(detokenizer.push, token_ids), detokenizer.finish()])

    def token_id(self, token: str) -> int | None:
        """The id of a token given as it is written in the vocabulary."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def token(self, token_id: int) -> str | None:
        """The token as it is written in the vocabulary; None outside it."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def token_bytes(self, token_id: int, first: bool = False) -> bytes:
        """The bytes of a token, special or not; some decoders drop a space from the first one."""
        pieces = self._first_pieces if first else self.pieces
        if token_id not in pieces:
            token = self.token(token_id)
            pieces[token_id] = b"" if token is None else self._decode_token(token, first)
        return pieces[token_id]

    def _decode_token(self, token: str, first: bool) -> bytes:
        if self._byte_level:
            return byte_level_bytes(token)
        value = _BYTE_TOKEN.fullmatch(token) if self._byte_tokens else None
        if value and int(value[1], 16) >= 0x80:  # part of a character; ASCII is decoded as text
            return bytes.fromhex(value[1])
        if first:
            return self._decode_text([token]).encode()
        return self._decode_text([_ANY, token]).removeprefix(self._decode_text([_ANY])).encode()

    def _decode_text(self, tokens: list[str]) -> str:
        decoder = self._backend.decoder
        # Without a decoder the package joins tokens by spaces.
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    def _check_local(self) -> None:
        """One token at a time must give the text of all at once."""
        tokens = ["x", "x</w>", "y", "y"]
        pieces = [self._decode_token(token, first=not index) for index, token in enumerate(tokens)]
        if b"".join(pieces).decode() != self._decode_text(tokens):
            raise ValueError("the tokenizer's decoder cannot work one token at a time")


class Detokenizer:
    """Turns the output tokens of one request into text as they come.

    The text continues that of ``prompt_ids``: a leading space is kept unless there is no prompt,
    and a character that the prompt began is completed; the prompt itself is never emitted.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._texts = tokenizer.texts
        self._first = True
        self._within = False  # a character
        for token_id in prompt_ids[-_PRIMING_TOKENS:]:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes; often "" in the middle of a character."""
        if token_id in self._hidden:
            return ""
        if not self._first:
            text = None if self._within else self._texts.get(token_id)  # nearly all are there soon
            return self._decode(token_id) if text is None else text
        if self._tokenizer.token(token_id) is None:
            return ""
        self._first = False
        return self._decode(token_id, first=True)

    def _decode(self, token_id: int, first: bool = False) -> str:
        was_within = self._within
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id, first))
        self._within = bool(self._utf8.getstate()[0])
        if not (first or was_within or self._within):
            self._texts[token_id] = text
        return text

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed, or ""."""
        return self._utf8.decode(b"", final=True)


def _backend(read: Callable[[str], Backend], source: str) -> Backend:
    try:
        return read(source)
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"not a readable tokenizer.json: {error}") from error


def _decodes(backend: Backend, tokens: list[str], text: str) -> bool:
    return backend.decoder is not None and backend.decoder.decode(tokens) == text
