"""The harness around the engines: counting, taking turns, leaving out, writing rows."""

from __future__ import annotations

import csv
import importlib
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import ceilings
import measurements
import pytest
import run
import table
from measurements import Measurement

from rusteeze.peers import ours, turns
from rusteeze.peers.answering import timed
from rusteeze.peers.provider import Answer, Provider
from rusteeze.peers.rates import prompts
from rusteeze.peers.turns import Effort, in_turns
from rusteeze.peers.watch import Measured

SCRIPTS = Path(run.__file__).parent.glob("*.py")
PEERS = ("llama_cpp", "llmcompressor")  # each in an environment of its own
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from answering import answer, own_channel
channel = own_channel()
print("noise on stdout")
answer(lambda prompts, new: ([(i, 7) for i in range(len(prompts))] for _ in range(new)), channel)
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE_S", 0)


def test_the_tail_begins_when_every_sequence_has_a_token() -> None:
    def generate(_prompts: list[list[int]], _new: int) -> Iterator[list[tuple[int, int]]]:
        yield [(0, 5)]
        yield [(0, 5)]
        yield [(0, 5), (1, 5)]
        yield [(1, 5)]
        yield [(1, 5)]

    found = timed(generate, [[1], [2]], 3)
    assert found["tail_tokens"] == 2
    assert 0 < found["tail_seconds"] < found["seconds"]


def test_an_engine_that_gives_too_few_tokens_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="3 tokens"):
        timed(lambda _prompts, _new: iter([[(0, 1)]]), [[1]], 3)


def test_what_an_engine_prints_does_not_disturb_its_answers(tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(SCRIPT.format(folder=str(Path(ours.__file__).parent)))
    engine = Provider("fake", "none", [sys.executable, str(script)], [])
    assert engine.generate([[1], [2], [3]], 4).tail_tokens == 9
    assert engine.generate([[1]], 2).tail_tokens == 1
    engine.stop()


def test_prompts_are_new_in_every_repeat_and_the_same_for_all() -> None:
    assert prompts("a", 2, 5, 0) == prompts("a", 2, 5, 0) != prompts("a", 2, 5, 1)
    assert prompts("a", 2, 5, 0) != prompts("b", 2, 5, 0)
    assert [len(p) for p in prompts("a", 3, 7, 0)] == [7, 7, 7]


class Listening(Provider):
    """Remembers how the prompts of each measurement begin."""

    beginnings: set[tuple[int, ...]]

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> Answer:
        self.beginnings |= {tuple(p[:16]) for p in prompts}
        return Answer(float(new), 1.0, 1)


def test_no_two_measurements_have_a_prompt_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Listening("all ears", "w", [], [])
    monkeypatch.setattr(measurements, "GROWTH", (128, 512, 2048))
    seen: list[tuple[int, ...]] = []
    for measurement in measurements.measurements(("decode", "prefill", "growth")):
        for seed in (0, 1):
            engine.beginnings = set()
            measurement.value(engine, seed)
            seen += engine.beginnings
    assert len(seen) == len(set(seen)) > 2 * (1 + 8 + 32)


def test_our_engine_reuses_no_prefixes_either() -> None:
    assert ours.CONFIG.prefix_caching is False


@pytest.mark.parametrize("script", sorted(path.stem for path in SCRIPTS))
def test_scripts_lack_nothing_but_the_engine_of_a_peer(script: str) -> None:
    missing = None
    try:
        importlib.import_module(script)
    except ModuleNotFoundError as error:
        missing = error.name
    assert missing in (None, *PEERS)


def test_works_take_turns_and_the_first_round_warms_up() -> None:
    calls: list[tuple[str, int]] = []

    def work(name: str, seed: int) -> Measured:
        calls.append((name, seed))
        return Measured(seed, 0.0)

    found = in_turns({n: lambda s, n=n: work(n, s) for n in "ab"}, Effort(2))
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [m.value for m in found["a"]] == [1, 2]


def test_disturbed_repeats_are_done_again_and_the_cleanest_count() -> None:
    found = in_turns({"a": lambda seed: Measured(seed, 0.5 if seed < 3 else 0.0)}, Effort(2))
    assert [m.value for m in found["a"]] == [3, 4]
    busy = in_turns({"a": lambda seed: Measured(seed, 0.5)}, Effort(2))
    assert len(busy["a"]) == 2


def test_no_repeat_begins_behind_the_limit_but_one_always_does() -> None:
    found = in_turns({"a": lambda seed: Measured(seed, 0.0)}, Effort(5, warm_up=False, limit_s=0))
    assert [m.value for m in found["a"]] == [0]


class Clockwork(Provider):
    """An engine that needs no process."""

    def used_seconds(self) -> float:
        return 0.0


def test_an_engine_that_becomes_too_slow_leaves_its_series(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series = [Measurement(f"s{n}", "x", lambda _e, _s, n=n: n, "series") for n in range(3)]
    series.append(Measurement("other", "x", lambda _e, _s: 9))
    monkeypatch.setattr(run, "measurements", lambda *_: iter(series))
    monkeypatch.setattr(run, "SLOWEST_GROWTH_S", -1)
    engines = {"slow": Clockwork("slow", "w", [], [])}
    rows = list(run.compare(Namespace(parts=(), longest=1, repeats=1), {}, engines))
    assert [row["what"] for row in rows] == ["s0", "other"]
    assert "slow leaves the series: s0" in capsys.readouterr().out


def test_slow_starters_start_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [Measurement("start", "s", lambda _e, seed: seed, starts=True)]
    monkeypatch.setattr(run, "measurements", lambda *_: iter(starts))
    engines = {
        "quick": Clockwork("quick", "w", [], []),
        "slow": Clockwork("slow", "w", [], [], slow_start=True),
    }
    rows = list(run.compare(Namespace(parts=(), longest=1, repeats=3), {}, engines))
    assert [row["n"] for row in rows] == [3, 1]


def test_rows_go_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    for n in (1.0, 2.0):
        values = [Measured(n, 0.01), Measured(n + 1, 0.02)]
        table.append(path, [table.row({"threads": 2}, "decode", "us", "w", "tok/s", values)])
    rows = list(csv.DictReader(path.open()))
    assert [row["p50"] for row in rows] == ["1.5", "2.5"]
    assert rows[0]["foreign"] == "0.020"
    assert rows[0]["weights"] == "w"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_ceilings_are_within_what_hardware_can_do(tmp_path: Path) -> None:
    program = ceilings.build(tmp_path)
    found = {kind.word: ceilings.rate(program, kind, 1) for kind in ceilings.kinds(program)}
    assert 0.5 < found["read"] < 1000
    # a core does at most a few dot instructions of 128 operations a cycle: more means that they vanished
    assert all(1 < found[word] < 5000 for word in found if word != "read")
