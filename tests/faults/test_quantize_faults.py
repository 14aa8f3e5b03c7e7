"""Quantising what should not be, where it cannot be written, and after being killed."""

from __future__ import annotations

import fcntl
import resource
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import check_refusal, python_rusteeze, refused, rusteeze
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rusteeze.quantize.gptq import Gptq
from rusteeze.quantize.work import Work

TEXT = "The sea closed behind anyone who had walked out to the lighthouse at the end of the sand. " * 20
SITES = 8  # two layers of four


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "made" / "model"


def arguments(model: Path, made: Path, text: Path, *more: str) -> tuple[str | Path, ...]:
    return ("quantize", model, "-o", made, "--group", "16", "--tokens", "1024", "--calibration", text, *more)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def tensor_bytes(folder: Path) -> int:
    return sum(t.nbytes for path in folder.glob("*.safetensors") for t in load_file(path).values())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_group_that_does_not_divide(folder: Path, made: Path) -> None:
    message = refused("quantize", folder, "-o", made, "--method", "rtn", "--group", "32")
    assert "down_proj.weight has 48 columns, no multiple of the group 32; use --group 16" in message
    assert not list(made.parent.iterdir())


def test_a_matrix_that_a_layout_cannot_hold(folder: Path, made: Path, text: Path) -> None:
    assert "gptq packs 3 bits in whole words" in refused(*arguments(folder, made, text, "--format", "gptq", "--bits", "3"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b" \n ", "is empty"), (b"\xff\xfe\x00", "is no text in UTF-8"), (b"short", "the text has 5 tokens")],
)
def test_texts_that_are_none(content: bytes, words: str, folder: Path, made: Path, text: Path) -> None:
    text.write_bytes(content)
    assert words in refused(*arguments(folder, made, text))


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "fp8"])
def test_weights_that_are_not_finite(method: str, folder: Path, made: Path, text: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda t: t[name].view(-1)[3:4].fill_(torch.nan))
    assert f"{name} holds a number that is not finite" in refused(*arguments(folder, made, text, "--method", method))


def test_activations_that_are_not_finite(folder: Path, made: Path, text: Path) -> None:
    edit_weights(folder, lambda t: t["model.layers.0.post_attention_layernorm.weight"].fill_(3e38))
    assert "on this text is not finite" in refused(*arguments(folder, made, text))


def test_an_output_that_is_there(folder: Path, made: Path, text: Path) -> None:
    made.mkdir(parents=True)
    (made / "thesis.txt").write_text("mine")
    assert "is there already" in refused(*arguments(folder, made, text))
    assert [p.name for p in made.iterdir()] == ["thesis.txt"]


def test_a_model_that_is_quantised_already(folder: Path, made: Path, text: Path) -> None:
    assert rusteeze(*arguments(folder, made, text, "--method", "rtn")).exit_code == 0
    again = made.with_name("again")
    assert "is quantised already (compressed-tensors, 4 bits, group 16)" in refused(*arguments(made, again, text))


def test_an_artifact(artifact: Path, made: Path, text: Path) -> None:
    assert "is an artifact; quantise the model" in refused(*arguments(artifact, made, text))


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("most", [1 << 10, 20 << 10])  # the first site does not fit; the result does not
def test_a_disk_that_takes_no_more(method: str, most: int, folder: Path, made: Path, text: Path) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    command = python_rusteeze(*arguments(folder, made, text, "--method", method))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert "larger than the file system" in check_refusal(done.returncode, done.stderr)
    assert not made.exists()
    assert rusteeze(*arguments(folder, made, text, "--method", method)).exit_code == 0


