"""``rusteeze opt`` on a small graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from rusteeze.ir import parse

Run = Callable[..., Result]
GRAPH = """graph @main(%x: f32[T,8]) {
  @w : f32[8,8] = ""
  %0 = linear(%x, @w, _) : f32[T,8]  # mlp.up
  %1 = sigmoid(%0) : f32[T,8]
  %2 = mul(%1, %0) : f32[T,8]  # mlp.act
  return %2
}
"""


@pytest.fixture
def graph_file(tmp_path: Path) -> str:
    path = tmp_path / "in.ir"
    path.write_text(GRAPH)
    return str(path)


def test_without_passes_the_graph_comes_back(run: Run, graph_file: str) -> None:
    result = run("opt", graph_file)
    assert result.exit_code == 0, result.output
    assert parse(result.stdout) == parse(GRAPH)


def test_passes_run_in_order_with_options(run: Run, graph_file: str) -> None:
    result = run("opt", graph_file, "-p", "raise-activations, fuse{anchor=linear}", "--compare")
    (node,) = parse(result.stdout).nodes
    assert [n.op.name for n in node.body.nodes] == ["linear", "silu"]
    assert "largest relative difference" in result.stderr


def test_json_holds_passes_and_graph(run: Run, graph_file: str, tmp_path: Path) -> None:
    found = json.loads(run("opt", graph_file, "-p", "raising", "--compare", "--json").stdout)
    assert parse(found["graph"]).nodes[-1].op.name == "silu"
    (raised,) = (p for p in found["passes"] if p["name"] == "raise-activations")
    assert (raised["matches"], raised["nodes_before"], raised["nodes_after"]) == (1, 3, 2)
    assert 0 <= found["difference"] < 1e-5
    refused = run("opt", graph_file, "-o", str(tmp_path / "out.ir"), "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_output_file(run: Run, graph_file: str, tmp_path: Path) -> None:
    out = tmp_path / "out.ir"
    result = run("opt", graph_file, "-p", "raising", "-o", str(out))
    assert result.stdout == ""
    assert parse(out.read_text()).nodes[-1].op.name == "silu"


@pytest.mark.parametrize(
    ("flag", "sign"),
    [
        ("--time", "raise-activations             1 matches      3 → 2 nodes"),
        ("--print-after-change", "%1 = silu(%0)"),
        ("--explain", "mul(x, sigmoid(x)) => silu(x)  # mlp.act"),
    ],
)
def test_each_flag_shows_its_own(run: Run, graph_file: str, flag: str, sign: str) -> None:
    signs = ["raise-activations  ", "%1 = silu(%0)", "=> silu(x)"]
    result = run("opt", graph_file, "-p", "raise-activations", flag)
    assert sign in result.stderr
    assert sum(s in result.stderr for s in signs) == 1


def test_explaining_an_unraised_graph_says_so(run: Run, graph_file: str) -> None:
    assert "not raised yet" in run("opt", graph_file, "-p", "fusing", "--explain").stderr
    assert "not raised yet" not in run("opt", graph_file, "-p", "raising,fusing", "--explain").stderr


@pytest.mark.parametrize(
    ("passes", "complaint"),
    [
        ("raise-gold", "no pass 'raise-gold'"),
        ("fuse{anchor=gold}", "no anchor 'gold'"),
        ("fuse{size=3}", "no option 'size'"),
        ("fuse{anchor}", "expected OPTION=VALUE"),
        ("fuse", "anchor"),
        ("quantize-activations{group='x'}", "must be of type int"),
        ("raise-rope{tables=3}", "no option 'tables'"),
        ("raising{x=1}", "no pass 'raising'"),
        ("{}", "cannot read"),
    ],
)
def test_bad_passes_are_one_line(run: Run, graph_file: str, passes: str, complaint: str) -> None:
    result = run("opt", graph_file, "-p", passes)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_bad_graphs_name_their_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.ir"
    path.write_text(GRAPH.replace("sigmoid(%0)", "sigmoid(%7)"))
    result = run("opt", str(path))
    assert result.exit_code == 2
    assert "line 4: %7 is not defined" in result.stderr


def test_numbered_files_in_the_dump_folder(
    run: Run, graph_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUSTEEZE_DUMP", str(tmp_path / "dump"))
    run("opt", graph_file, "-p", "canonicalize,raise-activations")
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert names == ["00-import.ir", "01-canonicalize.ir", "02-raise-activations.ir"]
