# %% [markdown]
# # One decoder layer, from a Hugging Face module to a token
#
# Run it: `.venv/bin/python docs/walkthrough.py`. What the text claims is asserted, so it cannot grow old
# unnoticed: the tests run this file.
#
# The model is a Llama with one layer and random weights, small enough to print. A real model goes the same
# way; `rusteeze/compiler.py` is that way on one page.

# %%
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rusteeze.artifact.contract import BLOCK_SIZE
from rusteeze.codegen.cpu.build import build_library, emit_kernel
from rusteeze.codegen.cpu.isa import ALL
from rusteeze.codegen.cpu.lower import LoweringOptions, lower
from rusteeze.codegen.statics import plain
from rusteeze.frontend.trace import trace
from rusteeze.ir import Graph, KVState, interpret, parse, print_graph
from rusteeze.passes.fuse import Fuse
from rusteeze.passes.fuse_linears import FuseLinears
from rusteeze.passes.pass_base import Pass
from rusteeze.passes.pipeline import fusing, lowering, raising
from rusteeze.passes.quantize_activations import QuantizeActivations
from rusteeze.passes.raise_activations import RaiseActivations
from rusteeze.passes.raise_norms import RaiseNorms
from rusteeze.passes.raise_rope import RaiseRope
from rusteeze.passes.sink_gather_rows import SinkGatherRows
from rusteeze.runtime.batch import Batch
from rusteeze.runtime.executor import CpuExecutor
from rusteeze.runtime.launch import runs_here

MAX_MODEL_LEN = 64

torch.set_num_threads(1)
torch.manual_seed(0)
config = AutoConfig.for_model(
    "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=128, max_position_embeddings=MAX_MODEL_LEN,
)  # fmt: skip
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
parameters = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}

# %% [markdown]
# ## Trace
#
# The model is exported once, by torch, on a single row of T tokens. Only attention knows that these tokens
# may belong to several sequences, and attention is one node of ours. So one graph serves a prompt of 500
# tokens, one token of each of 32 sequences, and any mixture of the two.
#
# No weights are read for this: the configuration suffices.

# %%
traced = trace(config, MAX_MODEL_LEN)
graph = traced.graph
weights = {**parameters, **traced.constants}
for name, value in graph.weights.items():
    value.format = plain(weights[name]).format
imported = graph.copy()
print(print_graph(graph))


def ops(graph: Graph) -> list[str]:
    """Names of the nodes' ops, in order."""
    return [node.op.name for node in graph.nodes]


assert ops(graph).count("attention") == 1
assert str(graph.inputs[0].type) == "i32[T]"
# The text is the whole graph: reading it back gives the same text.
assert print_graph(parse(print_graph(graph))) == print_graph(graph)

# %% [markdown]
# ## What the graph means
#
# Every op is declared with its meaning in numpy, so a graph can be run without compiling anything. This
# interpreter is the oracle of all that follows. Eight tokens of one sequence, logits wanted for the last:

# %%
ids = np.array([5, 17, 99, 3, 64, 31, 8, 120], np.int32)
positions = np.arange(len(ids), dtype=np.int32)
rows = np.array([len(ids) - 1], np.int32)
inputs = {"input_ids": ids, "positions": positions, "rows": rows}


def meaning(graph: Graph) -> np.ndarray:
    """Logits f32[1, 128] of the eight tokens, by the interpreter."""
    one_sequence = KVState(batch=[(0, len(ids))])
    return interpret(graph, inputs, weights, one_sequence)[0]


with torch.no_grad():
    expected = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, -1:].numpy()


def agrees(logits: np.ndarray) -> bool:
    """Whether logits are Hugging Face's, up to the order of float32 additions."""
    return bool(np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max())


assert agrees(meaning(graph))

# %% [markdown]
# ## Passes
#
# A pass changes the graph in place and says how often. This runs one and prints the nodes of one module
# before and after. After each pass the graph still means the same.


# %%
def apply(step: Pass, module: str) -> None:
    """Run a pass and show what it does to the nodes that come from ``module``."""
    before = part(graph, module)
    result = step.run(graph)
    print(f"--- {step.name}: {result.matches} matches, {len(graph.nodes)} nodes")
    print(*before, "becomes", *part(graph, module), sep="\n")
    assert agrees(meaning(graph)), step.name


def part(graph: Graph, module: str) -> list[str]:
    """The lines of a graph's text whose comment, the path that they come from, names a module."""
    return [line for line in print_graph(graph).splitlines() if module in line.partition("#")[2]]


# %% [markdown]
# ### Rotary embeddings
#
# Models spell them in many ways. The pass takes what lies between a projection and two table lookups, runs
# it, and looks for parameters with which one `rope` node gives the same numbers.

# %%
apply(RaiseRope(traced.constants), "layers.0.self_attn")
assert ops(graph).count("rope") == 2
assert "concat" not in ops(graph)

# %% [markdown]
# ### Norms and activations
#
# These are recognised by equations, such as
# `mul(x, rsqrt(add(mean(mul(x, x)) {axis=-1, keepdim=True}, ?eps))) => rms_norm(x, _) {eps=?eps}`.
# Canonicalization comes first, so that one spelling suffices; here it writes the last axis as -1 and
# shares equal nodes.

