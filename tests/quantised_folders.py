"""Model folders with quantised weights, and beside each the same numbers stored plainly.

A packer turns W[N, K] into the tensors of a format, by the suffixes of their names, and the numbers that these
stand for. Bits are packed here one field at a time, as formats describe it, not as the readers undo it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

Array = np.ndarray
Packed = tuple[dict[str, torch.Tensor], Array]
Packer = Callable[[Array], Packed]
KEPT = ("embed_tokens.weight", "lm_head.weight", "gate.weight", "norm.weight")


def pack_fields(codes: Array, bits: int) -> torch.Tensor:
    """int32 words of codes along the last axis, lowest bits first, fields across words."""
    count = codes.shape[-1]
    words = np.zeros((*codes.shape[:-1], -(-count * bits // 32) + 1), np.uint64)
    for i in range(count):
        word, shift = divmod(i * bits, 32)
        field = codes[..., i].astype(np.uint64) << np.uint64(shift)
        words[..., word] |= field & np.uint64(0xFFFFFFFF)
        words[..., word + 1] |= field >> np.uint64(32)
    return torch.from_numpy(words[..., :-1].astype(np.uint32).view(np.int32).copy())


def uniform(weight: Array, column_group: Array, bits: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """Scales (f16 numbers) and zero points [N, G] and codes [N, K] near a weight; asymmetric zeros vary."""
    groups = int(column_group.max()) + 1
    rng = np.random.default_rng(len(weight))
    zero = np.full((len(weight), groups), 1 << (bits - 1))
    if not symmetric:
        zero = rng.integers(1, 1 << bits, zero.shape)
    scale = (rng.uniform(0.7, 1.3, zero.shape) * 2 / (1 << bits)).astype(np.float16).astype(np.float32)
    codes = np.round(weight / scale[:, column_group]) + zero[:, column_group]
    return scale, zero, np.clip(codes, 0, (1 << bits) - 1).astype(np.int64)


def save_quantised(
    model: PreTrainedModel, folder: Path, table: Mapping[str, Any], pack: Packer, rank: int = 2
) -> Path:
    """Save a model below ``folder``/quantised with its matrices (or parameters of another rank) packed,
    and plainly below the folder returned. ``table`` becomes the quantization_config."""
    quantised, plain = folder / "quantised", folder / "plain"
    for place in (quantised, plain):
        model.save_pretrained(place)
    tensors = load_file(plain / "model.safetensors")
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == rank and not name.endswith(KEPT):
            parts, numbers = pack(stored.pop(name).float().numpy())
            stem = name.removesuffix(".weight")
            stored |= {stem + suffix: t.contiguous() for suffix, t in parts.items()}
            tensors[name] = torch.from_numpy(numbers)
    save_file(stored, quantised / "model.safetensors")
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": dict(table)}))
    return plain


def gptq_packer(bits: int, group: int, *, symmetric: bool, act_order: bool, version: int = 1) -> Packer:
    """The layout of auto-gptq."""

    def pack(weight: Array) -> Packed:
        k = weight.shape[1]
        index = np.arange(k) // group
        if act_order:
            index = np.random.default_rng(k).permutation(index)
        scale, zero, codes = uniform(weight, index, bits, symmetric)
        numbers = (codes - zero[:, index]).astype(np.float32) * scale[:, index]
        return {
            ".qweight": pack_fields(codes, bits).T,
            ".qzeros": pack_fields((zero - (version == 1)).T, bits),
            ".scales": torch.from_numpy(scale.T.copy()).half(),
            ".g_idx": torch.from_numpy(index.astype(np.int32)),
        }, numbers

    return pack


def awq_packer(group: int) -> Packer:
    """The gemm layout of autoawq: eight outputs a word, even ones in front."""

    def shuffled(codes: Array) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return pack_fields(codes.reshape(len(codes), -1, 8)[..., order].reshape(codes.shape), 4)

    def pack(weight: Array) -> Packed:
        index = np.arange(weight.shape[1]) // group
        scale, zero, codes = uniform(weight, index, 4, symmetric=False)
        numbers = (codes - zero[:, index]).astype(np.float32) * scale[:, index]
        return {
            ".qweight": shuffled(codes.T), ".qzeros": shuffled(zero.T),
            ".scales": torch.from_numpy(scale.T.copy()).half(),
        }, numbers  # fmt: skip

    return pack


def bitsandbytes_packer(kind: str, *, nested: bool = False) -> Packer:
    """What bitsandbytes itself packs: "nf4", "fp4" or "int8"."""

    def pack(weight: Array) -> Packed:
        import bitsandbytes.functional as bnb

        tensor = torch.from_numpy(weight)
        if kind == "int8":
            codes, scb, _ = bnb.int8_vectorwise_quant(tensor.half())
            parts = {".weight": codes, ".SCB": scb, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
            return parts, bnb.int8_vectorwise_dequant(codes, scb).numpy()
        packed, state = bnb.quantize_4bit(
            tensor, blocksize=64, quant_type=kind, compress_statistics=nested
        )
        states = {f".weight.{name}": t for name, t in state.as_dict(packed=True).items()}
        # As one row: on CPU the package misplaces the scales of blocks that run on into the next row.
        state.shape = torch.Size((1, weight.size))
        return {".weight": packed, **states}, bnb.dequantize_4bit(packed, state).numpy().reshape(weight.shape)

    return pack


def float8_packer(suffix: str, rows: int | None, columns: int | None, *, powers: bool = False) -> Packer:
    """float8 with one f32 scale for each block of rows x columns (None: all of them); ``powers``: scales
    are powers of two, stored as their exponents."""

    def pack(weight: Array) -> Packed:
        n, k = weight.shape
        high, wide = rows or n, columns or k
        scale = torch.empty(-(-n // high), -(-k // wide))
        of = torch.empty(n, k)
        tensor = torch.from_numpy(weight)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                block = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                value = tensor[block].abs().max() / 448
                of[block] = scale[i, j] = 2.0 ** value.log2().ceil() if powers else value
        codes = (tensor / of).to(torch.float8_e4m3fn)
        stored = scale.to(torch.float8_e8m0fnu) if powers else scale
        return {".weight": codes, suffix: stored}, (codes.float() * of).numpy()

    return pack


def compressed_packer(bits: int, group: int | None, *, symmetric: bool, packed: bool = True) -> Packer:
    """What compressed-tensors itself packs and unpacks; ``group`` None is one scale a row."""

    def pack(weight: Array) -> Packed:
        from compressed_tensors.compressors.naive_quantized import IntQuantizationCompressor
        from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        index = np.arange(weight.shape[1]) // (group or weight.shape[1])
        scale, zero, _ = uniform(weight, index, bits, symmetric)
        state = {"weight": torch.from_numpy(weight), "weight_scale": torch.from_numpy(scale)}
        if not symmetric:
            state["weight_zero_point"] = torch.from_numpy(zero - (1 << (bits - 1))).to(torch.int8)
        compressor = PackedQuantizationCompressor if packed else IntQuantizationCompressor
        stored = compressor.compress(state, scheme)
        numbers = compressor.decompress(stored, scheme)["weight"].float().numpy()
        return {f".{name}": t for name, t in stored.items()}, numbers

    return pack


def compressed_table(format: str, **weights: Any) -> dict[str, Any]:
    """The quantization_config that goes with weights of one scheme."""
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
    }  # fmt: skip


def mxfp4_packer() -> Packer:
    """The layout of GPT-OSS, for stacks [E, K, N]."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def pack(weight: Array) -> Packed:
        experts, k, n = weight.shape
        blocks = weight.swapaxes(1, 2).reshape(experts, n, k // 32, 32)
        exponent = np.floor(np.log2(np.abs(blocks).max(-1))).astype(np.int64) - 2
        scaled = np.abs(blocks) / 2.0 ** exponent[..., None]
        codes = np.abs(scaled[..., None] - values).argmin(-1)
        signed = (codes | (blocks < 0) << 3).astype(np.uint8)
        numbers = np.copysign(values[codes], blocks) * 2.0 ** exponent[..., None]
        return {
            "_blocks": torch.from_numpy(signed[..., ::2] | signed[..., 1::2] << 4),
            "_scales": torch.from_numpy((exponent + 127).astype(np.uint8)),
        }, np.ascontiguousarray(numbers.reshape(experts, n, k).swapaxes(1, 2), np.float32)

    return pack
