from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mock_executor import MockExecutor, greedy_tokens, logits_of
from tiny_tokenizers import tokenizer

from rusteeze.runtime.batch import Batch
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.interface import FinishReason, RequestError, RequestOutput, SamplingParams
from rusteeze.runtime.sequence import State

GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPT = [3, 1, 4, 1, 5]


def greedy(**params: Any) -> SamplingParams:
    return SamplingParams(temperature=0, **{"max_tokens": 8, **params})


class ScriptedExecutor(MockExecutor):
    """Makes the token after each sequence's n-th output the n-th of a script."""

    def __init__(self, script: list[int], vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self.script = script
        self.prompt_length: int | None = None

    def _logits(self, history: np.ndarray) -> np.ndarray:
        self.prompt_length = self.prompt_length or len(history)
        row = np.zeros(self.vocab_size, np.float32)
        row[self.script[len(history) - self.prompt_length]] = 10
        return row


class FaultyExecutor(MockExecutor):
    """Calls ``fault`` with the history and the logits of every row."""

    def __init__(self, fault: Callable[[np.ndarray, np.ndarray], None]) -> None:
        super().__init__()
        self.fault = fault

    def _logits(self, history: np.ndarray) -> np.ndarray:
        row = logits_of(history, self.vocab_size)
        self.fault(history, row)
        return row


class KnowingExecutor(MockExecutor):
    """Names the likeliest tokens itself, or their neighbours ``off`` further."""

    def __init__(self, off: int = 0) -> None:
        super().__init__()
        self.off = off

    def execute(self, batch: Batch) -> np.ndarray:
        self.logits = super().execute(batch)
        return self.logits

    def best_tokens(self) -> np.ndarray:
        return (self.logits.argmax(axis=1) + self.off) % self.vocab_size


def run(engine: SyncEngine) -> list[RequestOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.check_integrity()
    return outputs


# How requests end


def test_length() -> None:
    (done,) = SyncEngine(MockExecutor()).generate([PROMPT], GREEDY)
    assert done.finish_reason is FinishReason.LENGTH
    assert list(done.token_ids) == greedy_tokens(PROMPT, 8)
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 8)


def test_end_token_and_stop_token_ids() -> None:
    expected = greedy_tokens(PROMPT, 8)
    engine = SyncEngine(MockExecutor(), eos_token_ids=[expected[3]])
    asked = greedy(stop_token_ids=(expected[1],))
    by_eos, by_id, ignored = engine.generate(
        [PROMPT] * 3, [GREEDY, asked, greedy(ignore_eos=True)]
    )
    cut = expected.index(expected[3]) + 1
    assert (list(by_eos.token_ids), by_eos.finish_reason, by_eos.stop) == (expected[:cut], "stop", expected[3])
    assert (list(by_id.token_ids), by_id.stop) == (expected[:2], expected[1])
    assert (list(ignored.token_ids), ignored.finish_reason) == (expected, "length")


def test_min_tokens_keeps_the_end_away() -> None:
    expected = greedy_tokens(PROMPT, 8)
    engine = SyncEngine(MockExecutor(), eos_token_ids=[expected[0]])
    (done,) = engine.generate([PROMPT], greedy(min_tokens=5))
    assert len(done.token_ids) >= 6
    assert expected[0] not in done.token_ids[:5]


def test_the_length_of_model_and_pool_bounds_the_output() -> None:
    by_model = SyncEngine(MockExecutor(max_model_len=9)).generate([PROMPT], greedy(max_tokens=None))
    by_pool = SyncEngine(MockExecutor(num_blocks=3)).generate([PROMPT], greedy(max_tokens=None))
    by_user = SyncEngine(MockExecutor(), config=EngineConfig(max_model_len=7)).generate([PROMPT], GREEDY)
    assert [len(done[0].token_ids) for done in (by_model, by_pool, by_user)] == [4, 7, 2]
    assert by_pool[0].finish_reason is FinishReason.LENGTH


def scripted(text: str, params: SamplingParams, end: bool = False) -> tuple[list[RequestOutput], str]:
    """Outputs and whole text when the model says ``text`` byte by byte, then perhaps an end token."""
    words = tokenizer()
    script = words.encode(text, add_special_tokens=False)
    eos = words.token_id("</s>")
    assert eos is not None
    script += [eos] if end else []
    engine = SyncEngine(ScriptedExecutor(script, words.vocab_size), words, [eos])
    outputs = list(engine.stream(engine.submit("go", params)))
    return outputs, "".join(output.text for output in outputs)


def test_a_stop_string_is_never_emitted() -> None:
    outputs, text = scripted("one STOP two", greedy(max_tokens=50, stop="STOP"))
    assert text == "one "
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert outputs[-1].stop == "STOP"


@pytest.mark.parametrize("end", [True, False])
def test_held_text_comes_out_at_the_end(end: bool) -> None:
    text = "say STO"
    length = len(text) + end
    outputs, said = scripted(text, greedy(max_tokens=length, stop=("STOP",)), end)
    assert said == text
    assert outputs[-1].finish_reason == ("stop" if end else "length")
    assert all("S" not in output.text for output in outputs[:-1])


def test_stop_strings_wait_for_min_tokens() -> None:
    _, text = scripted("xx.yy.z", greedy(max_tokens=7, min_tokens=3, stop="."))
    assert text == "xx.yy"


def test_half_a_character_at_the_end_is_one_replacement() -> None:
    words = tokenizer()
    count = len(words.encode("a😀", add_special_tokens=False)) - 1
    _, text = scripted("a😀", greedy(max_tokens=count))
    assert text == "a\ufffd"


def test_the_end_token_has_no_text_even_when_special_tokens_are_shown() -> None:
    _, text = scripted("ab", greedy(skip_special_tokens=False), end=True)
    assert text == "ab"


# Refusals


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "no tokens"),
        ([97], GREEDY, "from 0 to 96"),
        ([-1], GREEDY, "from 0 to 96"),
        ([1.5], GREEDY, "list of token ids"),
        ([1] * 256, GREEDY, "the prompt has 256 tokens"),
        ("text", GREEDY, "needs a tokenizer"),
        ([1], greedy(stop="x"), "need a tokenizer"),
        ([1], greedy(logit_bias={97: 1.0}), "token id 97"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_at_once_and_alone(
    prompt: Any, params: SamplingParams, message: str
) -> None:
    engine = SyncEngine(MockExecutor())
    with pytest.raises(RequestError, match=message):
        engine.submit(prompt, params)
    assert not engine.has_work
    good, bad = engine.generate([PROMPT, prompt], [GREEDY, params])
    assert good.finish_reason is FinishReason.LENGTH
    assert bad.finish_reason is FinishReason.ERROR
    assert message in str(bad.error)


def test_an_id_in_use_is_refused_until_it_is_free_again() -> None:
    engine = SyncEngine(MockExecutor())
    engine.submit(PROMPT, GREEDY, "a")
    with pytest.raises(RequestError, match="in use"):
        engine.submit(PROMPT, GREEDY, "a")
    run(engine)
    engine.submit(PROMPT, GREEDY, "a")
    assert len(run(engine)) == 8


def test_a_single_string_is_not_a_list_of_prompts() -> None:
    with pytest.raises(TypeError, match="list of prompts"):
        SyncEngine(MockExecutor()).generate("abc")


# Cancelling


def states(engine: SyncEngine) -> dict[str, State]:
    return {sequence.id: sequence.state for sequence in engine.scheduler.sequences()}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("name", ["decoding", "prefilling", "waiting"])
def test_cancel_takes_effect_in_the_next_step(name: str, steps: int) -> None:
    engine = SyncEngine(MockExecutor(max_batched_tokens=8), config=EngineConfig(max_num_seqs=2))
    engine.submit(PROMPT, greedy(max_tokens=50), "decoding")
    engine.submit([1] * 200, GREEDY, "prefilling")
    engine.submit(PROMPT, GREEDY, "waiting")
    for _ in range(steps):
        engine.step()
    engine.cancel(name)
    engine.cancel(name)
    outputs = [output for output in engine.step() if output.request_id == name]
    assert [output.finish_reason for output in outputs] == ["abort"]
    assert name not in states(engine)
    engine.check_integrity()
    others = {output.request_id for output in run(engine) if output.finish_reason == "length"}
    assert others == {"decoding", "prefilling", "waiting"} - {name}
    assert engine.scheduler.pool.num_used == 0


def test_cancelling_a_preempted_request() -> None:
    engine = SyncEngine(MockExecutor(num_blocks=6))
    engine.submit([1] * 8, greedy(max_tokens=16), "a")
    engine.submit([2] * 7, greedy(max_tokens=16), "b")
    while engine.scheduler.num_preemptions == 0:
        engine.step()
    engine.cancel("b")
    assert [o.request_id for o in engine.step() if o.finish_reason] == ["b"]
    run(engine)
    assert engine.scheduler.pool.num_used == 0


def test_cancelling_the_unknown_and_the_finished_does_nothing() -> None:
    engine = SyncEngine(MockExecutor())
    engine.cancel("nobody")
    assert not engine.has_work
    engine.submit(PROMPT, GREEDY, "a")
    run(engine)
    engine.cancel("a")
    assert engine.step() == []


def test_a_late_cancel_does_not_hit_the_next_request_of_that_id() -> None:
    engine = SyncEngine(MockExecutor())
    engine.submit(PROMPT, greedy(max_tokens=1), "a")
    engine.step()
    engine.cancel("a")
    engine.submit(PROMPT, GREEDY, "a")
    assert [output.finish_reason for output in run(engine)][-1] == "length"


# Faults


def test_nan_ends_the_request_that_has_it() -> None:
    def fault(history: np.ndarray, row: np.ndarray) -> None:
        if history[0] == 9 and len(history) == 4:
            row[5] = np.nan

    engine = SyncEngine(FaultyExecutor(fault))
    good, bad = engine.generate([PROMPT, [9, 8]], GREEDY)
    assert list(good.token_ids) == greedy_tokens(PROMPT, 8)
    assert bad.finish_reason is FinishReason.ERROR
    assert "not finite" in str(bad.error)
    assert len(bad.token_ids) == 2
    assert engine.scheduler.pool.num_used == 0


def test_nan_in_a_prompt_row_ends_that_request_only() -> None:
    def fault(history: np.ndarray, row: np.ndarray) -> None:
        row[5] = np.nan if list(history) == [9, 8] else row[5]

    prompts, params = [PROMPT, [9, 8, 7, 6]], greedy(prompt_logprobs=0)
    good, bad = SyncEngine(FaultyExecutor(fault)).generate(prompts, params)
    assert len(good.token_ids) == 8
    assert (bad.finish_reason, bad.token_ids) == ("error", ())


def test_an_exception_inside_one_request_ends_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = SyncEngine(MockExecutor())
    engine.submit(PROMPT, GREEDY, "good")
    engine.submit(PROMPT, greedy(logprobs=1), "sampling")
    engine.submit(PROMPT, GREEDY, "text")
    broken = {"sampling": ("sampler", "sample"), "text": ("_text", "push")}
    for id, (part, method) in broken.items():
        setattr(getattr(engine._requests[id], part), method, lambda *_, **__: 1 / 0)
    ends = {o.request_id: (o.finish_reason, o.error) for o in run(engine) if o.finish_reason}
    assert ends == {
        "good": ("length", None),
        "sampling": ("error", "internal error"),
        "text": ("error", "internal error"),
    }
    assert "ZeroDivisionError" in caplog.text
    assert engine.scheduler.pool.num_used == 0


def test_a_failing_executor_ends_its_step_s_requests_and_the_engine_goes_on() -> None:
    class Failing(MockExecutor):
        def execute(self, batch: Batch) -> np.ndarray:
            logits = super().execute(batch)
            return logits[:, :0] if len(self.batches) == 2 else logits

    engine = SyncEngine(Failing())
    assert [done.finish_reason for done in engine.generate([PROMPT] * 2, GREEDY)] == ["error"] * 2
    assert engine.generate([PROMPT], GREEDY)[0].finish_reason == "length"


def test_what_an_executor_knows_is_not_looked_for_again() -> None:
    prompts = [PROMPT, list(range(70)), [9]]  # the second in two chunks, the first beside the others
    params = [GREEDY, greedy(prompt_logprobs=1), greedy(logit_bias={5: 100.0})]
    found = SyncEngine(KnowingExecutor()).generate(prompts, params)
    wanted = SyncEngine(MockExecutor()).generate(prompts, params)
    assert [done.token_ids for done in found] == [done.token_ids for done in wanted]
    assert found[2].token_ids == (5,) * 8
    (off,) = SyncEngine(KnowingExecutor(off=1)).generate([PROMPT], greedy(max_tokens=1))
    assert off.token_ids[0] == greedy_tokens(PROMPT, 1)[0] + 1


# Streams, logprobs, clocks, threads


def test_streams_may_be_read_in_turn() -> None:
    engine = SyncEngine(MockExecutor())
    ids = [engine.submit(prompt, GREEDY) for prompt in (PROMPT, [7, 7])]
    streams = [engine.stream(id) for id in ids]
    pairs = list(zip(*streams, strict=True))
    assert [o.token_ids[0] for o, _ in pairs] == greedy_tokens(PROMPT, 8)
    assert [o.token_ids[0] for _, o in pairs] == greedy_tokens([7, 7], 8)
    assert len(engine._mailboxes) == 0


def test_closing_a_stream_cancels_its_request() -> None:
    engine = SyncEngine(MockExecutor())
    stream = engine.stream(engine.submit(PROMPT, GREEDY, "a"))
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert [output.finish_reason for output in engine.step()] == ["abort"]
    with pytest.raises(RequestError, match="no request"):
        engine.stream("a")


def test_a_stream_closed_after_the_end_leaves_the_next_request_of_that_id_alone() -> None:
    engine = SyncEngine(MockExecutor())
    old = engine.stream(engine.submit(PROMPT, greedy(max_tokens=1), "a"))
    engine.step()
    new = engine.stream(engine.submit(PROMPT, GREEDY, "a"))
    with pytest.raises(RequestError, match="streamed already"):
        engine.stream("a")
    old.close()
    assert [output.token_ids[0] for output in new] == greedy_tokens(PROMPT, 8)


def test_an_interrupted_generate_cancels_what_is_left() -> None:
    class Interrupted(MockExecutor):
        def execute(self, batch: Batch) -> np.ndarray:
            if len(self.batches) == 3:
                self.batches.clear()
                raise KeyboardInterrupt
            return super().execute(batch)

    engine = SyncEngine(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPT] * 3, GREEDY)
    assert {output.finish_reason for output in engine.step()} == {FinishReason.ABORT}
    assert not engine.has_work
    assert engine.scheduler.pool.num_used == 0


