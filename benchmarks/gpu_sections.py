"""The sections of gpu.py that are about our engine: plans, correctness, speed, start. Each yields rows.

What needs a GPU says so in a row where there is none; it has not been run on one so far.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_models
import numpy as np
from gpu_models import INT4, make_plan, names_with_plans, open_model, plan_folder

from rusteeze.errors import UserError
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.benchmark import Load, measure
from rusteeze.runtime.config import EngineConfig
from rusteeze.runtime.cuda.device import choose_device
from rusteeze.runtime.cuda.driver import NoDevice
from rusteeze.runtime.cuda.executor import CudaExecutor
from rusteeze.runtime.engine import SyncEngine
from rusteeze.runtime.profile import decode_batches, prefill_batches, take_profile

Rows = Iterator[dict[str, Any]]
BATCHES = (1, 8, 32, 128, 256)
CONTEXT, PROMPT, NEW_TOKENS, RUNS = 256, 512, 32, 20
MODELS = (
    ("tiny", "bf16"), ("smollm2", "bf16"), ("llama2-7b", "bf16"), ("llama3-8b", "bf16"), ("llama2-7b", INT4),
)  # fmt: skip
START_RUNS = 3
COSINE = 0.99


@dataclass(frozen=True)
class Place:
    """Where a section works, and whether on toy shapes."""

    folder: Path
    tiny: bool

    @property
    def plans(self) -> Path:
        return self.folder / "plans"


def plans(place: Place) -> Rows:
    """Make the plans that are missing, for the architecture of the GPU, sm_90 without one."""
    try:
        architecture = choose_device("cuda").architecture
    except NoDevice:
        architecture = "sm_90"
    wanted = MODELS[:1] if place.tiny else MODELS
    there = names_with_plans(place.plans, wanted)
    for name, matrices in wanted:
        if (name, matrices) not in there:
            start = time.perf_counter()
            made = make_plan(
                name, plan_folder(place.plans, name, matrices), (architecture,), len(os.sched_getaffinity(0)), matrices
            )
            yield {"model": name, "matrices": matrices, "seconds": time.perf_counter() - start, **made}


def ours(place: Place, name: str, kind: str = "bf16") -> Rows:
    """Decoding at several batch sizes, step by step and through the engine; the first token; calls."""
    matrices = INT4 if kind == "int4" else kind
    batches: tuple[int, ...] = BATCHES
    if place.tiny:  # too small for groups of 128 columns
        name, matrices, batches = "tiny", "bf16", (1, 2)
    about = {"model": name, "matrices": matrices, "engine": "rusteeze"}
    start = time.perf_counter()
    try:
        executor = open_model(plan_folder(place.plans, name, matrices), max(max(batches) * CONTEXT, PROMPT), PROMPT, max(batches))
    except NoDevice as error:
        yield {**about, "skipped": str(error)}
        return
    yield {**about, "what": "open", "seconds": time.perf_counter() - start, "device_bytes": executor.device_bytes}
    try:
        for batch in batches:
            yield {**about, **_step(executor, batch, "step", executor.execute_for_best)}
            yield {**about, **_step(executor, batch, "step with logits", executor.execute)}
            yield {**about, **_through_the_engine(executor, batch)}
        yield {**about, **_first_token(executor)}
        for batch in (batches[0], batches[-1]):
            yield from ({**about, **row} for row in _calls(executor, batch))
    finally:
        executor.close()


def _step(executor: CudaExecutor, batch: int, what: str, run: Callable[[Batch], Any]) -> dict[str, Any]:
    """Median time of a step as the engine sees it: inputs there, graph, likeliest tokens or logits back."""
    (work,) = decode_batches(executor, batch, CONTEXT)
    executor.fill_cache(0x3C)
    seconds = []
    for _ in range(RUNS + 3):
        start = time.perf_counter()
        run(work)
        seconds.append(time.perf_counter() - start)
    middle = float(np.median(seconds[3:]))
    return {"what": what, "batch": batch, "context": CONTEXT, "us": 1e6 * middle, "tokens_per_s": batch / middle}


def _through_the_engine(executor: CudaExecutor, batch: int) -> dict[str, Any]:
    """Scheduler, sampler and all: rates after everybody's first token."""
    engine = SyncEngine(executor, config=EngineConfig(max_num_seqs=batch, prefix_caching=False))
    load = Load(batch, 32, NEW_TOKENS)
    measure(engine, load, executor.vocab_size, 0)
    run = measure(engine, load, executor.vocab_size, 1)
    return {
        "what": "engine", "batch": batch, "tokens_per_s": run.tail_tokens / run.tail,
        "first_token_ms": 1e3 * float(np.median(run.first)),
    }  # fmt: skip


