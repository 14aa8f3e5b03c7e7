"""What stands beside our engine in gpu.py: cuBLAS, scaled and int4 products, SDPA, a compiled decoder, Hugging Face.

On the CPU (tiny) what has no meaning there is left out: graphs, float8, int4, the compiled decoder, continuous
batching. Those branches have not been run so far. Products go round over MOST_BYTES of weights, so that no
cache holds them; times are medians of graph replays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from gpu_models import SHAPES, config_of
from torch.nn.attention import SDPBackend, sdpa_kernel

Rows = Iterator[dict[str, Any]]
MOST_BYTES = 400_000_000
REPEATS = 20
LENGTHS = (1, 8, 32, 128, 256, 2048)
ATTENTION = ((1, 2048, 1), (32, 2048, 1), (256, 512, 1), (1, 2048, 2048))  # sequences, context, queries
BATCHES = (1, 8, 32, 128, 256)
CONTEXT, ANSWER = 256, 64


def device(tiny: bool) -> str:
    """The GPU; the CPU for toy shapes where there is none. RuntimeError when there is none otherwise."""
    if torch.cuda.is_available():
        return "cuda"
    if not tiny:
        raise RuntimeError("torch finds no GPU")
    return "cpu"


def median_us(work: Callable[[], Any], where: str) -> float:
    """Microseconds of ``work``: replays of its graph on a GPU, calls on the CPU."""
    if where == "cpu":
        work()
        start = time.perf_counter()
        work()
        return 1e6 * (time.perf_counter() - start)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        times = []
        for _ in range(REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(1e3 * begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def ceilings(tiny: bool) -> Rows:
    """Copying, reading and a large bf16 product by torch."""
    where, size, side = device(tiny), 1 << (20 if tiny else 32), 64 if tiny else 8192
    a = torch.empty(size, dtype=torch.uint8, device=where).random_()
    b = torch.empty_like(a)
    us = median_us(lambda: b.copy_(a), where)
    yield {"what": "torch copy", "us": us, "gb_per_s": 2 * size / us / 1e3}
    us = median_us(lambda: torch.sum(a.view(torch.int32)), where)
    yield {"what": "torch sum", "us": us, "gb_per_s": size / us / 1e3}
    x, y = (torch.randn(side, side, device=where, dtype=torch.bfloat16) for _ in range(2))
    us = median_us(lambda: x @ y, where)
    yield {"what": "torch bf16 product", "us": us, "tflop_per_s": 2 * side**3 / us / 1e6}


def matrices(tiny: bool) -> Rows:
    """The products of a layer and of the head: cuBLAS bf16 and float8, int4 of torch."""
    where = device(tiny)
    for model in ("tiny",) if tiny else ("llama2-7b", "llama3-8b"):
        hidden, inner, _, heads, key_heads, head, _ = SHAPES[model]
        shapes = {
            "qkv": ((heads + 2 * key_heads) * head, hidden), "o": (hidden, heads * head),
            "gate+up": (2 * inner, hidden), "down": (hidden, inner),
        }  # fmt: skip
        for name, (n, k) in shapes.items():
            copies = 1 if tiny else max(1, MOST_BYTES // (2 * n * k))
            weights = [torch.randn(n, k, device=where, dtype=torch.bfloat16) for _ in range(copies)]
            for m in LENGTHS[:2] if tiny else LENGTHS:
                x = torch.randn(m, k, device=where, dtype=torch.bfloat16)
                for kind, bytes_each, product in products(weights, x, where):
                    us = median_us(product, where) / copies
                    yield {
                        "model": model, "matrix": name, "rows": m, "kind": kind, "us": us,
                        "gb_per_s": n * k * bytes_each / us / 1e3, "tflop_per_s": 2 * m * n * k / us / 1e6,
                    }  # fmt: skip


def products(
    weights: list[torch.Tensor], x: torch.Tensor, where: str
) -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """Ways to multiply by all ``weights``, with the bytes of a weight's element."""
    yield "cuBLAS bf16", 2, lambda: [F.linear(x, w) for w in weights]
    if where == "cpu":
        return
    n, k = weights[0].shape
    if len(x) % 16 == 0:
        one, x8 = torch.ones((), device=where), x.to(torch.float8_e4m3fn)
        w8 = [w.to(torch.float8_e4m3fn) for w in weights]
        yield "cuBLAS float8", 1, lambda: [
            torch._scaled_mm(x8, w.t(), one, one, out_dtype=torch.bfloat16) for w in w8
        ]
    if len(x) <= 64:
        codes = torch.randint(0, 255, (n, k // 2), dtype=torch.uint8, device=where)
        packed = [torch._convert_weight_to_int4pack(codes, 8) for _ in weights]
        scales = torch.randn(k // 128, n, 2, device=where, dtype=torch.bfloat16)
        yield "torch int4 g128", 0.5, lambda: [torch._weight_int4pack_mm(x, w, 128, scales) for w in packed]


def attention(tiny: bool) -> Rows:
    """SDPA's back ends over caches that are not paged."""
    where = device(tiny)
    for model in ("tiny",) if tiny else ("llama2-7b", "llama3-8b"):
        _, _, _, heads, key_heads, head, _ = SHAPES[model]
        for sequences, context, queries in ((2, 64, 1), (1, 64, 64)) if tiny else ATTENTION:
            q = torch.randn(sequences, heads, queries, head, device=where, dtype=torch.bfloat16)
            k, v = (torch.randn(sequences, key_heads, context, head, device=where, dtype=torch.bfloat16) for _ in "kv")
            moved = 4 * k.numel()

            def work(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> torch.Tensor:
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
                )

            about = {"model": model, "sequences": sequences, "context": context, "queries": queries}
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
                try:
                    with sdpa_kernel(backend):
                        us = median_us(work, where)
                except RuntimeError as error:
                    yield {**about, "kind": backend.name, "error": str(error).splitlines()[0][:200]}
                else:
                    yield {**about, "kind": backend.name, "us": us, "gb_per_s": moved / us / 1e3}


def decoding(model: str, tiny: bool) -> Rows:
    """A step of Hugging Face's model with a static cache: as it is and through torch.compile, both as graphs."""
    from transformers import StaticCache

    where, model, batches = device(tiny), "tiny" if tiny else model, (1, 2) if tiny else BATCHES
    built = _built(model, where)
    for batch in batches:
        cache = StaticCache(config=built.config, max_cache_len=CONTEXT)
        ids = torch.ones(batch, 1, dtype=torch.long, device=where)
        position = torch.tensor([CONTEXT - 1], device=where)

        def step(run: Any, ids: Any = ids, cache: Any = cache, position: Any = position) -> Any:
            with torch.no_grad():
                return run(ids, past_key_values=cache, cache_position=position, use_cache=True).logits

        runs = {"eager": built} if where == "cpu" else {"eager": built, "compiled": torch.compile(built, dynamic=False)}
        for kind, run in runs.items():
            us = median_us(lambda run=run, step=step: step(run), where)  # type: ignore[misc]
            yield {
                "model": model, "engine": f"transformers, {kind}", "batch": batch, "context": CONTEXT,
                "us": us, "tokens_per_s": 1e6 * batch / us,
            }  # fmt: skip


def continuous_batching(model: str, tiny: bool) -> Rows:
    """Hugging Face's own continuous batching on many prompts at once. Not run so far: it needs a GPU."""
    from transformers import GenerationConfig

    model = "tiny" if tiny else model
    if device(tiny) == "cpu":
        yield {"model": model, "skipped": "continuous batching of transformers needs a GPU"}
        return
    built = _built(model, "cuda")
    settings = GenerationConfig(max_new_tokens=ANSWER, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for batch in (1, 32, 256):
        prompts = torch.randint(5, built.config.vocab_size, (batch, 32)).tolist()
        for run in range(2):  # the first one captures graphs
            start = time.perf_counter()
            answers = built.generate_batch(inputs=prompts, generation_config=settings)
            seconds = time.perf_counter() - start
            tokens = sum(len(answer.generated_tokens) for answer in answers.values())
            yield {
                "model": model, "engine": "transformers, continuous batching", "batch": batch, "run": run,
                "tokens_per_s": tokens / seconds,
            }  # fmt: skip


def _built(model: str, where: str) -> Any:
    """A random model in bf16 on the device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(where):
        return AutoModelForCausalLM.from_config(config_of(model), dtype=torch.bfloat16).eval()
