"""The mixture of experts against its formulas, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesteer_local.steering import Experts
from tiny import make_experts

N_EMBD = 24
SEEDS = st.integers(0, 2**32 - 1)


def state(seed: int, spread: float = 3.0) -> np.ndarray:
    return (spread * np.random.default_rng(seed + 1).standard_normal(N_EMBD)).astype(np.float32)


def double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


@given(SEEDS, st.sampled_from([0.1, 3.0, 50.0]))
def test_alpha_is_the_softmax_of_the_folded_router(seed: int, spread: float) -> None:
    experts, h = make_experts(N_EMBD, np.random.default_rng(seed)), state(seed, spread)
    logits = double(h) @ double(experts.router_weight) + double(experts.router_bias)
    wanted = np.exp(logits - logits.max())
    got = experts.alpha(h)
    np.testing.assert_allclose(got, wanted / wanted.sum(), rtol=1e-3, atol=1e-5)
    assert got.shape == (4,)
    assert got.dtype == np.float32
    assert got.sum() == pytest.approx(1.0, abs=1e-6)
    assert (got >= 0).all()


def test_folding_gives_the_papers_router() -> None:
    """softmax((W_K C)'(W_Q h) / sqrt(d_k)) is softmax(h A) with A = W_Q' W_K C' / sqrt(d_k), once trained."""
    rng = np.random.default_rng(0)
    d_k = 5
    w_q, w_k = rng.standard_normal((d_k, N_EMBD)), rng.standard_normal((d_k, N_EMBD))
    prototypes, h = rng.standard_normal((4, N_EMBD)), rng.standard_normal(N_EMBD)
    keys, query = w_k @ prototypes.T, w_q @ h  # (d_k, 4), (d_k,)
    logits = keys.T @ query / np.sqrt(d_k)
    wanted = np.exp(logits - logits.max())
    folded = (w_q.T @ keys / np.sqrt(d_k)).astype(np.float32)
    empty = np.zeros((N_EMBD, 0), np.float32), np.zeros((N_EMBD, 0), np.float32), np.zeros(0, np.float32)
    experts = Experts(
        prototypes.astype(np.float32), folded, np.zeros(4, np.float32), *empty, np.zeros((0, 0), np.float32), empty[2]
    )
    np.testing.assert_allclose(experts.alpha(h.astype(np.float32)), wanted / wanted.sum(), rtol=1e-4, atol=1e-6)


@given(SEEDS, st.sampled_from([0.1, 3.0, 50.0]))
def test_beta_is_a_relu_network(seed: int, spread: float) -> None:
    experts, h = make_experts(N_EMBD, np.random.default_rng(seed), rank=3, width=10), state(seed, spread)
    hidden = double(h) @ double(experts.hidden_weight) + double(experts.hidden_bias)
    wanted = np.array([max(value, 0.0) for value in hidden]) @ double(experts.output_weight)
    wanted += double(experts.output_bias)
    got = experts.beta(h)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    assert got.shape == (3,)
    assert got.dtype == np.float32


@given(SEEDS)
def test_the_vector_is_the_prototypes_mixture_plus_the_residual(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts = make_experts(N_EMBD, rng)
    alpha, beta = rng.dirichlet(np.ones(4)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    wanted = sum(float(a) * double(c) for a, c in zip(alpha, experts.prototypes, strict=True))
    wanted = wanted + double(experts.residual_basis) @ double(beta)
    got = experts.mix(alpha, beta)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert got.shape == (N_EMBD,)
    assert got.dtype == np.float32


def test_without_a_residual() -> None:
    experts = make_experts(N_EMBD, np.random.default_rng(0), rank=0, width=0)
    h = state(0)
    assert experts.beta(h).shape == (0,)
    alpha = experts.alpha(h)
    np.testing.assert_allclose(experts.mix(alpha, experts.beta(h)), alpha @ experts.prototypes, rtol=1e-6)


def test_one_expert_is_a_fixed_vector() -> None:
    rng = np.random.default_rng(0)
    whole = make_experts(N_EMBD, rng, rank=0, width=0)
    one = Experts(
        whole.prototypes[:1],
        whole.router_weight[:, :1],
        whole.router_bias[:1],
        whole.residual_basis,
        whole.hidden_weight,
        whole.hidden_bias,
        whole.output_weight,
        whole.output_bias,
    )
    for seed in range(3):
        assert one.alpha(state(seed)).tolist() == [1.0]
        np.testing.assert_array_equal(one.mix(one.alpha(state(seed)), one.beta(state(seed))), whole.prototypes[0])


def test_huge_logits_do_not_overflow() -> None:
    experts = make_experts(N_EMBD, np.random.default_rng(0))
    alpha = experts.alpha(np.full(N_EMBD, 1e30, np.float32))
    assert np.isfinite(alpha).all()
    assert alpha.sum() == pytest.approx(1.0)


@given(SEEDS)
def test_moved_together(seed: int) -> None:
    """What the router's bias makes of the prototypes is the mean asked for; their differences stay."""
    rng = np.random.default_rng(seed)
    experts, mean = make_experts(N_EMBD, rng), rng.standard_normal(N_EMBD).astype(np.float32)
    moved = experts.moved_to(mean)
    shares = np.exp(double(experts.router_bias))
    np.testing.assert_allclose(shares / shares.sum() @ double(moved.prototypes), mean, rtol=1e-4, atol=1e-5)
    shift = moved.prototypes - experts.prototypes
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-5)
    assert moved.prototypes.dtype == np.float32
    for name, value in vars(experts).items():
        if name != "prototypes":
            assert np.array_equal(getattr(moved, name), value), name


def test_a_fixed_vector_moves_all_the_way() -> None:
    rng = np.random.default_rng(0)
    mean, other = rng.standard_normal((2, N_EMBD)).astype(np.float32)
    moved = Experts.fixed(mean).moved_to(other)
    np.testing.assert_allclose(moved.mix(moved.alpha(state(0)), moved.beta(state(0))), other, rtol=1e-6, atol=1e-6)
    assert not moved.distinguishes


def test_whether_a_router_tells_prompts_apart() -> None:
    experts = make_experts(N_EMBD, np.random.default_rng(0))
    assert experts.distinguishes is True
    flat = replace(experts, router_weight=np.zeros_like(experts.router_weight))
    assert flat.distinguishes is False  # whatever its bias
    np.testing.assert_array_equal(flat.alpha(state(0)), flat.alpha(state(1)))
    assert not Experts.fixed(state(0)).distinguishes
