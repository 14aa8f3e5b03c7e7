"""Files written so that they are either whole or absent, and told apart by their hash.

Knows nothing of artifacts. Sizes are in bytes; a full or read-only disk is one clear ArtifactError.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rusteeze.errors import ArtifactError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, met anywhere in the block, into an ArtifactError that names ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            limit = f"the file system of {folder} or a limit (ulimit -f) allows"
            raise ArtifactError(f"a file of the artifact is larger than {limit}") from error
        if error.errno not in _FULL:
            raise
        raise ArtifactError(f"disk full: more than {_free_text(folder)} is needed") from error


def require_free_bytes(folder: Path, num_bytes: int) -> None:
    """ArtifactError when ``folder``, which must exist, has no room for ``num_bytes`` more."""
    if shutil.disk_usage(folder).free < num_bytes:
        needed = f"{num_bytes / 2**20:.1f} MiB"
        raise ArtifactError(f"disk full: {needed} needed, more than {_free_text(folder)}")


def _free_text(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"the {shutil.disk_usage(folder).free / 2**20:.1f} MiB free at {folder}"


def sha256_file(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """``sync`` for every file and folder under ``root``, itself included."""
    for folder, _, names in os.walk(root):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader, or a crash, meets the old bytes or the new ones."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def tree_bytes(root: Path) -> int:
    """Bytes of all files under ``root``, links not followed; a file that vanishes meanwhile is 0."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).lstat().st_size
    return total
