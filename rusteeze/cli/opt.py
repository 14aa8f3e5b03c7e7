"""``rusteeze opt``: run passes on a graph in text form, so that a bug report is a file and a command."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from rusteeze import env
from rusteeze.cli.command import Command, wants_json
from rusteeze.cli.output import print_json
from rusteeze.errors import UserError
from rusteeze.ir import Graph, VerifyError, parse, print_graph, verify
from rusteeze.ir.probe import compare_graphs
from rusteeze.ir.text import ParseError
from rusteeze.observe import GRAPHS, PASSES, RULES, Observer
from rusteeze.passes.pass_spec import parse_passes
from rusteeze.passes.pipeline import PassRun, run_passes
from rusteeze.passes.raise_activations import RaiseActivations
from rusteeze.passes.raise_norms import RaiseNorms

RAISING = {RaiseActivations.name, RaiseNorms.name}
NOT_RAISED = "note: this graph is not raised yet, so later passes find little; begin with -p raising"


@click.command(cls=Command)
@click.argument("graph", type=click.File("r", encoding="utf-8"))
@click.option("-p", "--passes", default="", help="Such as canonicalize,fuse{anchor=linear}.")
@click.option("-o", "--output", type=click.File("w", encoding="utf-8"), help="Not stdout.")
@click.option("--print-after-change", is_flag=True, help="Print the graph after each change.")
@click.option("--time", "times", is_flag=True, help="Print matches, nodes and time of each pass.")
@click.option("--explain", is_flag=True, help="Print each match, and why others were declined.")
@click.option(
    "--verify/--no-verify", "verified", default=True, help="Check the graph after each pass."
)
@click.option("--compare", is_flag=True, help="Print how far results differ on drawn data.")
def command(
    graph: TextIO, passes: str, output: TextIO | None, print_after_change: bool, times: bool,
    explain: bool, verified: bool, compare: bool,
) -> None:  # fmt: skip
    """Run passes over the graph in file GRAPH (- for stdin) and print the result.

    With --json: what each pass did, and the graph as text.
    """
    if output and wants_json():
        raise UserError("give -o or --json, not both")
    pipeline = parse_passes(passes)
    shown = read_graph(graph)
    before = shown.copy()
    asked = {GRAPHS: print_after_change, PASSES: times, RULES: explain}
    observer = Observer(env.DEBUG.get(), env.DUMP.get(), also={k for k, on in asked.items() if on})
    try:
        if verified:
            verify(shown)
        runs = run_passes(shown, pipeline, observer, verified=verified)
    except VerifyError as error:
        raise UserError(f"the graph is ill-formed: {error}") from error
    if explain and not any(p.name in RAISING for p in pipeline) and is_unraised(before):
        click.echo(NOT_RAISED, err=True)
    text = print_graph(shown)
    difference = compare_graphs(before, shown) if compare else None
    if wants_json():
        print_json({"passes": [_facts(run) for run in runs], "difference": difference, "graph": text})
        return
    print(text, end="", file=output or sys.stdout)
    if difference is not None:
        click.echo(f"largest relative difference {difference:.1e}", err=True)


def _facts(run: PassRun) -> dict[str, object]:
    return {
        "name": run.name, "matches": run.result.matches, "nodes_before": run.nodes_before,
        "nodes_after": run.nodes_after, "ms": round(run.ms, 3),
    }  # fmt: skip


def is_unraised(graph: Graph) -> bool:
    """Whether norms or activations still stand there as the arithmetic that they were imported as."""
    runs = run_passes(graph.copy(), [RaiseNorms(), RaiseActivations()], Observer())
    return any(run.result.matches for run in runs)


def read_graph(file: TextIO) -> Graph:
    """A graph from its text. UserError with the line when it is none."""
    try:
        return parse(file.read())
    except ParseError as error:
        raise UserError(f"{file.name}: {error}") from error