def test_logprobs_of_prompt_and_output() -> None:
    (done,) = SyncEngine(MockExecutor()).generate([PROMPT], greedy(logprobs=0, prompt_logprobs=2))
    tokens = PROMPT + greedy_tokens(PROMPT, 8)
    entries = done.prompt_logprobs + done.logprobs
    assert len(done.prompt_logprobs) == len(PROMPT) - 1
    assert [len(entry.top) for entry in entries] == [2] * 4 + [0] * 8
    for index, entry in enumerate(entries, 1):
        row = logits_of(np.array(tokens[:index]), 97).astype(np.float64)
        expected = row[tokens[index]] - np.log(np.exp(row).sum())
        assert entry.chosen == pytest.approx(expected, abs=1e-5)


def test_timing_is_measured_from_arrival() -> None:
    now = [100.0]
    engine = SyncEngine(MockExecutor(max_batched_tokens=4), clock=lambda: now[0])
    engine.submit(PROMPT, greedy(max_tokens=2))
    outputs = []
    while engine.has_work:
        now[0] += 1.0
        outputs += engine.step()
    timing = outputs[-1].timing
    assert timing is not None
    assert (timing.queue_ms, timing.ttft_ms, timing.total_ms) == (1000, 2000, 3000)
    assert outputs[0].timing is None


def test_timing_of_what_never_ran() -> None:
    engine = SyncEngine(MockExecutor())
    engine.cancel(engine.submit(PROMPT, GREEDY))
    (output,) = engine.step()
    assert output.timing is not None
    assert (output.timing.queue_ms, output.timing.ttft_ms) == (None, None)


def test_requests_and_cancels_from_many_threads() -> None:
    engine = SyncEngine(MockExecutor(num_blocks=30))
    finished: dict[str, list[str]] = {}

    def client(index: int) -> None:
        for turn in range(10):
            id = engine.submit([index, turn], GREEDY, f"{index}-{turn}")
            if turn % 3 == 0:
                engine.cancel(id)

    threads = [threading.Thread(target=client, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    while engine.has_work or any(thread.is_alive() for thread in threads):
        for output in engine.step():
            if output.finish_reason:
                finished.setdefault(output.request_id, []).append(output.finish_reason)
    assert len(finished) == 80
    assert all(len(reasons) == 1 for reasons in finished.values())
    assert all(finished[f"{i}-1"] == ["length"] for i in range(8))
    engine.check_integrity()
