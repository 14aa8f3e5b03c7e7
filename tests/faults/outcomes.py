"""How a command must fail over something the caller can mend, and tiny models to spoil."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rusteeze.cli.main import main

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 260, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
LONGEST_LINE = 1100

Edit = Callable[[Path], Any]


def rusteeze(*arguments: str | Path) -> Result:
    """A command in this process, its output captured."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def check_refusal(exit_code: int, stderr: str) -> str:
    """One line that says what is wrong; the line."""
    assert stderr.startswith("error: "), stderr
    assert stderr.count("\n") == 1, stderr
    assert len(stderr) < LONGEST_LINE, stderr
    assert exit_code == 2, stderr
    return stderr


def refused(*arguments: str | Path) -> str:
    """What a command says that must be refused."""
    result = rusteeze(*arguments)
    return check_refusal(result.exit_code, result.stderr)


def refused_to_compile(model: Path, out: Path) -> str:
    """The same for compiling, which must leave nothing behind."""
    before = sorted(out.parent.iterdir())
    message = refused("compile", model, "-o", out)
    assert sorted(out.parent.iterdir()) == before
    return message


def python_rusteeze(*arguments: str | Path) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "rusteeze", *map(str, arguments)]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_letters(path: Path) -> None:
    """A tokenizer.json with one token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate(["<pad>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))
