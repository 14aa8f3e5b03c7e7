"""The names that dashboards rely on, and the laws that the numbers obey."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from live import MODEL, Live, PacedExecutor, live, until
from prometheus_client.parser import text_string_to_metric_families

from rusteeze.runtime.interface import RequestOutput
from rusteeze.server.metrics import Memory, Metrics

P = "rusteeze_inference_"
NAMES = {
    f"{P}requests_total", f"{P}request_latency_seconds", f"{P}requests_active", f"{P}prompt_tokens_total",
    f"{P}generation_tokens_total", f"{P}tokens_per_second", f"{P}gpu_memory_used_bytes",
    f"{P}kv_cache_usage_ratio", f"{P}queue_waiting", f"{P}queue_running", f"{P}time_to_first_token_seconds",
    f"{P}inter_token_latency_seconds", f"{P}queue_time_seconds", f"{P}requests_aborted_total",
    f"{P}prefix_cache_queried_tokens_total", f"{P}prefix_cache_hit_tokens_total", f"{P}requests_rejected_total", f"{P}requests_preempted_total", "rusteeze_startup_phase_seconds",
    "rusteeze_artifact_cache_requests_total", f"{P}grammar_compile_seconds",
}  # fmt: skip
LABELS = {
    f"{P}requests_total": {"status", "model"}, f"{P}request_latency_seconds": {"model"},
    f"{P}gpu_memory_used_bytes": {"device"},
}  # fmt: skip
API = Path(__file__).parents[2] / "docs/api.md"
DASHBOARD = Path(__file__).parents[2] / "grafana/dashboard.json"


def families(server: Live) -> dict[str, Any]:
    """What a scrape says, read by the library's own parser; counters by their full names."""
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = text_string_to_metric_families(answer.body.decode())
    return {f.name + ("_total" if f.type == "counter" else ""): f for f in found}


def finished(server: Live) -> dict[str, float]:
    return {
        status: server.metric(f"{P}requests_total", status=status, model=MODEL)
        for status in ("success", "aborted", "error")
    }


def test_the_names_and_labels(tiny: Live) -> None:
    tiny.service.metrics.startup({"load": 0.5}, "hit")
    tiny.chat()
    found = families(tiny)
    assert set(found) >= NAMES
    for name, labels in LABELS.items():
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == labels
    assert tiny.metric(f"{P}gpu_memory_used_bytes", device="cpu") >= 1000


def test_every_name_is_documented(tiny: Live) -> None:
    text = API.read_text(encoding="utf-8").partition("## Metrics")[2].partition("## Streams")[0]
    written = {name.partition("{")[0] for name in re.findall(r"`([a-z_]+(?:\{[a-z,]+\})?)`", text)}
    there = {name.removeprefix(P) for name in families(tiny) if not name.endswith("_created")}
    assert there <= written
    assert {name for name in written if name.endswith(("_total", "_seconds"))} <= there


def test_tokens_are_those_of_the_answers() -> None:
    with live() as server:
        asked = [{"n": 2, "max_tokens": 3 + i, "messages": [{"role": "user", "content": "a" * i}]} for i in range(6)]
        with ThreadPoolExecutor(6) as pool:
            usages = [a.json()["usage"] for a in pool.map(lambda fields: server.chat(**fields), asked)]
        assert server.metric(f"{P}generation_tokens_total") == sum(u["completion_tokens"] for u in usages)
        # A prompt counts once in an answer's usage but is computed for each choice.
        assert server.metric(f"{P}prompt_tokens_total") == 2 * sum(u["prompt_tokens"] for u in usages)
        assert server.metric(f"{P}tokens_per_second") > 0


def test_the_rate_is_that_of_the_last_ten_seconds(tiny: Live) -> None:
    now = 100.0
    metrics = Metrics(MODEL, tiny.engine.stats, Memory(0, 0), clock=lambda: now)

    def rate() -> float | None:
        return metrics.registry.get_sample_value(f"{P}tokens_per_second")

    for _ in range(600):  # 20 tokens a second, for 30 seconds
        now += 0.05
        metrics.output(RequestOutput("r", token_ids=(1,)))
    assert rate() == pytest.approx(20, rel=0.02)
    now += 5
    assert rate() == pytest.approx(10, rel=0.02)
    now += 5.1
    assert rate() == 0


