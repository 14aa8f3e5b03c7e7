"""Small GGUF files for tests: written by the gguf package from tiny random models, or byte by byte."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

CODES = {name: code for code, name in gguf.MODEL_ARCH_NAMES.items()}
SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def tiny_model(model_type, **changes):
    """A random float32 causal LM of that type, norms included."""
    sizes = dict(SIZES)
    if model_type == "gpt2":
        sizes = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(sizes | changes))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def metadata_of(model, arch):
    """The entries that llama.cpp's converters write for a model."""
    c = model.config
    entries = {
        "context_length": c.max_position_embeddings, "block_count": c.num_hidden_layers,
        "embedding_length": c.hidden_size, "attention.head_count": c.num_attention_heads,
    }  # fmt: skip
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    if arch == "gpt2":
        entries["feed_forward_length"] = 4 * c.hidden_size
    else:
        rope = c.rope_parameters.get("full_attention", c.rope_parameters)
        part = rope.get("partial_rotary_factor", 1.0)
        entries |= {
            "feed_forward_length": c.intermediate_size, "rope.freq_base": float(rope["rope_theta"]),
            "attention.head_count_kv": c.num_key_value_heads, "rope.dimension_count": int(width * part),
        }  # fmt: skip
    if width * c.num_attention_heads != c.hidden_size:
        entries |= {"attention.key_length": width, "attention.value_length": width}
    for name in ("layer_norm_eps", "norm_epsilon", "norm_eps", "layer_norm_epsilon"):
        if hasattr(c, name):
            entries["attention.layer_norm_epsilon"] = getattr(c, name)
    if hasattr(c, "rms_norm_eps"):
        entries["attention.layer_norm_rms_epsilon"] = c.rms_norm_eps
    optional = {
        "sliding_window": "attention.sliding_window", "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        "num_experts_per_tok": "expert_used_count", "num_local_experts": "expert_count",
        "num_experts": "expert_count", "use_parallel_residual": "use_parallel_residual",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping", "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }  # fmt: skip
    for attribute, key in optional.items():
        if getattr(c, attribute, None) is not None and (key != "attention.sliding_window" or _slides(c)):
            entries[key] = getattr(c, attribute)
    return {f"{arch}.{key}": value for key, value in entries.items()}


def _slides(config):
    return config.model_type in ("gemma2", "gemma3_text", "mistral", "phi3")


def tensors_of(model, arch):
    """Tensors as converters store them: (name, float32 array), names by the gguf package's table."""
    names = gguf.get_tensor_name_map(CODES[arch], model.config.num_hidden_layers)
    tensors = {}
    for param, tensor in model.state_dict().items():
        base, _, suffix = param.rpartition(".")
        if suffix not in ("weight", "bias"):
            base, suffix = param, "weight"
        value = tensor.detach().numpy()
        if base == "lm_head" and model.config.tie_word_embeddings:
            continue
        if base.endswith("experts.gate_up_proj"):
            halves = np.split(value, 2, axis=1)
            parts = [(base.replace("gate_up_proj", f"{n}_proj"), h) for n, h in zip(("gate", "up"), halves)]  # noqa: B905
        else:
            parts = [(base, value)]
        for part, array in parts:
            name = f"{names.get_name(part)}.{suffix}"
            tensors[name] = converted(arch, name, array, model.config)
    return tensors


def converted(arch, name, value, config):
    """What convert_hf_to_gguf.py does to the numbers."""
    if arch in ("llama", "granite") and ("attn_q." in name or "attn_k." in name):
        heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    if arch in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return value + 1
    wide = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    if arch == "gpt2" and name.endswith(wide):
        return np.ascontiguousarray(value.T)
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return value[0]
    return value


def add_entry(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write_gguf(path, arch, metadata, tensors, types=None):
    """Write a file; ``types`` maps tensor names to block types that the gguf package can write."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add_entry(writer, key, value)
    for name, value in tensors.items():
        type = (types or {}).get(name)
        if type is None:
            writer.add_tensor(name, np.ascontiguousarray(value))
        else:
            writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(value), type), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(path, model, arch, *, metadata=None, types=None, drop=(), extra=None):
    """A tiny model as a GGUF file. ``metadata`` adds or replaces entries; None removes one."""
    entries = {**metadata_of(model, arch), **(metadata or {})}
    entries = {key: value for key, value in entries.items() if value is not None}
    tensors = {k: v for k, v in tensors_of(model, arch).items() if k not in drop} | (extra or {})
    return write_gguf(path, arch, entries, tensors, types)


def vocabulary(num_tokens=96):
    """A byte-level vocabulary with the special tokens that SIZES names."""
    tokens = ["<pad>", "<s>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "he", "ll"]
    tokens += [f"<unused{i}>" for i in range(num_tokens - len(tokens))]
    kinds = [3, 3, 3] + [1] * (len(tokens) - 3)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": ["h e", "l l"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
    }  # fmt: skip


# --- files written byte by byte, so that any number in them can be wrong ---


def string(text, length=None):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key, kind=4, payload=b"\x07\0\0\0"):
    return string(key) + struct.pack("<I", kind) + payload


def array_entry(key, kind, count, payload=b""):
    return entry(key, 9, struct.pack("<IQ", kind, count) + payload)


def tensor(name="w", dims=(32,), kind=0, offset=0, rank=None):
    axes = struct.pack(f"<{len(dims)}Q", *dims)
    return string(name) + struct.pack("<I", len(dims) if rank is None else rank) + axes + struct.pack("<IQ", kind, offset)


def raw_gguf(
    entries=(), tensors=(), data=b"", *, version=3, num_entries=None, num_tensors=None, magic=b"GGUF", align=32
):
    head = magic + struct.pack(
        "<IQQ", version, len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    ) + b"".join(entries) + b"".join(tensors)  # fmt: skip
    return head + bytes(-len(head) % align) + data
