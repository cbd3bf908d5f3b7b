"""Gates against their formulas, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from finesteer_local.steering import AlwaysGate, ContrastiveGate, SubspaceGate, spans

N_EMBD = 24
SEEDS = st.integers(0, 2**32 - 1)


def subspace(seed: int, *, rank: int = 6, n: int = 50, **settings: float) -> SubspaceGate:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((N_EMBD, rank)))[0].astype(np.float32)
    calibration = np.sort(rng.uniform(0, 1, n)).astype(np.float32)
    return SubspaceGate(rng.standard_normal(N_EMBD).astype(np.float32), basis, calibration, **settings)


def contrastive(seed: int, *, heads: int = 3, low: float = -1.0, high: float = 2.0, window: int = 0) -> ContrastiveGate:
    rng = np.random.default_rng(seed)
    return ContrastiveGate(
        mean=rng.standard_normal(N_EMBD).astype(np.float32),
        scale=rng.uniform(0.2, 3.0, N_EMBD).astype(np.float32),
        query=rng.standard_normal((N_EMBD, heads)).astype(np.float32),
        value_weight=rng.standard_normal((N_EMBD, heads)).astype(np.float32),
        last_weight=rng.standard_normal(N_EMBD).astype(np.float32),
        bias=float(rng.standard_normal()),
        low=low,
        high=high,
        window=window,
    )


def states(seed: int, n: int = 7, spread: float = 3.0) -> np.ndarray:
    return (spread * np.random.default_rng(seed + 1).standard_normal((n, N_EMBD))).astype(np.float32)


def score(gate, x: np.ndarray) -> float:
    return gate.score(x[-1], gate.summary(x))


class TestSubspace:
    """s(h) = |V'(h - mu)|^2 / |h - mu|^2; g = 1 where F(s) >= eps, else (F(s) / eps)^gamma, and 0 under the floor."""

    @given(SEEDS)
    def test_the_score_is_the_share_of_energy_in_the_subspace(self, seed: int) -> None:
        gate, x = subspace(seed), states(seed)
        centred = x[-1].astype(np.float64) - gate.mean.astype(np.float64)
        inside = gate.basis.astype(np.float64).T @ centred
        wanted = (inside**2).sum() / (centred**2).sum()
        assert score(gate, x) == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        assert score(gate, x[-1:]) == score(gate, x)  # the last token alone

    def test_inside_and_outside(self) -> None:
        gate = subspace(0)
        inside = gate.mean + 5 * gate.basis[:, 2]
        outside = np.linalg.svd(gate.basis.T)[2][-1].astype(np.float32)
        assert score(gate, inside[None]) == pytest.approx(1.0, rel=1e-5)
        assert score(gate, (gate.mean + outside)[None]) == pytest.approx(0.0, abs=1e-6)
        assert score(gate, gate.mean[None]) == 0.0  # no energy at all

    @given(
        SEEDS,
        st.floats(0, 1, width=32) | st.integers(0, 119),
        st.sampled_from([0.01, 0.05, 0.07, 0.1, 0.25, 0.29, 0.5, 1.0]),
        st.sampled_from([0.5, 1.0, 2.0, 3.0]),
        st.sampled_from([0.0, 0.05, 0.5]),
        st.integers(1, 120),
    )
    @example(seed=0, at=6, eps=0.07, gamma=2.0, floor=0.0, n=100)  # 0.07 * 100 is a little more than 7
    @example(seed=0, at=1, eps=0.25, gamma=1.0, floor=0.5, n=16)  # g is the floor itself
    def test_the_value(self, seed: int, at: float, eps: float, gamma: float, floor: float, n: int) -> None:
        gate = subspace(seed, n=n, eps=eps, gamma=gamma, floor=floor)
        s = float(gate.calibration[at % n]) if isinstance(at, int) else at
        mass = sum(1 for c in gate.calibration if float(c) <= s) / n  # the empirical distribution
        soft = (mass / eps) ** gamma
        wanted = 1.0 if mass >= eps - 1e-12 else soft if soft >= floor else 0.0
        assert gate.value(s) == pytest.approx(wanted, rel=1e-12)

    @given(SEEDS, st.sampled_from([0.01, 0.05, 0.07, 0.1, 0.25, 0.29, 0.5, 1.0]), st.integers(1, 120))
    @example(seed=0, eps=0.07, n=100)
    def test_the_threshold_is_the_least_score_of_full_steering(self, seed: int, eps: float, n: int) -> None:
        gate = subspace(seed, n=n, eps=eps, floor=0.0)
        assert gate.value(gate.threshold) == 1.0
        assert gate.value(np.nextafter(gate.threshold, -1)) < 1.0
        assert gate.threshold in gate.calibration.astype(float)

    def test_equal_calibration_scores(self) -> None:
        gate = SubspaceGate(np.zeros(2, np.float32), np.eye(2, 1, dtype=np.float32), np.full(9, 0.5, np.float32))
        assert gate.threshold == 0.5
        assert [gate.value(s) for s in (0.4999, 0.5, 0.6)] == [0.0, 1.0, 1.0]

    def test_the_papers_defaults(self) -> None:
        gate = subspace(0, n=100)
        assert (gate.eps, gate.gamma, gate.floor) == (0.05, 2.0, 0.05)
        between = [(gate.calibration[i] + gate.calibration[i + 1]) / 2 for i in range(5)]
        assert [gate.value(float(s)) for s in between] == pytest.approx([0.0, 0.16, 0.36, 0.64, 1.0])

    @given(SEEDS)
    def test_the_value_never_falls(self, seed: int) -> None:
        gate = subspace(seed, eps=0.3)
        values = [gate.value(s) for s in np.linspace(-0.1, 1.1, 200)]
        assert values == sorted(values)
        assert all(0 <= g <= 1 for g in values)


