"""What a MODEL argument names, and the key of the artifact that it compiles to.

Both are answered from the file system alone: a warm start imports neither torch nor transformers, and
nothing here touches the network. Example: ``resolve("model.gguf")`` gives ``Source("gguf", path)``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rusteeze import env
from rusteeze.config import CompileOptions
from rusteeze.errors import UserError

Kind = Literal["folder", "gguf", "hub", "artifact"]

KEY_VERSION = 1
HEAD_BYTES = 2**20
GGUF_MAGIC = b"GGUF"
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt", ".gguf"})

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Source:
    """Where a model lies: ``path`` is a file for "gguf" and a folder otherwise.

    ``hub`` sources are repositories already downloaded; ``name`` is their id, else the file's stem.
    """

    kind: Kind
    path: Path
    name: str

    def files(self) -> list[Path]:
        """The files that make the model, sorted by name."""
        if self.path.is_file():
            return [self.path]
        return sorted(p for p in self.path.iterdir() if p.suffix in MODEL_SUFFIXES and p.is_file())

    @property
    def num_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.files())


def resolve(model: str | Path) -> Source:
    """Find what ``model`` names: a GGUF file, a model folder, an artifact or a downloaded hub id.

    UserError when there is no such thing, with the command that would help.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path.resolve())
    if path.is_file():
        return _file(path.resolve())
    if HUB_ID.fullmatch(str(model)):
        return Source("hub", _snapshot(str(model)), str(model))
    raise UserError(f"{model}: no such file or folder, and not a Hugging Face id like org/name")


def key(source: Source, options: CompileOptions, compiler_version: str, tuning: str = "") -> str:
    """The name under which the artifact of ``source`` is cached: 32 hex digits.

    It covers the name, size, modification time and first MiB of each file, the options that decide
    what is made, the compiler and a fingerprint of the schedules that it finds measured. No environment
    variable enters it.
    """
    facts = {
        "key_version": KEY_VERSION,
        "compiler": compiler_version,
        "tuning": tuning,
        "options": options.key_fields(),
        "files": [_fingerprint(path) for path in source.files()],
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fingerprint(path: Path) -> list[str | int]:
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns, head]


def _file(path: Path) -> Source:
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise UserError(f"{path.name}: not a GGUF file; give a .gguf file or a model folder")
    return Source("gguf", path, path.stem)


def _folder(path: Path) -> Source:
    if (path / "manifest.json").is_file():
        return Source("artifact", path, path.stem)
    if (path / "config.json").is_file():
        return Source("folder", path, path.name)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _file(ggufs[0])
    if ggufs:
        raise UserError(f"{path}: holds {len(ggufs)} GGUF files; name one of them")
    raise UserError(f"{path}: neither a model (config.json) nor an artifact (manifest.json)")


def _snapshot(hub_id: str) -> Path:
    """The newest downloaded snapshot of a repository, as huggingface_hub lays its cache out."""
    root = env.HF_HUB_CACHE.get() or env.HF_HOME.get() / "hub"
    repository = root / ("models--" + hub_id.replace("/", "--"))
    for revision in _revisions(repository):
        snapshot = repository / "snapshots" / revision
        if (snapshot / "config.json").exists():
            return snapshot
    raise UserError(f"{hub_id}: not downloaded; run: rusteeze download {hub_id}")


def _revisions(repository: Path) -> list[str]:
    """Commits to look for: that of the main branch, then any other, the newest first."""
    branch = repository / "refs" / "main"
    named = [branch.read_text().strip()] if branch.is_file() else []
    folders = (repository / "snapshots").glob("*")
    others = sorted(folders, key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return [r for r in named + [p.name for p in others] if _REVISION.fullmatch(r)]
