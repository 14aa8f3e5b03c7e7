"""Detokenizing with the vocabulary of a real model, against the tokenizers package."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from rusteeze.runtime.tokens import Detokenizer, Tokenizer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # token type of a GGUF file


def model_path() -> Path:
    path = os.environ.get("RUSTEEZE_TEST_MODEL")
    return Path(path) if path else Path("~/.cache/rusteeze/models").expanduser() / NAME


@pytest.fixture(scope="module")
def backend() -> Backend:
    gguf = pytest.importorskip("gguf")
    if not model_path().exists():
        pytest.skip("the small real model is not there")
    fields = gguf.GGUFReader(model_path()).fields
    tokens, merges, types = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type")
    )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = [t for t, type_ in zip(tokens, types, strict=True) if type_ == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return made


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("valid", [True, False])
def test_streams_add_up_to_the_reference_decode(backend: Backend, valid: bool) -> None:
    tokenizer, rng = Tokenizer(backend), random.Random(0)
    for _ in range(1000):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 60))]
        if valid:
            ids = tokenizer.encode(random_text(rng), add_special_tokens=False)[: len(ids)]
        detokenizer = Detokenizer(tokenizer)
        text = "".join([*map(detokenizer.push, ids), detokenizer.finish()])
        assert text == backend.decode(ids)


def random_text(rng: random.Random) -> str:
    ranges = [(0x20, 0x7F), (0x400, 0x500), (0x4E00, 0x9000), (0x1F300, 0x1F600)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(30))
