"""A scripted model behind the commands, and a small artifact for them to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rusteeze import env
from rusteeze.artifact import contract, store
from rusteeze.cli import conversation
from rusteeze.cli.main import main
from rusteeze.runtime.interface import FinishReason, RequestOutput, SamplingParams, Timing, Usage

Run = Callable[..., Result]


@dataclass
class ScriptedEngine:
    """Answers every request with ``pieces``, one step each; ``on_step`` may misbehave in between."""

    pieces: list[str] = field(default_factory=lambda: ["The capital", " is Paris", "."])
    prompts: list[str] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    on_step: Callable[[int], Any] = lambda _: None
    error: str | None = None
    cancelled: bool = False

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> str:
        self.prompts.append("".join(map(chr, prompt)))
        self.params.append(params)
        self.cancelled = False
        return "r"

    def cancel(self, _: str) -> None:
        self.cancelled = True

    def stream(self, _: str) -> Iterator[RequestOutput]:
        for number, piece in enumerate(self.pieces, 1):
            self.on_step(number)
            yield RequestOutput("r", piece, token_ids=(number,))
            if self.cancelled:
                yield self._end(FinishReason.ABORT, number)
                return
        yield self._end(FinishReason.ERROR if self.error else FinishReason.STOP, len(self.pieces))

    def _end(self, reason: FinishReason, count: int) -> RequestOutput:
        usage, timing = Usage(len(self.prompts[-1]), count), Timing(1.0, 10.0, 110.0)
        return RequestOutput(
            "r", finish_reason=reason, error=self.error, usage=usage, timing=timing
        )


class LetterTokenizer:
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


class BarTemplate:
    def render(self, messages: Sequence[dict[str, str]]) -> str:
        return "|".join(f"{m['role']}:{m['content']}" for m in messages)


def build_artifact(folder: Path) -> None:
    calls = tuple(contract.Call(k, ()) for k in ("matmul_a", "rms_norm", "matmul_a"))
    plan = contract.Plan(
        contract.SCHEMA, (), 100, 64, 16, {"T": 512, "R": 400}, (), (contract.Pages(0, 320, 320),), calls, 0
    )  # fmt: skip
    (folder / "plan.json").write_bytes(contract.encode_plan(plan))
    (folder / "weights.safetensors").write_bytes(b"w" * 2048)
    (folder / "generation_config.json").write_text('{"prompt_prefix_ids": [60], "top_k": 7}')


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test, and no setting of the machine."""
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv(env.CACHE.name, str(tmp_path / "cache"))
    monkeypatch.setenv(env.HF_HOME.name, str(tmp_path / "hf"))
    return tmp_path / "cache"


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)

    return invoke


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.rz"
    store.publish(path, build_artifact, key="some-key", facts={"family": "llama", "layers": 2})
    return path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The engine that every artifact loads as."""
    scripted = ScriptedEngine()
    model = SimpleNamespace(engine=scripted, tokenizer=LetterTokenizer(), template=BarTemplate(), close=lambda: None)
    monkeypatch.setattr(conversation.llm, "load", lambda artifact, threads, device="cpu": model)
    return scripted