# %%
canonicalize = raising()[1]
apply(canonicalize, "input_layernorm")
apply(RaiseNorms(), "input_layernorm")
assert ops(graph).count("rms_norm") == 3
assert "rsqrt" not in ops(graph)
apply(RaiseActivations(), "mlp")
assert ops(graph).count("glu") == 1

# %% [markdown]
# ### Only the wanted rows
#
# Logits are wanted for one token of eight. Behind the last attention nothing needs the other rows, so
# their selection moves up there: from here on the type says `R` instead of `T`.

# %%
apply(SinkGatherRows(), "self_attn")
assert all(str(n.result.type).startswith("f32[R,") for n in graph.nodes if "mlp" in n.origin)

# %% [markdown]
# ### Fewer and larger products
#
# Query, key and value are products of the same input: one product of their stacked weights, and slices.

# %%
products = ops(graph).count("linear")
apply(FuseLinears(), "self_attn")
assert ops(graph).count("linear") == products - 3  # q, k, v; gate, up

# %% [markdown]
# ### Rounding
#
# With integer weights, activations would now be rounded to int8, the only step that changes results on
# purpose. Here weights are float32, so the pass declines, with a reason for each product.

# %%
declined = QuantizeActivations().run(graph)
assert declined.matches == 0
print(declined.refusals[0])

# %% [markdown]
# ### Fusion
#
# A region is what one kernel computes: a product, what is pointwise in its result, the residual sum. The
# operands of a `fused` node are bound to the inputs of its body by position.

# %%
apply(Fuse("linear"), "mlp")
print(print_graph(graph))
assert ops(graph).count("fused") == 3  # o_proj + residual, gate and up + glu, down_proj + residual

# %% [markdown]
# That was, step by step, what the compiler does to a model with float32 weights:

# %%
whole = imported.copy()
for step in (*raising(traced.constants), *lowering(), *fusing()):
    step.run(whole)
assert ops(whole) == ops(graph)

# %% [markdown]
# ## Kernels
#
# Lowering walks the graph once. Reshapes and slices only change how memory is looked at; every other node
# becomes a call of a kernel that depends on shapes and strides alone, so that equal layers share kernels.

# %%
lowered = lower(graph, LoweringOptions(MAX_MODEL_LEN))
isa = next(isa for isa in ALL if runs_here(isa.machine, isa.requires))
print(*lowered.kernels, sep="\n")
assert len(lowered.kernels) <= len(lowered.plan.calls) < len(graph.nodes)

# %% [markdown]
# A kernel's body is written by Python functions that build TVM's tensor IR, with explicit vector
# instructions, once for each instruction set. This is the norm, for the processor that runs this file:

# %%
norm = next(kernel for name, kernel in lowered.kernels.items() if "norm" in name)
script = emit_kernel(norm, isa).script()
print(isa.name, script, sep="\n")
assert norm.name in script

# %% [markdown]
# ## Plan
#
# What is left of the graph for the runtime: a list of calls. A barrier is asked for where a later call
# needs what another thread writes. Buffers whose lifetimes do not overlap share memory.

# %%
plan = lowered.plan
for call in plan.calls:
    arguments = ", ".join(f"{argument.kind} {argument.which}" for argument in call.args)
    print(f"{call.kernel}({arguments})", "| barrier" if call.barrier else "")
print("bytes per token:", plan.arena_row_bytes)
assert plan.calls[-1].barrier
assert not all(call.barrier for call in plan.calls)
assert plan.arena_row_bytes["R"] < sum(b.row_bytes for b in plan.buffers if b.space == "R")

# %% [markdown]
# ## A token
#
# The library is a plain shared object; the runtime knows neither torch nor TVM. Weights are packed into the
# order in which the kernels read them, and a step is one native call that walks the plan. The cache of
# keys and values consists of pages; this sequence gets page 2 of 4.


# %%
class PackedWeights:
    """The packed weights in memory. In an artifact they are a file, mapped by rusteeze.runtime.weights."""

    def __init__(self) -> None:
        statics = lowered.statics
        self.arrays = {n: statics.data(n, lambda w: plain(weights[w])) for n in statics.entries}

    def address(self, name: str) -> int:
        return self.arrays[name].ctypes.data


PAGE = 2
batch = Batch(
    input_ids=ids, positions=positions, rows=rows, slot_mapping=PAGE * BLOCK_SIZE + positions,
    query_start=np.array([0, len(ids)], np.int32), context_len=np.array([len(ids)], np.int32),
    block_tables=np.array([[PAGE]], np.int32),
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    library = build_library(lowered.kernels, isa, Path(folder))
    executor = CpuExecutor(plan, PackedWeights(), library, num_threads=2, num_blocks=4)
    logits = executor.execute(batch).copy()
    executor.close()

print("next token: ours", int(logits.argmax()), "Hugging Face", int(expected.argmax()))
assert agrees(logits)
assert logits.argmax() == expected.argmax()
