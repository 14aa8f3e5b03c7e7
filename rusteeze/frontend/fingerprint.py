"""A cheap, stable identity of a checkpoint: enough to know that an artifact was made of these files.

Reading gigabytes to hash them would cost more than compiling, so a weight file counts by its name,
size, time of change and header; only small files count by their content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint_of(weights: Iterable[tuple[Path, bytes]], contents: Iterable[Path] = ()) -> str:
    """Hex SHA-256 over weight files, each with its header, and over the contents of small files."""
    digest = hashlib.sha256()
    for path, header in sorted(weights):
        stat = path.stat()
        _add(digest, f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode(), header)
    for path in sorted(contents):
        _add(digest, path.name.encode(), path.read_bytes())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
