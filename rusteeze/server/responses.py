"""``POST /v1/responses``, as far as nothing has to be stored for it: a conversation in another wire format."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from rusteeze.server.answering import Answer
from rusteeze.server.body import decode_body, ignored_header, read_data
from rusteeze.server.chat import chat_sequences
from rusteeze.server.chat_schema import (
    AssistantMessage,
    ChatRequest,
    DeveloperMessage,
    Message,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from rusteeze.server.errors import bad_request
from rusteeze.server.formats import JsonSchema, JsonSchemaFormat, ResponseFormat
from rusteeze.server.responses_events import ResponsesRenderer
from rusteeze.server.responses_schema import (
    InputCall,
    InputCallOutput,
    InputItem,
    InputMessage,
    InputText,
    OutputText,
    ResponsesChoice,
    ResponsesRequest,
    ResponsesSchemaFormat,
    TextConfig,
)
from rusteeze.server.service import Service
from rusteeze.server.tool_schema import (
    CalledFunction,
    ChosenFunction,
    ChosenTool,
    FunctionTool,
    Tool,
    ToolCall,
    ToolChoice,
)

_ROLES: dict[str, type[Any]] = {
    "user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage,
    "developer": DeveloperMessage,
}  # fmt: skip
# What would have to be stored, with the values that ask for it not to be.
_STORED = {"previous_response_id": (None,), "conversation": (None,), "store": (None, False), "background": (None, False)}  # fmt: skip


async def responses(request: Request) -> Answer | Response:
    service: Service = request.app.state.service
    service.check_open()
    data = with_types(await read_data(request, service.limits))
    body = decode_body(data, ResponsesRequest, service.strict)
    asked = body.value
    sequences, use = await chat_sequences(service, chat_request(asked))
    renderer = ResponsesRenderer(service.model.name, asked, with_tools=use is not None)
    return Answer(
        service, sequences, renderer, bool(asked.stream), ignored_header(body.unknown)
    )  # fmt: skip


def with_types(data: bytes) -> bytes:
    """The body with the type of messages that do not say it. ApiError 400 when it asks for what is stored."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data  # which decoding it into its schema reports
    if not isinstance(body, dict):
        return data
    for name, harmless in _STORED.items():
        if body.get(name) not in harmless:
            message = f"{name}: nothing is stored here; send the whole conversation as input"
            raise bad_request(message, name, "not_stored")
    items = body.get("input")
    if not isinstance(items, list) or all(not isinstance(i, dict) or "type" in i for i in items):
        return data
    body["input"] = [{"type": "message", **item} if isinstance(item, dict) else item for item in items]
    return msgspec.json.encode(body)


def chat_request(asked: ResponsesRequest) -> ChatRequest:
    """The same question to the chat endpoint."""
    messages: list[Message] = []
    if asked.instructions is not None:
        messages.append(SystemMessage(content=asked.instructions))
    items = [InputMessage(role="user", content=asked.input)] if isinstance(asked.input, str) else asked.input
    for item in items:
        _append(messages, item)
    return ChatRequest(
        model=asked.model, messages=messages, max_completion_tokens=asked.max_output_tokens,
        temperature=asked.temperature, top_p=asked.top_p, response_format=_format(asked.text),
        tools=[_tool(tool) for tool in asked.tools or ()], tool_choice=_choice(asked.tool_choice),
        parallel_tool_calls=asked.parallel_tool_calls,
    )  # fmt: skip


def _append(messages: list[Message], item: InputItem) -> None:
    if isinstance(item, InputMessage):
        messages.append(_ROLES[item.role](content=_content(item.content)))
    elif isinstance(item, InputCallOutput):
        messages.append(ToolMessage(content=_content(item.output), tool_call_id=item.call_id))
    else:
        call = _call(item)
        last = messages[-1] if messages else None
        if isinstance(last, AssistantMessage) and last.tool_calls:  # calls of the same answer
            last.tool_calls.append(call)
        else:
            messages.append(AssistantMessage(tool_calls=[call]))


def _call(item: InputCall) -> ToolCall:
    return ToolCall(item.call_id, CalledFunction(item.name, item.arguments), "function")


def _content(content: str | list[InputText | OutputText]) -> str | list[TextPart]:
    return content if isinstance(content, str) else [TextPart("text", part.text) for part in content]


def _format(text: TextConfig | None) -> ResponseFormat | None:
    form = text.format if text else None
    if isinstance(form, ResponsesSchemaFormat):
        return JsonSchemaFormat(JsonSchema(name=form.name, schema=form.schema))
    return form


def _tool(tool: Any) -> Tool:
    function = FunctionTool(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _choice(choice: Any) -> ToolChoice | None:
    if isinstance(choice, ResponsesChoice):
        return ChosenTool(type="function", function=ChosenFunction(name=choice.name))
    found: ToolChoice | None = choice
    return found
