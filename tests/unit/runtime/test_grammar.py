"""Structured output over a model that says anything: what comes out keeps to its grammar."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from mock_executor import MockExecutor
from tiny_tokenizers import tokenizer

from rusteeze.runtime import grammar as grammar_module
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.grammar import Grammars
from rusteeze.runtime.grammar_size import MAX_NESTING, MAX_RULES, check_schema
from rusteeze.runtime.interface import Completion, Fault, QueueFull, RequestError, SamplingParams
from rusteeze.runtime.params import Grammar

WORDS = tokenizer()
END = WORDS.token_id("</s>")
assert END is not None
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "bc"]}, "size": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "size"],
    "additionalProperties": False,
}  # fmt: skip
GRAMMARS = {
    "regex": Grammar("regex", "(yes|no){1,3}"),
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "lark": Grammar("lark", 'start: "[" item ("," item)~0..2 "]"\nitem: /[a-c]{1,2}/'),
}
PARAMS = [
    SamplingParams(grammar=grammar, seed=seed, temperature=t, max_tokens=200)
    for grammar in GRAMMARS.values()
    for seed, t in ((1, 0.0), (2, 1.0), (3, 2.0))
]


def engine(config: EngineConfig | None = None, **limits: Any) -> SyncEngine:
    executor = MockExecutor(vocab_size=WORDS.vocab_size + 3, **limits)
    return SyncEngine(executor, WORDS, [END or 0], config)


def holds(kind: str, text: str) -> bool:
    if kind == "regex":
        return re.fullmatch("(yes|no){1,3}", text) is not None
    if kind == "lark":
        return re.fullmatch(r"\[[a-c]{1,2}(,[a-c]{1,2}){0,2}\]", text) is not None
    value = json.loads(text)
    return value["name"] in ("a", "bc") and 0 <= value["size"] <= 99 and len(value) == 2


def served(target: SyncEngine) -> list[Completion]:
    done = target.generate([f"prompt {i}" for i in range(len(PARAMS))], PARAMS)
    target.check_integrity()
    return done


def test_every_output_keeps_to_its_grammar_and_ends() -> None:
    for params, done in zip(PARAMS, served(engine()), strict=True):
        assert params.grammar is not None
        assert (done.finish_reason, done.error) == ("stop", None)
        assert holds(params.grammar.kind, done.text), done.text


@pytest.mark.parametrize("limits", [{"num_blocks": 32}, {"max_batched_tokens": 3}])
def test_preemption_and_chunks_change_nothing(limits: dict[str, int]) -> None:
    target = engine(**limits)
    found = served(target)
    assert [d.token_ids for d in found] == [d.token_ids for d in served(engine())]
    assert (target.scheduler.num_preemptions > 0) == ("num_blocks" in limits)


def test_any_object() -> None:
    params = SamplingParams(grammar=Grammar("json_object"), seed=5, max_tokens=250, temperature=0.5)
    (done,) = engine(num_blocks=300, max_model_len=1000).generate(["x"], params)
    assert done.text.startswith("{")
    if done.finish_reason == "stop":
        assert isinstance(json.loads(done.text), dict)


def test_it_stops_when_nothing_may_follow_without_an_end_token() -> None:
    params = SamplingParams(grammar=Grammar("regex", "ab"), temperature=0, ignore_eos=True)
    (done,) = engine().generate(["x"], params)
    assert (done.text, done.finish_reason, done.stop) == ("ab", "stop", None)


def test_where_more_may_follow_the_model_chooses_the_end() -> None:
    params = SamplingParams(grammar=Grammar("regex", "a+"), seed=1, temperature=1, max_tokens=400)
    done = engine(max_model_len=1000).generate(["x"] * 8, [replace(params, seed=i) for i in range(8)])
    assert {d.stop for d in done} == {END}
    assert all(re.fullmatch("a+", d.text) for d in done)


def test_parameters_that_forbid_what_the_grammar_asks_for_are_a_named_fault() -> None:
    target = engine()
    a = dict.fromkeys(range(WORDS.vocab_size), -100.0)
    params = SamplingParams(grammar=Grammar("regex", "a*"), temperature=0, min_tokens=3, logit_bias=a)
    bad, good = target.generate(["x", "y"], [replace(params, grammar=Grammar("regex", "")), PARAMS[0]])
    assert (bad.finish_reason, bad.fault) == ("error", Fault.NO_TOKEN)
    assert good.finish_reason == "stop"


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("regex", "a(b"), r"regex: at 1\(\d+\): .* unclosed group"),
        (Grammar("lark", "start: foo"), r'lark: at 1\(8\): unknown name: "foo"'),
        (Grammar("lark", "start: (\n"), r"lark: 1\(9\)"),
        (Grammar("json_schema", '{"type": "strin"}'), "json_schema: Invalid type: strin"),
        (Grammar("json_schema", '{"type": '), "json_schema: .*line 1 column 10"),
        (Grammar("json_schema", "[" * 50_000), "json_schema: it is nested too deeply"),
        (Grammar("json_schema", "true"), "json_schema: a schema must be an object"),
        (Grammar("json_schema", '{"$ref": "http://127.0.0.1:9/x"}'), "does not fetch"),
    ],
)
def test_errors_say_where(grammar: Grammar, message: str) -> None:
    target = engine()
    with pytest.raises(RequestError, match=message) as caught:
        target.submit("x", SamplingParams(grammar=grammar))
    assert "\n" not in str(caught.value)
    assert not target.has_work
    with pytest.raises(RequestError, match=message):
        target.compile_grammar(grammar)


def test_what_compiles_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(grammar: Grammar) -> str:
        time.sleep(0.3)
        return ""

    monkeypatch.setattr(grammar_module, "_source", slow)
    target = Grammars(WORDS.to_json(), WORDS.vocab_size, [END or 0], timeout_s=0.05)
    with pytest.raises(RequestError, match="regex: compiling takes too long"):
        target.start(Grammar("regex", "a"))


def test_grammars_that_take_too_long_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While they have all threads others are told at once to come back; then everything is as before."""
    released = threading.Event()
    source = grammar_module._source

    def stuck(grammar: Grammar) -> str:
        if grammar.source.startswith("slow"):
            released.wait(10)
        return source(grammar)

    monkeypatch.setattr(grammar_module, "_source", stuck)
    target = Grammars(WORDS.to_json(), WORDS.vocab_size, [END or 0], timeout_s=0.2)
    for name in ("slow1", "slow2"):
        with pytest.raises(RequestError, match="takes too long"):
            target.start(Grammar("regex", name))
    start = time.monotonic()
    with pytest.raises(QueueFull, match="try again later"):
        target.start(Grammar("regex", "b"))
    assert time.monotonic() - start < 0.15
    released.set()
    for _ in range(100):
        try:
            target.start(Grammar("regex", "b"))
            return
        except QueueFull:
            time.sleep(0.02)
    pytest.fail("the threads were never free again")


