"""The Profile: what it accepts, what it refuses and how it says so, and which model it fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import FineSteerError, ProfileError, ProfileMismatchError
from finesteer_local.profile import ModelIdentity, Profile
from finesteer_local.steering import LONG_PROMPT, SHORT_PROMPT, AlwaysGate, ContrastiveGate, Gate, SubspaceGate
from tiny import make_experts, make_gate

N_EMBD, N_LAYER = 16, 6
MODEL = ModelIdentity("0123456789abcdef" * 4, "Small", "llama", N_EMBD, N_LAYER, 100, "")


def profile(gate: str | Gate = "partly", layers: tuple[int, ...] = (2, 3), **changes) -> Profile:
    rng = np.random.default_rng(0)
    return Profile(
        **{
            "name": "safety",
            "model": MODEL,
            "gate": make_gate(gate, N_EMBD, rng) if isinstance(gate, str) else gate,
            "gate_layer": 1,
            "experts": {layer: make_experts(N_EMBD, rng) for layer in layers},
            **changes,
        }
    )


def test_the_defaults() -> None:
    made = profile()
    assert (made.strength, made.scope, made.description, made.license, made.training) == (1.0, "prompt", "", "", {})


def test_the_layers_are_ascending() -> None:
    assert profile(layers=(4, 2, 3)).layers == [2, 3, 4]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        *(
            ("name", {"name": name})
            for name in ("", "Safety", "a b", "-a", "a/b", "../a", "é", "a" * 65, "a\n", "a.gguf")
        ),
        ("description", {"description": "x" * 70_000}),
        ("license", {"license": "x" * 70_000}),
        *(("strength", {"strength": value}) for value in (-0.1, 100.1, NAN, INF)),
        *((name, {name: value}) for name in ("answer_strength", "length_decay") for value in (-0.1, 1.1, NAN, INF)),
        *(("scope", {"scope": scope}) for scope in ("", "answer", "Prompt")),
        *(("gate.layer", {"gate_layer": layer}) for layer in (-1, N_LAYER)),
        *(("model.fingerprint", {"model": replace(MODEL, fingerprint=f)}) for f in ("", "a" * 63, "A" * 64, "g" * 64)),
        *(("model.embedding_length", {"model": replace(MODEL, n_embd=n)}) for n in (0, -1, 1 << 17)),
        *(("model.block_count", {"model": replace(MODEL, n_layer=n)}) for n in (0, 1, 1025)),
        *(("model.vocab_size", {"model": replace(MODEL, n_vocab=n)}) for n in (-1, 1 << 25)),
        ("layers", {"experts": {}}),
        ("layers: layer 0 must", {"layers": (0,), "gate_layer": 0}),
        ("layers: layer 1 must", {"layers": (1,), "gate_layer": 2}),
        ("layers: layer 6 must", {"layers": (2, 6)}),
        ("training", {"training": {"loss": NAN}}),
        ("training", {"training": {"loss": np.float32(1)}}),
        ("training", {"training": {"data": {1, 2}}}),
        ("gate.layer", {"gate_layer": 5, "layers": (5,)}),  # a gate that pools, in the last layer
    ],
)
def test_values_out_of_range(field: str, changes: dict) -> None:
    with pytest.raises(ProfileError, match=f"^profile field {field}") as error:
        profile(**changes)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, FineSteerError | ValueError)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a"},
        {"name": "0_-z" * 16},
        {"answer_strength": 0.0},
        {"answer_strength": 1.0},
        {"length_decay": 0.0},
        {"length_decay": 1.0},
        {"strength": 0.0},
        {"strength": 100.0},
        {"gate_layer": 0, "layers": (1,)},
        {"gate_layer": 2, "layers": (2, 5)},
        {"gate_layer": 5, "layers": (5,), "gate": AlwaysGate()},
        {"training": {"recipe": "safety", "counts": {"a": 1}, "figures": [0.5, None, True, "é"]}},
        {"model": replace(MODEL, name="", architecture="", n_vocab=0, template_hash="")},
    ],
    ids=str,
)
def test_values_at_the_edge_of_their_range(changes: dict) -> None:
    assert profile(**changes).layers


def gates(kind: str, **changes) -> Gate:
    return replace(make_gate(kind, N_EMBD, np.random.default_rng(0)), **changes)


def filled(shape: tuple[int, ...] | int, value: float = 0.5, dtype: type = np.float32) -> np.ndarray:
    return np.full(shape, value, dtype)


WIDE = N_EMBD + 1
LINEAR = [
    ("gate.mean", {"mean": filled(WIDE)}),
    ("gate.mean", {"mean": filled(N_EMBD, NAN)}),
    ("gate.scale", {"scale": filled(N_EMBD, 0.0)}),
    ("gate.scale", {"scale": filled(N_EMBD, -1.0)}),
    ("gate.scale", {"scale": filled(N_EMBD, INF)}),
    ("gate.query", {"query": filled((N_EMBD, 0))}),
    ("gate.query", {"query": filled((N_EMBD, 257))}),
    ("gate.query", {"query": filled(N_EMBD)}),
    ("gate.query", {"query": filled((N_EMBD, 3), dtype=np.float64)}),
    ("gate.value_weight", {"value_weight": filled((N_EMBD, 2))}),
    ("gate.last_weight", {"last_weight": filled((N_EMBD, 1))}),
    ("gate.bias", {"bias": NAN}),
    ("gate.high", {"high": INF}),
    ("gate.low", {"low": 2e3}),  # above high
    ("gate.low", {"low": NAN}),
]
SUBSPACE = [
    ("gate.mean", {"mean": filled((1, N_EMBD))}),
    ("gate.basis", {"basis": filled((WIDE, 3))}),
    ("gate.basis", {"basis": filled((N_EMBD, 0))}),
    ("gate.basis", {"basis": filled((N_EMBD, WIDE))}),
    ("gate.basis", {"basis": filled((N_EMBD, 2), NAN)}),
    ("gate.calibration", {"calibration": filled(0)}),
    ("gate.calibration", {"calibration": np.array([0.2, 0.1], np.float32)}),
    ("gate.calibration", {"calibration": filled(3, NAN)}),
    ("gate.eps", {"eps": 0.0}),
    ("gate.eps", {"eps": 1.1}),
    ("gate.eps", {"eps": NAN}),
    ("gate.gamma", {"gamma": -1.0}),
    ("gate.gamma", {"gamma": INF}),
    ("gate.floor", {"floor": -0.1}),
    ("gate.floor", {"floor": 1.1}),
]


@pytest.mark.parametrize(
    ("kind", "field", "changes"),
    [*(("partly", *row) for row in LINEAR), *(("selective, last token", *row) for row in SUBSPACE)],
)
def test_gates_out_of_range(kind: str, field: str, changes: dict) -> None:
    with pytest.raises(ProfileError, match=f"^profile field {field}: "):
        profile(gates(kind, **changes))


def test_gates_at_the_edge_of_their_range() -> None:
    equal = np.array([0.5, 0.5], np.float32)
    for gate in (
        gates("partly", low=3.0, high=3.0),
        gates("partly", query=filled((N_EMBD, 256)), value_weight=filled((N_EMBD, 256))),
        gates("selective, last token", eps=1.0, gamma=0.0, floor=0.0, calibration=equal),
        gates("selective, last token", basis=filled((N_EMBD, N_EMBD))),
    ):
        assert isinstance(profile(gate).gate, ContrastiveGate | SubspaceGate)


class UnknownGate(AlwaysGate):
    kind = "magic"


class Stranger:
    kind = "magic"
    pools = False


def test_a_gate_of_an_unknown_kind() -> None:
    with pytest.raises(ProfileError, match=r"^profile field gate.kind: 'magic' is unknown"):
        profile(Stranger())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("experts.3.prototypes", {"prototypes": filled((4, WIDE))}),
        ("experts.3.prototypes", {"prototypes": filled((0, N_EMBD))}),
        ("experts.3.prototypes", {"prototypes": filled((257, N_EMBD))}),
        ("experts.3.prototypes", {"prototypes": filled((4, N_EMBD), INF)}),
        ("experts.3.prototypes", {"prototypes": filled((4, N_EMBD), dtype=np.float16)}),
        ("experts.3.router.weight", {"router_weight": filled((N_EMBD, 3))}),
        ("experts.3.router.weight", {"router_weight": filled((N_EMBD, 4), NAN)}),
        ("experts.3.router.bias", {"router_bias": filled(5)}),
        ("experts.3.router.bias", {"router_bias": filled(4, -INF)}),
        ("residual.3.basis", {"residual_basis": filled((N_EMBD, N_EMBD + 1))}),
        ("residual.3.basis", {"residual_basis": filled((WIDE, 2))}),
        ("residual.3.beta.0.weight", {"hidden_weight": filled((WIDE, 8))}),
        ("residual.3.beta.0.weight", {"hidden_weight": filled((N_EMBD, 0))}),  # a residual without a network
        ("residual.3.beta.0.weight", {"residual_basis": filled((N_EMBD, 0))}),  # and a network without one
        ("residual.3.beta.0.weight", {"hidden_weight": filled((N_EMBD, (1 << 16) + 1))}),
        ("residual.3.beta.0.bias", {"hidden_bias": filled(7)}),
        ("residual.3.beta.2.weight", {"output_weight": filled((8, 3))}),
        ("residual.3.beta.2.bias", {"output_bias": filled(1)}),
        ("residual.3.beta.2.bias", {"output_bias": filled(2, NAN)}),
        ("experts.3.labels", {"labels": ("a", "b", "c")}),
        ("experts.3.labels", {"labels": ("a", "b", "c", "d" * 300)}),
    ],
)
def test_experts_out_of_range(field: str, changes: dict) -> None:
    good = profile().experts
    with pytest.raises(ProfileError, match=f"^profile field {field}: "):
        profile(experts={2: good[2], 3: replace(good[3], **changes)})


class TestModels:
    def test_its_own_in_any_quantisation(self) -> None:
        profile().check_model(MODEL)
        profile().check_model(replace(MODEL, name="Renamed", architecture="mistral", template_hash="b" * 64))

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"fingerprint": "f" * 64}, "the norm weights differ: this is another model or a fine-tune"),
            ({"n_embd": 32}, "it has 6 layers of width 16 and 100 tokens, this model 6 of 32 and 100"),
            ({"n_layer": 7}, "it has 6 layers of width 16 and 100 tokens, this model 7 of 16 and 100"),
            ({"n_vocab": 101}, "it has 6 layers of width 16 and 100 tokens, this model 6 of 16 and 101"),
        ],
    )
    def test_another(self, changes: dict, reason: str) -> None:
        with pytest.raises(ProfileMismatchError) as error:
            profile(training={"recipe": "calm"}).check_model(replace(MODEL, name="Other", **changes))
        assert str(error.value) == (
            f"profile 'safety' was trained for 'Small', not for 'Other' ({reason}); "
            "train one with: finesteer-local train MODEL --recipe calm"
        )


class TestDecide:
    def states(self, n: int = 5) -> np.ndarray:
        return np.random.default_rng(1).standard_normal((n, N_EMBD)).astype(np.float32)

    def test_strength_and_scope_are_the_profiles_own_unless_replaced(self) -> None:
        made = profile(strength=2.0, scope="turn")
        one, two = made.decide(self.states()), made.decide(self.states(), strength=0.5, scope="response")
        assert (one.strength, one.scope, one.profile) == (2.0, "turn", "safety")
        assert (two.strength, two.scope) == (0.5, "response")
        np.testing.assert_allclose(one.vectors[2], 4 * two.vectors[2], rtol=1e-6)
        assert made.decide(self.states(), strength=0.0).strength == 0.0

    def test_a_long_prompt_gets_less(self) -> None:
        made = profile(strength=2.0, length_decay=0.5)
        short, least = made.decide(self.states()), 2 * (SHORT_PROMPT / LONG_PROMPT) ** 0.5
        lengths = {1: 2.0, SHORT_PROMPT: 2.0, 4 * SHORT_PROMPT: 1.0, LONG_PROMPT: least, 9999: least}
        for n_tokens, wanted in lengths.items():
            found = made.decide(self.states(), n_tokens=n_tokens)
            assert found.strength == wanted and found.g == short.g
            np.testing.assert_allclose(found.vectors[2], wanted / 2 * short.vectors[2], rtol=1e-6)
        assert made.decide(self.states(), strength=1.0, n_tokens=4 * SHORT_PROMPT).strength == 0.5
        assert profile(strength=2.0).decide(self.states(), n_tokens=9999).strength == 2.0

    @pytest.mark.parametrize("kind", ["partly", "selective, last token", "open"])
    def test_in_pieces(self, kind: str) -> None:
        made, x = profile(kind), self.states(9)
        summary = np.concatenate([made.gate.summary(x[:4]), made.gate.summary(x[4:])])
        whole, pieces = made.decide(x), made.decide_from(x[-1], summary)
        assert (whole.g, whole.score) == (pieces.g, pieces.score)
        for layer in whole.vectors:
            np.testing.assert_array_equal(whole.vectors[layer], pieces.vectors[layer])


def test_saving_to_a_folder_that_is_not_there_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "p.gguf"
    profile().save(path)
    assert Profile.load(path).name == "safety"
    assert [p.name for p in path.parent.iterdir()] == ["p.gguf"]
