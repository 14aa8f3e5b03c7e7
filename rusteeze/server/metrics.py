"""What ``/metrics`` tells. The names are part of the interface: they stay when the code changes.

A *request* here is one sequence: a chat request with n = 3 counts three. Conservation holds whenever
nothing is between two states: started = all of requests_total + active; one time to first token is observed for
each sequence that had a token. The token counters are those of the engine's work, which the usage in an answer
differs from in two cases: each of n choices counts the prompt that the usage counts once, and with max_tokens 0
the one token counts that is drawn and not shown. Times count from arrival. Sequences are observed in the event loop and in the engine's thread; values of the engine are
read at each scrape.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rusteeze.runtime.interface import FinishReason, RequestOutput
from rusteeze.runtime.stats import EngineStats

PREFIX = "rusteeze_inference_"
RATE_SECONDS, RATE_TICK = 10.0, 0.1

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_STATUS = {FinishReason.ABORT: "aborted", FinishReason.ERROR: "error"}


@dataclass(frozen=True)
class Memory:
    """Bytes that stay (weights and scratch; on a GPU the cache too), and that a cache block in use adds."""

    fixed_bytes: int
    block_bytes: int

    def used_bytes(self, stats: EngineStats) -> int:
        return self.fixed_bytes + stats.used_blocks * self.block_bytes


class Metrics:
    """Observes sequences (rusteeze.server.replies.Observer) and writes the exposition."""

    def __init__(
        self, model: str, stats: Callable[[], EngineStats], memory: Memory, device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.registry = CollectorRegistry()
        self._clock = clock
        self._last_token: dict[str, float] = {}
        self._recent: deque[tuple[float, int]] = deque()  # since when, how many tokens
        self._recent_lock = threading.Lock()  # tokens are counted in one thread and summed in another
        self._define_counters(model)
        self._define_histograms(model)
        self.registry.register(EngineValues(stats, memory, device, self._rate))

    def _define_counters(self, model: str) -> None:
        finished = self._counter("requests", "Sequences that ended, by how", ("status", "model"))
        self._finished = {s: finished.labels(s, model) for s in ("success", "aborted", "error")}
        self._started = self._counter("requests_started", "Sequences that were accepted")
        self._aborted = self._counter("requests_aborted", "Sequences cancelled by their client")
        self._rejected = self._counter("requests_rejected", "Sequences refused: the queue was full")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of ended sequences")
        self._generated = self._counter("generation_tokens", "Output tokens of ended sequences")
        self._active = Gauge(
            f"{PREFIX}requests_active", "Sequences accepted that have not ended", registry=self.registry
        )
        self._phases = Gauge(
            "rusteeze_startup_phase_seconds", "Seconds that a phase of the start took", ["phase"],
            registry=self.registry,
        )  # fmt: skip
        self._artifacts = Counter(
            "rusteeze_artifact_cache_requests", "Artifacts looked up at start, by outcome", ["outcome"],
            registry=self.registry,
        )  # fmt: skip

    def _define_histograms(self, model: str) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], **labels: str) -> Histogram:
            made = Histogram(
                PREFIX + name, text, labels, buckets=buckets, registry=self.registry
            )  # fmt: skip
            return made.labels(**labels) if labels else made

        self._latency = histogram(
            "request_latency_seconds", "Arrival to end of a sequence", _SECONDS, model=model
        )
        self._ttft = histogram("time_to_first_token_seconds", "Arrival to first token", _SECONDS)
        self._queue = histogram("queue_time_seconds", "Arrival to first computation", _SECONDS)
        self._between = histogram(
            "inter_token_latency_seconds", "From one token of a sequence to its next", _TOKEN_SECONDS
        )
        self._grammars = histogram(
            "grammar_compile_seconds", "Wait of a request for its grammar", _TOKEN_SECONDS
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def started(self, request_id: str) -> None:
        self._started.inc()
        self._active.inc()

    def rejected(self, count: int) -> None:
        self._rejected.inc(count)

    def output(self, output: RequestOutput) -> None:
        if output.token_ids:
            self._token(output.request_id, len(output.token_ids))
        if output.finish_reason is not None:
            self._end(output, output.finish_reason)

    def startup(self, phases: Mapping[str, float], artifact: str) -> None:
        """Seconds of each phase of the start, and where the artifact came from: hit, miss, quarantined (a broken
        one was compiled again) or given."""
        for phase, seconds in phases.items():
            self._phases.labels(phase).set(seconds)
        self._artifacts.labels(artifact).inc()

    def grammar(self, seconds: float) -> None:
        """How long a request waited for its grammar, which is compiled or found."""
        self._grammars.observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _token(self, request_id: str, count: int) -> None:
        now = self._clock()
        before = self._last_token.get(request_id)
        if before is not None:
            self._between.observe(now - before)
        self._last_token[request_id] = now
        with self._recent_lock:
            since, before = self._recent.pop() if self._recent else (now, 0)
            if now - since >= RATE_TICK:
                self._recent.append((since, before))
                since, before = now, 0
            self._recent.append((since, before + count))
            while self._recent[0][0] < now - RATE_SECONDS:
                self._recent.popleft()

    def _end(self, output: RequestOutput, reason: FinishReason) -> None:
        self._active.dec()
        self._last_token.pop(output.request_id, None)
        self._finished[_STATUS.get(reason, "success")].inc()
        self._aborted.inc(reason is FinishReason.ABORT)
        if output.usage is not None:
            self._prompt_tokens.inc(output.usage.prompt_tokens)
            self._generated.inc(output.usage.completion_tokens)
        if output.timing is not None:
            self._latency.observe(output.timing.total_ms / 1e3)
            for histogram, moment in (
                (self._ttft, output.timing.ttft_ms), (self._queue, output.timing.queue_ms),
            ):  # fmt: skip
                if moment is not None:
                    histogram.observe(moment / 1e3)

    def _rate(self) -> float:
        """Tokens per second over the last RATE_SECONDS."""
        since = self._clock() - RATE_SECONDS
        with self._recent_lock:
            return sum(count for moment, count in self._recent if moment >= since) / RATE_SECONDS


class EngineValues(Collector):
    """Reads the engine when somebody looks."""

    def __init__(
        self, stats: Callable[[], EngineStats], memory: Memory, device: str,
        rate: Callable[[], float],
    ) -> None:  # fmt: skip
        self._stats = stats
        self._memory = memory
        self._device = device
        self._rate = rate

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        yield _gauge("queue_waiting", "Sequences that wait for their turn", now.num_waiting)
        yield _gauge("queue_running", "Sequences that are being computed", now.num_running)
        yield _gauge("kv_cache_usage_ratio", "Share of the cache blocks in use", now.kv_usage)
        yield _gauge("tokens_per_second", f"Output tokens, last {RATE_SECONDS:g} s", self._rate())
        memory = GaugeMetricFamily(
            f"{PREFIX}gpu_memory_used_bytes",
            "Weights, scratch and cache blocks: those in use in main memory (device cpu), all of them on a GPU",
            labels=["device"],
        )
        memory.add_metric([self._device], self._memory.used_bytes(now))
        yield memory
        for name, text, value in (
            ("requests_preempted", "Times a sequence lost its cache", now.num_preemptions),
            ("prefix_cache_queried_tokens", "Prompt tokens looked up", now.prefix_queried_tokens),
            ("prefix_cache_hit_tokens", "Prompt tokens found", now.prefix_hit_tokens),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value)
