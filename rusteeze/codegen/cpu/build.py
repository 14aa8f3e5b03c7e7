"""Kernels → machine code: TIR → LLVM → object file → shared library, once per instruction set.

The library depends on libc and libm only and exports plain C functions, so that neither TVM nor a
linker is needed where it runs. Our lowering pipeline is short on purpose: everything is already
explicit, and TIR's own simplifier would fold (x + c) - c on floats.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx import compilation_pipeline

from rusteeze.codegen.cpu import ceilings
from rusteeze.codegen.cpu.emit import Emitter
from rusteeze.codegen.cpu.isa import Isa
from rusteeze.codegen.cpu.lowering import Kernel
from rusteeze.codegen.cpu.step_loop import support_text
from rusteeze.errors import UserError
from rusteeze.observe import SOURCES, Observer

PIPELINE = "rusteeze"


class BuildError(UserError):
    """The kernels could not be compiled or linked; says what is missing."""


def _pipeline() -> Any:
    @tvm.transform.module_pass(opt_level=0)
    def lower(module: Any, _context: Any) -> Any:
        return module

    return lower, compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)


def emit_kernel(kernel: Kernel, isa: Isa) -> Any:
    """The kernel's PrimFunc for an instruction set."""
    k = Emitter(kernel.name)
    kernel.emit(k, isa)
    return k.finish()


def code_hash(kernel: Kernel, isa: Isa) -> int:
    """Equal for kernels of one name that compile to the same code."""
    return int(tvm_ffi.structural_hash(emit_kernel(kernel, isa)))


def _export(name: str, target: str, *arguments: str) -> Any:
    """A function that makes an imported LLVM function visible: TVM keeps only what it reaches.

    ``arguments``: their names; tid and nth are numbers, the others pointers."""
    pointer = tvm.ir.PointerType(tvm.ir.PrimType("int64"))
    params = [tirx.Var(a, "int32" if a in ("tid", "nth") else pointer) for a in arguments]
    body = tirx.Evaluate(tirx.call_extern("int32", target, *params))
    return tirx.PrimFunc(params, body).with_attr("global_symbol", name)


def build_module(kernels: Iterable[Kernel], isa: Isa, observer: Observer | None = None) -> Any:
    """The compiled TVM module of all kernels and the step loop."""
    functions = {kernel.name: emit_kernel(kernel, isa) for kernel in kernels}
    if observer and (observer.folder or observer.shows(SOURCES)):
        for name, f in functions.items():
            observer.dump_as(f"kernels/{isa.name}/{name}.py", f.script())
            observer.say(SOURCES, f.script())
    functions["rz_step_once"] = _export("rz_step_once", "rz_step_main", "shared")
    functions["rz_worker"] = _export("rz_worker", "rz_worker_loop", "shared", "tid")
    for ceiling in ceilings.NAMES:
        functions[ceiling] = _export(ceiling, f"{ceiling}_body", "args", "step", "tid", "nth")
    support = isa.support + support_text(isa.machine) + ceilings.ceilings_text(isa.row_tiles[0])
    text = tvm.ir.StringImm(support)
    name, first = next(iter(functions.items()))
    body = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", text, first.body)
    functions[name] = first.with_body(body)
    config = {"tirx.disable_storage_rewrite": True, "tirx.disable_assert": True}
    target = tvm.target.Target(isa.target_dict())
    with tvm.transform.PassContext(opt_level=3, config=config):
        return tirx.build(tvm.IRModule(functions), target=target, pipeline=PIPELINE)


def link(object_file: str, descriptor: int, out: Path) -> None:
    """Object file, open as ``descriptor``, → shared library. BuildError when there is no linker or it
    fails."""
    linker = shutil.which("ld") or shutil.which("ld.lld") or shutil.which("gcc") or shutil.which("cc")
    if linker is None:
        raise BuildError("compiling needs a linker: install binutils (ld) or gcc")
    command = [linker, "-shared", "-s", "-o", str(out), object_file]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, pass_fds=[descriptor]
    )  # fmt: skip
    if done.returncode:
        last = " ".join(done.stderr.split("\n")[-2:]).strip()
        raise BuildError(f"linking failed: {last or f'{linker} ended with {done.returncode}'}")


@contextmanager
def memory_file(name: str) -> Iterator[tuple[str, int]]:
    """Path and descriptor of a file that lies in memory only."""
    descriptor = os.memfd_create(name)
    try:
        yield f"/proc/self/fd/{descriptor}", descriptor
    finally:
        os.close(descriptor)


def build_library(
    kernels: Mapping[str, Kernel], isa: Isa, folder: Path, observer: Observer | None = None
) -> Path:
    """Compile all kernels for one instruction set of this machine into ``folder/<isa>.so``."""
    module = build_module(kernels.values(), isa, observer)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{isa.name}.so"
    # not on the disk: LLVM ends the whole process when it finds the disk full
    with memory_file(isa.name) as (path, descriptor):
        module.write_to_file(path, "o")
        link(path, descriptor, library)
    return library


class LibraryBuilds:
    """Libraries that child processes build while the ``with`` block does something else.

    At the block's end they are there, or BuildError is raised. The children are forks: kernels are
    closures, and the compiler is already loaded here."""

    def __init__(
        self, kernels: Mapping[str, Kernel], isas: Sequence[Isa], folder: Path, jobs: int,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self._children: list[tuple[BaseProcess, Connection]] = []
        if jobs < 2:
            for isa in isas:
                build_library(kernels, isa, folder, observer)
            return
        context = multiprocessing.get_context("fork")
        for isa in isas:
            receiver, sender = context.Pipe(duplex=False)
            work = (sender, kernels, isa, folder, observer)
            child = context.Process(target=_build_in_child, args=work, daemon=True)
            child.start()
            sender.close()
            self._children.append((child, receiver))

    def __enter__(self) -> LibraryBuilds:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for child, receiver in self._children:
            if kind is not None:
                child.terminate()
                child.join()
                continue
            problem = _last_word(receiver)
            child.join()
            if problem:
                raise BuildError(problem)


def _last_word(receiver: Connection) -> str:
    """What a child says when it is done: "" or a problem."""
    try:
        return receiver.recv_bytes().decode()
    except EOFError:
        return "a compiler process died without a word (out of memory?); try --jobs 1"


def _build_in_child(
    sender: Connection, kernels: Mapping[str, Kernel], isa: Isa, folder: Path, observer: Observer | None
) -> None:
    _close_inherited(sender.fileno())
    try:
        build_library(kernels, isa, folder, observer)
        problem = ""
    except Exception as error:
        problem = f"building kernels for {isa.name} failed: {error}"
    sender.send_bytes(problem.encode())
    sender.close()


def _close_inherited(kept: int) -> None:
    """Let go of the parent's files: its locks must end with it, however it ends."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
