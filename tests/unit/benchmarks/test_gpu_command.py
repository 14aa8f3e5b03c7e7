"""benchmarks/gpu.py: sections in processes with limits, and a record that loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import gpu as gpu_command
import pytest


def test_all_sections_fit_into_nine_minutes() -> None:
    assert sum(gpu_command.SECTIONS.values()) <= gpu_command.LIMIT <= 540


def test_sections_are_chosen_by_name_or_first_word() -> None:
    assert gpu_command.chosen(["start:smollm2", "correctness"]) == [
        "correctness:tiny", "correctness:smollm2", "start:smollm2",
    ]  # fmt: skip
    assert gpu_command.chosen(None) == list(gpu_command.SECTIONS)
    with pytest.raises(SystemExit, match="there is no section speed"):
        gpu_command.chosen(["speed"])


def test_without_time_the_record_says_so(tmp_path: Path) -> None:
    gpu_command.run_all(tmp_path, True, 0, ["ceilings"])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["sections"] == {"ceilings": {"error": "no time left"}}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]


def test_a_section_that_hangs_is_ended(tmp_path: Path) -> None:
    how, rows = gpu_command.supervised("ceilings", tmp_path, True, 0.05)
    assert how["error"] == "took longer than 0 s"
    assert rows == []


def test_rows_before_a_failure_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text('print("ROW {\\"a\\": 1}", flush=True)\nraise SystemExit("no more")\n')
    monkeypatch.setattr(gpu_command, "__file__", str(broken))
    how, rows = gpu_command.supervised("ceilings", tmp_path, True, 20)
    assert rows == [{"a": 1}]
    assert how["error"] == "exit status 1"
    assert "no more" in how["tail"]


@pytest.mark.slow
def test_a_plan_is_made_without_a_gpu(tmp_path: Path) -> None:
    """With a measuring machine at hand it is too late to find that a plan cannot be made."""
    pytest.importorskip("triton")
    gpu_command.run_all(tmp_path, True, 120, ["plans"])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert "error" not in record["sections"]["plans"], record["sections"]["plans"]
    (row,) = record["rows"]
    assert row["kernels"] > 5
    assert list((tmp_path / "plans/tiny-bf16/cuda").glob("sm_*/*.cubin"))
