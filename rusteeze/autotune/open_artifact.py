"""An artifact as the compiler sees it: its graph lowered again, so that kernels can be built anew.

Weights stay as they are: no schedule changes how they lie.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rusteeze.artifact.contract import Plan, decode_plan
from rusteeze.artifact.cuda_contract import PLAN_FILE
from rusteeze.artifact.store import Manifest, member, verify
from rusteeze.artifact.tuned import TUNING
from rusteeze.codegen.cpu.lower import Lowered
from rusteeze.codegen.cpu.tuning_table import ProcessorTable, read_table
from rusteeze.compiler import building, known_schedules, lower_for_host
from rusteeze.errors import UserError
from rusteeze.ir import parse
from rusteeze.observe import Observer
from rusteeze.runtime.backend import CPU_PLAN
from rusteeze.runtime.weights import WeightFile
from rusteeze.version import compiler_version


class OpenArtifact:
    """``plan`` and ``weights`` as compiled.

    UserError when another version of the compiler made it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = verify(path)
        if self.manifest.compiler != compiler_version():
            raise UserError(f"{path.name}: made by another version of Rusteeze; compile the model again")
        if CPU_PLAN not in self.manifest.files and PLAN_FILE in self.manifest.files:
            raise UserError(f"{path.name} was compiled for GPUs only, and only kernels of processors have schedules to measure")
        self.plan: Plan = decode_plan(member(path, self.manifest, CPU_PLAN).read_bytes())
        self.weights = WeightFile(member(path, self.manifest, "weights.safetensors"))

    def as_compiled(self) -> Lowered:
        """With the schedules that travel in it: its kernels have the names that the plan calls."""
        return self._lowered((read_table(member(self.path, self.manifest, TUNING)).anywhere(),))

    def _lowered(self, tables: tuple[ProcessorTable, ...]) -> Lowered:
        graph = parse(member(self.path, self.manifest, "graph.ir").read_text(encoding="utf-8"))
        return lower_for_host(graph, self.plan.max_model_len, tables)

    def rebuilt(self) -> Callable[[Path], None]:
        """Writes this artifact into a folder, with kernels of the schedules that are known by now."""

        def build(folder: Path) -> None:
            lowered = self._lowered(known_schedules())
            with building(lowered, folder, None, Observer.from_environment()):
                for name in self.manifest.files:
                    if not (folder / name).exists() and not name.startswith("cpu/"):
                        _share(self.path / name, folder / name)

        return build


def _share(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk is another."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
