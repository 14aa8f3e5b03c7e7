"""What is measured of an engine, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rusteeze.peers.provider import Provider
from rusteeze.peers.rates import NEW_TOKENS, decode_rate, prefill_rate, prompts

SEQUENCES = (1, 8, 32)
PREFILLS = (512, 2048)
GROWTH_SEQUENCES, GROWTH_NEW = 32, 65
# the last one leaves room for new tokens in a model of 8192
GROWTH = (128, 256, 512, 1024, 2048, 4096, 8064)
TEXT = (
    "The keeper of the lighthouse climbed the stairs every evening, trimmed the wick and wound the"
    " clockwork that turned the lamp. Then he"
)


@dataclass(frozen=True)
class Measurement:
    """What is measured, its unit, and how: the value for an engine in repeat number ``seed``.

    ``series``: measurements of one series grow; an engine that becomes too slow leaves it.
    ``starts``: each value is a process of its own."""

    what: str
    metric: str
    value: Callable[[Provider, int], float]
    series: str = ""
    starts: bool = False


def measurements(parts: Sequence[str], longest: int = GROWTH[-1]) -> Iterator[Measurement]:
    """What to measure of every engine. ``longest``: where growing series end."""
    growth = [n for n in GROWTH if n <= longest and "growth" in parts]
    for n in SEQUENCES if "decode" in parts else ():
        what = f"decode {n}"
        yield Measurement(what, "tok/s", partial(decode_rate, what, n))
    for n in PREFILLS if "prefill" in parts else ():
        what = f"prefill {n}"
        yield Measurement(what, "tok/s", partial(prefill_rate, what, n))
    if "start" in parts:
        yield Measurement("start to first token", "s", first_token, starts=True)
        yield Measurement("peak RSS", "MiB", peak_rss, starts=True)
    for n in growth:
        what = f"prefill {n}, growth"
        yield Measurement(what, "tok/s", partial(prefill_rate, what, n), "prefill")
    for n in growth:
        what = f"decode {GROWTH_SEQUENCES}, context {n}"
        yield Measurement(what, "tok/s", partial(decode_rate_at, what, n), "decode")


def decode_rate_at(what: str, context: int, engine: Provider, seed: int) -> float:
    """Tokens per second of all sequences once every one has its first token."""
    answer = engine.generate(prompts(what, GROWTH_SEQUENCES, context, seed), GROWTH_NEW)
    return answer.tail_tokens / answer.tail_seconds


def first_token(engine: Provider, _: int) -> float:
    return engine.start_afresh(TEXT, 1).first_output_s


def peak_rss(engine: Provider, _: int) -> float:
    return engine.start_afresh(TEXT, NEW_TOKENS).peak_rss_mib
