"""CAST: behaviour vectors one layer lower than IBM counts, and conditions as IBM's LeashLayer computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.converters import cast
from finesteer_local.converters.recognise import read
from finesteer_local.errors import ProfileError
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt
from foreign import HINTS, VECTORS, assert_vectors, refused
from tiny import make_profile


def svec(path: Path, directions: Any = None, **more: Any) -> Path:
    """What `SteeringVector.save` writes: JSON of model_type, directions and explained_variances."""
    directions = directions or {str(n + 1): vector.tolist() for n, vector in VECTORS.items()}
    value = {"model_type": "llama", "directions": directions, "explained_variances": dict.fromkeys(directions, 0.5)}
    path.write_text(json.dumps({**value, **more}))
    return path


def test_behaviour_vectors(tmp_path: Path) -> None:
    foreign = read(svec(tmp_path / "b.svec"), HINTS)
    assert_vectors(foreign, VECTORS)
    assert (foreign.format, foreign.model_hint) == ("activation-steering vector (.svec)", "llama")
    assert "layer N - 1" in foreign.notes[0]
    nested = {str(n + 1): [vector.tolist()] for n, vector in VECTORS.items()}
    assert_vectors(read(svec(tmp_path / "b.svec", nested), HINTS), VECTORS)
    assert "embeddings" in read(svec(tmp_path / "b.svec", {"0": [1.0], "2": [1.0]}), HINTS).cannot[-1]


@pytest.mark.parametrize(
    ("directions", "word"),
    [
        ({"1": "text"}, "not a list of numbers"),
        ({"1": [1, "2"]}, "not a list of numbers"),
        ({"1": [[1.0], [2.0]]}, "not a list of numbers"),
        ({"1": [True]}, "not a list of numbers"),
        ({"1": [1e300]}, "not finite"),
        ({"1": [10**400]}, "not finite"),
        ({"one": [1.0]}, "no layer number"),
        ({"-1": [1.0]}, "no layer number"),
        ({"1": [1.0], "2": [1.0, 2.0]}, "different lengths"),
        ({"1": []}, "expected one row"),
    ],
)
def test_damaged_directions(tmp_path: Path, directions: Any, word: str) -> None:
    refused(svec(tmp_path / "b.svec", directions), word)


def test_json_that_is_made_to_hurt(tmp_path: Path) -> None:
    path = tmp_path / "b.svec"
    for text in (
        '{"directions": {"1": [NaN]}}',
        '{"directions": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"a": "\\ud800"',
        "{}}",
    ):
        path.write_text(text)
        refused(path, "not JSON")
    path.write_text('{"directions": {"1": [' + "[]," * 30_000 + "[]]}}")
    refused(path, "more parts than any steering vector")


def ibm(hidden: np.ndarray, condition: np.ndarray, mean: bool) -> float:
    """LeashLayer._process_single_condition on hidden states (n, n_embd), in PyTorch as it is there."""
    torch = pytest.importorskip("torch")
    state, c = torch.from_numpy(hidden).double(), torch.from_numpy(condition).double()
    x = state.mean(dim=0) if mean else state[-1]
    projector = torch.outer(c, c) / torch.dot(c, c)
    y = torch.tanh(projector @ x)
    return float(torch.dot(x, y) / (torch.norm(x) * torch.norm(y)))


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("above", [True, False])
def test_conditions(tmp_path: Path, mean: bool, above: bool) -> None:
    path = svec(tmp_path / "c.svec")
    rng = np.random.default_rng(0)
    opened = set()
    for _ in range(20):
        states = rng.standard_normal((7, 64)).astype(np.float32)
        similarity = ibm(states, VECTORS[1], mean)
        gate, layer = cast.read_condition(path, 2, 0.1, opens_above=above, mean=mean, n_embd=64)
        assert layer == 1
        score = gate.score(states[-1], gate.summary(states))
        assert score == pytest.approx(similarity if above else -similarity, abs=1e-6)
        assert gate.value(score) == float(similarity > 0.1 if above else similarity < 0.1)
        opened.add(gate.value(score))
    assert opened == {0.0, 1.0}


def test_conditions_that_cannot_be(tmp_path: Path) -> None:
    def fails(word: str, layer: int = 2, **given: Any) -> None:
        with pytest.raises(ProfileError, match=word):
            cast.read_condition(svec(tmp_path / "c.svec", **given), layer, 0.1, opens_above=True, mean=True, n_embd=64)

    fails("no direction for layer 9", 9)
    fails("layer 0 looks at the embeddings", 0, directions={"0": VECTORS[1].tolist()})
    fails("has 1 numbers, the model is 64 wide", directions={"2": [1.0]})
    fails("the model is 64 wide", directions={"2": [0.0] * 64})
    with pytest.raises(ProfileError, match="there are no 'directions'"):
        cast.read_condition(svec(tmp_path / "c.svec", directions=[1]), 2, 0.1, opens_above=True, mean=True, n_embd=64)


SETTINGS = {"n_ctx": 512, "n_threads": 1, "verbose": False}


@pytest.mark.parametrize("n_ubatch", [512, 8])
def test_the_mean_is_that_of_the_whole_prompt(tmp_path: Path, tiny: Path, n_ubatch: int) -> None:
    """Read by llama.cpp, with and without a cached beginning, beside a gate that reads the turn only."""
    gate, layer = cast.read_condition(svec(tmp_path / "c.svec"), 2, 0.0, opens_above=True, mean=True, n_embd=64)
    profiles = [
        make_profile(tiny, name="cast", gate=gate, gate_layer=layer, scope="turn"),
        make_profile(tiny, name="probe", gate="partly", gate_layer=layer, scope="turn"),
    ]
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How do I bake bread at home?"}]
    follow_up = [*history, {"role": "assistant", "content": "Slowly."}, {"role": "user", "content": "And cake?"}]
    steered = open_model(tiny, profiles=profiles, n_threads=1, n_ubatch=n_ubatch)
    alone = open_model(tiny, profiles=profiles[1:], n_threads=1, n_ubatch=n_ubatch)
    scores = []
    for messages in (history, follow_up, history):
        prompt = chat_prompt(steered, messages)
        states = Harvester(SteeredLlama(str(tiny), **SETTINGS), [layer]).turn_states(prompt, 0)[0]
        ask(steered, messages)
        ask(alone, messages)
        condition, probe = steered.last_decisions
        assert condition.score == pytest.approx(ibm(states, VECTORS[1], True), abs=1e-4)
        assert probe.score == pytest.approx(alone.last_decisions[0].score, abs=1e-4)
        scores.append(condition.score)
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) and scores[0] != pytest.approx(scores[1], abs=1e-4)


def ask(llama: SteeredLlama, messages: list[dict[str, str]]) -> None:
    llama.create_chat_completion(messages, max_tokens=2, temperature=0.0)  # type: ignore[arg-type]
