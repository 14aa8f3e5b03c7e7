"""How an artifact lies on disk: published whole or not at all, and checked before it is trusted.

    NAME.rz/manifest.json   schema, key, compiler, facts, and the size and SHA-256 of every other file
            .verified       which big files were hashed already: a shortcut, never part of the artifact
            ...             what the compiler built; this module does not look inside

Example: ``publish(Path("m.rz"), build, key="…", facts={})``, later ``verify(Path("m.rz"))``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from rusteeze.artifact.drafts import draft, remove_stale_drafts
from rusteeze.artifact.files import disk_errors, sha256_file, sync, sync_tree, write_atomic
from rusteeze.errors import ArtifactError, BrokenArtifact
from rusteeze.version import compiler_version

SCHEMA = 1
MANIFEST = "manifest.json"
VERIFIED = ".verified"
# Files above this are hashed once; their stamp is trusted afterwards, so that starting stays fast.
BIG_BYTES = 8 * 2**20
MAX_MANIFEST_BYTES = 16 * 2**20

# What decoding hostile bytes may raise.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")

Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the artifact must be: its size in bytes and its SHA-256 in hex."""

    bytes: Bytes
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The artifact's own account of itself. ``files`` maps a path inside the folder to its record."""

    schema: int
    key: str
    compiler: str
    facts: dict[str, Any]
    files: dict[str, FileRecord]


class Stamp(msgspec.Struct, frozen=True):
    """How a file looked when its hash was last computed and found to be ``sha256``."""

    bytes: int
    mtime_ns: int
    inode: int
    sha256: str


class _Version(msgspec.Struct):
    """The one field that every schema has."""

    schema: Annotated[int, msgspec.Meta(ge=1, le=2**31)]


def publish(
    dest: Path, build: Callable[[Path], None], *, key: str, facts: dict[str, Any]
) -> Manifest:
    """Run ``build`` on an empty folder and make the result the artifact ``dest``.

    ``dest`` is whole at every moment, or absent: a crash leaves at most a draft, which nobody reads
    and the next call removes. ``facts`` is read after ``build``, which may fill it.
    An artifact already at ``dest`` is replaced; anything else there is an ArtifactError, as is a full
    disk. Errors of ``build`` pass through, and leave nothing behind.
    """
    dest = dest.absolute()
    check_destination(dest)
    with disk_errors(dest.parent):
        dest.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_drafts(dest.parent)
        with draft(dest) as folder:
            build(folder)
            sync_tree(folder)
            manifest = _seal(folder, key, facts)
            _replace(folder, dest)
        return manifest