def _first_token(executor: CudaExecutor) -> dict[str, Any]:
    """A prompt alone, up to its logits."""
    length = min(PROMPT, executor.max_model_len)
    work, seconds = prefill_batches(executor, length), []
    for _ in range(RUNS):
        start = time.perf_counter()
        for batch in work:
            executor.execute(batch)
        seconds.append(time.perf_counter() - start)
    return {"what": "first token", "prompt": length, "ms": 1e3 * float(np.median(seconds[2:]))}


def _calls(executor: CudaExecutor, batch: int) -> Rows:
    """Kernels by time, from events between the calls."""
    profile = take_profile(executor, decode_batches(executor, batch, CONTEXT), 1.0)
    by_kernel: dict[str, list[float]] = {}
    for one in profile.calls:
        entry = by_kernel.setdefault(one.kernel, [0, 0.0, 0, 0])
        for place, value in enumerate((1, one.busy_ns, one.bytes, one.flops)):
            entry[place] += value
    for kernel, (count, ns, moved, flops) in sorted(by_kernel.items(), key=lambda item: -item[1][1]):
        yield {
            "what": "calls", "batch": batch, "kernel": kernel, "calls": count, "us": ns / 1e3,
            "gb_per_s": moved / ns if ns else 0, "tflop_per_s": flops / ns / 1e3 if ns else 0,
        }  # fmt: skip


def correctness(place: Place, name: str) -> Rows:
    """Logits of a random model, prompt and decoding, beside transformers in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    name = "tiny" if place.tiny else name
    folder = plan_folder(place.plans, name, "bf16")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(gpu_models.config_of(name), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 48)
    with torch.no_grad():
        wanted = model(torch.tensor(ids)[None]).logits[0].numpy()
    yield {"what": "reference", "model": name, "tokens": len(ids)}
    weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
    try:
        choose_device("cuda")
        executor = open_model(folder, 64, 64, 1, gpu_models.packed(name, weights))
    except NoDevice as error:
        yield {"model": name, "skipped": str(error)}
        return
    try:
        found = gpu_models.logits_of(executor, ids, prompt=40)
    finally:
        executor.close()
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True)]
    worst = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    agree = float((found.argmax(-1) == wanted.argmax(-1)).mean())
    yield {"model": name, "worst_cosine": min(cosines), "largest_error": worst, "same_choice": agree, "passed": min(cosines) > COSINE}


def start(place: Place, name: str) -> Rows:
    """From the start of a process to the first token: open, load code, draw weights, one step, again each time."""
    name = "tiny" if place.tiny else name
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path\n"
        "from gpu_models import open_model; from rusteeze.runtime.profile import prefill_batches\n"
        "e = open_model(Path(sys.argv[1]), 1024, 512, 8); e.execute(prefill_batches(e, 16)[0]); e.close()"
    )
    folder = plan_folder(place.plans, name, "bf16")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    for run in range(START_RUNS):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, str(folder), *paths], capture_output=True, text=True)
        row = {"model": name, "run": run, "seconds": time.perf_counter() - begin}
        yield row if not done.returncode else {"model": name, "skipped": done.stderr.strip().splitlines()[-1]}
        if done.returncode:
            return


def ceilings(place: Place) -> Rows:
    """What the device reaches: by our own copy, and by torch."""
    from rusteeze.runtime.cuda.ceilings import measure_copying
    from rusteeze.runtime.cuda.session import Session

    try:
        session = Session(choose_device("cuda"))
    except UserError as error:
        yield {"what": "driver copy", "skipped": str(error)}
    else:
        found = measure_copying(session, session.stream())
        session.close()
        yield {"what": "driver copy", "gb_per_s": found.read / 1e9}
    yield from peers().ceilings(place.tiny)


def peers() -> Any:
    """What stands beside our engine; our own sections need none of its packages."""
    import gpu_peers

    return gpu_peers


BY_NAME: dict[str, Callable[..., Rows]] = {
    "ceilings": ceilings,
    "plans": plans,
    "correctness": correctness,
    "ours": ours,
    "start": start,
    "matrices": lambda place: peers().matrices(place.tiny),
    "attention": lambda place: peers().attention(place.tiny),
    "torch": lambda place, name: peers().decoding(name, place.tiny),
    "hf": lambda place, name: peers().continuous_batching(name, place.tiny),
}
