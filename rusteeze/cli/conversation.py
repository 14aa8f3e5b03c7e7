"""A loaded model as the commands use it: text or messages in, pieces of the answer out."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rusteeze import env
from rusteeze.cli.sampling_options import Sampling
from rusteeze.errors import UserError
from rusteeze.runtime import llm
from rusteeze.runtime.interface import Completion, RequestOutput
from rusteeze.runtime.llm import LLM

GENERATION = "generation_config.json"

Message = Mapping[str, str]


@dataclass
class Interrupt:
    """Set by Ctrl-C. A flag, not an exception: the engine must never be left in the middle of a step."""

    wanted: bool = False


@dataclass
class Conversation:
    """One model, the messages so far, and how answers are drawn."""

    model: LLM
    sampling: Sampling
    defaults: Mapping[str, Any]
    messages: list[Message] = field(default_factory=list)

    def close(self) -> None:
        """Give back the model's threads and memory."""
        self.model.close()

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a plain prompt, after whatever the model expects at the start of a text."""
        prefix = self.defaults.get("prompt_prefix_ids") or []
        return [*prefix, *self.model.tokenizer.encode(text, add_special_tokens=False)]

    def chat_ids(self) -> list[int]:
        """Tokens of the messages so far, up to where the answer begins. UserError without a template."""
        if self.model.template is None:
            raise UserError("this model has no chat template; use generate without --chat")
        text = self.model.template.render(self.messages)
        return self.model.tokenizer.encode(text, add_special_tokens=False)

    def answer(self, prompt_ids: Sequence[int]) -> Iterator[RequestOutput]:
        """The pieces of one answer. Ctrl-C ends it early, at a whole token; the last piece says so."""
        engine = self.model.engine
        request = engine.submit(list(prompt_ids), self.sampling.params(self.defaults))
        with _ctrl_c() as interrupt:
            for output in engine.stream(request):
                yield output
                if interrupt.wanted:
                    engine.cancel(request)
                    interrupt.wanted = False


def open_conversation(
    artifact: Path, threads: int | None, sampling: Sampling, device: str = "cpu"
) -> Conversation:
    """Load the artifact. ArtifactError when it must not be trusted."""
    model = llm.load(artifact, threads or env.THREADS.get(), device=device)
    path = artifact / GENERATION
    defaults = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Conversation(model, sampling, defaults)


def completed(outputs: Sequence[RequestOutput]) -> Completion:
    """All pieces of one answer together. UserError when the request failed."""
    completion = Completion.collect(outputs)
    if completion.error is not None:
        raise UserError(f"the answer failed: {completion.error}")
    return completion


def tokens_per_second(completion: Completion) -> float | None:
    """Speed of decoding, the first token left out: its time belongs to the prompt."""
    usage, timing = completion.usage, completion.timing
    if usage is None or timing is None or timing.ttft_ms is None or usage.completion_tokens < 2:
        return None
    return (usage.completion_tokens - 1) / max(timing.total_ms - timing.ttft_ms, 1e-6) * 1e3


def summary(completion: Completion) -> dict[str, Any]:
    """The answer as plain data, for --json."""
    usage, timing = completion.usage, completion.timing
    speed = tokens_per_second(completion)
    return {
        "text": completion.text,
        "finish_reason": str(completion.finish_reason),
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "time_to_first_token_ms": timing.ttft_ms if timing else None,
        "tokens_per_second": round(speed, 2) if speed else None,
    }


def speed_line(completion: Completion) -> str:
    """``14 tokens, 107.3 tok/s, first token after 35 ms``."""
    facts = summary(completion)
    parts = [f"{facts['completion_tokens']} tokens"]
    if facts["tokens_per_second"] is not None:
        parts.append(f"{facts['tokens_per_second']:.1f} tok/s")
    if facts["time_to_first_token_ms"] is not None:
        parts.append(f"first token after {facts['time_to_first_token_ms']:.0f} ms")
    return ", ".join(parts)


@contextmanager
def _ctrl_c() -> Iterator[Interrupt]:
    interrupt = Interrupt()

    def handler(*_: object) -> None:
        interrupt.wanted = True

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