def verify(path: Path, *, full: bool = False) -> Manifest:
    """The manifest of the artifact at ``path``, after checking every file that it lists.

    Sizes are always compared. Hashes too, except for a file above BIG_BYTES that looks as it did when
    it was last hashed; ``full`` hashes those as well. ArtifactError names the first file at fault.
    """
    manifest = read_manifest(path)
    stamps = _read_stamps(path)
    trusted = {} if full else stamps
    fresh = {}
    for name, record in manifest.files.items():
        stamp = _check_file(path, name, record, trusted.get(name))
        if record.bytes > BIG_BYTES:
            fresh[name] = stamp
    if fresh != stamps:
        _write_stamps(path, fresh)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest, itself checked but not the files that it lists. ArtifactError when it is bad."""
    label = f"{path.name}/{MANIFEST}"
    data = _read_small(path / MANIFEST, label)
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema != SCHEMA:
            raise BrokenArtifact(f"{label}: schema {schema}, this version reads {SCHEMA}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except _UNREADABLE as error:
        raise BrokenArtifact(f"{label}: {error}") from error
    for name in manifest.files:
        _check_name(name, label)
    return manifest


def member(path: Path, manifest: Manifest, name: str) -> Path:
    """Where file ``name`` of the artifact lies. ArtifactError when the manifest does not list it."""
    if name not in manifest.files:
        raise BrokenArtifact(f"{path.name}/{name}: not listed in {MANIFEST}")
    return path / name


def check_destination(dest: Path) -> None:
    """ArtifactError for what must not be overwritten: all but artifacts and empty folders, since a mistyped
    destination must not cost a folder of something else."""
    if not dest.exists() and not dest.is_symlink():
        return
    if dest.is_dir() and not dest.is_symlink():
        if not any(dest.iterdir()):
            return
        with suppress(OSError, *_UNREADABLE):
            msgspec.json.decode((dest / MANIFEST).read_bytes(), type=_Version)
            return
    raise ArtifactError(f"{dest}: exists and is not an artifact, so it is not overwritten")


def _seal(folder: Path, key: str, facts: dict[str, Any]) -> Manifest:
    """Write the manifest, last of all files, over what stands in ``folder``."""
    records, stamps = {}, {}
    for name in sorted(_built_files(folder)):
        stamp = _stamp(folder / name)
        records[name] = FileRecord(stamp.bytes, stamp.sha256)
        if stamp.bytes > BIG_BYTES:
            stamps[name] = stamp
    manifest = Manifest(SCHEMA, key, compiler_version(), facts, records)
    _write_stamps(folder, stamps)
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    write_atomic(folder / MANIFEST, data)
    sync(folder)
    return manifest


def _built_files(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            path = Path(parent) / name
            label = path.relative_to(folder).as_posix()
            _check_name(label, folder.name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ArtifactError(f"{label}: an artifact holds regular files only")
            if path.is_file():
                yield label


def _replace(folder: Path, dest: Path) -> None:
    """Move ``folder`` to ``dest``. An old artifact steps aside first, into a draft that is dropped."""
    while folder.exists():
        with draft(dest) as aside:
            with suppress(FileNotFoundError):
                dest.rename(aside / dest.name)
            _rename_unless_taken(folder, dest)
    sync(dest.parent)


def _rename_unless_taken(folder: Path, dest: Path) -> None:
    """Rename, unless another process has published at ``dest`` a moment ago."""
    try:
        folder.rename(dest)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _check_name(name: str, label: str) -> None:
    if not _NAME.fullmatch(name) or name == MANIFEST:
        raise ArtifactError(f"{label}: {name[:80]!r} is no name for a file of an artifact")


def _check_file(path: Path, name: str, record: FileRecord, stamp: Stamp | None) -> Stamp:
    """The file's present stamp. The file is hashed unless ``stamp`` shows that it was."""
    label = f"{path.name}/{name}"
    found = _lstat(path / name, label)
    inside = (path / name).resolve().is_relative_to(path.resolve())
    if not inside or not stat.S_ISREG(found.st_mode):
        raise BrokenArtifact(f"{label}: not a regular file inside the artifact")
    if found.st_size != record.bytes:
        raise BrokenArtifact(f"{label}: {found.st_size} bytes, the manifest says {record.bytes}")
    seen = Stamp(found.st_size, found.st_mtime_ns, found.st_ino, record.sha256)
    if seen == stamp and record.bytes > BIG_BYTES:
        return seen
    if _hash(path / name, label) != record.sha256:
        raise BrokenArtifact(f"{label}: its content does not match its SHA-256")
    return seen


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino, sha256_file(path))


def _lstat(path: Path, label: str) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise BrokenArtifact(f"{label}: {error.strerror}") from error


def _hash(path: Path, label: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise BrokenArtifact(f"{label}: {error.strerror}") from error


def _read_small(path: Path, label: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BrokenArtifact(f"{label}: {error.strerror}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BrokenArtifact(f"{label}: larger than {MAX_MANIFEST_BYTES} bytes")
    return data


def _read_stamps(path: Path) -> dict[str, Stamp]:
    """Stamps of earlier checks; none when they cannot be read, which only costs a hash."""
    with suppress(OSError, *_UNREADABLE):
        return msgspec.json.decode((path / VERIFIED).read_bytes(), type=dict[str, Stamp])
    return {}


def _write_stamps(path: Path, stamps: dict[str, Stamp]) -> None:
    """Remember the stamps. On a read-only or full disk the next check simply hashes again."""
    with suppress(OSError):
        write_atomic(path / VERIFIED, msgspec.json.encode(stamps))
