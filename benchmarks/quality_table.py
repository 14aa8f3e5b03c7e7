"""Bytes, quality and speed of one model under every method and width, as rows of quality.csv.

    .venv/bin/python benchmarks/quality_table.py MODEL --work DIR [--minutes 4] [--parts make evaluate speed append]

``make`` quantises (and writes what it calibrates on, for quality_reference.py), ``evaluate`` compares what is there with the original (quality_eval.py), ``speed`` measures the compiled
artifacts in turns (one sequence, as run.py does; with nothing else running; what has the same widths has the same
kernels, and need not be asked twice), ``append`` adds the rows of all cases of which everything is known that the same
call asked for, and adds one again when more is known than in its last row. Each part goes on where an earlier run
stopped; none begins anything new after so many minutes. ``--cases`` names some of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
from engines import compiled
from quality_eval import evaluate, fingerprint, weight_bytes
from quality_text import WINDOW, docstrings

from rusteeze.artifact.files import write_atomic
from rusteeze.frontend.checkpoint import open_checkpoint
from rusteeze.peers.provider import Provider
from rusteeze.peers.rates import decode_rate, prefill_rate
from rusteeze.peers.turns import Effort, in_turns
from rusteeze.peers.watch import watched
from rusteeze.quantize.calibration import windows

ROWS = Path(__file__).with_name("quality.csv")
PARTS = ("make", "evaluate", "speed", "append")
LAST = {"make": "commit", "evaluate": "perplexity", "speed": "prefill"}
"""What is known of a case when a part is done with it."""
GROUP = 64
"""The most that divides 576 columns."""
CALIBRATION_TOKENS = 16384
TOGETHER = 4
"""Models that are evaluated, and measured, at once."""
REPEATS = 3


@dataclass(frozen=True)
class Case:
    name: str
    options: tuple[str, ...] | None
    """Of ``rusteeze quantize``; none for the original."""

    @property
    def group(self) -> int | None:
        """Columns that share a scale; none in the original, nor where a row has one scale."""
        return None if self.options is None or "fp8" in self.options else GROUP


def cases() -> Iterator[Case]:
    yield Case("original", None)
    for bits in ("4", "3", "2"):
        for method in ("rtn", "gptq", "awq"):
            yield Case(f"{method} {bits}", ("--method", method, "--bits", bits))
    for target in ("4", "3.5", "3", "2.5"):
        yield Case(f"gptq mixed {target}", ("--method", "gptq", "--target-bits", target))
    yield Case("fp8", ("--method", "fp8"))


@dataclass(frozen=True)
class Job:
    model: Path
    work: Path
    tokens: int
    until: float
    parts: Sequence[str] = PARTS
    """All that are asked for."""

    def path(self, case: Case) -> Path:
        return self.model if case.options is None else self.work / case.name.replace(" ", "-")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until


def make(job: Job, wanted: list[Case]) -> None:
    text = job.work / "calibration.txt"
    write_atomic(text, docstrings().encode())
    ids = windows(open_checkpoint(job.model), docstrings(), CALIBRATION_TOKENS, WINDOW)
    write_atomic(job.work / "calibration.json", json.dumps([w.tolist() for w in ids]).encode())
    for case in wanted:
        if case.options is None or job.path(case).exists() or job.late:
            continue
        command = [
            sys.executable, "-m", "rusteeze", "quantize", str(job.model), "-o", str(job.path(case)), "--group", str(GROUP),
            "--calibration", str(text), "--tokens", str(CALIBRATION_TOKENS), *case.options, "--json",
        ]  # fmt: skip
        _facts_file(job, case).unlink(missing_ok=True)  # what was known is of another result
        commit = machine.commit(ROWS.parents[1])
        facts = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        keep(job, case, json.loads(facts) | {"commit": commit})


def evaluate_cases(job: Job, wanted: list[Case]) -> None:
    waiting = [c for c in wanted if job.path(c).exists() and kept(job, c).get("evaluation") != _evaluation(job, c)]
    for some in _groups(job, waiting):
        paths = {job.path(c).name: job.path(c) for c in some}
        found = evaluate(job.model, paths, job.tokens, job.work, job.until)
        for case in some:
            if (sums := found.get(job.path(case).name)) is not None:
                size, evaluation = weight_bytes(job.path(case)), _evaluation(job, case)
                keep(job, case, {"evaluation": evaluation, "bytes": size, "evaluated": sums.tokens, **sums.means})


def _evaluation(job: Job, case: Case) -> str:
    """Names what is compared, and on how much."""
    return f"{fingerprint(job.model)} {fingerprint(job.path(case))} {job.tokens}"


def speed(job: Job, wanted: list[Case]) -> None:
    """The compiled artifacts of some cases at a time, in turns."""
    for some in _groups(job, [c for c in wanted if job.path(c).exists() and "prefill" not in kept(job, c)]):
        engines = {c: compiled(job.path(c), c.name, job.work, machine.cores()) for c in some}
        try:
            if not job.late:
                _measure(job, engines)
        finally:
            for engine in engines.values():
                engine.stop()


def _measure(job: Job, engines: Mapping[Case, Provider]) -> None:
    commit = machine.commit(ROWS.parents[1])
    for what, value in (("decode", partial(decode_rate, "decode 1", 1)), ("prefill", partial(prefill_rate, "prefill 512", 512))):  # fmt: skip
        work = {
            c.name: lambda seed, e=e, value=value: watched(lambda: value(e, seed), e.used_seconds)
            for c, e in engines.items()
        }
        found = in_turns(work, Effort(REPEATS))
        for case in engines:
            middle = sorted(m.value for m in found[case.name])[len(found[case.name]) // 2]
            foreign = max(m.foreign for m in found[case.name])
            keep(job, case, {what: middle, f"{what} foreign": foreign, "speed commit": commit})


def append(job: Job, wanted: list[Case]) -> None:
    """A row for each case that is evaluated and of which all is known that was asked for; none twice."""
    machine_facts = {"date": time.strftime("%Y-%m-%d"), "cpu": machine.cpu_model(), "threads": machine.cores()}
    for case in wanted:
        known = kept(job, case)
        if not _is_whole(job, case, known) or known.get("appended") == row(case, known):
            continue
        found = {**machine_facts, "model": job.model.name, **row(case, known)}
        is_new = not ROWS.exists()
        with ROWS.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(found), lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(found)
        keep(job, case, {"appended": row(case, known)})
        print(found)


def _is_whole(job: Job, case: Case, known: Mapping[str, Any]) -> bool:
    asked = [part for part in LAST if part in job.parts and not (part == "make" and case.options is None)]
    return "perplexity" in known and all(LAST[part] in known for part in asked)


def row(case: Case, known: Mapping[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {
        "case": case.name, "commit": known.get("commit", ""), "group": case.group or "", "bytes": int(known["bytes"]),
        "bits a weight": known.get("bits_per_weight", ""), "tokens": known["evaluated"],
        "perplexity": f"{known['perplexity']:.4f}", "kl": f"{known['kl']:.5f}", "top1": f"{known['top1']:.4f}",
        "decode tok/s": "", "prefill 512 tok/s": "", "foreign": "", "speed commit": "",
    }  # fmt: skip
    if "prefill" in known:
        found["decode tok/s"], found["prefill 512 tok/s"] = f"{known['decode']:.1f}", f"{known['prefill']:.0f}"
        found["foreign"] = f"{max(known['decode foreign'], known['prefill foreign']):.3f}"
        found["speed commit"] = known.get("speed commit", "")
    return found


def kept(job: Job, case: Case) -> dict[str, Any]:
    """What is known of a case."""
    file = _facts_file(job, case)
    return dict(json.loads(file.read_text())) if file.exists() else {}


def keep(job: Job, case: Case, facts: Mapping[str, Any]) -> None:
    write_atomic(_facts_file(job, case), (json.dumps(kept(job, case) | dict(facts), indent=1) + "\n").encode())


def _facts_file(job: Job, case: Case) -> Path:
    return job.work / f"{case.name}.facts.json"


def _groups(job: Job, wanted: list[Case]) -> Iterator[list[Case]]:
    """Those that are loaded together, as long as there is time to begin."""
    for start in range(0, len(wanted), TOGETHER):
        if job.late:
            return
        yield wanted[start : start + TOGETHER]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--tokens", type=int, default=50_000, help="to predict")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", metavar="NAME", choices=[c.name for c in cases()])
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    job = Job(asked.model, asked.work, asked.tokens, time.monotonic() + 60 * asked.minutes, asked.parts)
    wanted = [c for c in cases() if asked.cases is None or c.name in asked.cases]
    for part in asked.parts:
        {"make": make, "evaluate": evaluate_cases, "speed": speed, "append": append}[part](job, wanted)


if __name__ == "__main__":
    main()
