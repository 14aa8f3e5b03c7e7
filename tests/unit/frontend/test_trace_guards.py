"""What the tracer keeps (names, ties, origins) and what it refuses rather than compute wrongly."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, LlamaConfig, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from rusteeze.frontend import build, errors
from rusteeze.frontend.aten import IMPORTERS
from rusteeze.frontend.trace import trace
from rusteeze.ir import TensorType

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64,
    "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def config(model_type: str = "llama", **own: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **{**SIZES, **own})


def shapes(types: dict[str, TensorType]) -> dict[str, tuple]:
    return {name: t.shape for name, t in types.items()}


def test_weights_bear_the_models_names() -> None:
    traced = trace(config(num_key_value_heads=2), 24)
    types = shapes({k: v.type for k, v in traced.graph.weights.items()})
    assert types["model.layers.0.self_attn.k_proj.weight"] == (16, 32)
    assert types["rotary.0.cos"] == traced.constants["rotary.0.cos"].shape == (24, 8)
    assert set(types) == set(traced.param_shapes) | set(traced.constants)
    assert not set(traced.param_shapes) & set(traced.constants)
    assert [str(v.type) for v in traced.graph.inputs] == ["i32[T]", "i32[T]", "i32[R]"]
    assert [str(v.type) for v in traced.graph.outputs] == ["f32[R,64]"]


def test_tied_weights_stay_tied() -> None:
    traced = trace(config(tie_word_embeddings=True), 24)
    assert traced.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in traced.graph.weights
    assert "lm_head.weight" not in traced.param_shapes
    assert traced.graph.outputs[0].node.operands[1].name == "model.embed_tokens.weight"


def test_nodes_remember_their_module() -> None:
    graph = trace(config(), 24).graph
    origins = {n.op.name: n.origin for n in graph.nodes}
    assert origins["attention"] == "model.layers.0.self_attn"
    assert origins["silu"] == "model.layers.0.mlp.act_fn"
    assert {n.origin for n in graph.nodes if n.op.name == "embedding"} == {
        "model.embed_tokens", "model.rotary_emb",
    }  # fmt: skip


def test_no_weights_are_allocated() -> None:
    trace(config(hidden_size=1 << 16, intermediate_size=1 << 18, vocab_size=1 << 20), 8)  # 0.8 TB


def test_the_configuration_is_not_touched() -> None:
    given = config(dtype="bfloat16")
    before = given.to_dict()
    trace(given, 24)
    assert given.to_dict() == before


def test_dynamic_rope_holds_up_to_its_original_length() -> None:
    scaled = config(
        rope_scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=64
    )
    trace(scaled, 64)
    with pytest.raises(errors.UnsupportedRope, match="at most 64"):
        trace(scaled, 65)


def longrope() -> PretrainedConfig:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 8.0, 16.0]}
    return config(
        "phi3", max_position_embeddings=256, original_max_position_embeddings=64,
        rope_scaling={"rope_type": "longrope", **factors},
    )  # fmt: skip


def test_longrope_chooses_its_table_by_the_context_and_warns(caplog) -> None:
    with caplog.at_level(logging.WARNING, "rusteeze"):
        short, long = trace(longrope(), 64).constants, trace(longrope(), 65).constants
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("rusteeze")]
    assert ["short" in w for w in warnings] == [True, False]
    angles = [abs(c["rotary.0.sin"][1] / c["rotary.0.cos"][1]) for c in (short, long)]
    assert (angles[0][1:4] > 3 * angles[1][1:4]).all()


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_learned_positions_bound_the_context(model_type: str) -> None:
    own = {"n_positions": 40} if model_type == "gpt2" else {"max_position_embeddings": 40}
    learned = config(
        model_type, ffn_dim=48, word_embed_proj_dim=32, n_embd=32, n_layer=1, n_head=4, **own
    )
    trace(learned, 40)
    with pytest.raises(errors.ContextTooLong, match="only 40 positions"):
        trace(learned, 41)


def test_models_that_are_no_causal_lm_are_refused() -> None:
    class StrangerConfig(BertConfig):
        model_type = "stranger"

    with pytest.raises(errors.UnknownArchitecture, match="StrangerConfig"):
        trace(StrangerConfig(), 24)


def test_alibi_is_not_dropped() -> None:
    with pytest.raises(errors.UnsupportedMask, match="alibi"):
        trace(config("falcon", alibi=True, bias=False), 24)


def test_attention_outside_the_interface_never_passes(monkeypatch) -> None:
    monkeypatch.setattr(build, "_uses_interface", lambda model_class: True)
    with pytest.raises(errors.AttentionCountMismatch):
        trace(config("bloom", n_head=4, n_layer=1), 24)


def test_missing_attention_is_noticed(monkeypatch) -> None:
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping, "rusteeze",
        lambda module, q, k, v, mask, **_: (v.transpose(1, 2), None),
    )  # fmt: skip
    with pytest.raises(errors.AttentionCountMismatch, match=r"0 attention calls .* 1 layers"):
        trace(config(), 24)


def attend(**kwargs: Any) -> Any:
    q = torch.zeros(1, 4, 5, 8)
    module = kwargs.pop("module", SimpleNamespace(layer_idx=0))
    return ALL_ATTENTION_FUNCTIONS["rusteeze"](module, q, q, q, None, **kwargs)


def test_unknown_attention_arguments_are_refused() -> None:
    with pytest.raises(errors.UnknownAttentionArgument, match="passes head_mask"):
        attend(head_mask=torch.ones(4))


def test_bidirectional_attention_is_refused() -> None:
    with pytest.raises(errors.UnsupportedMask, match="not causal"):
        attend(is_causal=False)


def test_attention_needs_its_layer() -> None:
    with pytest.raises(errors.MissingLayerIndex):
        attend(module=SimpleNamespace())


def test_lost_buffers_are_noticed(monkeypatch) -> None:
    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", lambda self, module: None)
    with pytest.raises(errors.LostBuffer, match=r"rotary_emb\.inv_freq"):
        trace(config(), 24)


def test_unknown_ops_are_named_with_their_module(monkeypatch) -> None:
    monkeypatch.delitem(IMPORTERS, "silu.default")
    with pytest.raises(errors.UnsupportedOp, match=r"silu.default in model.layers.0.mlp.act_fn"):
        trace(config(), 24)


def test_failed_exports_say_so_in_one_line(monkeypatch, capfd) -> None:
    monkeypatch.setattr(build, "_check_layer_types", lambda config: None)
    chunked = config("llama4_text", head_dim=8, attention_chunk_size=4, num_local_experts=2)
    with pytest.raises(errors.ExportFailed, match="Llama4ForCausalLM") as caught:
        trace(chunked, 24)
    assert "\n" not in str(caught.value)
    assert "def forward" not in "".join(capfd.readouterr())


def test_llama_config_without_rope_keys_traces() -> None:
    assert trace(LlamaConfig(**SIZES), 24).graph.nodes
