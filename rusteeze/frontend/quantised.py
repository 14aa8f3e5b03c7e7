"""The weights of a model folder by name, plain ones and quantised ones of every supported method.

A method is one file with one function: stored tensors and what config.json states → the weights that it
recognises. What no method claims is plain, so that files may mix both, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from rusteeze.frontend.quantised_awq import awq_weights
from rusteeze.frontend.quantised_bitsandbytes import bitsandbytes_weights
from rusteeze.frontend.quantised_compressed import compressed_weights
from rusteeze.frontend.quantised_config import QuantConfig
from rusteeze.frontend.quantised_fp8 import fbgemm_weights, fp8_weights
from rusteeze.frontend.quantised_gptq import gptq_weights
from rusteeze.frontend.quantised_mxfp4 import mxfp4_weights
from rusteeze.frontend.safetensors_file import SafetensorsModel
from rusteeze.frontend.stored_weight import StoredWeight

Method = Callable[[SafetensorsModel, QuantConfig], dict[str, StoredWeight]]

METHODS: Mapping[str, Method] = {
    "gptq": gptq_weights,
    "awq": awq_weights,
    "bitsandbytes": bitsandbytes_weights,
    "fp8": fp8_weights,
    "fbgemm_fp8": fbgemm_weights,
    "compressed-tensors": compressed_weights,
    "mxfp4": mxfp4_weights,
}


def read_weights(stored: SafetensorsModel, config: QuantConfig | None) -> dict[str, StoredWeight]:
    """All weights of a folder; no numbers are read. CheckpointError for unsupported methods, and for
    tensors that do not fit together."""
    quantised = _quantised(stored, config) if config else {}
    claimed = {tensor for weight in quantised.values() for tensor in weight.tensors}
    plain = {name: _plain(stored, name) for name in stored.home if name not in claimed}
    if config and (twice := sorted(plain.keys() & quantised.keys())):
        config.refuse(f"{twice[0]} is stored plainly and quantised", "keep one of them")
    return plain | quantised


def _quantised(stored: SafetensorsModel, config: QuantConfig) -> dict[str, StoredWeight]:
    method = METHODS.get(config.method)
    if method is None:
        config.refuse("this method is not supported", f"supported are GGUF files and {', '.join(METHODS)}")
    return method(stored, config)


def _plain(stored: SafetensorsModel, name: str) -> StoredWeight:
    file = stored.home[name]
    shape = file.entries[name].shape
    return StoredWeight((name,), shape, partial(file.format_of, name), partial(file.load, name))
