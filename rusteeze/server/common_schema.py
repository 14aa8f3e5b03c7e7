"""Wire formats that several endpoints share."""

from __future__ import annotations

from typing import Literal

import msgspec


class PromptTokensDetails(msgspec.Struct):
    """``cached_tokens`` of the prompt were computed for earlier requests."""

    cached_tokens: int


class UsageBody(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ModelCard(msgspec.Struct):
    id: str
    created: int
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "rusteeze"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class HealthBody(msgspec.Struct):
    """``status`` is "ok", or says what is wrong."""

    status: str


class VersionBody(msgspec.Struct):
    version: str
