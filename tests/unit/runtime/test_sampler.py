from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from rusteeze.runtime.candidates import candidates
from rusteeze.runtime.params import SamplingParams
from rusteeze.runtime.sampler import (
    RequestSampler,
    Sample,
    SamplingError,
    sample_rows,
    token_logprobs,
)
from rusteeze.runtime.uniforms import Uniforms

EOS = 7


def sampler(prompt: list[int] | None = None, seed: int = 0, **params: Any) -> RequestSampler:
    return RequestSampler(SamplingParams(**params), prompt or [], [EOS], seed)


def sample(state: RequestSampler, row: np.ndarray) -> Sample:
    return state.sample(row, np.empty_like(row))


def rows_of(logits: np.ndarray, samplers: list[RequestSampler]) -> list[Sample | Exception]:
    return sample_rows(logits, logits.argmax(axis=1), samplers, np.empty_like(logits[0]))


def one(row: np.ndarray, **params: Any) -> int:
    result = rows_of(row[None], [sampler(**params)])[0]
    assert isinstance(result, Sample), result
    return result.token_id


def random_row(vocab_size: int = 1000, seed: int = 0, scale: float = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(vocab_size, np.float32) * np.float32(scale)


def draws(row: np.ndarray, count: int = 400, **params: Any) -> Counter[int]:
    """Tokens of the same row at ``count`` positions of one request."""
    state = sampler(**params)
    tokens = []
    for _ in range(count):
        tokens.append(sample(state, row).token_id)
        state.num_sampled += 1
    return Counter(tokens)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def kept_by_reference(
    row: np.ndarray, temperature: float = 1, top_k: int = 0, top_p: float = 1, min_p: float = 0
) -> dict[int, float]:
    """Probabilities of the tokens that remain, by sorting everything and in double precision."""
    order = np.argsort(-row, kind="stable")[: top_k or None]
    share = softmax(row[order].astype(np.float64) / temperature)
    size = int(np.searchsorted(np.cumsum(share), top_p)) + 1
    order, share = order[:size], share[:size]
    good = share >= min_p * share[0]
    return dict(zip(order[good].tolist(), (share[good] / share[good].sum()).tolist(), strict=True))


# Greedy


def test_greedy_is_argmax_and_ties_go_to_the_lowest_id() -> None:
    logits = np.array([[0, 5, 5, 1], [2, 1, 0, 2], [-1, -3, -2, -1]], np.float32)
    results = rows_of(logits, [sampler(temperature=0)] * 3)
    assert results == [Sample(1), Sample(0), Sample(0)]


def test_rows_do_not_influence_each_other() -> None:
    logits = np.stack([random_row(seed=i) for i in range(6)])
    kinds: list[dict[str, Any]] = [
        {"temperature": 0}, {"seed": 3}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 0, "logprobs": 2},
        {"min_p": 0.1, "repetition_penalty": 2.0},
    ]  # fmt: skip
    together = rows_of(logits, [sampler(**kind) for kind in kinds])
    alone = [rows_of(logits[i : i + 1], [sampler(**kinds[i])])[0] for i in range(6)]
    assert together == alone


@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_k": 5}, {"logprobs": 1}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_row_fails_alone(bad: float, params: dict[str, Any]) -> None:
    logits = np.stack([random_row(), random_row(), random_row()])
    logits[1, 500] = bad
    good, failed, last = rows_of(logits, [sampler(**params) for _ in range(3)])
    assert isinstance(failed, SamplingError)
    assert "not finite" in str(failed)
    assert isinstance(good, Sample)
    assert isinstance(last, Sample)


# Candidate sets


