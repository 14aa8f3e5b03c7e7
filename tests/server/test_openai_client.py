"""The official Python client, unmodified, against a live server: the tiny model here, the real one below."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from live import MODEL, Live
from server_process import Served, serve
from smollm2 import MARKS
from tiny_tokenizers import tokenizer

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM = [{"role": "system", "content": "Answer in English, in one sentence."}, *MESSAGES]


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_models(tiny: Live) -> None:
    with client(tiny.url) as ask:
        assert [m.id for m in ask.models.list()] == [MODEL]
        assert ask.models.retrieve(MODEL).owned_by == "rusteeze"


def test_chat_whole_and_streamed(tiny: Live) -> None:
    with client(tiny.url) as ask:
        fields = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "n": 2}
        whole = ask.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
        stream = ask.chat.completions.create(
            **fields, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices and not c.choices[0].index)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == 12


def test_the_helper_for_streams(tiny: Live) -> None:
    end = str(tokenizer().token_id("</s>"))
    with (
        client(tiny.url) as ask,
        ask.chat.completions.stream(
            model=MODEL, messages=MESSAGES, logit_bias={end: 100}, extra_body={"min_tokens": 4}
        ) as stream,
    ):
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"


def test_completions(tiny: Live) -> None:
    with client(tiny.url) as ask:
        done = ask.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=3, echo=True, logprobs=1)
    assert [c.text[0] for c in done.choices] == ["a", "b"]


def test_errors_are_those_of_the_client(tiny: Live) -> None:
    with client(tiny.url) as ask:
        with pytest.raises(openai.NotFoundError) as missing:
            ask.chat.completions.create(model="other", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError):
            ask.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"


def test_many_at_once_with_the_asynchronous_client(tiny: Live) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none") as ask:

            async def one(number: int) -> str:
                stream = await ask.completions.create(
                    model=MODEL, prompt=[5 + number, 6], max_tokens=10, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(one, range(20)))

    alone = [
        tiny.complete(prompt=[5 + n, 6], max_tokens=10).json()["choices"][0]["text"] for n in range(20)
    ]
    assert asyncio.run(ask_all()) == alone


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Served]:
    with serve(smollm2) as served:
        yield served


class TestRealModel:
    pytestmark = MARKS

    def test_chat(self, real: Served) -> None:
        with client(real.url) as ask:
            fields = {
                "model": real.model, "messages": SYSTEM, "max_tokens": 32, "temperature": 0,
            }  # fmt: skip
            whole = ask.chat.completions.create(**fields)
            stream = ask.chat.completions.create(**fields, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert whole.choices[0].message.content == text
        assert "Paris" in text
        assert whole.choices[0].finish_reason == "stop"

    def test_it_says_what_generate_says(self, real: Served, smollm2: Path) -> None:
        with client(real.url) as ask:
            served = ask.completions.create(
                model=real.model, prompt="Once upon a time", max_tokens=24, temperature=0
            )
        arguments = [
            "generate", str(smollm2), "-p", "Once upon a time", "--max-tokens", "24", "--temperature", "0",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "rusteeze", *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.removesuffix("\n") == served.choices[0].text
