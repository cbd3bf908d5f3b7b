"""The profile: one trained behaviour for one model, and its GGUF file.

Everything needed for a decision and nothing executable. Reading a file trusts nothing: types, shapes, ranges and
finiteness are checked before use, and what is wrong is named by its field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.errors import ProfileError, ProfileMismatchError
from finesteer_local.identity import ModelIdentity, read_model_identity
from finesteer_local.profile_checks import check_answer_gate, check_array, check_kinds, check_number, require
from finesteer_local.steering import (
    AlwaysGate,
    AnswerGate,
    ConditionGate,
    ContrastiveGate,
    Decision,
    Experts,
    Gate,
    Kinds,
    SubspaceGate,
    decide,
)

__all__ = ["SCOPES", "ModelIdentity", "Profile", "layer_words", "read_model_identity"]

Array = NDArray[np.float32]

ARCHITECTURE = "finesteer"
FORMAT_VERSION = 1
SCOPES = ("response", "turn", "prompt")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_STRENGTH = 100.0
_MAX_EXPERTS = 256
_MAX_WIDTH = 1 << 16  # of a model or of beta's hidden layer
_MAX_TEXT = 1 << 16
_MAX_WINDOW = 1 << 16  # tokens


@dataclass(frozen=True, eq=False)
class Profile:
    """One trained behaviour for one model.

    Attributes:
        name: what `--profile` takes; lower-case letters, digits, `-` and `_`.
        model: the model it was trained for.
        gate: when to steer.
        gate_layer: the layer whose hidden state the gate and the router read (llama.cpp's `l_out-N`).
        experts: how to steer, by layer; every layer is at or above the gate's, and above 0.
        strength: lambda.
        scope: `response`, `turn` or `prompt`: which tokens are steered.
        answer_strength: factor on the vector for the answer's tokens, 0 to 1; the prompt's tokens get all of it.
        length_decay: how fast the strength falls with a prompt's length, 0 (not at all) to 1; see
            `steering.decision.length_factor`.
        kinds: tells what kind of request opened a contrastive gate; None where the profile was trained without.
        answer_gate: reads the answer while it is written, where the gate stayed shut; None where the profile has none.
        training: where it comes from (recipe, data hash, counts, seed, versions, measured figures); JSON values.
    """

    name: str
    model: ModelIdentity
    gate: Gate
    gate_layer: int
    experts: Mapping[int, Experts]
    strength: float = 1.0
    scope: str = "prompt"
    answer_strength: float = 1.0
    length_decay: float = 0.0
    kinds: Kinds | None = None
    answer_gate: AnswerGate | None = None
    description: str = ""
    license: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def layers(self) -> list[int]:
        """The steered layers, ascending."""
        return sorted(self.experts)

    @property
    def used_layers(self) -> set[int]:
        """The layers that the profile reads or steers."""
        return {self.gate_layer, *self.experts, *([self.answer_gate.layer] if self.answer_gate else ())}

    def summary(self, states: Array) -> Array:
        """What the gate and the kinds keep of hidden states (n, n_embd): one row a token, so that a turn can come in
        pieces."""
        kept = self.gate.summary(states)
        if self.kinds is None or not isinstance(self.gate, ContrastiveGate):
            return kept
        return np.concatenate([kept, self.kinds.summary(self.gate, states)], axis=1)

    def decide(
        self,
        states: Array,
        *,
        strength: float | None = None,
        scope: str | None = None,
        n_tokens: int = 1,
        policy: Mapping[str, str] | None = None,
    ) -> Decision:
        """The decision for one prompt.

        Args:
            states: hidden states at `gate_layer` from the start of the last user message to the prompt's last token,
                shape (n, n_embd); a gate that does not pool needs only the last row, one that reads the whole prompt
                (`gate.whole`) the states of all its tokens.
            strength, scope: replace the profile's own.
            n_tokens: tokens of the prompt that are in scope.
            policy: what is done about each kind of request (`steering.ACTIONS`); all are steered that it leaves out.

        Raises:
            SteeringError: a state, or what follows from it, is not finite.
        """
        return self.decide_from(
            states[-1], self.summary(states), strength=strength, scope=scope, n_tokens=n_tokens, policy=policy
        )

    def decide_from(
        self,
        h: Array,
        summary: Array,
        *,
        strength: float | None = None,
        scope: str | None = None,
        n_tokens: int = 1,
        policy: Mapping[str, str] | None = None,
        held_open: bool = False,
    ) -> Decision:
        """As `decide`, from the last token's state and the `summary` of the turn, which may come in pieces.

        `held_open` as for `steering.decide`.
        """
        return decide(
            self.name,
            self.gate,
            self.experts,
            h,
            summary,
            strength=self.strength if strength is None else strength,
            scope=self.scope if scope is None else scope,
            answer_strength=self.answer_strength,
            length_decay=self.length_decay,
            n_tokens=n_tokens,
            kinds=self.kinds,
            policy=policy,
            held_open=held_open,
        )

    def decision_json(self, decision: Decision) -> dict[str, Any]:
        """What this profile decided, for programs; the experts are averaged over the layers, heaviest first."""
        return {
            "profile": decision.profile,
            "g": decision.g,
            "open": decision.open,
            "flagged": decision.flagged,
            "action": decision.action,
            "kinds": [{"name": name, "probability": probability} for name, probability in decision.kinds],
            "score": decision.score,
            "threshold": decision.threshold,
            "strength": decision.strength,
            "answer_strength": decision.answer_strength,
            "scope": decision.scope,
            "gate_layer": self.gate_layer,
            "layers": self.layers,
            "experts": [{"name": name, "weight": weight} for name, weight in decision.leading_experts(_MAX_EXPERTS)],
            "answer": asdict(decision.answer) if decision.answer else None,
        }

    def check_model(self, model: ModelIdentity) -> None:
        """Raise `ProfileMismatchError` unless the profile was trained for `model` (in any quantisation)."""
        mine = self.model
        if (mine.n_embd, mine.n_layer, mine.n_vocab) != (model.n_embd, model.n_layer, model.n_vocab):
            reason = (
                f"it has {mine.n_layer} layers of width {mine.n_embd} and {mine.n_vocab} tokens, "
                f"this model {model.n_layer} of {model.n_embd} and {model.n_vocab}"
            )
        elif mine.fingerprint != model.fingerprint:
            reason = "the norm weights differ: this is another model or a fine-tune"
        else:
            return
        raise ProfileMismatchError(
            f"profile {self.name!r} was trained for {mine.name!r}, not for {model.name!r} ({reason}); "
            f"train one with: finesteer-local train MODEL --recipe {self.training.get('recipe') or self.name}"
        )

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read and check a profile file.

        Raises:
            ProfileError: the file is missing, damaged or holds a value outside its range; the message names the field.
        """
        from finesteer_local.profile_file import read_profile

        return read_profile(Path(path))

    def save(self, path: str | Path) -> None:
        """Write the profile to `path`, through a temporary file beside it.

        Raises:
            StorageError: the file cannot be written.
        """
        from finesteer_local.profile_file import write_profile

        with paths.atomic_write(Path(path)) as temporary:
            write_profile(self, temporary)

    def training_json(self) -> str:
        return json.dumps(self.training, sort_keys=True, ensure_ascii=False, allow_nan=False)


def layer_words(layers: Iterable[int]) -> str:
    """`layer 13`, `layers 8, 13`."""
    names = [str(layer) for layer in layers]
    return f"layer{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _validate(profile: Profile) -> None:
    model = profile.model
    require(bool(NAME.fullmatch(profile.name)), "name", f"{profile.name!r}; use lower-case letters, digits, - and _")
    for name, text in (("description", profile.description), ("license", profile.license)):
        require(len(text) <= _MAX_TEXT, name, "too long")
    require(bool(re.fullmatch(r"[0-9a-f]{64}", model.fingerprint)), "model.fingerprint", "not a SHA-256 in hex")
    require(1 <= model.n_embd <= _MAX_WIDTH, "model.embedding_length", f"{model.n_embd} is out of range")
    require(2 <= model.n_layer <= 1024, "model.block_count", f"{model.n_layer} is out of range")
    require(0 <= model.n_vocab <= 1 << 24, "model.vocab_size", f"{model.n_vocab} is out of range")
    require(profile.scope in SCOPES, "scope", f"{profile.scope!r} is none of {', '.join(SCOPES)}")
    check_number("strength", profile.strength, 0.0, MAX_STRENGTH)
    check_number("answer_strength", profile.answer_strength, 0.0, 1.0)
    check_number("length_decay", profile.length_decay, 0.0, 1.0)
    require(0 <= profile.gate_layer < model.n_layer, "gate.layer", f"{profile.gate_layer} is not a layer of the model")
    require(
        not profile.gate.pools or profile.gate_layer < model.n_layer - 1,
        "gate.layer",
        "a gate that pools cannot read the last layer, which shows only the tokens that have logits",
    )
    require(0 < len(profile.experts) <= model.n_layer, "layers", "no layer is steered")
    for layer in profile.experts:
        require(
            max(profile.gate_layer, 1) <= layer < model.n_layer,
            "layers",
            f"layer {layer} must lie from the gate's layer ({profile.gate_layer}), at least 1, to {model.n_layer - 1}",
        )
    try:
        profile.training_json()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProfileError(f"profile field training: {error}") from error
    _validate_gate(profile.gate, model.n_embd)
    if profile.kinds is not None:
        require(isinstance(profile.gate, ContrastiveGate), "kinds", "only a contrastive gate can tell them")
        check_kinds(profile.kinds, model.n_embd)
    if profile.answer_gate is not None:
        check_answer_gate(profile.answer_gate, model.n_embd, model.n_layer)
    for layer, experts in profile.experts.items():
        _validate_experts(layer, experts, model.n_embd)
        require(
            experts.by_kind == any(each.by_kind for each in profile.experts.values()), "layers", "not all go by kind"
        )
        if experts.by_kind:
            known = {kind.expert for kind in profile.kinds.kinds} if profile.kinds else set()
            require(bool(known & set(experts.labels)), f"experts.{layer}.labels", "no kind names one of these experts")


def _validate_gate(gate: Gate, n_embd: int) -> None:
    if isinstance(gate, SubspaceGate):
        check_array("gate.mean", gate.mean, (n_embd,))
        check_array("gate.basis", gate.basis, (n_embd, None))
        require(1 <= gate.basis.shape[1] <= n_embd, "gate.basis", "needs 1 to n_embd columns")
        check_array("gate.calibration", gate.calibration, (None,))
        require(len(gate.calibration) > 0, "gate.calibration", "is empty")
        require(bool((np.diff(gate.calibration) >= 0).all()), "gate.calibration", "is not ascending")
        check_number("gate.eps", gate.eps, 1e-6, 1.0)
        check_number("gate.gamma", gate.gamma, 0.0, 100.0)
        check_number("gate.floor", gate.floor, 0.0, 1.0)
    elif isinstance(gate, ContrastiveGate):
        check_array("gate.mean", gate.mean, (n_embd,))
        check_array("gate.scale", gate.scale, (n_embd,))
        require(bool((gate.scale > 0).all()), "gate.scale", "must be positive")
        check_array("gate.query", gate.query, (n_embd, None))
        require(1 <= gate.query.shape[1] <= _MAX_EXPERTS, "gate.query", "needs 1 to 256 columns")
        check_array("gate.value_weight", gate.value_weight, (n_embd, gate.query.shape[1]))
        check_array("gate.last_weight", gate.last_weight, (n_embd,))
        check_number("gate.bias", gate.bias, -1e9, 1e9)
        check_number("gate.high", gate.high, -1e9, 1e9)
        check_number("gate.low", gate.low, -1e9, gate.high)
        check_number("gate.window", gate.window, 0, _MAX_WINDOW)
        require(gate.window == int(gate.window), "gate.window", f"{gate.window} is not a whole number of tokens")
    elif isinstance(gate, ConditionGate):
        check_array("gate.direction", gate.direction, (n_embd,))
        require(bool(gate.direction.any()), "gate.direction", "is zero")
        check_number("gate.limit", gate.limit, -1.0, 1.0)
        require(gate.sign in (-1.0, 1.0), "gate.sign", f"{gate.sign} is neither 1 nor -1")
        require(gate.over_prompt in (0.0, 1.0), "gate.over_prompt", f"{gate.over_prompt} is neither 0 nor 1")
    else:
        require(isinstance(gate, AlwaysGate), "gate.kind", f"{gate.kind!r} is unknown to this version")


def _validate_experts(layer: int, experts: Experts, n_embd: int) -> None:
    at, residual = f"experts.{layer}", f"residual.{layer}"
    check_array(f"{at}.prototypes", experts.prototypes, (None, n_embd))
    n_experts = len(experts.prototypes)
    require(1 <= n_experts <= _MAX_EXPERTS, f"{at}.prototypes", f"{n_experts} experts are out of range")
    check_array(f"{at}.router.weight", experts.router_weight, (n_embd, n_experts))
    check_array(f"{at}.router.bias", experts.router_bias, (n_experts,))
    check_array(f"{residual}.basis", experts.residual_basis, (n_embd, None))
    check_array(f"{residual}.beta.0.weight", experts.hidden_weight, (n_embd, None))
    rank, width = experts.residual_basis.shape[1], experts.hidden_weight.shape[1]
    require(rank <= n_embd, f"{residual}.basis", f"rank {rank} is out of range")
    require(width <= _MAX_WIDTH, f"{residual}.beta.0.weight", f"width {width} is out of range")
    require((width > 0) == (rank > 0), f"{residual}.beta.0.weight", f"width {width} does not fit rank {rank}")
    check_array(f"{residual}.beta.0.bias", experts.hidden_bias, (width,))
    check_array(f"{residual}.beta.2.weight", experts.output_weight, (width, rank))
    check_array(f"{residual}.beta.2.bias", experts.output_bias, (rank,))
    require(len(experts.labels) in (0, n_experts), f"{at}.labels", f"{len(experts.labels)} for {n_experts} experts")
    require(all(len(text) <= 256 for text in experts.labels), f"{at}.labels", "too long")