def test_a_full_disk(folder: Path, made: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("rusteeze.quantize.shards.save_file", full)
    assert "disk full" in refused(*arguments(folder, made, text))
    assert not made.exists()
    monkeypatch.undo()
    assert rusteeze(*arguments(folder, made, text)).exit_code == 0


def test_another_process_at_the_same_folder(folder: Path, made: Path, text: Path) -> None:
    work = made.with_name(f".{made.name}.quantizing")
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is making" in refused(*arguments(folder, made, text))


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("more", [(), ("--target-bits", "3")])
def test_a_killed_run_goes_on_where_it_was(
    more: tuple[str, ...], spoilt: bool, folder: Path, made: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0
    solve, save = Gptq.quantize, Work.save

    def count(*given: Any) -> Any:
        nonlocal done
        done += 1
        return solve(*given)

    def dies_at_the_sixth(work: Work, site: int, record: Any) -> None:
        if site == 5:
            raise Killed
        save(work, site, record)

    monkeypatch.setattr(Gptq, "quantize", count)
    monkeypatch.setattr(Work, "save", dies_at_the_sixth)
    with pytest.raises(Killed):
        rusteeze(*arguments(folder, made, text, *more))
    monkeypatch.setattr(Work, "save", save)
    assert done == 6
    assert not made.exists()
    work = made.with_name(f".{made.name}.quantizing")
    if spoilt:
        with (work / "site-00002.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    assert rusteeze(*arguments(folder, made, text, *more)).exit_code == 0
    assert done == 6 + SITES - 5 + spoilt
    assert not work.exists()
    whole = made.with_name("whole")
    assert rusteeze(*arguments(folder, whole, text, *more)).exit_code == 0
    assert content(made) == content(whole)


def test_what_another_version_had_finished_is_not_used(
    folder: Path, made: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Work.save

    def watched(work: Work, site: int, record: Any) -> None:
        if site == 5 and len(saved) == 5:
            raise Killed
        saved.append(site)
        save(work, site, record)

    monkeypatch.setattr(Work, "save", watched)
    with pytest.raises(Killed):
        rusteeze(*arguments(folder, made, text, "--method", "rtn"))
    monkeypatch.setattr("rusteeze.quantize.quantize.source_hash", lambda rooms: f"another {rooms}")
    assert rusteeze(*arguments(folder, made, text, "--method", "rtn")).exit_code == 0
    assert saved == [*range(5), *range(SITES)]


def test_a_resumed_run_asks_only_for_the_room_that_is_left(
    folder: Path, made: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished lies on the disk already, and so does half a result, which goes first. Scales, embeddings and
    norms take room, too."""
    asked: list[int] = []

    def dies(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr("rusteeze.quantize.quantize.require_free_bytes", lambda _, num_bytes: asked.append(num_bytes))
    monkeypatch.setattr(Work, "publish", dies)
    with pytest.raises(Killed):
        rusteeze(*arguments(folder, made, text, "--method", "rtn"))
    output = made.with_name(f".{made.name}.quantizing") / "output"
    sites, result = tensor_bytes(output.parent), tensor_bytes(output)
    plain = sum(t.nbytes for name, t in load_file(output / "model.safetensors").items() if name.endswith(".weight"))
    monkeypatch.setattr("rusteeze.quantize.quantize.make_plan", dies)
    with pytest.raises(Killed):
        rusteeze(*arguments(folder, made, text, "--method", "rtn"))
    assert not output.exists()
    monkeypatch.undo()
    monkeypatch.setattr("rusteeze.quantize.quantize.require_free_bytes", lambda _, num_bytes: asked.append(num_bytes))
    assert rusteeze(*arguments(folder, made, text, "--method", "rtn")).exit_code == 0
    first, second = asked
    assert first - second == sites
    assert second - sites == plain
    assert second >= result


def test_the_result_is_on_the_disk_before_it_is_in_its_place(
    folder: Path, made: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr("rusteeze.quantize.work.sync_tree", lambda path: synced.append((path.name, made.exists())))
    assert rusteeze(*arguments(folder, made, text, "--method", "rtn")).exit_code == 0
    assert synced == [("output", False)]
