"""How far two models' predictions of one text are apart. Numbers in, numbers out."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rusteeze.runtime.batch import build_batch
from rusteeze.runtime.blocks import blocks_for
from rusteeze.runtime.interface import Executor
from rusteeze.runtime.scheduler import Chunk, Step

CHUNK_TOKENS = 64


@dataclass(frozen=True)
class Accuracy:
    """Ours against a reference, over the T - 1 predictions that a text of T tokens checks.

    Perplexities are of the text; ``mean_kl`` is the divergence of our distribution from the reference's
    in nats; ``top1_agreement`` the share of positions with the same likeliest token.
    """

    num_tokens: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    top1_agreement: float
    max_logit_error: float
    mean_logit_error: float


def compare(ours: np.ndarray, reference: np.ndarray, token_ids: Sequence[int]) -> Accuracy:
    """Both logits are float32 [T, V] after each token of ``token_ids``; a constant per row is no error.

    ValueError when the shapes differ or the text has fewer than two tokens.
    """
    if ours.shape != reference.shape or len(ours) != len(token_ids) or len(ours) < 2:
        raise ValueError(f"cannot compare logits {ours.shape} with {reference.shape}")
    mine, truth = _log_softmax(ours[:-1]), _log_softmax(reference[:-1])
    targets = np.asarray(token_ids)[1:]
    error = np.abs(_centred(ours) - _centred(reference))
    return Accuracy(
        num_tokens=len(targets),
        perplexity=_perplexity(mine, targets),
        reference_perplexity=_perplexity(truth, targets),
        mean_kl=float((np.exp(truth) * (truth - mine)).sum(-1).mean()),
        top1_agreement=float((mine.argmax(-1) == truth.argmax(-1)).mean()),
        max_logit_error=float(error.max()),
        mean_logit_error=float(error.mean()),
    )


def compiled_logits(executor: Executor, token_ids: Sequence[int]) -> np.ndarray:
    """Logits float32 [T, V] of a loaded artifact after each token, computed in chunks.

    The executor must be idle: its cache is overwritten. ValueError when the text does not fit into it.
    """
    num_blocks = blocks_for(len(token_ids), executor.block_size)
    if num_blocks > executor.num_blocks or len(token_ids) > executor.max_model_len:
        raise ValueError(f"the text has {len(token_ids)} tokens, more than the model takes")
    table = array("i", range(num_blocks))
    size = min(CHUNK_TOKENS, executor.max_batched_tokens)
    pieces = []
    for start in range(0, len(token_ids), size):
        tokens = tuple(token_ids[start : start + size])
        chunk = Chunk("text", start, tokens, table, num_rows=len(tokens), samples=False)
        logits = executor.execute(build_batch(Step((chunk,)), executor.block_size))
        pieces.append(logits.copy())
    return np.concatenate(pieces)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _centred(logits: np.ndarray) -> np.ndarray:
    centred: np.ndarray = logits - logits.mean(-1, keepdims=True)
    return centred


def _perplexity(log_probabilities: np.ndarray, targets: np.ndarray) -> float:
    chosen = np.take_along_axis(log_probabilities, targets[:, None], -1)
    return float(np.exp(-chosen.mean()))
