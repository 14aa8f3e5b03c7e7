"""Methods on drawn matrices: each does what it promises, in the measure that it minimises."""

from __future__ import annotations

import gc

import pytest
import torch

from rusteeze.errors import UserError
from rusteeze.quantize.awq import Awq
from rusteeze.quantize.fp8 import to_float8
from rusteeze.quantize.gptq import Gptq, solve
from rusteeze.quantize.grid import GridSpec
from rusteeze.quantize.method import Fold, Inputs, Matrix, Site
from rusteeze.quantize.rtn import Rtn, round_to_nearest

torch.set_num_threads(1)
N, K = 48, 128


def spec(bits: int = 3, *, symmetric: bool = False, group: int = 32) -> GridSpec:
    return GridSpec(bits, group, symmetric, torch.float16)


def drawn(seed: int = 0, tokens: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and correlated inputs some channels of which are large."""
    torch.manual_seed(seed)
    mixing = torch.randn(K, K) / K**0.5 + 0.5 * torch.eye(K)
    inputs = torch.randn(tokens, K) @ mixing
    inputs[:, ::17] *= 12
    return torch.randn(N, K), inputs


def site(weight: torch.Tensor, inputs: torch.Tensor, fold: Fold | None = None) -> Site:
    return Site([Matrix("m", weight, Inputs("m", lambda: iter(inputs.split(100))))], fold)


def output_error(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (weight - rounded).T).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nearest_codes_are_within_half_a_step(bits: int, symmetric: bool) -> None:
    weight, _ = drawn()
    codes = round_to_nearest(weight, spec(bits, symmetric=symmetric))
    step = codes.scale.float().repeat_interleave(32, 1)
    rounded_scale = 2**bits * 2**-11  # in steps, at the end of the line
    assert int(codes.codes.max()) < 1 << bits
    assert ((codes.to_f32() - weight).abs() <= step * (0.501 + rounded_scale)).all()
    assert not symmetric or (codes.zero == 1 << (bits - 1)).all()


def test_groups_of_zeros_stay_zero() -> None:
    weight, inputs = drawn()
    weight[:, :32] = 0
    for codes in (round_to_nearest(weight, spec()), Gptq().quantize(site(weight, inputs), spec()).codes["m"]):
        assert not codes.to_f32()[:, :32].any()
    assert not to_float8(torch.zeros(2, 16), torch.float16).to_f32().any()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_changes_outputs_less_than_nearest_codes(bits: int, act_order: bool) -> None:
    weight, inputs = drawn()
    nearest = Rtn().quantize(site(weight, inputs), spec(bits)).codes["m"].to_f32()
    found = Gptq(act_order).quantize(site(weight, inputs), spec(bits)).codes["m"].to_f32()
    assert output_error(weight, found, inputs) < 0.6 * output_error(weight, nearest, inputs)


def test_gptq_keeps_what_lies_on_its_lines() -> None:
    weight, inputs = drawn()
    codes = round_to_nearest(weight, spec(4))
    codes.codes[:, ::32], codes.codes[:, 1::32] = 0, 15  # so that each group spans its line
    hessian = inputs.T @ inputs / len(inputs)
    assert torch.equal(solve(codes.to_f32(), hessian, spec(4), act_order=True).codes, codes.codes)


def test_gptq_survives_inputs_that_never_vary() -> None:
    weight, inputs = drawn()
    inputs[:, :40] = 0
    inputs[:, 40:80] = inputs[:, 40:41]
    found = Gptq().quantize(site(weight, inputs), spec()).codes["m"].to_f32()
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_holds_three_matrices_at_most(act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second moments, which stay as they are, and what goes into a factorisation and comes out; the first fails here."""
    weight, inputs = drawn()
    inputs[:, :3] = 0
    hessian = inputs.T @ inputs / len(inputs)
    before, held = hessian.clone(), list[int]()
    factorise, invert = torch.linalg.cholesky_ex, torch.cholesky_inverse

    def num_matrices() -> int:
        tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (K, K)]
        return len({t.data_ptr() for t in tensors})

    others = num_matrices() - 1

    def factorised(matrix: torch.Tensor, upper: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        factor, failed = factorise(matrix, upper=upper)
        held.append(num_matrices() - others)
        return factor, failed if len(held) > 1 else torch.ones(())

    def inverted(matrix: torch.Tensor) -> torch.Tensor:
        inverse = invert(matrix)
        held.append(num_matrices() - others)
        return inverse

    monkeypatch.setattr(torch.linalg, "cholesky_ex", factorised)
    monkeypatch.setattr(torch, "cholesky_inverse", inverted)
    solve(weight, hessian, spec(), act_order=act_order)
    assert held == [3, 3, 3, 3]
    assert torch.equal(hessian, before)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_awq_changes_outputs_less_than_nearest_codes(bits: int) -> None:
    weight, inputs = drawn()
    fold = Fold(torch.arange(K), lambda wanted: wanted)
    nearest = Rtn().quantize(site(weight, inputs), spec(bits)).codes["m"].to_f32()
    result = Awq().quantize(site(weight, inputs, fold), spec(bits))
    assert result.factors is not None
    found = result.codes["m"].to_f32() / result.factors
    assert output_error(weight, found, inputs) < 0.7 * output_error(weight, nearest, inputs)


def test_awq_keeps_ties_and_does_without_a_fold() -> None:
    weight, inputs = drawn()
    tied = Awq().quantize(site(weight, inputs, Fold(torch.arange(K) % 16, lambda wanted: wanted)), spec())
    assert tied.factors is None or torch.equal(tied.factors, tied.factors[torch.arange(K) % 16])
    assert Awq().quantize(site(weight, inputs), spec()).factors is None


@pytest.mark.parametrize("method", [Gptq(), Awq()])
def test_an_expert_that_sees_too_little_is_rounded_to_nearest_and_told(method: Gptq | Awq) -> None:
    weight, inputs = drawn()
    result = method.quantize(site(weight, inputs[:5]), spec())
    assert torch.equal(result.codes["m"].to_f32(), round_to_nearest(weight, spec()).to_f32())
    assert result.notes == ["m sees 5 tokens: rounded to nearest"]


def test_inputs_that_overflow_are_refused() -> None:
    weight, inputs = drawn()
    inputs[3, 3] = torch.inf
    with pytest.raises(UserError, match="enters m on this text is not finite"):
        Gptq().quantize(site(weight, inputs), spec())


def test_float8_rounds_within_its_precision() -> None:
    weight, _ = drawn()
    found = to_float8(weight, torch.float16).to_f32()
    assert ((found - weight).abs() <= weight.abs() * 2**-4 + weight.abs().amax(1, keepdim=True) * 2**-15).all()