def test_every_request_with_a_grammar_waits_for_it_once() -> None:
    with live() as server:
        wrong = {"type": "regex", "regex": "("}
        for asked in ({"type": "regex", "regex": "[ab]+"}, {"type": "regex", "regex": "[ab]+"}, wrong):
            server.chat(response_format=asked)
        server.chat()
        assert server.metric(f"{P}grammar_compile_seconds_count") == 3
        assert server.metric(f"{P}grammar_compile_seconds_sum") > 0


def test_the_token_that_is_not_shown_counts() -> None:
    with live() as server:
        assert server.complete(max_tokens=0, echo=True).json()["usage"]["completion_tokens"] == 0
        assert server.metric(f"{P}generation_tokens_total") == 1


def test_what_starts_ends_once_whatever_happens() -> None:
    """Successes, aborts, faults and preemptions: nothing is lost and nothing is counted twice."""
    random = Random(3)
    with live(PacedExecutor(pause=0.001, num_blocks=40)) as server:
        faults = iter(range(10**6))

        def sometimes() -> None:
            if next(faults) % 40 == 39:
                raise RuntimeError

        server.executor.before_step = sometimes

        def one(number: int) -> None:
            fields = {"prompt": [5 + number, 6, 7], "max_tokens": 20 + number, "stream": number % 2 == 0}
            if number % 4:
                server.complete(**fields, ignore_eos=True)
                return
            connection = server.connect("/v1/completions", {**fields, "ignore_eos": True})
            time.sleep(random.random() / 20)
            connection.close()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, range(48)))
        until(server.is_idle)
        started = server.metric(f"{P}requests_started_total")
        ended = finished(server)
        assert started == sum(ended.values())
        assert server.metric(f"{P}requests_active") == 0
        assert all(ended.values()), ended
        assert server.metric(f"{P}requests_aborted_total") == ended["aborted"]
        assert server.metric(f"{P}requests_preempted_total") > 0
        assert server.metric(f"{P}request_latency_seconds_count", model=MODEL) == started
        assert ended["success"] <= server.metric(f"{P}time_to_first_token_seconds_count") <= started
        assert server.metric(f"{P}kv_cache_usage_ratio") == 0


def test_waiting_counts_in_the_time_to_first_token() -> None:
    with live(PacedExecutor(pause=0.02), max_num_seqs=1) as server:
        first = server.connect("/v1/completions", {"prompt": [5], "max_tokens": 20, "ignore_eos": True})
        until(lambda: server.engine.scheduler.num_running == 1)
        second = server.connect("/v1/completions", {"prompt": [6], "max_tokens": 1})
        until(lambda: server.service.engine.num_open == 2)
        assert server.metric(f"{P}queue_running") == 1
        until(lambda: server.metric(f"{P}queue_waiting") == 1)
        until(server.is_idle)
        first.close()
        second.close()
        assert server.metric(f"{P}queue_time_seconds_sum") > 0.15
        assert server.metric(f"{P}time_to_first_token_seconds_sum") > server.metric(f"{P}queue_time_seconds_sum")
        assert server.metric(f"{P}inter_token_latency_seconds_count") == 19


def test_the_dashboard_asks_for_what_there_is(tiny: Live) -> None:
    tiny.service.metrics.startup({"load": 0.5}, "hit")
    tiny.chat()
    text = DASHBOARD.read_text(encoding="utf-8")
    known = {sample.name for family in families(tiny).values() for sample in family.samples}
    dashboard = json.loads(text)
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    named = {word for query in queries for word in _names(query)}
    assert queries
    assert named <= known


def test_the_dashboard_is_one_to_grafana() -> None:
    """Grafana's own types read it, lose nothing of it, and know every panel and query."""
    register_default_plugins()
    written = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    read = Dashboard.from_json(written)
    again = json.loads(JSONEncoder().encode(read))
    assert [p["targets"] for p in again["panels"]] == [p["targets"] for p in written["panels"]]
    assert {k: again[k] for k in ("title", "uid", "time", "tags")} == {
        k: written[k] for k in ("title", "uid", "time", "tags")
    }
    assert all(type(t).__name__ == "Dataquery" for p in read.panels for t in p.targets)
    assert len({panel.id_val for panel in read.panels}) == len(written["panels"])


def _names(query: str) -> set[str]:
    words = "".join(c if c.isalnum() or c == "_" else " " for c in query).split()
    return {word for word in words if word.startswith("rusteeze_")}
