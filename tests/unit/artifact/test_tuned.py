"""The processor's name, and what of the user's table decides an artifact's key."""

from __future__ import annotations

from pathlib import Path

import pytest

from rusteeze import env
from rusteeze.artifact.tuned import fingerprint, processor, user_table

X86 = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t: 9\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU part\t: 0xd40\n"


def test_the_processor_is_told_by_name_and_model(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(X86)
    assert processor(cpuinfo) == "AMD EPYC family 26 model 2"
    cpuinfo.write_text(ARM)
    assert processor(cpuinfo).endswith(" part 0xd40")
    assert processor(tmp_path / "none")


def test_the_fingerprint_follows_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.CACHE.name, str(tmp_path))
    assert user_table() == tmp_path / "tuning.json"
    none = fingerprint()
    user_table().write_text("{}")
    some = fingerprint()
    user_table().write_text("{ }")
    assert len({none, some, fingerprint()}) == 3
    user_table().unlink()
    assert fingerprint() == none
