"""``POST /tokenize`` and ``/detokenize``: what the model makes of a text, and of ids."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from rusteeze.server.body import ignored_header, read_body
from rusteeze.server.chat import chat_ids
from rusteeze.server.chat_schema import Message
from rusteeze.server.errors import bad_request
from rusteeze.server.limits import MAX_MESSAGES
from rusteeze.server.prompts import check_model, off_loop
from rusteeze.server.sampling_fields import ModelName, TokenId
from rusteeze.server.service import Service
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


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either ``prompt`` or ``messages``."""

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    model: ModelName | None = None
    add_special_tokens: bool = True
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
