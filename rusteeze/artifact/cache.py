"""The cache of compiled artifacts: content key in, verified folder out.

    ROOT/artifacts/KEY.rz                 entries, published atomically
                   .KEY.lock              held while KEY is built or removed
                   .quarantine-KEY-*      entries that failed verification, kept until the next one or gc
         kernels/                         single GPU kernels (codegen/gpu/build.py), which compiling reuses

An entry is a cache, never a chore: a broken one is set aside and built again, several processes that
want the same one build it once, and a cache that cannot be written is bypassed with a warning.
Example: ``get_or_build(key, build)`` gives a folder for ``runtime.llm.load``.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rusteeze import env
from rusteeze.artifact.drafts import remove_stale_drafts
from rusteeze.artifact.files import tree_bytes
from rusteeze.artifact.store import publish, verify
from rusteeze.errors import ArtifactError, UserError

log = logging.getLogger(__name__)

SUFFIX = ".rz"
_QUARANTINE = ".quarantine-"
_DOOMED = ".doomed-"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{3,127}")
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)

Build = Callable[[Path], None]


@dataclass(frozen=True)
class Entry:
    """One cached artifact. ``used`` is the time of its last use, in seconds since the epoch."""

    key: str
    path: Path
    bytes: int
    used: float


def cache_dir() -> Path:
    """Where the cache lies: $RUSTEEZE_CACHE or ~/.cache/rusteeze. It need not exist."""
    return env.CACHE.get()


def kernels_dir(root: Path | None = None) -> Path:
    """Where compiled kernels of GPUs are kept one by one. It need not exist."""
    return (root or cache_dir()) / "kernels"


def entry_path(key: str, root: Path | None = None) -> Path:
    """Where the entry of ``key`` is, or would be. UserError when ``key`` is not a plain word."""
    if not _KEY.fullmatch(key):
        raise UserError(f"{key[:80]!r} is not a cache key")
    return _shelf(root) / f"{key}{SUFFIX}"


def lookup(key: str, root: Path | None = None) -> Path | None:
    """The verified entry of ``key``, or None. A broken entry counts as absent and stays in place."""
    entry = entry_path(key, root)
    if not entry.exists():
        return None
    try:
        verify(entry)
    except ArtifactError as error:
        log.info("cached artifact is broken: %s", error)
        return None
    with suppress(OSError):
        os.utime(entry)
    return entry


def get_or_build(
    key: str, build: Build, *, facts: dict[str, Any] | None = None, root: Path | None = None
) -> Path:
    """The entry of ``key``, built by ``build`` (see ``store.publish``) when absent or broken.

    Safe among processes: one builds, the others wait and then share. On a cache that cannot be
    written the artifact goes to a temporary folder that is removed when this process ends.
    """
    hit = lookup(key, root)
    if hit:
        return hit
    facts = {} if facts is None else facts
    try:
        return _build_locked(key, build, facts, root)
    except _NotWritableError as error:
        log.warning("%s; the artifact is kept only while this process runs", error)
        return _build_temporary(key, build, facts)


def entries(root: Path | None = None) -> list[Entry]:
    """All entries, the one used last first. They are not verified."""
    found = []
    for path in _shelf(root).glob(f"[!.]*{SUFFIX}"):
        with suppress(FileNotFoundError):
            key = path.name.removesuffix(SUFFIX)
            found.append(Entry(key, path, tree_bytes(path), path.stat().st_mtime))
    return sorted(found, key=lambda e: e.used, reverse=True)


def total_bytes(root: Path | None = None) -> int:
    """Bytes of everything that ``clear`` frees: artifacts, quarantined ones included, and kernels."""
    return sum(tree_bytes(folder) for folder in (_shelf(root), kernels_dir(root)))


def gc(max_bytes: int | None = None, root: Path | None = None) -> int:
    """Free what nobody needs; the number of bytes freed.

    Removes drafts of dead processes, quarantined entries and, above ``max_bytes``, the entries used
    longest ago. A process that has an entry open keeps what it has mapped.
    """
    shelf, before = _shelf(root), total_bytes(root)
    remove_stale_drafts(shelf)
    for pattern in (f"{_QUARANTINE}*", f"{_DOOMED}*"):
        _remove_all(shelf.glob(pattern))
    if max_bytes is not None:
        _shrink(entries(root), max_bytes)
    return before - total_bytes(root)


def clear(root: Path | None = None) -> int:
    """Remove every entry, all leftovers and kernels; the number of bytes freed."""
    before = total_bytes(root)
    gc(0, root)
    _remove_all([kernels_dir(root)])
    return before - total_bytes(root)


def remove(key: str, root: Path | None = None) -> None:
    """Remove the entry of ``key``, if there is one; it is compiled again when needed."""
    if entry_path(key, root).exists():
        _remove_entry(entry_path(key, root))


def verify_all(root: Path | None = None) -> dict[str, str | None]:
    """Hash every file of every entry: key to None, or to what is wrong with it."""
    return {entry.key: _fault(entry.path) for entry in entries(root)}


class _NotWritableError(UserError):
    """The cache cannot be written here."""


def _shelf(root: Path | None) -> Path:
    return (root or cache_dir()) / "artifacts"


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the lock of one entry. The kernel frees it when the holder dies, however it dies."""
    path = entry.with_name(f".{entry.stem}.lock")
    _require_writable(entry.parent, path)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for another process that compiles the same model")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _require_writable(shelf: Path, lock: Path) -> None:
    """Asked before locking: a lock file that may not be opened would look like one held forever."""
    try:
        shelf.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise _NotWritableError(f"cannot create {shelf}: {error.strerror}") from error
    for path in (shelf, lock):
        if path.exists() and not os.access(path, os.W_OK):
            raise _NotWritableError(f"cannot write {path}")


