"""GGUF files that the quantiser makes of others, read by us and by the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf_samples import tiny_model, vocabulary, write_model
from safetensors.torch import load_file

from rusteeze.errors import UserError
from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.options import QuantizeOptions
from rusteeze.quantize.quantize import quantize_model
from rusteeze.quantize.rtn import round_to_nearest

torch.set_num_threads(1)


def made(path, method, bits):
    """The folder that is made of a file."""
    out = path.with_name(f"{method}{bits}")
    options = QuantizeOptions(method, "gguf", bits, 32, symmetric=True, tokens=256, window=32)
    text = path.with_name("text.txt")
    text.write_text("he called all he held " * 60)
    facts = quantize_model(path, out, options, text, lambda phase, share: None)
    assert facts["matrices"] == 14
    return out


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("arch", ["llama", "gemma2"])  # rows in another order; norms that are shifted
def test_what_is_written_is_what_was_rounded(arch, bits, tmp_path):
    path = write_model(tmp_path / "m.gguf", tiny_model(arch), arch, metadata=vocabulary())
    folder = made(path, "rtn", bits)
    before, after = open_checkpoint(path), open_checkpoint(folder / "model.gguf")
    spec = GridSpec(bits, 32, True, torch.float16)
    for name in before.params():
        weight = before.load(name).to_f32()
        if "_proj" in name:
            assert after.format_of(name) == f"affine{bits}g32s-f16"
            weight = round_to_nearest(torch.from_numpy(np.array(weight)), spec).to_f32().numpy()
        np.testing.assert_array_equal(after.load(name).to_f32(), weight)


def test_the_package_reads_the_same_and_nothing_else_has_changed(tmp_path):
    path = write_model(tmp_path / "m.gguf", tiny_model("llama"), "llama", metadata=vocabulary())
    folder = made(path, "gptq", 4)
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(folder / "model.gguf")
    assert [t.name for t in after.tensors] == [t.name for t in before.tensors]
    ours = open_checkpoint(folder / "model.gguf")
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert tuple(new.shape) == tuple(old.shape)
        if new.tensor_type == gguf.GGMLQuantizationType.Q4_0:
            name = next(n for n in ours.params() if ours.recipe(n).tensors == (new.name,))
            theirs = np.sort(gguf.dequantize(new.data, new.tensor_type), axis=0)
            np.testing.assert_array_equal(np.sort(ours.load(name).to_f32(), axis=0), theirs)
        else:
            assert new.data.tobytes() == old.data.tobytes()
    entries = {f.name: f.contents() for f in after.fields.values() if not f.name.startswith("GGUF.")}
    assert entries.pop("general.file_type") == gguf.LlamaFileType.MOSTLY_Q4_0
    assert entries == {f.name: f.contents() for f in before.fields.values() if not f.name.startswith("GGUF.")}


@pytest.fixture
def asked(monkeypatch):
    """How many bytes were asked to be free."""
    found = []
    monkeypatch.setattr("rusteeze.quantize.quantize.require_free_bytes", lambda _, num_bytes: found.append(num_bytes))
    return found


def test_room_is_asked_for_what_is_copied(asked, tmp_path):
    path = write_model(tmp_path / "m.gguf", tiny_model("llama"), "llama", metadata=vocabulary())
    tensors = gguf.GGUFReader(made(path, "rtn", 4) / "model.gguf").tensors
    kind = gguf.GGMLQuantizationType.Q4_0
    codes = sum(int(t.n_elements) for t in tensors if t.tensor_type == kind)
    copied = sum(int(t.n_bytes) for t in tensors if t.tensor_type != kind)
    assert asked == [2 * (codes + 3 * codes // 32) + copied]


def test_room_is_asked_for_what_becomes_f16(asked, tmp_path):
    path = write_model(tmp_path / "m.gguf", tiny_model("llama"), "llama", metadata=vocabulary())
    quantize_model(path, tmp_path / "out", QuantizeOptions("fp8"), None, lambda phase, share: None)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    coded = [t for t in tensors.values() if t.dtype == torch.float8_e4m3fn]
    plain = sum(t.nbytes for t in tensors.values() if t.dtype == torch.float16 and t.shape[-1] > 1)
    assert asked == [2 * sum(t.numel() + 2 * len(t) for t in coded) + plain]


def test_a_folder_is_no_source(tmp_path):
    path = write_model(tmp_path / "m.gguf", tiny_model("llama"), "llama", metadata=vocabulary())
    folder, out = tmp_path / "folder", tmp_path / "out"
    quiet = lambda phase, share: None  # noqa: E731
    quantize_model(path, folder, QuantizeOptions("rtn", group=32), None, quiet)
    with pytest.raises(UserError, match="is quantised already"):
        quantize_model(folder, out, QuantizeOptions("rtn", "gguf", group=32, symmetric=True), None, quiet)
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="a GGUF file is made of a GGUF file"):
        quantize_model(tmp_path / "plain", out, QuantizeOptions("rtn", "gguf", group=32, symmetric=True), None, quiet)
    assert not out.exists()
