"""generate and chat, over a scripted engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rusteeze.cli import conversation
from rusteeze.cli.output import write_text
from rusteeze.cli.sampling_options import Sampling
from rusteeze.errors import UserError

Run = Callable[..., Result]
ANSWER = "The capital is Paris."


def test_generate_prints_the_answer_and_the_speed(run: Run, artifact: Path, engine: Any) -> None:
    result = run("generate", artifact, "-p", "Capital?")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    assert result.stderr == "3 tokens, 20.0 tok/s, first token after 10 ms\n"
    assert engine.prompts == ["<Capital?"]


def test_generate_without_streaming_prints_the_same(run: Run, artifact: Path, engine: Any) -> None:
    assert run("generate", artifact, "-p", "x", "--no-stream").stdout == ANSWER + "\n"


def test_generate_json_is_all_that_stands_on_stdout(run: Run, artifact: Path, engine: Any) -> None:
    result = run("generate", artifact, "-p", "x", "--json")
    assert json.loads(result.stdout) == {
        "text": ANSWER, "finish_reason": "stop", "prompt_tokens": 2, "completion_tokens": 3,
        "time_to_first_token_ms": 10.0, "tokens_per_second": 20.0,
    }  # fmt: skip
    assert result.stderr == ""


def test_generate_reads_the_prompt_from_stdin(run: Run, artifact: Path, engine: Any) -> None:
    run("generate", artifact, "-p", "-", stdin="from a pipe")
    assert engine.prompts == ["<from a pipe"]


def test_generate_chat_uses_the_template(run: Run, artifact: Path, engine: Any) -> None:
    run("generate", artifact, "-p", "Hi", "--chat", "--system", "Be brief.")
    assert engine.prompts == ["system:Be brief.|user:Hi"]


def test_system_message_without_chat_is_refused(run: Run, artifact: Path, engine: Any) -> None:
    result = run("generate", artifact, "-p", "Hi", "--system", "Be brief.")
    assert (result.exit_code, result.stderr) == (2, "error: --system needs --chat\n")


def test_sampling_options_reach_the_engine(run: Run, artifact: Path, engine: Any) -> None:
    options = "--max-tokens 9 --temperature 0.5 --top-p 0.9 --min-p 0.1 --seed 3 --stop a --stop b"
    assert run("generate", artifact, "-p", "x", *options.split()).exit_code == 0
    (params,) = engine.params
    assert (params.max_tokens, params.temperature, params.top_p) == (9, 0.5, 0.9)
    assert (params.min_p, params.seed, params.stop) == (0.1, 3, ("a", "b"))
    assert params.top_k == 7, "the model's own default stands where nothing was asked"


@pytest.mark.parametrize(
    "option", ["--temperature=-1", "--top-p=2", "--max-tokens=0", "--temperature=nan"]
)
def test_sampling_out_of_range_is_a_user_error(
    run: Run, artifact: Path, engine: Any, option: str
) -> None:
    result = run("generate", artifact, "-p", "x", option)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: " + option[2:].split("=")[0].replace("-", "_"))


def test_what_was_asked_beats_the_model_which_beats_greedy() -> None:
    assert Sampling({}).params({}).temperature == 0.0
    assert Sampling({}).params({"temperature": 0.7}).temperature == 0.7
    assert Sampling({"temperature": 0.0}).params({"temperature": 0.7}).temperature == 0.0


def test_a_failed_answer_is_an_error(run: Run, artifact: Path, engine: Any) -> None:
    engine.error = "logits are not finite"
    result = run("generate", artifact, "-p", "x", "--json")
    assert result.exit_code == 2
    assert result.stderr == "error: the answer failed: logits are not finite\n"


def press_ctrl_c_at(step: int) -> Callable[[int], None]:
    return lambda number: os.kill(os.getpid(), signal.SIGINT) if number == step else None


def test_ctrl_c_ends_generate_at_a_whole_token(run: Run, artifact: Path, engine: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    engine.on_step = press_ctrl_c_at(2)
    result = run("generate", artifact, "-p", "x")
    assert (result.exit_code, result.stdout) == (130, "The capital is Paris\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_broken_artifact_is_named(run: Run, artifact: Path, monkeypatch: Any) -> None:
    (artifact / "plan.json").write_text("{}")
    result = run("info", artifact)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: model.rz/plan.json: ")


def test_chat_answers_each_line_of_a_pipe(run: Run, artifact: Path, engine: Any) -> None:
    result = run("chat", artifact, stdin="one\n\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, f"{ANSWER}\n{ANSWER}\n")
    assert engine.prompts == ["user:one", f"user:one|assistant:{ANSWER}|user:two"]


def test_chat_reset_keeps_the_system_message(run: Run, artifact: Path, engine: Any) -> None:
    run("chat", artifact, "--system", "S", stdin="one\n/reset\ntwo\n/exit\nthree\n")
    assert engine.prompts == ["system:S|user:one", "system:S|user:two"]


def test_chat_explains_unknown_commands(run: Run, artifact: Path, engine: Any) -> None:
    result = run("chat", artifact, stdin="/quit\n")
    assert "/exit leaves" in result.stderr
    assert engine.prompts == []


def test_chat_json_is_one_line_per_answer(run: Run, artifact: Path, engine: Any) -> None:
    lines = run("chat", artifact, "--json", stdin="one\ntwo\n").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == [ANSWER, ANSWER]


def test_ctrl_c_stops_one_answer_of_a_chat(run: Run, artifact: Path, engine: Any) -> None:
    engine.on_step = press_ctrl_c_at(1)
    result = run("chat", artifact, stdin="one\ntwo\n")
    assert (result.exit_code, result.stdout) == (0, "The capital\nThe capital\n")
    assert engine.prompts[1] == "user:one|assistant:The capital|user:two"


def test_a_model_without_template_says_so(
    run: Run, artifact: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = conversation.llm.load
    monkeypatch.setattr(load(artifact, None), "template", None)
    result = run("chat", artifact, stdin="one\n")
    assert result.exit_code == 2
    assert "no chat template" in result.stderr


def test_chat_forgets_a_turn_that_cannot_be_served(
    engine: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rusteeze.cli import chat

    talk = conversation.open_conversation(artifact, None, Sampling({}))
    monkeypatch.setattr(engine, "submit", lambda *_: (_ for _ in ()).throw(UserError("too long")))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    chat._turn(talk, "long story")
    assert talk.messages == []
    assert "error: too long (/reset starts anew)" in capsys.readouterr().err


def test_a_terminal_is_safe_from_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b[2Jb\x9bc\n\té👩‍👧"
    write_text(hostile)
    assert capsys.readouterr().out == hostile, "a pipe gets what the model wrote"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write_text(hostile)
    assert capsys.readouterr().out == "a\ufffd[2Jb\ufffdc\n\té👩‍👧"
