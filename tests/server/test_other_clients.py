"""Other people's clients, unmodified, each against a live server. They come with the extra `clients`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from live import MODEL, Live, PacedExecutor, live

pytestmark = pytest.mark.slow

pydantic = pytest.importorskip("pydantic")


class Colour(pydantic.BaseModel):  # type: ignore[name-defined, misc]
    model_config = pydantic.ConfigDict(extra="forbid")
    colour: Literal["red", "blue"]


MESSAGES = [{"role": "user", "content": "Pick one."}]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    with live(PacedExecutor(num_blocks=2048, max_model_len=4096, max_batched_tokens=512)) as server:
        yield server


@pytest.fixture
def answer(tiny: Live) -> str:
    return str(tiny.chat(messages=MESSAGES, max_tokens=9).json()["choices"][0]["message"]["content"])


def test_langchain(tiny: Live, answer: str) -> None:
    chat_openai: Any = pytest.importorskip("langchain_openai").ChatOpenAI
    model = chat_openai(base_url=f"{tiny.url}/v1", api_key="x", model=MODEL, temperature=0, max_tokens=9)
    assert model.invoke("Pick one.").content == answer
    assert "".join(chunk.content for chunk in model.stream("Pick one.")) == answer
    for method in ("json_schema", "function_calling"):
        longer = chat_openai(base_url=f"{tiny.url}/v1", api_key="x", model=MODEL, temperature=0, max_tokens=300)
        assert isinstance(longer.with_structured_output(Colour, method=method).invoke("Pick one."), Colour)


def test_litellm(tiny: Live, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = pytest.importorskip("litellm")
    fields = {
        "model": f"openai/{MODEL}", "api_base": f"{tiny.url}/v1", "api_key": "x", "messages": MESSAGES,
        "temperature": 0, "max_tokens": 9,
    }  # fmt: skip
    assert litellm.completion(**fields).choices[0].message.content == answer
    stream = litellm.completion(**fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(mode: str, tiny: Live) -> None:
    instructor: Any = pytest.importorskip("instructor")
    openai: Any = pytest.importorskip("openai")
    ask = instructor.from_openai(
        openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="x"), mode=getattr(instructor.Mode, mode)
    )
    found = ask.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_model=Colour, temperature=0, max_tokens=300
    )
    assert isinstance(found, Colour)


def test_llm(tiny: Live, answer: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {tiny.url}/v1\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "mine", "-o", "temperature", "0", "-o", "max_tokens", "9", "Pick one."],
        capture_output=True, text=True, env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "x"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answer.strip()
