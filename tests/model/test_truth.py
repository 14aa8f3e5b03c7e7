"""The compiled model says what transformers says of the same weights, dequantised to float32."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from smollm2 import MARKS, MODEL
from transformers import AutoModelForCausalLM, GgufConfig

from rusteeze.cli.accuracy import compiled_logits
from rusteeze.runtime.interface import SamplingParams
from rusteeze.runtime.llm import LLM, load

pytestmark = MARKS
log = logging.getLogger(__name__)

Array = np.ndarray
Reference = Callable[[Sequence[int]], torch.Tensor]

PROMPTS = (
    "Once upon a time, in a village by the sea,",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "Q: What is 17 + 25?\nA:",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Die Katze sitzt auf dem",
)
NEW_TOKENS = 64
WINDOW = 512
WINDOWS = 40  # 20 480 tokens, of which 20 440 are predicted


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[LLM]:
    loaded = load(smollm2)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def int8_cache_model(int8_cache_smollm2: Path) -> Iterator[LLM]:
    loaded = load(int8_cache_smollm2)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def exact_model(exact_smollm2: Path) -> Iterator[LLM]:
    loaded = load(exact_smollm2)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    """Logits f32[T, V] by transformers for one sequence."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(
        MODEL.parent, gguf_file=MODEL.name, dtype=torch.float32, attn_implementation="eager",
        quantization_config=GgufConfig(dequantize=True), local_files_only=True,
    )  # fmt: skip

    def logits(token_ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]

    yield logits
    torch.set_num_threads(before)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_transformers(
    prompt: str, exact_model: LLM, reference: Reference
) -> None:
    """Were one of our tokens not the reference's choice after the same text, that would be the first
    at which two greedy continuations part; so one pass of the reference over ours checks them all."""
    ids = exact_model.tokenizer.encode(prompt, add_special_tokens=False)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    (completion,) = exact_model.engine.generate([ids], params)
    text = [*ids, *completion.token_ids]
    wanted = reference(text).numpy()
    assert len(completion.token_ids) == NEW_TOKENS
    assert wanted[len(ids) - 1 : -1].argmax(-1).tolist() == list(completion.token_ids)
    ours = compiled_logits(exact_model.executor, text)
    error = np.abs(ours - wanted).max() / np.abs(wanted).max()
    log.info("%-48r largest error %.1e of the largest logit", prompt[:40], error)
    assert error <= 1e-4


def windows(model: LLM) -> Array:
    """Windows int[WINDOWS, WINDOW] of English prose: the language reference that comes with Python."""
    paragraphs = "\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    prose = "\n\n".join(p for p in map(textwrap.dedent, paragraphs) if is_prose(p))
    ids = model.tokenizer.encode(prose, add_special_tokens=False)
    return np.array(ids[: WINDOWS * WINDOW]).reshape(WINDOWS, WINDOW)


def is_prose(paragraph: str) -> bool:
    """Some lines of sentences; no grammar, listing, heading or table."""
    letters = sum(c.isalpha() or c in " ,\n" for c in paragraph)
    code = any(mark in paragraph for mark in ("::=", ">>>", " = ", "=====", "*****", "----"))
    return len(paragraph) > 200 and letters > 0.9 * len(paragraph) and not code


@dataclass
class Deviation:
    """Sums over tokens: divergence of the next token's distribution, loss of both, equal first choices."""

    divergence: float = 0.0
    loss: float = 0.0
    wanted_loss: float = 0.0
    agreed: int = 0

    def add(self, ours: torch.Tensor, wanted: torch.Tensor, target: torch.Tensor) -> None:
        self.divergence += float((wanted.exp() * (wanted - ours)).sum(-1).sum(dtype=torch.float64))
        self.loss -= float(ours.gather(-1, target).sum(dtype=torch.float64))
        self.wanted_loss -= float(wanted.gather(-1, target).sum(dtype=torch.float64))
        self.agreed += int((ours.argmax(-1) == wanted.argmax(-1)).sum())


def test_rounding_keeps_the_distribution(
    model: LLM, int8_cache_model: LLM, reference: Reference
) -> None:
    """Over 20 000 tokens of real text, with default settings and with an int8 cache."""
    found = {"default": (model, Deviation()), "int8 cache": (int8_cache_model, Deviation())}
    texts = windows(model)
    for ids in texts:
        wanted = reference(ids.tolist())[:-1].log_softmax(-1)
        for compiled, deviation in found.values():
            ours = torch.from_numpy(compiled_logits(compiled.executor, ids.tolist()))
            deviation.add(ours[:-1].log_softmax(-1), wanted, torch.from_numpy(ids[1:, None]))
    count = texts.size - len(texts)
    assert count >= 20_000
    for name, (_, sums) in found.items():
        ratio = math.exp((sums.loss - sums.wanted_loss) / count)
        log.info(
            "%s, %d tokens: KL %.5f nats, perplexity %.4f / %.4f = %.5f, top-1 agreement %.4f",
            name, count, sums.divergence / count, math.exp(sums.loss / count),
            math.exp(sums.wanted_loss / count), ratio, sums.agreed / count,
        )  # fmt: skip
        assert sums.divergence / count <= 0.01, name
        assert abs(ratio - 1) <= 0.01, name
