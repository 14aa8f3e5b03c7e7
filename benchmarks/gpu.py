"""Everything that is measured on an NVIDIA GPU, by one command within nine minutes.

    PYTHONPATH=. python benchmarks/gpu.py --out DIR                       on the machine with the GPU
    PYTHONPATH=. python benchmarks/gpu.py --out DIR --only plans          anywhere: makes DIR/plans, a few MB
    PYTHONPATH=. python benchmarks/gpu.py --out DIR --tiny                toy shapes; without a GPU, what needs none

It runs from a source checkout and needs numpy, msgspec and filelock; cuda-bindings for our engine; torch for peers and
correctness; transformers for plans, correctness and Hugging Face; triton for plans, unless --out has them.

Each section is a process of its own with a limit of its own: a crash or a hang costs one section. Rows are
saved in DIR/gpu.json after each section, with device and versions. No section has been run on a GPU so far;
--tiny has, without one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROW = "ROW "
LEAST_SECONDS = 10
TAIL = 800

# Section to its limit in seconds, most wanted first; all together within LIMIT.
LIMIT = 540
TINY_SECONDS = 150  # of a section of --tiny, on whatever processor
SECTIONS = {
    "ceilings": 25,
    "plans": 75,
    "correctness:tiny": 20,
    "correctness:smollm2": 30,
    "ours:llama2-7b": 45,
    "ours:llama3-8b": 45,
    "ours:llama2-7b:int4": 40,
    "start:smollm2": 20,
    "matrices": 50,
    "attention": 30,
    "torch:llama2-7b": 50,
    "torch:llama3-8b": 50,
    "hf:llama3-8b": 60,
}


@dataclass
class Record:
    """What DIR/gpu.json holds."""

    when: str
    tiny: bool
    machine: dict[str, str]
    sections: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Replace the file in one step: a killed run leaves the last whole one."""
        text = json.dumps(asdict(self), indent=1)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            file.write(text)
        os.replace(file.name, folder / "gpu.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; with --section, one section in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, and of plans")
    parser.add_argument("--tiny", action="store_true", help="toy shapes")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds in all")
    parser.add_argument("--only", nargs="*", metavar="SECTION", help="sections, or the first words of their names")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.section:
        run_section(asked.section, asked.out, asked.tiny)
    else:
        run_all(asked.out, asked.tiny, asked.limit, chosen(asked.only))


def chosen(words: Sequence[str] | None) -> list[str]:
    """Sections by their names or first words, in order; all where nothing was asked."""
    if not words:
        return list(SECTIONS)
    found = [s for s in SECTIONS if s in words or s.partition(":")[0] in words]
    if not found:
        raise SystemExit(f"there is no section {' '.join(words)}; there are {' '.join(SECTIONS)}")
    return found


def run_all(folder: Path, tiny: bool, limit: float, sections: Sequence[str]) -> None:
    """Sections in order within the limit; the record is saved after each."""
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), tiny, machine(), {}, [])
    end = time.monotonic() + limit
    for section in sections:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            record.sections[section] = {"error": "no time left"}
        else:
            record.sections[section], rows = supervised(section, folder, tiny, min(TINY_SECONDS if tiny else SECTIONS[section], left))
            record.rows += [{"section": section, **row} for row in rows]
        record.save(folder)
        print(section, json.dumps(record.sections[section]), flush=True)


def supervised(
    section: str, folder: Path, tiny: bool, seconds: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A section in a process of its own: how it went, and its rows, those before a failure too."""
    command = [sys.executable, __file__, "--out", str(folder), "--section", section, *(["--tiny"] if tiny else [])]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:  # a pipe could be kept open by a process that outlives its parent
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        how: dict[str, Any] = {}
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # compilers that it started included
            process.wait()
            how["error"] = f"took longer than {seconds:.0f} s"
        output.seek(0)
        text = output.read()
    rows = [json.loads(line[len(ROW) :]) for line in text.splitlines() if line.startswith(ROW)]
    if process.returncode and "error" not in how:
        how["error"] = f"exit status {process.returncode}"
    if "error" in how:
        how["tail"] = text[-TAIL:]
    return {"seconds": round(time.monotonic() - start, 1), "rows": len(rows), **how}, rows


def run_section(section: str, folder: Path, tiny: bool) -> None:
    """One section in this process; every row goes to stdout at once."""
    import gpu_sections

    name, *rest = section.split(":")
    for row in gpu_sections.BY_NAME[name](gpu_sections.Place(folder, tiny), *rest):
        print(ROW + json.dumps(row), flush=True)


def machine() -> dict[str, str]:
    """Device, driver and versions, asked without importing any of it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in ("torch", "triton", "transformers", "numpy", "cuda-bindings"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or "none"
    except (OSError, subprocess.TimeoutExpired):
        found["gpu"] = "none"
    return found


if __name__ == "__main__":
    main()
