from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from chat_templates import LLAMA, MISTRAL, QWEN, SMOLLM

from rusteeze.runtime.template import ChatTemplate, TemplateError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "What is 2 < 3 & 'x'?"}
SYSTEM = {"role": "system", "content": "  Be brief.\n"}
ANSWER = {"role": "assistant", "content": "Yes – é 😀. "}
THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says <the> weather & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "rain"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER],
    [USER, THOUGHT],
]  # fmt: skip
TOOL_CONVERSATIONS: list[list[dict[str, Any]]] = [[USER], [USER, CALL, RESULT], [SYSTEM, USER, CALL, RESULT]]


def transformers_render(
    source: str, messages: list[dict[str, Any]], add_generation_prompt: bool, **values: Any
) -> str:  # fmt: skip
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=source, tokenize=False,
        add_generation_prompt=add_generation_prompt, **values,
    )  # fmt: skip
    return text


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("source", [SMOLLM, LLAMA, MISTRAL, QWEN], ids=["smollm", "llama", "mistral", "qwen"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_renders_what_transformers_renders(
    source: str, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    template = ChatTemplate(source, SPECIAL, now=lambda: datetime(2026, 3, 5))
    ours = template.render(messages, add_generation_prompt)
    theirs = transformers_render(source, messages, add_generation_prompt)
    today = datetime.now().strftime("%d %b %Y")
    assert ours.replace("05 Mar 2026", today) == theirs


@pytest.mark.parametrize("source", [LLAMA, MISTRAL, QWEN], ids=["llama", "mistral", "qwen"])
@pytest.mark.parametrize("messages", TOOL_CONVERSATIONS)
def test_tools_are_rendered_as_by_transformers(source: str, messages: list[dict[str, Any]]) -> None:
    values = {"tools": TOOLS, "date_string": "26 Jul 2024", "enable_thinking": False}
    ours = ChatTemplate(source, SPECIAL).render(messages, **values)
    assert ours == transformers_render(source, messages, True, **values)
    assert "weather" in ours


def test_smollm_prompt_in_full() -> None:
    text = ChatTemplate(SMOLLM, SPECIAL).render([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def render(source: str, messages: Any = (), **values: Any) -> str:
    return ChatTemplate(source, SPECIAL).render(messages, **values)


def test_json_keeps_order_and_characters() -> None:
    value = {"b": "<é>&'", "a": [1, None, True, 1.5]}
    assert render("{{ x|tojson }}", x=value) == json.dumps(value, ensure_ascii=False)
    assert render("{{ x|tojson(indent=2) }}", x=value) == json.dumps(value, ensure_ascii=False, indent=2)


def test_whitespace_control_and_loop_controls() -> None:
    source = "a\n  {% for i in range(9) %}\n{{ i }}\n{% if i == 1 %}{% break %}{% endif %}\n  {% endfor %}\nb\n"
    assert render(source) == "a\n0\n1\nb"


def test_generation_marks_are_transparent() -> None:
    source = "{% for m in messages %}\n{%- generation -%}\n {{ m.content }} \n{%- endgeneration %}{% endfor %}"
    assert render(source, [USER]) == transformers_render(source, [USER], False)


def test_the_template_can_refuse() -> None:
    with pytest.raises(TemplateError, match=r"^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for", "cannot be parsed"),
        ("{{ x.y }}", "cannot be rendered"),
        ("{{ 1|nothing }}", "cannot be rendered"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}", "too many"),
        ("{{ 'x' * 9000000 }}", "9000000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be rendered"),
        ("{% include '/etc/passwd' %}", "cannot be rendered"),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered"),
    ],
)  # fmt: skip
def test_hostile_and_broken_templates_are_errors(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(source)


@pytest.mark.parametrize("name", ["bos_token", "raise_exception", "namespace"])
def test_values_cannot_replace_what_the_template_relies_on(name: str) -> None:
    with pytest.raises(TemplateError, match=name):
        render("x", **{name: 1})


def test_only_plain_values_reach_the_template() -> None:
    with pytest.raises(TemplateError, match="plain JSON"):
        render("x", [{"role": object()}])
    with pytest.raises(TemplateError, match="plain JSON"):
        render("x", x=float("nan"))