class TestContrastive:
    """s = max_T sum_k sum_{t in T} softmax_T(q_k'x_t) v_k'x_t + x_last'u + b, on standardised states cut at 8."""

    def formula(self, gate: ContrastiveGate, x: np.ndarray) -> float:
        double = np.float64
        z = (x.astype(double) - gate.mean.astype(double)) / gate.scale.astype(double)
        z = np.clip(z, -8, 8)
        pooled = [self.pooled(gate, z[start:stop]) for start, stop in self.stretches(len(z), gate.window)]
        return max(pooled) + float(z[-1] @ gate.last_weight.astype(double)) + gate.bias

    def pooled(self, gate: ContrastiveGate, z: np.ndarray) -> float:
        total = 0.0
        for k in range(gate.query.shape[1]):
            logits = [float(z[t] @ gate.query[:, k].astype(np.float64)) for t in range(len(z))]
            weights = [np.exp(logit - max(logits)) for logit in logits]
            values = [float(z[t] @ gate.value_weight[:, k].astype(np.float64)) for t in range(len(z))]
            total += sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        return total

    def stretches(self, n: int, window: int) -> list[tuple[int, int]]:
        """As docs/profile-format.md says it."""
        found, start = [(0, n)], 0
        if 0 < window < n:
            while start < n - window:
                found.append((start, start + window))
                start += max(window // 4, 1)
            found.append((n - window, n))
        return found

    @given(SEEDS, st.integers(1, 40), st.sampled_from([0.1, 1.0, 30.0]), st.integers(1, 5))
    def test_the_score(self, seed: int, n: int, spread: float, heads: int) -> None:
        gate, x = contrastive(seed, heads=heads), states(seed, n, spread)
        assert score(gate, x) == pytest.approx(self.formula(gate, x), rel=1e-3, abs=2e-3)

    @given(SEEDS, st.integers(1, 40), st.integers(1, 45), st.sampled_from([0.1, 1.0, 30.0]))
    @example(seed=0, n=8, window=8, spread=1.0)  # no longer than a stretch: the whole turn alone
    @example(seed=0, n=9, window=8, spread=1.0)
    def test_the_score_with_windows(self, seed: int, n: int, window: int, spread: float) -> None:
        gate, x = contrastive(seed, window=window), states(seed, n, spread)
        assert score(gate, x) == pytest.approx(self.formula(gate, x), rel=1e-3, abs=2e-3)
        plain = score(replace(gate, window=0), x)
        assert score(gate, x) >= plain  # the whole turn is one of the stretches
        if n <= window:
            assert score(gate, x) == plain

    def test_what_a_long_text_drowns_a_window_finds(self) -> None:
        """One token among thousands: the softmax over all of them spreads, that over a stretch does not."""
        gate = replace(contrastive(0, heads=1), mean=np.zeros(N_EMBD, np.float32), scale=np.ones(N_EMBD, np.float32))
        gate = replace(gate, last_weight=np.zeros(N_EMBD, np.float32), bias=0.0)
        gate.query[:] = gate.value_weight[:] = np.eye(N_EMBD, 1, dtype=np.float32)
        x = np.zeros((4001, N_EMBD), np.float32)
        for at in (0, 700, 2013, 3999, 4000):
            x[:, 0] = 0
            x[at, 0] = 5
            assert score(gate, x) < 0.2
            assert score(replace(gate, window=64), x) == pytest.approx(5 * np.exp(5) / (np.exp(5) + 63), rel=1e-4)

    def test_only_the_end_of_the_turn_is_the_last_token(self) -> None:
        """A stretch pools over its own tokens; what is added for the prompt's last one is the same for all."""
        gate, x = contrastive(3, window=4), states(3, 12)
        z = np.clip((x[-1] - gate.mean) / gate.scale, -8, 8)
        best = max(score(replace(gate, window=0, last_weight=0 * z), x[a:b]) for a, b in spans(12, 4))
        assert score(gate, x) == pytest.approx(best + float(z @ gate.last_weight), rel=1e-4, abs=1e-4)

    def test_one_head_and_one_token_is_linear(self) -> None:
        gate, x = contrastive(0, heads=1), states(0, 1, 0.5)
        z = ((x[0] - gate.mean) / gate.scale).astype(np.float64)
        assert score(gate, x) == pytest.approx(z @ (gate.value_weight[:, 0] + gate.last_weight) + gate.bias, rel=1e-5)

    @given(SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=6))
    def test_a_turn_may_come_in_pieces(self, seed: int, sizes: list[int]) -> None:
        """Bit for bit: the decision does not depend on where llama.cpp or a cached prefix cuts the turn."""
        gate, x = contrastive(seed), states(seed, sum(sizes))
        whole = gate.summary(x)
        cuts = np.cumsum(sizes)[:-1]
        pieces = np.concatenate([gate.summary(piece) for piece in np.split(x, cuts)])
        np.testing.assert_array_equal(pieces, whole)
        assert whole.shape == (len(x), 6)
        assert whole.dtype == np.float32
        assert gate.summary(x[:0]).shape == (0, 6)
        windowed = replace(gate, window=5)
        assert windowed.score(x[-1], pieces) == windowed.score(x[-1], whole)

    @given(SEEDS)
    def test_the_order_of_all_but_the_last_does_not_matter(self, seed: int) -> None:
        gate, x = contrastive(seed), states(seed)
        assert score(gate, x[[3, 1, 0, 2, 5, 4, 6]]) == pytest.approx(score(gate, x), rel=1e-4, abs=1e-4)

    def test_a_huge_activation_does_not_overflow(self) -> None:
        gate, x = contrastive(1), states(1)
        x[0] = 1e6
        x[1] = -1e6
        assert score(gate, x) == pytest.approx(self.formula(gate, x), rel=1e-3)

    @pytest.mark.parametrize(
        ("low", "high", "values"),
        [
            (-1.0, 3.0, {-5: 0, -1: 0, 0: 0.25, 1: 0.5, 2.9: 0.975, 3: 1, 9: 1}),
            (1.0, 1.0, {0.999: 0, 1: 1, 1.001: 1}),
        ],
    )
    def test_the_value_rises_from_low_to_high(self, low: float, high: float, values: dict) -> None:
        gate = contrastive(0, low=low, high=high)
        assert [gate.value(s) for s in values] == pytest.approx([*values.values()])

    def test_the_threshold_is_where_it_begins_to_open(self) -> None:
        gate = contrastive(0, low=-1.0, high=3.0)
        assert gate.threshold == -1.0
        assert gate.value(gate.threshold) == 0.0
        assert gate.value(np.nextafter(gate.threshold, 1)) > 0.0


