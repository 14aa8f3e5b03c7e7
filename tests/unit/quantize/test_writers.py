"""Every layout, read back by our readers and by its owner's code, without an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rusteeze.errors import UserError
from rusteeze.frontend.quantised import read_weights
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.safetensors_file import open_safetensors_model
from rusteeze.quantize.fp8 import to_float8
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.pack_fields import pack_fields
from rusteeze.quantize.results import Quantised, Uniform
from rusteeze.quantize.rtn import round_to_nearest
from rusteeze.quantize.write_awq import AwqWriter
from rusteeze.quantize.write_compressed import CompressedWriter
from rusteeze.quantize.write_gptq import GptqWriter
from rusteeze.quantize.writer import Facts, Writer

SHAPES = [(64, 96), (32, 32), (160, 416)]
INTEGERS = [(b, s) for b in (2, 3, 4, 8) for s in (True, False)]


def drawn(bits: int, symmetric: bool, shape: tuple[int, int], dtype: torch.dtype = torch.float16) -> Uniform:
    """Codes of which every value occurs, zero points from end to end."""
    torch.manual_seed(bits)
    spec = GridSpec(bits, 32, symmetric, dtype)
    codes = round_to_nearest(torch.randn(shape), spec)
    codes = replace(codes, codes=torch.randint(0, 1 << bits, shape, dtype=torch.uint8))
    if not symmetric:
        codes = replace(codes, zero=torch.randint(0, 1 << bits, codes.zero.shape, dtype=torch.uint8))
    return codes


def read_back(writer: Writer, options: QuantizeOptions, codes: Quantised, folder: Path) -> np.ndarray:
    table = writer.table(Facts(options, {"m": codes.bits}, []))
    tensors = {name: t.contiguous() for name, t in writer.tensors("m", codes).items()}
    save_file(tensors, folder / "model.safetensors")
    config = QuantConfig(folder / "config.json", table["quant_method"], table)
    weight = read_weights(open_safetensors_model(folder), config)["m.weight"]
    assert weight.load().format == weight.format
    return weight.load().to_f32()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "symmetric"), INTEGERS)
def test_gptq(bits: int, symmetric: bool, shape: tuple[int, int], tmp_path: Path) -> None:
    options = QuantizeOptions("rtn", "gptq", bits, 32, symmetric)
    codes = drawn(bits, symmetric, shape)
    np.testing.assert_array_equal(read_back(GptqWriter(options), options, codes, tmp_path), codes.to_f32())


@pytest.mark.parametrize("shape", SHAPES)
def test_awq(shape: tuple[int, int], tmp_path: Path) -> None:
    options = QuantizeOptions("rtn", "awq", 4, 32)
    codes = drawn(4, False, shape)
    np.testing.assert_array_equal(read_back(AwqWriter(), options, codes, tmp_path), codes.to_f32())


@pytest.mark.parametrize("shape", [*SHAPES, (40, 96)])
@pytest.mark.parametrize(("bits", "symmetric"), INTEGERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compressed_integers(
    bits: int, symmetric: bool, shape: tuple[int, int], dtype: torch.dtype, tmp_path: Path
) -> None:
    options = QuantizeOptions("rtn", "compressed-tensors", bits, 32, symmetric)
    codes = drawn(bits, symmetric, shape, dtype)
    writer = CompressedWriter(symmetric)
    np.testing.assert_array_equal(read_back(writer, options, codes, tmp_path), codes.to_f32())
    np.testing.assert_array_equal(decompressed(writer, options, codes), codes.to_f32())


def decompressed(writer: CompressedWriter, options: QuantizeOptions, codes: Quantised) -> torch.Tensor:
    """What compressed-tensors itself reads."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    (group,) = writer.table(Facts(options, {"m": codes.bits}, []))["config_groups"].values()
    scheme = QuantizationScheme.model_validate(group)
    compressor = FloatQuantizationCompressor if options.method == "fp8" else PackedQuantizationCompressor
    stored = {name.removeprefix("m."): t for name, t in writer.tensors("m", codes).items()}
    stored["weight_scale"] = stored["weight_scale"].float()  # it computes in the type of its scales
    return compressor.decompress(stored, scheme)["weight"].float()


def test_compressed_float8(tmp_path: Path) -> None:
    options = QuantizeOptions("fp8")
    codes = to_float8(torch.randn(40, 96), torch.float16)
    writer = CompressedWriter(True)
    np.testing.assert_array_equal(read_back(writer, options, codes, tmp_path), codes.to_f32())
    np.testing.assert_array_equal(decompressed(writer, options, codes), codes.to_f32())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_fields_lie_where_their_bits_say(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 41), dtype=torch.uint8)
    words = pack_fields(codes, bits).numpy().view(np.uint32).astype(object)
    for row, packed in zip(codes.tolist(), words, strict=True):
        stream = sum(int(word) << 32 * i for i, word in enumerate(packed))
        assert [stream >> bits * i & (1 << bits) - 1 for i in range(41)] == row


def test_what_a_layout_cannot_hold_is_refused() -> None:
    gptq = GptqWriter(QuantizeOptions("rtn", "gptq", 3, 32))
    gptq.check("m", 64, 96, 3)
    with pytest.raises(UserError, match="m is 40 x 96: gptq packs 3 bits in whole words"):
        gptq.check("m", 40, 96, 3)
    with pytest.raises(UserError, match="m has 36 rows: awq packs multiples of 8"):
        AwqWriter().check("m", 36, 96, 4)


def test_other_widths_and_plain_modules_are_named() -> None:
    options = QuantizeOptions("gptq", target_bits=3.0)
    facts = Facts(options, {"a": 4, "b": 4, "c.d": 2}, ["lm_head"])
    gptq = GptqWriter(options).table(facts)
    assert gptq["bits"] == 4
    assert gptq["dynamic"] == {"-:^(lm_head)$": {}, r"+:^(c\.d)$": {"bits": 2}}
    compressed = CompressedWriter(False).table(facts)
    groups = compressed["config_groups"].values()
    assert [(g["targets"], g["weights"]["num_bits"]) for g in groups] == [(["c.d"], 2), (["Linear"], 4)]
    assert compressed["ignore"] == ["lm_head"]
