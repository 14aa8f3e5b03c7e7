"""All kernels of a plan → cubins, in parallel processes, with a cache of single kernels.

Triton is imported in those processes alone: it comes with an extra that CPU targets do without.

A kernel's key is the hash of everything that its machine code depends on; the cache holds the cubin and what
a launch must know, and serves all models.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rusteeze.artifact.cuda_contract import Binary, Param
from rusteeze.artifact.files import write_atomic
from rusteeze.codegen.gpu.architectures import has_tma
from rusteeze.codegen.gpu.source import Options, Source
from rusteeze.errors import UserError
from rusteeze.observe import SOURCES, Observer

CACHED_CUBIN, CACHED_META = "{key}.cubin", "{key}.json"


class GpuBuildError(UserError):
    """A kernel could not be compiled; names it and says why."""


class Launching(msgspec.Struct, frozen=True):
    """What a launch must know of a cubin."""

    num_warps: int
    shared_bytes: int
    global_scratch_bytes: int
    global_scratch_align: int


@dataclass(frozen=True)
class Job:
    """One kernel for one architecture."""

    name: str
    text: str
    params: tuple[Param, ...]
    options: Options
    architecture: str

    def key(self) -> str:
        """Hash of all that the machine code depends on."""
        ours = [
            Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
            for module in ("functions", "compile_kernel", "architectures")
        ]
        parts = (
            importlib.metadata.version("triton"), *ours, self.text, repr(self.params), repr(self.options),
            self.architecture,
        )  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def build_kernels(
    sources: Mapping[str, Source], architectures: Sequence[str], folder: Path, cache: Path, jobs: int,
    progress: Callable[[float], None], observer: Observer | None = None,
) -> dict[str, tuple[Binary, ...]]:  # fmt: skip
    """Compile what the cache lacks. Binaries by kernel name; files go to ``folder/cuda/<architecture>/``. ``cache``: folder of single
    kernels; ``progress`` gets the finished share. GpuBuildError names the kernel that fails."""
    if importlib.util.find_spec("triton") is None:
        raise GpuBuildError("compiling for GPUs needs the package triton; run: pip install 'rusteeze[compile-gpu]'")
    _show(sources, observer)
    work = [
        Job(name, k.text(has_tma(a)), tuple(k.params), k.options, a) for a in architectures for name, k in sources.items()
    ]
    cache.mkdir(parents=True, exist_ok=True)
    missing = [job for job in work if _cached(cache, job.key()) is None]
    _compile_all(missing, cache, jobs, progress)
    for a in architectures:
        (folder / "cuda" / a).mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[Binary, ...]] = {}
    for job in work:
        entry = _cached(cache, job.key())
        assert entry is not None
        found[job.name] = (*found.get(job.name, ()), _install(job, *entry, folder))
    return found


def _show(sources: Mapping[str, Source], observer: Observer | None) -> None:
    if observer and (observer.folder or observer.shows(SOURCES)):
        for name, source in sources.items():
            observer.dump_as(f"kernels/cuda/{name}.py", source.text())
            observer.say(SOURCES, source.text())


def _install(job: Job, cubin: bytes, launching: Launching, folder: Path) -> Binary:
    name = f"cuda/{job.architecture}/{job.name}.cubin"
    (folder / name).write_bytes(cubin)
    return Binary(job.architecture, name, **msgspec.structs.asdict(launching))


def _cached(cache: Path, key: str) -> tuple[bytes, Launching] | None:
    """A whole entry of the cache; the metadata is written last and holds the cubin's hash."""
    try:
        meta = msgspec.json.decode((cache / CACHED_META.format(key=key)).read_bytes(), type=_Entry)
        cubin = (cache / CACHED_CUBIN.format(key=key)).read_bytes()
    except (OSError, msgspec.DecodeError):
        return None
    return (cubin, meta.launching) if hashlib.sha256(cubin).hexdigest() == meta.sha256 else None


class _Entry(msgspec.Struct, frozen=True):
    sha256: str
    launching: Launching


def _compile_all(
    work: Sequence[Job], cache: Path, jobs: int, progress: Callable[[float], None]
) -> None:
    if not work:
        return
    # not forks: another compiler may be loaded here, with threads of its own
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(min(jobs, len(work)), context, _begin, (scratch,)) as pool,
    ):
        futures = [pool.submit(_compile_job, job, Path(scratch), cache) for job in work]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                problem = future.result()
                if problem:
                    raise GpuBuildError(problem)
                progress(done / len(work))
        except BrokenProcessPool:
            raise GpuBuildError("a compiler process died without a word (out of memory?); try --jobs 1") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(scratch: str) -> None:
    """A new compiler process: Triton's own cache is of no use beside ours."""
    import triton

    triton.knobs.cache.dir = str(Path(scratch) / "triton")


def _compile_job(job: Job, scratch: Path, cache: Path) -> str:
    """Compile into the cache; returns "" or what went wrong."""
    from rusteeze.codegen.gpu.compile_kernel import compile_kernel

    path = scratch / job.architecture / f"{job.name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(job.text, encoding="utf-8")
    try:
        compiled = compile_kernel(path, job.params, job.options, job.architecture)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"compiling {job.name} for {job.architecture} failed: {lines[-1]}"
    cubin, meta = compiled.asm["cubin"], compiled.metadata
    launching = Launching(
        meta.num_warps, meta.shared, getattr(meta, "global_scratch_size", 0), getattr(meta, "global_scratch_align", 1)
    )
    key = job.key()
    write_atomic(cache / CACHED_CUBIN.format(key=key), cubin)
    entry = _Entry(hashlib.sha256(cubin).hexdigest(), launching)
    write_atomic(cache / CACHED_META.format(key=key), msgspec.json.encode(entry))
    return ""