@pytest.mark.parametrize("vocab_size", [5, 1000, 49152])
@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1}, {"top_k": 3}, {"top_k": 200}, {"top_k": 10**6}, {"top_p": 0.3}, {"top_p": 0.95},
        {"top_p": 1e-9}, {"min_p": 0.2}, {"top_k": 40, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 0.3, "top_p": 0.9}, {"temperature": 2.0, "top_k": 7},
    ],
)  # fmt: skip
def test_only_the_kept_tokens_are_drawn_each_with_its_share(
    vocab_size: int, params: dict[str, Any]
) -> None:
    row = random_row(vocab_size, seed=vocab_size)
    expected = kept_by_reference(row, **params)
    ids, weights = candidates(row, SamplingParams(**params), np.empty_like(row))
    kept = np.arange(vocab_size) if ids is None else ids
    assert set(kept.tolist()) == set(expected)
    assert len(weights) == len(kept)
    counts = draws(row, 300, **params)
    assert set(counts) <= set(expected)
    likeliest = max(expected, key=expected.__getitem__)
    share = expected[likeliest]
    spread = 5 * (share * (1 - share) / 300) ** 0.5 + 1e-9
    assert abs(counts[likeliest] / 300 - share) <= spread


def test_top_k_breaks_ties_by_the_lowest_id() -> None:
    assert set(draws(np.zeros(1000, np.float32), 200, top_k=3)) == {0, 1, 2}


def test_frequencies_follow_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = draws(row, 4000)
    for token, share in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert abs(counts[token] / 4000 - share) < 0.04


def test_a_tiny_temperature_is_greedy_and_a_huge_one_is_flat() -> None:
    row = random_row(50)
    assert set(draws(row, 50, temperature=1e-30)) == {int(row.argmax())}
    assert len(draws(row, 500, temperature=100.0)) > 45


@pytest.mark.slow
def test_candidate_sets_agree_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    torch.set_num_threads(1)
    warpers = [
        process.TemperatureLogitsWarper(0.7), process.TopKLogitsWarper(30),
        process.TopPLogitsWarper(0.8), process.MinPLogitsWarper(0.05),
    ]  # fmt: skip
    for seed in range(20):
        row = random_row(seed=seed)
        scores = torch.tensor(row)[None]
        for warper in warpers:
            scores = warper(None, scores)
        kept = set(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())
        assert kept == set(kept_by_reference(row, 0.7, 30, 0.8, 0.05))


# Seeds


def test_the_same_seed_and_position_give_the_same_token() -> None:
    row = random_row()
    first, second = sampler(seed=1, top_k=50), sampler(seed=1, top_k=50)
    assert [sample(first, row)] * 3 == [sample(second, row) for _ in range(3)]
    assert len({tuple(draws(row, 20, seed=s).items()) for s in range(10)}) == 10


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_numbers_belong_to_seed_and_position_alone(seed: int) -> None:
    def wanted(position: int) -> float:
        return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())

    numbers = Uniforms(seed)
    for position in (0, 1, 2, 63, 64, 65, 1000, 999, 5, 5):
        assert numbers.at(position) == wanted(position)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize(
    "params",
    [
        {}, {"temperature": 0.7}, {"top_p": 0.95}, {"top_p": 0.99, "temperature": 1.5}, {"top_k": 30},
        {"top_k": 300, "top_p": 0.9}, {"min_p": 0.05}, {"min_p": 1.0}, {"min_p": 1e-6, "temperature": 0.1},
    ],
)  # fmt: skip
def test_what_is_drawn_is_where_the_sum_in_double_precision_passes_the_number(
    params: dict[str, Any], scale: float
) -> None:
    for seed in range(8):
        row = random_row(20_011, seed, scale)
        expected = kept_by_reference(row, **params)
        ids = sorted(expected)
        shares = np.cumsum([expected[id] for id in ids])
        index = int(np.searchsorted(shares, Uniforms(seed).at(0), side="right"))
        assert one(row, seed=seed, **params) == ids[index]


def test_a_given_seed_wins_over_the_engine_s() -> None:
    row = random_row()
    a = RequestSampler(SamplingParams(seed=5), [], [], seed=1)
    b = RequestSampler(SamplingParams(seed=5), [], [], seed=2)
    c = RequestSampler(SamplingParams(), [], [], seed=5)
    assert sample(a, row) == sample(b, row) == sample(c, row)
    assert sample(RequestSampler(SamplingParams(seed=-1), [], [], 0), row)


