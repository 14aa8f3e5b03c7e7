"""A GGUF file's weights, dequantised, as a Hugging Face folder in bf16, what vLLM reads, or another type.

    .venv/bin/python bf16_folder.py MODEL.gguf FOLDER [float16]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    file, folder = Path(sys.argv[1]), sys.argv[2]
    dtype = getattr(torch, sys.argv[3] if len(sys.argv) > 3 else "bfloat16")
    place = {"gguf_file": file.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(folder)
    # weights that stay packed could not be saved
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=dtype, quantization_config=GgufConfig(dequantize=True), **place
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
