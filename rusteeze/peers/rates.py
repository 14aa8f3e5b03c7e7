"""How fast an engine decodes and reads prompts: drawn token ids, greedy, end tokens ignored."""

from __future__ import annotations

import random

from rusteeze.peers.provider import Provider

PROMPT_TOKENS, NEW_TOKENS = 32, 128
# Ids that are ordinary tokens in any vocabulary of a real model.
TOKEN_IDS = range(1000, 20000)


def prompts(what: str, sequences: int, length: int, seed: int) -> list[list[int]]:
    """Drawn token ids; every repeat of every measurement has its own, so that no engine has seen them
    before."""
    draw = random.Random(f"{what} {sequences} {length} {seed}")
    return [[draw.choice(TOKEN_IDS) for _ in range(length)] for _ in range(sequences)]


def decode_rate(what: str, sequences: int, engine: Provider, seed: int) -> float:
    """Tokens per second of all sequences together, the time of the prompts taken off."""
    asked = prompts(what, sequences, PROMPT_TOKENS, seed)
    short, long = engine.generate(asked, 1), engine.generate(asked, NEW_TOKENS)
    return sequences * (NEW_TOKENS - 1) / (long.seconds - short.seconds)


def prefill_rate(what: str, length: int, engine: Provider, seed: int) -> float:
    """Tokens of one prompt per second, up to and with its first new token."""
    return length / engine.generate(prompts(what, 1, length, seed), 1).seconds
