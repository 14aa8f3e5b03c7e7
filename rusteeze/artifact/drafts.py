"""Folders under construction: hidden siblings of their destination, held by a living process.

A draft is locked (flock on the folder itself) for as long as its maker lives; the kernel drops the
lock with the process, even after kill -9. So a draft that can be locked has lost its maker and may be
removed. Where a file system cannot lock folders, no draft is ever called stale.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = ".draft-"


@contextmanager
def draft(destination: Path) -> Iterator[Path]:
    """A new, empty folder beside ``destination``; what is left of it goes when the block ends."""
    folder, descriptor = _make(destination)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make(destination: Path) -> tuple[Path, int]:
    while True:
        folder = destination.with_name(f".{destination.name}{_MARK}{os.urandom(6).hex()}")
        folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY)
        # A cleaner may have taken the folder between mkdir and lock: then it is gone, so try again.
        if _lock(descriptor) is not False and folder.exists():
            return folder, descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """True when locked, False when another process holds it, None when locks are not supported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_stale_drafts(folder: Path) -> int:
    """Remove each draft in ``folder`` whose maker is dead; the number removed."""
    return sum(_remove_if_stale(path) for path in folder.glob(f".*{_MARK}*"))


def _remove_if_stale(path: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _lock(descriptor) is True:
                shutil.rmtree(path, ignore_errors=True)
                return True
        finally:
            os.close(descriptor)
    return False