# Edits


def test_logits_are_not_changed_in_place() -> None:
    row = random_row()
    before = row.copy()
    one(row, prompt=[1], logit_bias={3: 5.0}, repetition_penalty=1.5, min_tokens=2)
    assert (row == before).all()


def test_logit_bias_adds() -> None:
    row = np.zeros(10, np.float32)
    assert one(row, temperature=0, logit_bias={4: 0.5, 6: 1.0}) == 6
    assert set(draws(row, 100, logit_bias=dict.fromkeys(range(9), -100.0))) == {9}


def penalised(row: np.ndarray, prompt: list[int], output: list[int], **params: Any) -> np.ndarray:
    state = sampler(prompt, **params)
    for token in output:
        state.accept(token)
    return state._edit(row, np.empty_like(row))


def test_presence_and_frequency_look_at_the_output_only() -> None:
    row = np.full(6, 2, np.float32)
    edited = penalised(row, [0, 0, 1], [1, 2, 2, 2], presence_penalty=0.5)
    assert edited.tolist() == [2, 1.5, 1.5, 2, 2, 2]
    edited = penalised(row, [0, 0, 1], [1, 2, 2, 2], frequency_penalty=0.25)
    assert edited.tolist() == [2, 1.75, 1.25, 2, 2, 2]


def test_repetition_looks_at_prompt_and_output() -> None:
    row = np.array([2, -2, 2, -2, 2, 0], np.float32)
    edited = penalised(row, [0, 1, 1], [2, 3, 3], repetition_penalty=2.0)
    assert edited.tolist() == [1, -4, 1, -4, 2, 0]


def test_penalties_over_a_long_output() -> None:
    rng = np.random.default_rng(0)
    output = rng.integers(0, 300, 2000).tolist()
    row = random_row(300)
    edited = penalised(row, [], output, frequency_penalty=0.01, presence_penalty=1.0)
    counts = np.bincount(output, minlength=300)
    np.testing.assert_allclose(edited, row - 0.01 * counts - (counts > 0), rtol=1e-5, atol=1e-4)


def test_end_tokens_wait_for_min_tokens() -> None:
    row = np.zeros(10, np.float32)
    row[EOS], row[2], row[1] = 9, 8, 7
    state = sampler(temperature=0, min_tokens=2, stop_token_ids=(2,))
    tokens = []
    for _ in range(3):
        tokens += [result.token_id for result in rows_of(row[None], [state])]
        state.accept(tokens[-1])
    assert tokens == [1, 1, EOS]
    assert one(row, temperature=0, min_tokens=2, ignore_eos=True) == EOS


def test_nothing_left_to_choose_is_an_error_of_that_row() -> None:
    row = np.full((1, 8), -np.inf, np.float32)
    row[0, EOS] = 0
    (result,) = rows_of(row, [sampler(min_tokens=1)])
    assert isinstance(result, SamplingError)
    assert "no token to choose" in str(result)


# Log-probabilities


def test_logprobs_are_those_of_the_unedited_distribution() -> None:
    row = random_row(500)
    (result,) = rows_of(row[None], [sampler(logprobs=3, temperature=0.2, logit_bias={9: 100.0})])
    assert isinstance(result, Sample)
    assert result.token_id == 9
    assert result.logprobs is not None
    expected = np.log(softmax(row))
    assert result.logprobs.chosen == pytest.approx(expected[9], abs=1e-5)
    best = np.argsort(-row)[:3]
    assert [token for token, _ in result.logprobs.top] == best.tolist()
    assert [value for _, value in result.logprobs.top] == pytest.approx(expected[best], abs=1e-5)


def test_zero_logprobs_reports_the_chosen_token_alone() -> None:
    assert token_logprobs(np.zeros(4, np.float32), 2, 0, np.empty(4, np.float32)).top == ()
    assert token_logprobs(np.zeros(4, np.float32), 2, 0, np.empty(4, np.float32)).chosen == pytest.approx(np.log(0.25))
