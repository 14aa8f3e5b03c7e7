"""benchmarks/gpu.py: sections in processes with limits, and a record that loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import gpu as gpu_command
import gpu_sections
import numpy as np
import pytest
from smollm2 import python
from stub_gpu import MIB, Grid, Kernel, StubGpu, memory


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


class Kernels(dict[str, Kernel]):
    """Kernels that do nothing, but that token 0 is the likeliest."""

    def __getitem__(self, name: str) -> Kernel:
        def run(grid: Grid, words: list[int]) -> None:
            if name.startswith("best_tokens"):
                rows = int(memory(words[0], 1, np.int32)[0])
                for address in words[2:4]:  # of 64 bytes a row
                    memory(address, 64 * rows)[:] = 0

        return run


@pytest.mark.slow
def test_our_sections_run_without_a_gpu(gpu: StubGpu, tmp_path: Path) -> None:
    """With a measuring machine at hand it is too late to find that a plan cannot be made, loaded or measured."""
    pytest.importorskip("triton")
    gpu_command.run_all(tmp_path, True, 120, ["plans"])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert "error" not in record["sections"]["plans"], record["sections"]["plans"]
    assert record["rows"][0]["kernels"] > 5
    assert list((tmp_path / "plans/tiny-bf16/cuda").glob("sm_90/*.cubin"))
    place = gpu_sections.Place(tmp_path, True)
    gpu.reset(512 * MIB)
    gpu.run_kernels(Kernels())
    kinds = [row["what"] for row in gpu_sections.ours(place, "llama2-7b")]
    assert kinds[:7] == ["open", *["step", "step with logits", "engine"] * 2]
    assert kinds[7] == "first token"
    assert set(kinds[8:]) == {"calls"}
    *_, compared = gpu_sections.correctness(place, "smollm2")
    assert compared["passed"] is False, "kernels that do nothing are not right"
    assert next(gpu_sections.ceilings(place))["gb_per_s"] > 0


def test_our_own_sections_need_no_packages_of_peers() -> None:
    folder = str(Path(gpu_command.__file__).parent)
    script = f"import sys; sys.path.insert(0, {folder!r}); import gpu_sections; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert python("-c", script).strip() == "set()"