def _build_locked(key: str, build: Build, facts: dict[str, Any], root: Path | None) -> Path:
    entry = entry_path(key, root)
    with _locked(entry):
        hit = lookup(key, root)
        if hit:
            return hit
        _quarantine(entry)
        publish(entry, build, key=key, facts=facts)
    limit = env.CACHE_LIMIT.get()
    if limit is not None:
        _shrink([e for e in entries(root) if e.path != entry], limit - tree_bytes(entry))
    return entry


def _build_temporary(key: str, build: Build, facts: dict[str, Any]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rusteeze-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    entry = folder / f"{key}{SUFFIX}"
    publish(entry, build, key=key, facts=facts)
    return entry


def _quarantine(entry: Path) -> None:
    """Set a broken entry aside, for study. Only the latest is kept: a fault may come back forever."""
    if not entry.exists() and not entry.is_symlink():
        return
    prefix = f"{_QUARANTINE}{entry.stem}-"
    _remove_all(entry.parent.glob(f"{prefix}*"))
    aside = entry.with_name(prefix + os.urandom(4).hex())
    entry.rename(aside)
    log.warning("set the broken artifact aside as %s; compiling again", aside)


def _shrink(candidates: list[Entry], max_bytes: int) -> None:
    """Remove the last of ``candidates`` until the rest fit into ``max_bytes``."""
    kept = 0
    for entry in candidates:
        kept += entry.bytes
        if kept > max_bytes:
            _remove_entry(entry.path)


def _remove_entry(entry: Path) -> None:
    """Remove one entry at a stroke: renamed first, so that no half of it is ever met under its key."""
    doomed = entry.with_name(f"{_DOOMED}{os.urandom(6).hex()}")
    with _locked(entry), suppress(FileNotFoundError):
        entry.rename(doomed)
    _remove_all([doomed])


def _remove_all(paths: Iterator[Path] | list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _fault(path: Path) -> str | None:
    try:
        verify(path, full=True)
    except ArtifactError as error:
        return str(error)
    return None
