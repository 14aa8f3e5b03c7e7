"""``POST /tokenize`` and ``/detokenize``: what the model makes of a text, and of ids; ``GET /tokenizer_info``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from rusteeze.server.body import Body, decode_body, has_field, ignored_header, read_body, read_data
from rusteeze.server.chat import chat_ids
from rusteeze.server.chat_schema import Message
from rusteeze.server.errors import bad_request
from rusteeze.server.limits import MAX_MESSAGES
from rusteeze.server.prompts import check_model, off_loop
from rusteeze.server.sampling_fields import ModelName, TokenId
from rusteeze.server.service import ServedModel, Service
from rusteeze.server.status import json_response


class TokenizeText(msgspec.Struct, kw_only=True):
    """``prompt`` as the completions endpoint reads it, or without what the model expects before it."""

    prompt: str
    model: ModelName | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(msgspec.Struct, kw_only=True):
    """Messages as the chat endpoint renders them."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: ModelName | None = None
    return_token_strs: bool = False


class TokenizeResponse(msgspec.Struct):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[TokenId]
    model: ModelName | None = None


class DetokenizeResponse(msgspec.Struct):
    prompt: str


class TokenizerInfo(msgspec.Struct):
    """What a client needs to build prompts by itself; special tokens as they are written, null where there is none."""

    vocab_size: int
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


async def tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    data = await read_data(request, service.limits)
    schema = TokenizeChat if has_field(data, "messages") else TokenizeText
    body: Body[TokenizeText | TokenizeChat] = decode_body(data, schema, service.strict)
    asked = body.value
    if asked.model is not None:
        check_model(service, asked.model)
    found = await off_loop(len(data), _tokenized, service.model, asked)
    return Response(found, headers=ignored_header(body.unknown), media_type="application/json")


def _tokenized(model: ServedModel, asked: TokenizeText | TokenizeChat) -> bytes:
    """The whole answer: in words and as JSON it takes longer than the ids alone."""
    ids = _ids(model, asked)
    words = model.tokenizer
    strings = [words.token(id) or "" for id in ids] if asked.return_token_strs else None
    return msgspec.json.encode(TokenizeResponse(ids, len(ids), model.max_model_len, strings))


def _ids(model: ServedModel, asked: TokenizeText | TokenizeChat) -> list[int]:
    if isinstance(asked, TokenizeChat):
        return chat_ids(model, asked.messages)
    if asked.add_special_tokens:
        return model.encode(asked.prompt)
    return model.encode_bare(asked.prompt)


async def detokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, DetokenizeRequest, service.limits, service.strict)
    asked = body.value
    if asked.model is not None:
        check_model(service, asked.model)
    if asked.tokens and max(asked.tokens) >= service.model.vocab_size:
        raise bad_request(f"token ids must be below {service.model.vocab_size}", "tokens")
    decode = service.model.tokenizer.decode
    text = await off_loop(len(asked.tokens), decode, asked.tokens, False)
    return json_response(DetokenizeResponse(text), headers=ignored_header(body.unknown))


async def tokenizer_info(request: Request) -> Response:
    service: Service = request.app.state.service
    model = service.model
    words = model.defaults.get("special_tokens") or {}
    template = model.template.source if model.template else None
    found = TokenizerInfo(
        model.vocab_size, model.max_model_len, words.get("bos_token"), words.get("eos_token"),
        words.get("pad_token"), words.get("unk_token"), template,
    )  # fmt: skip
    return json_response(found)
