"""Tiny models written as GGUF: the same parameters and configuration must come back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from gguf_samples import EXPERTS, tiny_model, vocabulary, write_model
from tokenizers import Tokenizer

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.checkpoint_errors import CheckpointError

torch.set_num_threads(1)

MODELS = {
    "llama": ("llama", "llama", {}),
    "llama-untied-bias": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", "llama", {"head_dim": 32}),
    "mistral": ("llama", "mistral", {"sliding_window": 16, "head_dim": 16}),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 4}),
    "qwen2": ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 32}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
    "granite": ("granite", "granite", {"attention_multiplier": 0.5, "embedding_multiplier": 12.0,
                "residual_multiplier": 0.25, "logits_scaling": 8.0}),
    "gemma": ("gemma", "gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", "gemma2", {"head_dim": 32, "sliding_window": 16}),
    "gemma3": ("gemma3", "gemma3_text", {"head_dim": 32, "sliding_window": 16}),
    "phi3": ("phi3", "phi3", {"sliding_window": 16}),
    "stablelm": ("stablelm", "stablelm", {"use_qkv_bias": True}),
    "starcoder2": ("starcoder2", "starcoder2", {}),
    "nemotron": ("nemotron", "nemotron", {"head_dim": 16}),
    "gpt2": ("gpt2", "gpt2", {}),
}  # fmt: skip
UNSTATED = {  # what a GGUF file does not say and what does not change the computation
    "architectures", "dtype", "_name_or_path", "attention_dropout", "initializer_range", "rms_norm_eps",
    "n_inner", "head_dim", "hidden_act", "pretraining_tp", "router_aux_loss_coef", "transformers_version",
    "summary_use_proj", "bos_token_id", "eos_token_id", "pad_token_id", "max_window_layers",
}  # fmt: skip


def written(tmp_path, name="llama", **options):
    arch, model_type, changes = MODELS[name]
    model = tiny_model(model_type, **changes)
    return model, write_model(tmp_path / "tiny.gguf", model, arch, **options)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_come_back(name, tmp_path):
    model, path = written(tmp_path, name)
    checkpoint = open_checkpoint(path)
    state = model.state_dict()
    assert set(checkpoint.params()) == set(state)
    for param, tensor in state.items():
        weight = checkpoint.load(param)
        assert weight.format == checkpoint.format_of(param)
        tolerance = 1e-7 if "norm" in param else 0  # (w + 1) - 1 rounds
        np.testing.assert_allclose(weight.to_f32(), tensor.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_configuration_comes_back(name, tmp_path):
    model, path = written(tmp_path, name)
    want, got = model.config.to_dict(), open_checkpoint(path).config.to_dict()
    assert got["model_type"] == want["model_type"]
    assert {k: v for k, v in got.items() if k not in UNSTATED} == {
        k: v for k, v in want.items() if k not in UNSTATED
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "gpt2", "granite", "mixtral", "qwen3moe"])
def test_logits_are_those_of_the_model(name, tmp_path):
    """Catches an attribute that is missing above: the rebuilt model must compute the same."""
    model, path = written(tmp_path, name)
    checkpoint = open_checkpoint(path)
    again = type(model)(checkpoint.config).float().eval()
    again.load_state_dict({p: torch.from_numpy(checkpoint.load(p).to_f32()) for p in checkpoint.params()})
    ids = torch.arange(24)[None]
    with torch.no_grad():
        want, got = model(ids).logits, again(ids).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2"])
def test_parameters_are_those_of_transformers_own_import(name, tmp_path):
    model, path = written(tmp_path, name, metadata=vocabulary())
    other = type(model).from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    checkpoint = open_checkpoint(path)
    for param, tensor in other.items():
        np.testing.assert_array_equal(checkpoint.load(param).to_f32(), tensor.numpy(), err_msg=param)


def test_quantised_weights_keep_their_codes(tmp_path):
    types = {"blk.0.attn_q.weight": T.Q4_0, "blk.0.ffn_down.weight": T.Q8_0, "token_embd.weight": T.Q5_1}
    model, path = written(tmp_path, types=types)
    checkpoint = open_checkpoint(path)
    query = checkpoint.load("model.layers.0.self_attn.q_proj.weight")
    assert query.format == "affine4g32s-f16"
    original = model.state_dict()["model.layers.0.self_attn.q_proj.weight"].numpy()
    assert np.abs(query.to_f32() - original).max() < 0.1  # 4 bits; a wrong row order errs by ~0.4
    assert checkpoint.format_of("model.layers.0.mlp.down_proj.weight") == "affine8g32s-f16"
    assert checkpoint.format_of("model.embed_tokens.weight") == "affine5g32m-f16"


def test_experts_of_two_types_meet_as_numbers(tmp_path):
    types = {"blk.0.ffn_gate_exps.weight": T.Q8_0, "blk.1.ffn_gate_exps.weight": T.Q8_0,
             "blk.1.ffn_up_exps.weight": T.Q8_0}  # fmt: skip
    _, path = written(tmp_path, "mixtral", types=types)
    checkpoint = open_checkpoint(path)
    for layer, format in enumerate(["f32", "affine8g32s-f16"]):
        weight = checkpoint.load(f"model.layers.{layer}.mlp.experts.gate_up_proj")
        assert weight.format == checkpoint.format_of(f"model.layers.{layer}.mlp.experts.gate_up_proj") == format
        assert weight.shape == (4, 256, 64)


def test_quantised_weights_that_need_transposing_become_numbers(tmp_path):
    _, path = written(tmp_path, "gpt2", types={"blk.0.ffn_up.weight": T.Q8_0})
    checkpoint = open_checkpoint(path)
    assert checkpoint.format_of("transformer.h.0.mlp.c_fc.weight") == "f32"
    assert checkpoint.load("transformer.h.0.mlp.c_fc.weight").format == "f32"


def test_tied_output_is_the_embedding(tmp_path):
    _, path = written(tmp_path, "qwen2")
    checkpoint = open_checkpoint(path)
    a, b = (checkpoint.load(p).to_f32() for p in ("lm_head.weight", "model.embed_tokens.weight"))
    np.testing.assert_array_equal(a, b)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip


def frequency_factors(config, scale=1.0):
    model = tiny_model("llama", rope_parameters=config)
    scaled = model.model.rotary_emb.inv_freq.numpy()
    plain = 500000.0 ** (-np.arange(0, 16, 2) / 16)
    return (plain / scaled * scale).astype(np.float32)


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path):
    metadata = {"llama.rope.freq_base": 500000.0}
    extra = {"rope_freqs.weight": frequency_factors(LLAMA3)}
    _, path = written(tmp_path, metadata=metadata, extra=extra)
    assert open_checkpoint(path).config.rope_parameters == LLAMA3


def test_unknown_frequency_factors_are_refused(tmp_path):
    extra = {"rope_freqs.weight": frequency_factors(LLAMA3) ** 1.5}
    _, path = written(tmp_path, metadata={"llama.rope.freq_base": 500000.0}, extra=extra)
    with pytest.raises(CheckpointError, match="unknown factors"):
        open_checkpoint(path)


def test_linear_scaling_of_gemma3_concerns_full_attention_only(tmp_path):
    metadata = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    _, path = written(tmp_path, "gemma3", metadata=metadata)
    rope = open_checkpoint(path).config.rope_parameters
    assert rope["full_attention"]["factor"] == 8.0
    assert rope["sliding_attention"]["rope_type"] == "default"


def test_longrope_factors(tmp_path):
    factors = np.linspace(1, 4, 8, dtype=np.float32)
    extra = {"rope_factors_long.weight": factors * 2, "rope_factors_short.weight": factors}
    _, path = written(
        tmp_path, "phi3", extra=extra, metadata={"phi3.rope.scaling.original_context_length": 64}
    )
    config = open_checkpoint(path).config
    assert config.rope_parameters["short_factor"] == factors.tolist()
    assert config.original_max_position_embeddings == 64


REFUSED = {
    "an entry that is not understood": ({"metadata": {"llama.logit_scale": 2.0}}, "llama.logit_scale"),
    "another scaling": ({"metadata": {"llama.rope.scaling.type": "ntk"}}, "'ntk'"),
    "a missing entry": ({"metadata": {"llama.block_count": None}}, "lacks llama.block_count"),
    "absurd layers": ({"metadata": {"llama.block_count": 1 << 30}}, "layers"),
    "no heads": ({"metadata": {"llama.attention.head_count": 0}}, "0 heads"),
    "another size": ({"metadata": {"llama.feed_forward_length": 64}}, "the model wants"),
    "layers of different heads": (
        {"metadata": {"llama.attention.head_count_kv": [2, 1]}}, "no usable number",
    ),
    "a token outside": ({"metadata": {"tokenizer.ggml.eos_token_id": 96}}, "has 96 tokens"),
    "a part of a model": ({"metadata": {"split.count": 3}}, "one of 3 parts"),
    "a missing weight": ({"drop": ("blk.1.attn_v.weight",)}, "self_attn.v_proj.weight"),
    "no embedding": ({"drop": ("token_embd.weight",)}, "no language model"),
    "a tensor too many": ({"extra": {"blk.0.attn_q.bias2": np.zeros(4, np.float32)}}, "attn_q.bias2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_do_not_describe_one_model_are_refused(case, tmp_path):
    options, words = REFUSED[case]
    _, path = written(tmp_path, **options)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path).params()


def test_unknown_architecture(tmp_path):
    model = tiny_model("gpt2")
    path = write_model(tmp_path / "tiny.gguf", model, "gpt2")
    path.write_bytes(path.read_bytes().replace(b"gpt2", b"gptx"))
    with pytest.raises(CheckpointError, match="'gptx'"):
        open_checkpoint(path)


def test_unknown_parameter(tmp_path):
    _, path = written(tmp_path)
    with pytest.raises(CheckpointError, match="no parameter 'x'"):
        open_checkpoint(path).load("x")


def test_tokenizer_files(tmp_path):
    _, path = written(tmp_path, metadata=vocabulary())
    dest = tmp_path / "out"
    dest.mkdir()
    (tmp_path / "tokenizer.json").write_text("not the tokenizer of the file")
    open_checkpoint(path).save_tokenizer(dest)
    tokenizer = Tokenizer.from_file(str(dest / "tokenizer.json"))
    hello = tokenizer.encode("hello<|im_end|>", add_special_tokens=False)
    assert hello.tokens == ["he", "ll", "o", "<|im_end|>"]
    assert (dest / "chat_template.jinja").read_text() == "{{ bos_token }}{{ messages[0].content }}"
    generation = json.loads((dest / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2]
    assert generation["prompt_prefix_ids"] == [1]
    assert generation["add_bos"] is True
    assert generation["special_tokens"]["bos_token"] == "<s>"


def test_file_without_a_tokenizer(tmp_path):
    _, path = written(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(path).save_tokenizer(tmp_path)


def test_token_types_of_the_wrong_kind_are_passed_over(tmp_path):
    _, path = written(tmp_path, metadata={**vocabulary(), "tokenizer.ggml.token_type": None})
    open_checkpoint(path).save_tokenizer(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2]
    _, path = written(tmp_path, metadata={**vocabulary(), "tokenizer.ggml.token_type": 3})
    with pytest.raises(CheckpointError, match="cannot be converted"):
        open_checkpoint(path).save_tokenizer(tmp_path)
