"""The kinds of request: the head beside a gate, what is done about each kind, and what a decision says of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import ProfileError
from finesteer_local.profile import ModelIdentity, Profile
from finesteer_local.steering import ACTIONS, ContrastiveGate, Decision, Kinds, likely
from finesteer_local.steering.kinds import STOCK_WORDS, action, sigmoid
from tiny import make_experts, make_gate, make_kinds

N_EMBD = 16
MODEL = ModelIdentity("0123456789abcdef" * 4, "Small", "llama", N_EMBD, 6, 100, "")


def profile(gate: str = "partly, windowed", **changes: object) -> Profile:
    rng = np.random.default_rng(0)
    made = Profile(
        "safety",
        MODEL,
        make_gate(gate, N_EMBD, rng),
        1,
        {2: make_experts(N_EMBD, rng)},
        kinds=make_kinds(N_EMBD, rng),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def states(n: int = 20, seed: int = 1) -> np.ndarray:
    return (2 * np.random.default_rng(seed).standard_normal((n, N_EMBD))).astype(np.float32)


@pytest.mark.parametrize("width", [0, 12])
def test_the_formula(width: int) -> None:
    made = profile(kinds=make_kinds(N_EMBD, np.random.default_rng(5), width=width))
    gate, kinds, x = made.gate, made.kinds, states()
    assert isinstance(gate, ContrastiveGate) and kinds is not None
    decision = made.decide(x)
    assert decision.score == gate.score(x[-1], gate.summary(x))
    z = np.clip((x - gate.mean) / gate.scale, -8, 8).astype(np.float64)
    start, stop, _ = gate.attention(gate.summary(x))
    assert stop - start == gate.window == 6  # a stretch, not the whole turn
    exponents = np.exp(z[start:stop] @ gate.query)
    pooled = (exponents / exponents.sum(axis=0)).mean(axis=1) @ z[start:stop]
    if width:
        assert kinds.hidden_weight is not None and kinds.hidden_weight.shape == (N_EMBD, width)
        pooled = np.maximum(pooled @ kinds.hidden_weight + kinds.hidden_bias, 0)
    wanted = sigmoid(kinds.slope * decision.score + kinds.offset) * sigmoid(pooled @ kinds.weight + kinds.bias)
    assert dict(decision.kinds) == pytest.approx(dict(zip(kinds.names, wanted, strict=True)), rel=1e-4)
    found = [p for _, p in decision.kinds]
    assert found == sorted(found, reverse=True)


def test_a_turn_may_come_in_pieces() -> None:
    made, x = profile(), states()
    pieces = np.concatenate([made.summary(part) for part in np.split(x, [3, 4, 15])])
    np.testing.assert_array_equal(pieces, made.summary(x))
    assert made.decide_from(x[-1], pieces).kinds == made.decide(x).kinds
    assert made.summary(x[:0]).shape == (0, made.summary(x).shape[1])


def test_kinds_change_nothing_of_the_steering() -> None:
    with_kinds, without, x = profile(), profile(kinds=None), states()
    a, b = with_kinds.decide(x), without.decide(x)
    assert (a.score, a.g) == (b.score, b.g) and a.g > 0
    np.testing.assert_array_equal(a.vectors[2], b.vectors[2])
    assert a.kinds and not b.kinds and a.action == b.action == "steer" and a.flagged and b.flagged


def test_a_closed_gate_still_says_how_likely_each_kind_is() -> None:
    decision = profile("closed").decide(states())
    assert decision.action is None and not decision.flagged and not decision.likely_kinds
    assert len(decision.kinds) == 3


@pytest.mark.parametrize("wanted", ACTIONS)
def test_what_is_done_about_the_likeliest_kind(wanted: str) -> None:
    made, x = profile(), states()
    name = made.decide(x).kinds[0][0]
    decision = made.decide(x, policy=dict.fromkeys(made.kinds.names if made.kinds else (), wanted))
    assert decision.action == wanted and decision.likely_kinds[0] == name
    assert decision.open == (wanted == "steer")
    assert decision.flagged == (wanted != "leave")
    assert decision.words == (f"No {name} here." if wanted == "refuse" else "")
    told = made.decision_json(decision)
    assert (told["action"], told["flagged"], told["open"]) == (wanted, decision.flagged, decision.open)
    assert told["kinds"][0] == {"name": name, "probability": decision.kinds[0][1]}


def test_at_strength_0_a_request_is_only_reported() -> None:
    decision = profile().decide(states(), strength=0.0)
    assert decision.action == "report" and decision.flagged and not decision.open


def test_the_strictest_action_of_what_a_request_counts_as() -> None:
    both = (("fraud", 0.9), ("hate", 0.6), ("drugs", 0.3))
    assert likely(both) == ("fraud", "hate")
    assert likely((("fraud", 0.2), ("hate", 0.1))) == ("fraud",)
    steered = dict.fromkeys(("fraud", "hate", "drugs"), "steer")
    assert action(both, steered) == ("steer", "fraud")
    assert action(both, {**steered, "fraud": "leave"}) == ("steer", "hate")  # hate is not left alone
    assert action(both, {**steered, "fraud": "leave", "hate": "report"}) == ("report", "hate")
    assert action(both, {**steered, "hate": "refuse"}) == ("refuse", "hate")
    assert action(both, {**steered, "drugs": "refuse"}) == ("steer", "fraud")
    assert action((), {}) == ("steer", "")


def test_a_kinds_own_action_holds_where_nobody_says_otherwise() -> None:
    made, x = profile(), states()
    assert made.kinds is not None
    name = made.decide(x).kinds[0][0]
    kinds = tuple(replace(kind, action="refuse", words=("One.", "Two.")) for kind in made.kinds.kinds)
    own = replace(made, kinds=replace(made.kinds, kinds=kinds))
    assert own.decide(x).action == "refuse"
    assert [own.decide(x, n_tokens=n).words for n in (2, 3, 4)] == ["One.", "Two.", "One."]
    assert own.decide(x, policy=dict.fromkeys(own.kinds.names if own.kinds else (), "steer")).action == "steer"
    assert own.decide(x, policy={name: "steer"}).action in ("steer", "refuse")
    with pytest.raises(ProfileError, match="action 'forgive' is none of"):
        replace(made, kinds=replace(made.kinds, kinds=(replace(kinds[0], action="forgive"), *kinds[1:])))


def test_a_kind_of_which_none_may_be_missed() -> None:
    """From its own probability on it is acted upon though the gate stays shut; nothing is steered then."""
    made, x = profile("closed"), states()
    assert made.kinds is not None
    (name, probability), *_ = made.decide(x).kinds
    before = made.kinds

    def acting(alone: float, action: str, **policy: str) -> Decision:
        kinds = tuple(replace(k, alone=alone, action=action) if k.name == name else k for k in before.kinds)
        return replace(made, kinds=replace(before, kinds=kinds)).decide(x, policy=policy)

    refused = acting(probability - 0.01, "refuse")
    assert (refused.action, refused.g, refused.open, refused.flagged) == ("refuse", 0.0, False, True)
    assert refused.words == f"No {name} here." and refused.likely_kinds[0] == name
    assert acting(probability - 0.01, "report").action == "report"
    assert acting(probability + 0.01, "refuse").action is None
    assert acting(0.0, "refuse").action is None
    for less in ("steer", "leave"):
        assert acting(probability - 0.01, "refuse", **{name: less}).action is None
    with pytest.raises(ProfileError, match=r"kinds\.about"):
        acting(1.5, "refuse")


@pytest.mark.parametrize("width", [0, 12])
def test_a_file_keeps_them(tmp_path: Path, width: int) -> None:
    made = profile(kinds=make_kinds(N_EMBD, np.random.default_rng(5), width=width))
    made.save(tmp_path / "p.gguf")
    read = Profile.load(tmp_path / "p.gguf")
    assert read.kinds is not None and made.kinds is not None
    assert read.kinds.kinds == made.kinds.kinds
    assert (read.kinds.slope, read.kinds.offset) == (made.kinds.slope, made.kinds.offset)
    for field in ("weight", "bias", "hidden_weight", "hidden_bias"):
        np.testing.assert_array_equal(getattr(read.kinds, field), getattr(made.kinds, field))
    assert read.decide(states()).kinds == made.decide(states()).kinds


def test_a_kind_without_words_has_stock_ones() -> None:
    assert STOCK_WORDS and all(kind.words for kind in make_kinds(4, np.random.default_rng(0)).kinds)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": np.zeros((N_EMBD, 2), np.float32)}, "kinds.weight"),
        ({"weight": np.full((N_EMBD, 3), np.nan, np.float32)}, "kinds.weight"),
        ({"bias": np.zeros(4, np.float32)}, "kinds.bias"),
        ({"hidden_weight": np.zeros((N_EMBD, 12), np.float32)}, "kinds.hidden"),
        (
            {"hidden_weight": np.zeros((N_EMBD, 12), np.float32), "hidden_bias": np.zeros(12, np.float32)},
            "kinds.weight",
        ),
        (
            {"hidden_weight": np.zeros((4, N_EMBD), np.float32), "hidden_bias": np.zeros(16, np.float32)},
            "kinds.hidden.weight",
        ),
        (
            {"hidden_weight": np.zeros((N_EMBD, 0), np.float32), "hidden_bias": np.zeros(0, np.float32)},
            "kinds.hidden.weight",
        ),
        ({"slope": -1.0}, "kinds.slope"),
        ({"offset": float("inf")}, "kinds.offset"),
        ({"kinds": ()}, "kinds.names"),
    ],
)
def test_what_is_out_of_range(change: dict, named: str) -> None:
    made = profile()
    assert made.kinds is not None
    with pytest.raises(ProfileError, match=f"profile field {named}"):
        replace(made, kinds=replace(made.kinds, **change))


@pytest.mark.parametrize("name", ["", "Two Words", "x" * 65, "fraud"])
def test_names_are_plain_and_differ(name: str) -> None:
    made = profile().kinds
    assert made is not None
    twice = (made.kinds[0], replace(made.kinds[1], name=name), made.kinds[2])
    with pytest.raises(ProfileError, match=r"profile field kinds\.names"):
        profile(kinds=replace(made, kinds=twice))


def test_only_a_contrastive_gate_tells_kinds() -> None:
    with pytest.raises(ProfileError, match="only a contrastive gate"):
        profile("open")


def test_probabilities_do_not_overflow() -> None:
    assert sigmoid(np.array([-1e6, 0.0, 1e6])).tolist() == [0.0, 0.5, 1.0]
    kinds = profile().kinds
    assert isinstance(kinds, Kinds)
    decision = profile(kinds=replace(kinds, slope=1e9)).decide(states())
    assert all(0.0 <= p <= 1.0 for _, p in decision.kinds)
