"""The tokenizer of a checkpoint, as three files that need no transformers to be used.

``tokenizer.json`` for the tokenizers package; ``chat_template.jinja`` when the model has one; and
``generation_config.json``::

    {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": null,   # any of the first ends a text
     "prompt_prefix_ids": [1], "add_bos": true,     # what goes before a prompt that is no chat
     "special_tokens": {"bos_token": "<s>", ...},   # variables of the chat template
     "temperature": 0.7, ...}                       # the model's own sampling defaults, if it has any

A prompt that is no chat is encoded without special tokens and put after ``prompt_prefix_ids``; a chat
template writes its special tokens itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from rusteeze.frontend.checkpoint_errors import CheckpointError
from rusteeze.frontend.gguf_file import GGUFFile
from rusteeze.frontend.safetensors_file import parse_json_object

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_END_NAMES = {
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<|end_of_turn|>", "<EOT>", "<｜end▁of▁sentence｜>",
}  # fmt: skip
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of tokens that ordinary text cannot spell


def save_gguf_tokenizer_for_others(file: GGUFFile, dest: Path) -> None:
    """Write a GGUF model's tokenizer, chat template and end tokens as transformers reads them. CheckpointError
    when it has no usable tokenizer."""
    tokens = _gguf_tokens(file)
    tokenizer = _convert_gguf(file.path)
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        tokenizer.chat_template = template
    tokenizer.save_pretrained(dest)
    generation = {"eos_token_id": _gguf_ends(file, tokens)}
    for name in ("bos_token", "pad_token"):
        if _is_id(value := file.metadata.get(f"tokenizer.ggml.{_GGUF_IDS[name]}"), tokens):
            generation[f"{name}_id"] = value
    (dest / GENERATION).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _gguf_tokens(file: GGUFFile) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{file.path} holds no tokenizer; convert the model again with its vocabulary")
    return tokens


def save_gguf_tokenizer(file: GGUFFile, dest: Path) -> None:
    """Write the files for a GGUF model into ``dest``. CheckpointError when it has no usable tokenizer."""
    tokens = _gguf_tokens(file)
    _convert_gguf(file.path).backend_tokenizer.save(str(dest / TOKENIZER))
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (dest / TEMPLATE).write_text(template, encoding="utf-8")
    stated = {name: file.metadata.get(f"tokenizer.ggml.{key}") for name, key in _GGUF_IDS.items()}
    ids = {name: i if _is_id(i, tokens) else None for name, i in stated.items()}
    special = {name: tokens[i] for name, i in ids.items() if i is not None}
    generation = {
        "eos_token_id": _gguf_ends(file, tokens), "bos_token_id": ids["bos_token"],
        "pad_token_id": ids["pad_token"], "special_tokens": special,
    }  # fmt: skip
    _write_generation(dest, generation, add_bos=None)


_GGUF_IDS = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}  # fmt: skip


def _is_id(value: Any, tokens: list[str]) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < len(tokens)


def _convert_gguf(path: Path) -> PreTrainedTokenizerFast:
    """In a folder of its own, lest files beside the model be taken for its tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(path.resolve(), Path(folder) / "model.gguf")
        try:
            return PreTrainedTokenizerFast.from_pretrained(
                folder, gguf_file="model.gguf", local_files_only=True
            )
        except Exception as e:  # whatever the conversion objects to
            raise CheckpointError(f"{path} has a tokenizer that cannot be converted: {_line(e)}") from e


def _gguf_ends(file: GGUFFile, tokens: list[str]) -> list[int]:
    """Tokens that end a text: the stated ones, and those that are known to by their names, since
    many files state only one of two."""
    stated = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ends = {i for i in stated if _is_id(i, tokens)}
    types = file.metadata.get("tokenizer.ggml.token_type")
    if isinstance(types, np.ndarray) and len(types) == len(tokens):
        special = (i for i, t in enumerate(types) if t in (_CONTROL, _USER_DEFINED))
        ends |= {i for i in special if tokens[i] in _END_NAMES}
    return sorted(ends)


def save_folder_tokenizer(folder: Path, config: PreTrainedConfig, dest: Path) -> None:
    """Write the files for a model folder into ``dest``. CheckpointError when it has no tokenizer."""
    stated = _read_json(folder / TOKENIZER_CONFIG)
    if (folder / TOKENIZER).is_file():
        shutil.copyfile(folder / TOKENIZER, dest / TOKENIZER)
    else:
        _convert_slow(folder).backend_tokenizer.save(str(dest / TOKENIZER))
    template = _folder_template(folder, stated)
    if template is not None:
        (dest / TEMPLATE).write_text(template, encoding="utf-8")
    add_bos = stated.get("add_bos_token")
    generation = _folder_generation(folder, config, stated)
    _write_generation(dest, generation, add_bos if isinstance(add_bos, bool) else None)


def _convert_slow(folder: Path) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer.backend_tokenizer.get_vocab_size()
    except Exception as e:  # missing files, missing converters, slow-only tokenizers
        raise CheckpointError(f"{folder} has no {TOKENIZER} and none can be made: {_line(e)}") from e
    return tokenizer


def _folder_template(folder: Path, stated: Mapping[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    template = stated.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _folder_generation(
    folder: Path, config: PreTrainedConfig, stated: Mapping[str, Any]
) -> dict[str, Any]:
    text = config.get_text_config()
    own = _read_json(folder / GENERATION)
    ids = {
        name: own.get(name, getattr(text, name, None))
        for name in ("eos_token_id", "bos_token_id", "pad_token_id")
    }
    ends = ids["eos_token_id"]
    ids["eos_token_id"] = sorted(set(ends)) if isinstance(ends, list) else [] if ends is None else [ends]
    sampling = {key: own[key] for key in _SAMPLING if isinstance(own.get(key), (int, float))}
    special = {name: _content(stated.get(name)) for name in _SPECIAL}
    return ids | sampling | {"special_tokens": {k: v for k, v in special.items() if v is not None}}


def _content(token: Any) -> str | None:
    """The text of a special token, which may be given with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _write_generation(dest: Path, generation: dict[str, Any], add_bos: bool | None) -> None:
    bos = generation["bos_token_id"]
    prefix = _prefix_ids(dest / TOKENIZER)
    if add_bos is True and bos is not None and prefix[:1] != [bos]:
        prefix = [bos, *prefix]
    if add_bos is False and prefix[:1] == [bos]:
        prefix = prefix[1:]
    generation |= {"prompt_prefix_ids": prefix, "add_bos": bool(prefix) and prefix[0] == bos}
    text = json.dumps(generation, indent=2, ensure_ascii=False, sort_keys=True)
    (dest / GENERATION).write_text(text + "\n", encoding="utf-8")


def _prefix_ids(path: Path) -> list[int]:
    """Ids that the tokenizer puts before every text."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises bare Exception
        raise CheckpointError(f"{path.name} of the model is not sound: {_line(e)}") from e
    plain, full = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def _read_json(path: Path) -> dict[str, Any]:
    return parse_json_object(path.read_bytes(), path) if path.is_file() else {}


def _line(e: Exception) -> str:
    return " ".join(str(e).split())[:200]
