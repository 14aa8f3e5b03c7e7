"""Does the owner of a format read a quantised checkpoint as we do? Prints how far its predictions are from ours.

    .venv/bin/python tools/read_back.py PATH ... --with PYTHON

PYTHON has what reads the format: transformers with GPT-QModel or compressed-tensors for folders, llama-cpp-python for
GGUF files. Ours are transformers' float32 model with the numbers that our readers find. Packages that want
another torch, or a compiler, can so be asked without being installed here. Ends with 1 where predictions part.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TOKENS = 256
MOST_DIVERGENCE = 0.03
"""Nats a token. Owners compute in f16 or bf16, llama.cpp with activations of 8 bits; a wrong layout costs nats."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--with", dest="python", required=True, metavar="PYTHON")
    asked = parser.parse_args()
    return max([compare(path, asked.python) for path in asked.paths])


def compare(path: Path, python: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        ids, logits = Path(folder) / "ids.npy", Path(folder) / "logits.npy"
        ours = log_softmax(our_logits(path, ids))
        command = [python, __file__, "--answer", str(path), str(ids), str(logits)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        theirs = log_softmax(np.load(logits))
    divergence = float((np.exp(ours) * (ours - theirs)).sum(-1).mean())
    agreed = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    print(f"{path.name}: divergence {divergence:.6f} nats a token, same likeliest token {agreed:.3f}", flush=True)
    return int(not divergence <= MOST_DIVERGENCE)


# What each side imports is not installed on the other.


def our_logits(path: Path, ids: Path) -> np.ndarray:
    """Of the beginning of Python's language reference, whose token ids are left in the file ``ids``."""
    import torch
    from transformers import AutoModelForCausalLM

    from rusteeze.frontend.checkpoint import open_checkpoint
    from rusteeze.quantize.calibration import own_text, windows

    checkpoint = open_checkpoint(path)
    (tokens,) = windows(checkpoint, own_text(), TOKENS, TOKENS)
    np.save(ids, tokens.numpy())
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32).eval()
    with torch.inference_mode():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(checkpoint.load(name).to_f32()))
        return model(tokens[None]).logits[0].numpy()


def answer(path: str, ids: str, logits: str) -> None:
    """In the other interpreter."""
    tokens = np.load(ids).tolist()
    np.save(logits, llama_logits(path, tokens) if path.endswith(".gguf") else folder_logits(path, tokens))


def folder_logits(path: str, tokens: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AwqConfig, GPTQConfig

    table = AutoConfig.from_pretrained(path).quantization_config
    plain = {  # kernels in torch: others are compiled at the first use, for minutes
        "gptq": lambda: GPTQConfig(bits=table["bits"], backend="torch"), "awq": lambda: AwqConfig(backend="torch_awq"),
    }  # fmt: skip
    chosen = {"quantization_config": plain[m]()} if (m := table["quant_method"]) in plain else {}
    model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **chosen).eval()
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def llama_logits(path: str, tokens: list[int]) -> np.ndarray:
    from llama_cpp import Llama

    model = Llama(path, n_ctx=2 * TOKENS, logits_all=True, verbose=False)
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*sys.argv[2:])
    else:
        sys.exit(main())
