"""The small real model: every parameter as transformers' own GGUF import gives it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.weights import parse_format

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
PATH = Path(os.environ.get("RUSTEEZE_TEST_MODEL", Path.home() / ".cache/rusteeze/models" / NAME))

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(not PATH.exists(), reason=f"{PATH} is not there"),
]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(PATH)


def test_every_parameter(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(PATH.parent, gguf_file=PATH.name, dtype=torch.float32)
    state = model.state_dict()
    assert set(checkpoint.params()) == set(state)
    for param, tensor in state.items():
        weight = checkpoint.load(param)
        assert weight.format == checkpoint.format_of(param)
        np.testing.assert_array_equal(weight.to_f32(), tensor.numpy(), err_msg=param)


def test_formats(checkpoint):
    formats = {p: parse_format(checkpoint.format_of(p)) for p in checkpoint.params()}
    assert str(formats["model.layers.3.self_attn.q_proj.weight"]) == "affine4g32m-f16"
    assert str(formats["lm_head.weight"]) == "affine8g32s-f16"
    assert sum(f.family == "dense" for f in formats.values()) == 61


def test_configuration(checkpoint):
    other = AutoConfig.from_pretrained(PATH.parent, gguf_file=PATH.name).to_dict()
    ours = checkpoint.config.to_dict()
    assert ours.pop("rms_norm_eps") == pytest.approx(other.pop("rms_norm_eps"), rel=1e-6)
    unstated = ("_name_or_path", "_model_name_or_path", "unk_token_id")
    assert {k: v for k, v in ours.items() if k not in unstated} == {
        k: v for k, v in other.items() if k not in unstated
    }


def test_tokenizer(checkpoint, tmp_path):
    checkpoint.save_tokenizer(tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other = PreTrainedTokenizerFast.from_pretrained(PATH.parent, gguf_file=PATH.name)
    for text in ("Hello world", "<|im_start|>user\nWas ist 3+4?<|im_end|>\n", "naïve 東京 🙂  two  spaces"):
        assert ours.encode(text).ids == other(text).input_ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert (tmp_path / "chat_template.jinja").read_text() == other.chat_template
