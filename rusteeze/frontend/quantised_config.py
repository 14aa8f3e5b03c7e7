"""What a model folder states about the quantisation of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rusteeze.frontend.checkpoint_errors import CheckpointError

_KEYS = ("quantization_config", "compression_config")
_WORDS = {
    "bits": "{} bits", "w_bit": "{} bits", "num_bits": "{} bits", "group_size": "group {}",
    "q_group_size": "group {}", "desc_act": "act-order", "actorder": "act-order",
    "bnb_4bit_quant_type": "{}", "weight_block_size": "blocks {}",
}  # fmt: skip
_MOST_WORDS = 8


@dataclass(frozen=True)
class QuantConfig:
    """The table of that name in a config.json. It comes from outside: every value may be anything."""

    path: Path
    method: str
    table: Mapping[str, Any]

    def refuse(self, what: str, instead: str) -> NoReturn:
        """CheckpointError that says how the weights are quantised, what is wrong, and what would do."""
        raise CheckpointError(f"{self.path.parent} ({self.description}): {what}; {instead}")

    @property
    def description(self) -> str:
        """Method, bits, group and order of the columns, as far as they are stated: "gptq, 4 bits, group 128"."""
        words = [self.method[:40]]
        for table in (self.table, *self.schemes()):
            for key, text in _WORDS.items():
                if table.get(key) not in (None, False):
                    words.append(text.format(str(table[key])[:12]))
        return ", ".join(dict.fromkeys(words[:_MOST_WORDS]))

    def schemes(self) -> Iterator[Mapping[str, Any]]:
        """What compressed-tensors states of the weights of each group of layers."""
        groups = self.table.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                yield weights


def quantisation_of(path: Path, table: Mapping[str, Any]) -> QuantConfig | None:
    """The quantisation that ``table``, the content of a config.json, states; None if it states none."""
    stated = next((table[key] for key in _KEYS if table.get(key)), None)
    if stated is None:
        return None
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if not isinstance(method, str):
        raise CheckpointError(f"{path} states a quantization_config without quant_method; download it again")
    return QuantConfig(path, method, stated)
