"""Folders of tiny models, as save_pretrained writes them: the state dict must come back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf_samples import EXPERTS, tiny_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.frontend.checkpoint_errors import CheckpointError

torch.set_num_threads(1)

MODELS = {
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "gemma3": ("gemma3_text", {"head_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 12}),  # expert 10 sorts after 9, not after 1
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16}),
    "phi3": ("phi3", {}),
}


def saved(tmp_path, name="llama", dtype=torch.float32, **options):
    model_type, changes = MODELS[name]
    model = tiny_model(model_type, **changes).to(dtype)
    model.save_pretrained(tmp_path, **options)
    return model


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def assert_state(checkpoint, model, format):
    state = model.state_dict()
    assert set(checkpoint.params()) == set(state)
    for param, tensor in state.items():
        weight = checkpoint.load(param)
        assert weight.format == checkpoint.format_of(param) == format
        np.testing.assert_array_equal(weight.to_f32(), tensor.float().numpy(), err_msg=param)


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_comes_back(name, tmp_path):
    model = saved(tmp_path, name)
    checkpoint = open_checkpoint(tmp_path)
    assert_state(checkpoint, model, "f32")
    assert checkpoint.config.model_type == model.config.model_type


@pytest.mark.parametrize(("dtype", "format"), [(torch.bfloat16, "bf16"), (torch.float16, "f16")])
def test_small_types(dtype, format, tmp_path):
    model = saved(tmp_path, "mixtral", dtype)
    assert_state(open_checkpoint(tmp_path), model, format)


def test_sharded_folder(tmp_path):
    model = saved(tmp_path, "mixtral", max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_state(open_checkpoint(tmp_path), model, "f32")


def test_stored_weights_are_views_of_the_file(tmp_path):
    saved(tmp_path)
    values = open_checkpoint(tmp_path).load("model.norm.weight").values
    assert not values.flags.writeable
    assert not values.flags.owndata


def test_tensors_that_the_model_does_not_have_are_passed_over(tmp_path):
    model = saved(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"  # written by old versions
    edit_weights(tmp_path, lambda t: t.update({name: torch.zeros(4, dtype=torch.int64)}))
    assert_state(open_checkpoint(tmp_path), model, "f32")


def refused(tmp_path, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(tmp_path).params()
    assert "\n" not in str(caught.value)


def test_missing_weight(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(tmp_path, r"lacks 1 weights of the model, e.g. model.layers.1.mlp.up_proj.weight")


def test_missing_expert(tmp_path):
    saved(tmp_path, "mixtral")
    edit_weights(tmp_path, lambda t: t.pop("model.layers.1.block_sparse_moe.experts.3.w1.weight"))
    with pytest.raises(CheckpointError, match="gate_up_proj"):
        open_checkpoint(tmp_path).load("model.layers.1.mlp.experts.gate_up_proj")


def test_config_of_another_size(tmp_path):
    saved(tmp_path)
    edit_json(tmp_path / "config.json", hidden_size=32)
    refused(tmp_path, "of different models")


def test_bias_that_the_config_denies(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    refused(tmp_path, "makes a model without it")


def test_false_tie(tmp_path):
    saved(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    refused(tmp_path, "stores different values")


def test_mixed_parts(tmp_path):
    saved(tmp_path, "mixtral")
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    edit_weights(tmp_path, lambda t: t.update({name: t[name].half()}))
    with pytest.raises(CheckpointError, match="parts of types f16, f32"):
        open_checkpoint(tmp_path).format_of("model.layers.0.mlp.experts.gate_up_proj")


@pytest.mark.parametrize("method", ["hqq", "aqlm", "torchao"])
def test_unknown_quantisations_are_refused_by_name(method, tmp_path):
    saved(tmp_path)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": method, "bits": 4})
    refused(tmp_path, rf"\({method}, 4 bits\): this method is not supported; supported are GGUF files")


def test_pickled_weights_are_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, r"as pickle \(pytorch_model.bin\)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no config.json"),
        ("{", "no sound JSON"),
        ("[]", "no object"),
        ("{}", "no model_type"),
        ('{"model_type": "nonesuch"}', "not understood"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "not understood"),
        ('{"model_type": "t5"}', "builds no model"),
        ('{"model_type": "llama", "num_attention_heads": 0}', "understood|builds no model"),
    ],
)
def test_bad_config(text, words, tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    refused(tmp_path, words)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    saved(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    edit_json(
        tmp_path / "config.json", model_type="nonesuch",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )  # fmt: skip
    refused(tmp_path, "not understood")


def test_paths_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint(tmp_path / "model.onnx")


def write_tokenizer(folder, *, bos=True):
    tokenizer = Tokenizer(models.WordLevel({"<s>": 1, "</s>": 2, "a": 3, "b": 4, "<unk>": 0}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


def tokenizer_of(tmp_path, generation=None, bos=True, **stated):
    saved(tmp_path)
    write_tokenizer(tmp_path, bos=bos)
    stated = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, **stated}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    dest = tmp_path / "out"
    dest.mkdir()
    open_checkpoint(tmp_path).save_tokenizer(dest)
    return dest, json.loads((dest / "generation_config.json").read_text())


def test_tokenizer_files(tmp_path):
    dest, generation = tokenizer_of(tmp_path, generation={"eos_token_id": [7, 2], "temperature": 0.6, "x": "y"})
    assert (dest / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert generation == {
        "eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 0, "temperature": 0.6, "add_bos": True,
        "prompt_prefix_ids": [1], "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
    }  # fmt: skip
    assert not (dest / "chat_template.jinja").exists()


def test_end_tokens_of_the_config_count_without_a_generation_config(tmp_path):
    _, generation = tokenizer_of(tmp_path, generation={})
    assert generation["eos_token_id"] == [2]


@pytest.mark.parametrize(
    ("in_file", "stated", "prefix"),
    [(True, None, [1]), (False, None, []), (False, True, [1]), (True, False, []), (True, True, [1])],
)
def test_what_goes_before_a_prompt(in_file, stated, prefix, tmp_path):
    options = {} if stated is None else {"add_bos_token": stated}
    _, generation = tokenizer_of(tmp_path, bos=in_file, **options)
    assert generation["prompt_prefix_ids"] == prefix
    assert generation["add_bos"] == bool(prefix)


@pytest.mark.parametrize(
    "stated", ["hi", [{"name": "tool", "template": "no"}, {"name": "default", "template": "hi"}]]
)
def test_chat_template_of_the_tokenizer_config(stated, tmp_path):
    dest, _ = tokenizer_of(tmp_path, chat_template=stated)
    assert (dest / "chat_template.jinja").read_text() == "hi"


def test_chat_template_file_comes_first(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("own file")
    dest, _ = tokenizer_of(tmp_path, chat_template="hi")
    assert (dest / "chat_template.jinja").read_text() == "own file"


def test_folder_without_a_tokenizer(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match="none can be made"):
        open_checkpoint(tmp_path).save_tokenizer(tmp_path)


def test_unsound_tokenizer(tmp_path):
    saved(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    dest = tmp_path / "out"
    dest.mkdir()
    with pytest.raises(CheckpointError, match="not sound"):
        open_checkpoint(tmp_path).save_tokenizer(dest)
