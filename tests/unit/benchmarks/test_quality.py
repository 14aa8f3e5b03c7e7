"""What is added up of predictions, and the texts and rows of the table of quality."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import quality_table
import torch
from quality_eval import Sums, prediction_of
from quality_table import Job, append, cases, evaluate_cases, keep, kept, make, speed
from quality_text import docstrings
from torch.nn import functional as F

from rusteeze.quantize.calibration import own_text


def test_sums_are_those_of_the_definitions() -> None:
    torch.manual_seed(0)
    truth, found = 3 * torch.randn(2, 2, 6, 50)
    ids = torch.randint(50, (2, 7))
    sums = Sums()
    for window in range(2):
        sums.add(prediction_of(truth[window]), found[window], ids[window])
    means = sums.means
    loss = F.cross_entropy(found.reshape(-1, 50).double(), ids[:, 1:].reshape(-1))
    apart = F.kl_div(found.log_softmax(-1), truth.log_softmax(-1), log_target=True, reduction="sum") / 12
    assert (sums.windows, sums.tokens) == (2, 12)
    assert means["perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert means["kl"] == pytest.approx(float(apart), rel=1e-4)
    assert means["top1"] == float((truth.argmax(-1) == found.argmax(-1)).double().mean())


def test_the_two_texts_share_no_paragraph() -> None:
    read, predicted = (set(text.split("\n\n")) for text in (docstrings(), own_text()))
    long = {paragraph for paragraph in read & predicted if len(paragraph) > 200}
    assert len(read) > 1000
    assert not long


FACTS = {"commit": "abc", "bytes": 5, "bits_per_weight": 3.3, "evaluated": 7, "perplexity": 14.0, "kl": 0.5, "top1": 0.25}
SPEED = {"decode": 100.0, "decode foreign": 0.01, "prefill": 2000.0, "prefill foreign": 0.02, "speed commit": "def"}
WHOLE, SLOW, HALF, *_ = cases()


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quality_table, "ROWS", tmp_path / "quality.csv")
    return tmp_path / "quality.csv"


def job(work: Path, *parts: str, until: float = math.inf) -> Job:
    return Job(Path("m.gguf"), work, 7, until, parts)


def test_a_case_becomes_a_row_when_all_that_was_asked_is_known(rows: Path, tmp_path: Path) -> None:
    all_parts, without_speed = job(tmp_path, *quality_table.PARTS), job(tmp_path, "evaluate", "append")
    for case, facts in ((WHOLE, FACTS | SPEED), (SLOW, FACTS), (HALF, SPEED)):
        keep(all_parts, case, facts)
    for _ in range(2):
        append(all_parts, list(cases()))
    header, *lines = rows.read_text().splitlines()
    assert header.startswith("date,cpu,threads,model,case,")
    assert [line.split(",")[4] for line in lines] == [WHOLE.name]
    assert lines[0].endswith(",5,3.3,7,14.0000,0.50000,0.2500,100.0,2000,0.020,def")
    for _ in range(2):
        append(without_speed, list(cases()))
    *_, slow = rows.read_text().splitlines()
    assert slow.endswith(",5,3.3,7,14.0000,0.50000,0.2500,,,,")
    keep(all_parts, SLOW, SPEED)
    for _ in range(2):
        append(all_parts, list(cases()))
    _, *lines = rows.read_text().splitlines()
    assert [line.split(",")[4] for line in lines] == [WHOLE.name, SLOW.name, SLOW.name]
    assert lines[-1].endswith(",100.0,2000,0.020,def")


def test_a_case_that_is_made_anew_forgets_what_was_known(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[str] = []

    def quantise(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert kept(everything, SLOW) == {}  # a run that is killed here leaves nothing of before
        Path(command[command.index("-o") + 1]).mkdir()
        commits.append("later")
        return subprocess.CompletedProcess(command, 0, '{"bits_per_weight": 3.0}')

    everything = job(tmp_path, *quality_table.PARTS)
    monkeypatch.setattr(quality_table, "windows", lambda *_: [])
    monkeypatch.setattr(quality_table, "open_checkpoint", lambda _: None)
    monkeypatch.setattr(quality_table.machine, "commit", lambda _: "".join(commits) or "before")
    monkeypatch.setattr(quality_table.subprocess, "run", quantise)
    keep(everything, SLOW, FACTS | SPEED)
    make(everything, [SLOW])
    assert kept(everything, SLOW) == {"bits_per_weight": 3.0, "commit": "before"}
    make(everything, [SLOW])
    assert len(commits) == 1


def test_nothing_is_loaded_when_it_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(quality_table, "evaluate", lambda *given: loaded.append(given) or {})
    monkeypatch.setattr(quality_table, "compiled", lambda *given: loaded.append(given))
    monkeypatch.setattr(quality_table, "fingerprint", str)
    (tmp_path / SLOW.name.replace(" ", "-")).mkdir()
    for part in (evaluate_cases, speed):
        part(job(tmp_path, until=-math.inf), [SLOW])
    assert not loaded
    evaluate_cases(job(tmp_path), [SLOW])
    assert len(loaded) == 1


def test_an_evaluation_holds_for_what_was_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, state = [Sums(1, 7, 7.0)], ["first"]
    monkeypatch.setattr(quality_table, "evaluate", lambda _, paths, *rest: dict(zip(paths, found, strict=True)))
    monkeypatch.setattr(quality_table, "fingerprint", lambda path: f"{path} {state[-1]}")
    (tmp_path / SLOW.name.replace(" ", "-")).mkdir()
    for changed, wanted in (("first", math.e), ("first", math.e), ("second", 1.0)):
        state.append(changed)
        evaluate_cases(job(tmp_path), [SLOW])
        assert kept(job(tmp_path), SLOW)["perplexity"] == wanted
        found[0] = Sums(1, 7, 0.0)


def test_only_what_has_groups_states_one() -> None:
    assert {case.name for case in cases() if case.group is None} == {"original", "fp8"}
