"""What a JSON schema cannot say: which texts are grammars. Loaded by schemathesis.

In *valid* data only, grammars that were drawn as arbitrary text are replaced by ones that are grammars, and a
chosen tool is one of the tools; all other fields, and invalid data altogether, are sent as drawn.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

GRAMMARS: dict[str, Any] = {
    "json_schema": {"name": "x", "schema": {"enum": [1, "a", None]}},
    "regex": "(cat|world)+",
    "grammar": 'start: "a" | "b"',
}


def responses_body(body: dict[str, Any]) -> dict[str, Any]:
    tools, choice, text = body.get("tools"), body.get("tool_choice"), body.get("text")
    for tool in tools or ():
        tool["parameters"] = {"properties": {"a": {"type": "integer"}}}
    if tools:
        body.pop("text", None)
        if isinstance(choice, dict):
            body["tool_choice"] = {**choice, "name": tools[0]["name"]}
    elif isinstance(text, dict) and isinstance(text.get("format"), dict) and "schema" in text["format"]:
        body["text"] = {"format": {**text["format"], "schema": GRAMMARS["json_schema"]["schema"]}}
    return body


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    valid = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    if not valid or not isinstance(case.body, dict):
        return
    body = dict(case.body)
    if "input" in body:
        case.body = responses_body(body)
        return
    form, tools, choice = body.get("response_format"), body.get("tools"), body.get("tool_choice")
    if isinstance(form, dict):
        body["response_format"] = {k: GRAMMARS.get(k, v) for k, v in form.items()}
    for tool in tools or ():
        tool["function"]["parameters"] = {"properties": {"a": {"type": "integer"}}}
    if tools:  # what is refused for reasons that lie in two fields
        body.pop("response_format", None)
        if isinstance(choice, dict):
            body["tool_choice"] = {**choice, "function": {"name": tools[0]["function"]["name"]}}
    case.body = body
