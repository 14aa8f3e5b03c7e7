"""The language of the compiler: typed graphs over named dimensions. Knows no model and no device."""

from rusteeze.ir import ops
from rusteeze.ir.graph import Graph, Node, Value, make_node, producers
from rusteeze.ir.interp import evaluate, interpret
from rusteeze.ir.op import OPS, OpDef, declare
from rusteeze.ir.ops.attention import KVState
from rusteeze.ir.text import parse, print_graph, print_node_line
from rusteeze.ir.types import ROWS, TOKENS, Dim, DType, TensorType, parse_type
from rusteeze.ir.verify import VerifyError, verify

__all__ = [
    "OPS", "ROWS", "TOKENS", "DType", "Dim", "Graph", "KVState", "Node", "OpDef", "TensorType",
    "Value", "VerifyError", "declare", "evaluate", "interpret", "make_node", "ops", "parse",
    "parse_type", "print_graph", "print_node_line", "producers", "verify",
]  # fmt: skip
