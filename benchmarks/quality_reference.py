"""A checkpoint quantised by llm-compressor on CPU, to compare ours with: 4 bits, asymmetric, in groups of 64.

    PYTHON benchmarks/quality_reference.py MODEL_FOLDER IDS.json METHOD OUT

PYTHON has llm-compressor and not this project. MODEL_FOLDER holds the model in f16 (bf16_folder.py), IDS.json the
windows that ours was calibrated on (quality_table.py writes it). METHOD is gptq or awq; all else is as the package
has it.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

BITS, GROUP = 4, 64


def main() -> None:
    folder, ids, method, out = sys.argv[1:]
    with open(ids) as file:
        windows = torch.tensor(json.load(file))
    start = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batches = [{"input_ids": w[None], "attention_mask": torch.ones_like(w)[None]} for w in windows]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    oneshot(
        model=model, tokenizer=AutoTokenizer.from_pretrained(folder), dataset=loader, recipe=recipe(method),
        num_calibration_samples=len(windows), max_seq_length=windows.shape[1],
    )  # fmt: skip
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    print(f"{method}: {windows.numel()} tokens, {time.monotonic() - start:.1f} s")


def recipe(method: str) -> list[object]:
    weights = QuantizationArgs(
        num_bits=BITS, type="int", symmetric=False, strategy="group", group_size=GROUP
    )
    scheme = {
        "config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        "ignore": ["lm_head"],
    }
    if method == "gptq":
        return [GPTQModifier(**scheme)]
    return [AWQModifier(), QuantizationModifier(**scheme)]


if __name__ == "__main__":
    main()