def chain(length: int) -> str:
    """A schema whose definitions refer to each other, ``length`` references deep."""
    definitions = {
        f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)
    } | {f"d{length}": {"type": "integer"}}  # fmt: skip
    return json.dumps({"$defs": definitions, "$ref": "#/$defs/d0"}, separators=(",", ":"))


def rules(length: int) -> str:
    links = "\n".join(f'a{i}: "a" a{i + 1}' for i in range(length))
    return f'start: a0\n{links}\na{length}: "a"'


DEEP = {
    "references": Grammar("json_schema", chain(MAX_RULES - 1)),
    "many references": Grammar("json_schema", chain(1100)),
    "rules": Grammar("lark", rules(MAX_RULES - 2)),
    "many rules": Grammar("lark", rules(3000)),
    "broken rules": Grammar("lark", rules(MAX_RULES - 2).replace(f'a{MAX_RULES - 2}: "a"', "")),
}
PROGRAM = """
import json, sys
from rusteeze.runtime.grammar import Grammars
from rusteeze.runtime.interface import RequestError
from rusteeze.runtime.params import Grammar
from rusteeze.runtime import grammar_size
asked = json.load(sys.stdin)
grammar_size.MAX_RULES = asked["max_rules"]
grammars = Grammars(asked["tokenizer"], asked["vocab_size"], [asked["end"]])
try:
    grammars.start(Grammar(asked["kind"], asked["source"]))
except RequestError as error:
    print(str(error)[:60])
else:
    print("compiled")
"""


def outcome(grammar: Grammar, max_rules: int = MAX_RULES) -> str:
    """What becomes of a grammar, in a process that may die of it."""
    asked = {
        "tokenizer": WORDS.to_json(), "vocab_size": WORDS.vocab_size, "end": END,
        "kind": grammar.kind, "source": grammar.source, "max_rules": max_rules,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(asked), capture_output=True, text=True
    )
    assert done.returncode == 0, f"signal {-done.returncode}: {done.stderr}"
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("references", "compiled"), ("many references", "json_schema: it has more than 500 references"),
        ("rules", "compiled"), ("many rules", "lark: it has more than 500 rules"),
        ("broken rules", "lark: "),
    ],
)  # fmt: skip
def test_deep_grammars_do_not_end_the_process(what: str, expected: str) -> None:
    assert outcome(DEEP[what]).startswith(expected)


@pytest.mark.parametrize("what", ["many references", "many rules"])
def test_the_stack_suffices_even_without_the_caps(what: str) -> None:
    assert outcome(DEEP[what], max_rules=10**6) == "compiled"


def test_nesting_is_capped() -> None:
    deepest = '{"items":' * MAX_NESTING + "{}" + "}" * MAX_NESTING
    check_schema(json.loads(deepest))
    with pytest.raises(ValueError, match="more than 64 levels"):
        check_schema({"items": json.loads(deepest)})


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [("regex", "a" * 65_537, "at most 65536"), ("ebnf", "", "grammar kind"), ("lark", None, "text")],
)  # fmt: skip
def test_grammars_are_bounded(kind: Any, source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar(kind, source)


def test_it_needs_a_tokenizer_and_an_end() -> None:
    with pytest.raises(RequestError, match="needs a tokenizer and an end token"):
        SyncEngine(MockExecutor()).submit([1], PARAMS[0])


def test_compiled_grammars_are_kept_and_requests_do_not_share_their_state() -> None:
    grammars = Grammars(WORDS.to_json(), WORDS.vocab_size, [END or 0])
    first, second = (grammars.start(GRAMMARS["regex"]) for _ in range(2))
    for token in WORDS.encode("yesyesyes", add_special_tokens=False):
        first.accept(token)
    assert first.is_complete
    assert not second.is_complete
    assert len(grammars._compiled) == 1
