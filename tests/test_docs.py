"""The documents say what is so: commands, options, paths, passes, figures; and the walkthrough runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from rusteeze.cli.main import SUBCOMMANDS, main
from rusteeze.ir import parse, print_graph
from rusteeze.passes.pipeline import PASS_TYPES

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    p for folder in (".", "docs", "benchmarks") for p in (ROOT / folder).glob("*.md")
)
IDS = [str(p.relative_to(ROOT)) for p in DOCUMENTS]
COMMAND = re.compile(r"(?:^ {4}|`|^)(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?rusteeze ([a-z-][^`#\n]*)", re.M)
TARGET = re.compile(r"(?:^ {4}|`)make ([a-z]+)", re.M)
LINK = re.compile(r"\]\(([^)#]+)\)")
PATH = re.compile(r"`((?:docs|tests|tools|benchmarks|rusteeze)/[\w./-]*)`")
AGENTS_LINES = 15

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)


def commands(text: str) -> Iterator[list[str]]:
    """The words after `rusteeze` of every command in a text."""
    for line in COMMAND.findall(text):
        yield shlex.split(line.strip())


def unknown_words(words: list[str]) -> list[str]:
    """What of a command line does not exist: the subcommand, or options that it does not have."""
    while words and words[0] in ("-l", "--log-level"):
        words = words[2:]
    name = words[0] if words else ""
    if name not in SUBCOMMANDS:
        return [] if name.isupper() else [name]
    command = import_module(f"rusteeze.cli.{name}").command
    if isinstance(command, click.Group) and len(words) > 1:
        if words[1] not in command.commands:
            return [words[1]]
        command = command.commands[words[1]]
    known = {o for p in [*command.params, *main.params] for o in [*p.opts, *p.secondary_opts]}
    given = [word.partition("=")[0] for word in words if word.startswith("-") and word != "-"]
    return [option for option in given if option not in known]


@each_document
def test_commands_and_their_options_exist(path: Path) -> None:
    assert [w for words in commands(path.read_text()) for w in unknown_words(words)] == []


def test_the_readme_shows_every_subcommand() -> None:
    shown = {words[0] for words in commands((ROOT / "README.md").read_text())}
    assert set(SUBCOMMANDS) <= shown


def test_the_checks_can_fail() -> None:
    text = "    rusteeze compile m.gguf --fly\n`rusteeze -l info sing`\n    rusteeze cache burn\n"
    found = [unknown_words(words) for words in commands(text)]
    assert found == [["--fly"], ["sing"], ["burn"]]


@each_document
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(TARGET.findall(path.read_text())) <= targets


@each_document
def test_paths_exist(path: Path) -> None:
    text = path.read_text()
    named = [path.parent / link for link in LINK.findall(text) if "://" not in link]
    named += [ROOT / name for name in PATH.findall(text)]
    assert [str(p) for p in named if not p.exists()] == []


def test_the_ir_document_shows_graphs_that_can_be_read() -> None:
    text = (ROOT / "docs/ir.md").read_text()
    graphs = re.findall(r"^```\n(graph @.*?)^```", text, re.M | re.S)
    assert graphs
    assert [print_graph(parse(graph)) for graph in graphs] == graphs


def test_the_passes_are_listed() -> None:
    named = set(re.findall(r"`([\w-]+)", (ROOT / "docs/passes.md").read_text()))
    assert {p.name for p in PASS_TYPES} <= named


def test_agents_read_little() -> None:
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) <= AGENTS_LINES


@pytest.mark.slow
def test_the_walkthrough_runs() -> None:
    done = subprocess.run(
        [sys.executable, "docs/walkthrough.py"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "RUSTEEZE_DEBUG": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "next token: ours" in done.stdout


def test_benchmarks_explain_themselves() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    text = (ROOT / "benchmarks/README.md").read_text()
    for option in set(re.findall(r"`?(--[a-z]+)", done.stdout)) - {"--help"}:
        assert option in text