class TestSpans:
    def test_the_whole_turn_comes_first(self) -> None:
        assert spans(7, 0) == spans(7, 7) == spans(7, 8) == [(0, 7)]
        assert spans(0, 4) == [(0, 0)]

    def test_stretches_begin_a_quarter_apart_and_the_last_ends_with_the_turn(self) -> None:
        assert spans(21, 8) == [(0, 21), *((start, start + 8) for start in (0, 2, 4, 6, 8, 10, 12, 13))]
        assert spans(9, 8) == [(0, 9), (0, 8), (1, 9)]
        assert spans(5, 3) == [(0, 5), (0, 3), (1, 4), (2, 5)]  # a quarter of 3 is less than a token
        assert spans(3, 1) == [(0, 3), (0, 1), (1, 2), (2, 3)]

    @given(st.integers(1, 400), st.integers(1, 130))
    def test_what_is_short_lies_in_one_as_a_whole(self, n: int, window: int) -> None:
        whole, *found = spans(n, window)
        assert whole == (0, n) and bool(found) == (window < n)
        assert len(set(found)) == len(found) and found == sorted(found)  # none is pooled twice
        if found:
            assert {stop - start for start, stop in found} == {window}
            assert found[0][0] == 0 and found[-1][1] == n
            short = window - max(window // 4, 1) + 1  # three quarters, and the token that the step leaves
            for start in range(n - short + 1):
                assert any(a <= start and start + short <= b for a, b in found), start


def test_always() -> None:
    gate, x = AlwaysGate(), states(0)
    assert gate.summary(x).shape == (7, 0)
    assert gate.value(score(gate, x)) == 1.0
    assert score(gate, x) >= gate.threshold


@pytest.mark.parametrize(
    ("gate", "kind", "pools"),
    [(subspace(0), "scs", False), (contrastive(0), "contrastive", True), (AlwaysGate(), "always", False)],
)
def test_kinds(gate, kind: str, pools: bool) -> None:
    assert (gate.kind, gate.pools) == (kind, pools)
    x = states(3)
    if not pools:
        assert gate.summary(x).shape == (len(x), 0)
        assert score(gate, x) == score(gate, x[-1:])


@given(hnp.arrays(np.float32, (3, N_EMBD), elements=st.floats(-100, 100, width=32)))
def test_scores_and_values_are_plain_floats(x: np.ndarray) -> None:
    for gate in (subspace(0), contrastive(0), contrastive(0, window=2), AlwaysGate()):
        s = score(gate, x)
        assert type(s) is float
        assert type(gate.value(s)) is float
        assert type(gate.threshold) is float
