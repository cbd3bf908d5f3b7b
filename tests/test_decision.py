"""The decision for one prompt: H <- H + strength * g(h) * v(h)."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesteer_local.errors import SteeringError
from finesteer_local.steering import AlwaysGate, Decision, Experts, Gate, decide
from tiny import make_experts, make_gate

N_EMBD = 24
SEEDS = st.integers(0, 2**32 - 1)


def experts(seed: int, layers: tuple[int, ...] = (3, 5)) -> dict:
    rng = np.random.default_rng(seed)
    return {layer: make_experts(N_EMBD, rng) for layer in layers}


def states(seed: int = 0, n: int = 5) -> np.ndarray:
    return np.random.default_rng(seed + 1).standard_normal((n, N_EMBD)).astype(np.float32)


def taken(gate: Gate, by_layer: dict, x: np.ndarray, strength: float = 1.0) -> Decision:
    return decide("safety", gate, by_layer, x[-1], gate.summary(x), strength=strength, scope="turn")


@given(
    SEEDS,
    st.floats(0, 100),
    st.sampled_from(["open", "partly", "selective", "partly, windowed", "selective, last token", "closed"]),
)
def test_the_formula(seed: int, strength: float, kind: str) -> None:
    gate, by_layer, x = make_gate(kind, N_EMBD, np.random.default_rng(seed)), experts(seed), states(seed)
    decision = taken(gate, by_layer, x, strength)
    score = gate.score(x[-1], gate.summary(x))
    assert (decision.score, decision.g, decision.threshold) == (score, gate.value(score), gate.threshold)
    assert (decision.profile, decision.strength, decision.scope) == ("safety", strength, "turn")
    assert decision.open == (decision.g > 0 and strength > 0)
    if not decision.open:
        assert not decision.alpha and not decision.beta and not decision.vectors
        return
    assert [*decision.vectors] == [*decision.alpha] == [*decision.beta] == [3, 5]
    for layer, e in by_layer.items():
        np.testing.assert_array_equal(decision.alpha[layer], e.alpha(x[-1]))
        np.testing.assert_array_equal(decision.beta[layer], e.beta(x[-1]))
        v = e.mix(e.alpha(x[-1]), e.beta(x[-1])).astype(np.float64)
        np.testing.assert_allclose(decision.vectors[layer], strength * decision.g * v, rtol=1e-5, atol=1e-30)
        assert decision.vectors[layer].dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, -1])
def test_a_state_that_is_not_finite(value: float, at: int) -> None:
    """Anywhere in the turn for a gate that pools; and a closed gate is no excuse."""
    x = states()
    x[at, 3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("open", "closed", "partly", "selective, last token"):
            gate = make_gate(kind, N_EMBD, np.random.default_rng(0))
            if at == -1 or gate.pools:
                with pytest.raises(SteeringError, match="profile 'safety': the model's hidden state is not finite"):
                    taken(gate, experts(0), x)


@pytest.mark.parametrize("kind", ["closed", "partly", "closed, last token"])
def test_a_score_that_is_not_finite(kind: str) -> None:
    gate = make_gate(kind, N_EMBD, np.random.default_rng(0))
    if gate.pools:
        gate = replace(gate, last_weight=np.full(N_EMBD, 3e38, np.float32))
    x = states() if gate.pools else np.full((1, N_EMBD), 3e38, np.float32)
    with np.errstate(all="ignore"), pytest.raises(SteeringError, match="profile 'safety': the gate's score"):
        taken(gate, experts(0), x)


def test_a_stretch_whose_score_is_not_finite() -> None:
    """Nor is a damaged gate hidden by what it makes of the rest of the turn."""
    gate, x = make_gate("closed, windowed", N_EMBD, np.random.default_rng(0)), states(n=30)
    summary = np.zeros((30, 6), np.float32)  # three heads' logits, and their values
    summary[0, :3] = 100
    summary[17:19, 3:5] = 3e38, -3e38  # where nothing outweighs these, two heads are infinite and cancel out
    with np.errstate(all="ignore"):
        assert np.isfinite(gate.score(x[-1], summary[:6])) and np.isfinite(
            replace(gate, window=0).score(x[-1], summary)
        )
        with pytest.raises(SteeringError, match="profile 'safety': the gate's score"):
            decide("safety", gate, experts(0), x[-1], summary, strength=1.0, scope="turn")


@pytest.mark.parametrize("field", ["prototypes", "residual_basis", "output_bias", "hidden_weight"])
def test_a_vector_that_is_not_finite(field: str) -> None:
    by_layer = experts(0)
    huge = np.full_like(getattr(by_layer[5], field), 3e38)
    if field == "hidden_weight":
        # one sign throughout: what a BLAS makes of infinities of both, beta's ReLU may cut to 0
        huge *= np.sign(states()[-1])[:, None]
    by_layer[5] = replace(by_layer[5], **{field: huge})
    with np.errstate(all="ignore"), pytest.raises(SteeringError, match="profile 'safety': layer 5's vector"):
        taken(AlwaysGate(), by_layer, states(), 100.0)


def test_a_strength_of_zero_is_closed_but_tells_g() -> None:
    decision = taken(AlwaysGate(), experts(0), states(), 0.0)
    assert decision.g == 1.0
    assert not decision.open


def test_what_tells_no_prompt_from_another_has_no_weights_to_show() -> None:
    """It steers all the same, and beside it a router that learnt something is heard."""
    mean = np.random.default_rng(3).standard_normal(N_EMBD).astype(np.float32)
    by_layer, x = {2: Experts.fixed(mean), **experts(0)}, states()
    by_layer[4] = replace(by_layer[3], router_weight=np.zeros_like(by_layer[3].router_weight))
    decision = taken(AlwaysGate(), by_layer, x, 2.0)
    assert [*decision.vectors] == [*decision.beta] == [2, 3, 5, 4]
    assert [*decision.alpha] == [*decision.labels] == [3, 5]
    np.testing.assert_array_equal(decision.vectors[2], 2 * mean)
    flat = by_layer[4]
    wanted = 2 * flat.mix(flat.alpha(x[-1]), flat.beta(x[-1])).astype(np.float64)
    np.testing.assert_allclose(decision.vectors[4], wanted, rtol=1e-5, atol=1e-6)
    assert {name for name, _ in decision.leading_experts(9)} == {f"expert {letter}" for letter in "abcd"}
    alone = taken(AlwaysGate(), {2: by_layer[2], 4: flat}, x)
    assert alone.open and alone.leading_experts() == [] and not alone.alpha and not alone.labels


class TestLeadingExperts:
    def decision(self, alpha: dict, labels: dict | None = None) -> Decision:
        arrays = {layer: np.array(row, np.float32) for layer, row in alpha.items()}
        return Decision("p", 1.0, 0.0, 0.0, 1.0, "turn", alpha=arrays, labels=labels or {})

    def test_averages_over_layers_heaviest_first(self) -> None:
        labels = {1: ("a", "b", "c"), 2: ("b", "c", "d")}
        decision = self.decision({1: [0.5, 0.3, 0.2], 2: [0.6, 0.1, 0.3]}, labels)
        got = decision.leading_experts(4)
        assert [name for name, _ in got][:2] == ["b", "a"]
        assert dict(got) == pytest.approx({"b": 0.45, "a": 0.25, "d": 0.15, "c": 0.15})
        assert decision.leading_experts(1) == [("b", pytest.approx(0.45))]
        assert sum(weight for _, weight in got) == pytest.approx(1.0)

    def test_without_labels_they_are_numbered(self) -> None:
        assert self.decision({4: [0.2, 0.8]}).leading_experts() == [
            ("expert 2", pytest.approx(0.8)),
            ("expert 1", pytest.approx(0.2)),
        ]

    def test_a_closed_decision_has_none(self) -> None:
        assert self.decision({}).leading_experts() == []
