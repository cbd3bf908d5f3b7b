"""Hidden states for training are those of a full pass, however they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.errors import ContextLengthError, PromptError, SteeringError
from finesteer_local.runtime import harvest as module
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import Batch, StatesRequest
from finesteer_local.runtime.tap import Rows
from reference import answer, plain_llama, steered_llama, tapped, whole_pass
from tiny import PLACEHOLDER, make_profile, vocabulary, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = np.random.default_rng(5).integers(3, 250, 21).tolist()
ANSWER = list(range(60, 71))
NAN = vocabulary().index(PLACEHOLDER)


def close(got: np.ndarray, wanted: np.ndarray, limit: float = 0.01) -> None:
    """Every state within 1 % of its norm: llama.cpp rounds by the shape of a batch, and keys to float16."""
    assert got.shape == wanted.shape
    difference = np.linalg.norm(got - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert difference.max() < limit, difference.max()


def requests(n: int = 40) -> list[StatesRequest]:
    """Prompts that share a template, pairs of answers after one prompt, and a prompt longer than a micro-batch."""
    rng = np.random.default_rng(2)
    made = []
    for _ in range(n):
        prompt = [*PROMPT, *rng.integers(3, 250, rng.integers(1, 50)).tolist()]
        made += [StatesRequest([*prompt, *ANSWER], len(prompt)), StatesRequest([*prompt, *ANSWER[::-1]], len(prompt))]
        made += [StatesRequest(prompt, 22), StatesRequest(prompt, len(prompt) - 1)]
    long = rng.integers(3, 250, 700).tolist()
    return [*made, StatesRequest([*PROMPT, *long], 30), StatesRequest([*PROMPT, *long, 9], 721)]


@pytest.mark.parametrize("layers", [[0], [2], [0, 1, 2], [1, 3], [3]], ids=str)
def test_states_are_those_of_a_full_pass(tiny_model: Path, layers: list[int]) -> None:
    asked = requests(12)
    harvester = Harvester(tapped(tiny_model, n_ctx=1024), layers)
    got = dict(harvester.harvest(asked))
    assert sorted(got) == list(range(len(asked)))
    for i in [0, 1, 2, 3, 17, 46, 47, len(asked) - 2, len(asked) - 1]:
        tokens, first = asked[i]
        assert got[i].shape == (len(layers), len(tokens) - first, 64)
        assert got[i].dtype == np.float32
        wanted = whole_pass(tiny_model, list(tokens), layers, n_ctx=1024, n_batch=1024)[:, first:]
        close(got[i], wanted)
    state = harvester.prompt_state(PROMPT)
    assert state.shape == (len(layers), 64)
    close(state, whole_pass(tiny_model, PROMPT, layers)[:, -1])
    answers = harvester.answer_states(PROMPT, ANSWER)
    close(answers, whole_pass(tiny_model, PROMPT + ANSWER, layers)[:, 21:])


@pytest.mark.parametrize("turn", [0, 1, 13, 20])
def test_the_states_of_a_turn(tiny: Path, turn: int) -> None:
    harvester = Harvester(tapped(tiny), [1, 2])
    wanted = whole_pass(tiny, PROMPT, [1, 2])[:, turn:]
    for _ in range(2):
        got = harvester.turn_states(PROMPT, turn)
        assert got.shape == (2, 21 - turn, 64)
        close(got, wanted)
    for outside in (-1, 21, 30):
        with pytest.raises(PromptError, match="empty"):
            harvester.turn_states(PROMPT, outside)


def test_layers_are_ascending_and_once(tiny: Path) -> None:
    harvester = Harvester(tapped(tiny), [2, 0, 2])
    assert harvester.layers == [0, 2]
    close(harvester.prompt_state(PROMPT), whole_pass(tiny, PROMPT, [0, 2])[:, -1])


def test_the_same_requests_give_the_same_bits(tiny_model: Path) -> None:
    asked = requests(20)
    harvester = Harvester(tapped(tiny_model, n_ctx=1024), [1, 2])
    first = dict(harvester.harvest(asked))
    harvester.prompt_state(ANSWER)
    for other in (harvester, Harvester(tapped(tiny_model, n_ctx=1024), [1, 2])):
        again = dict(other.harvest(asked))
        assert all(np.array_equal(first[i], again[i]) for i in range(len(asked)))


def test_what_is_known_is_not_read_and_changes_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(30)
    wanted = list(Harvester(tapped(tiny, n_ctx=1024), [1, 2]).harvest(asked))
    known = {i for i, _ in wanted[:70]}
    harvester = Harvester(tapped(tiny, n_ctx=1024), [1, 2])
    n_read = []
    decode = harvester._decode
    monkeypatch.setattr(harvester, "_decode", lambda c, batch: (n_read.append(len(batch.tokens)), decode(c, batch))[1])
    rest = list(harvester.harvest(asked, known.__contains__))
    assert {i for i, _ in rest} >= set(range(len(asked))) - known
    assert len(rest) < 90
    at = dict(wanted)
    assert all(np.array_equal(states, at[i]) for i, states in rest)
    n_read.clear()
    assert not list(harvester.harvest(asked, lambda i: True)) and not n_read


def test_shared_tokens_are_read_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvester = Harvester(tapped(tiny), [2])
    n_read = []
    decode = harvester._decode
    monkeypatch.setattr(harvester, "_decode", lambda c, batch: (n_read.append(len(batch.tokens)), decode(c, batch))[1])
    harvester._checked = True
    pair = [
        StatesRequest([*PROMPT, *ANSWER], 21),
        StatesRequest([*PROMPT, *ANSWER[::-1]], 21),
        StatesRequest(PROMPT, 20),
    ]
    assert len(list(harvester.harvest(pair))) == 3
    assert n_read == [20, 1 + 11 + 11]


def test_sharing_is_checked_against_reading_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch gives other states, and where llama.cpp takes none, every prompt is read by itself."""
    asked = requests(10)
    wanted = dict(Harvester(tapped(tiny, n_ctx=1024), [1, 2]).harvest(asked))
    decode, llama_decode = Harvester._decode, module._decode

    def muddled(harvester: Harvester, context: Any, batch: Batch) -> np.ndarray:
        states = decode(harvester, context, batch)
        return states[:, ::-1] if len(batch.reads) > 1 else states

    def refused(context: Any, tokens: Any, positions: Any, sequences: Any, **options: Any) -> int:
        many = len({tuple(members) for members in sequences}) > 1
        return -1 if many else llama_decode(context, tokens, positions, sequences, **options)

    for place, name, broken in ((Harvester, "_decode", muddled), (module, "_decode", refused)):
        harvester = Harvester(tapped(tiny, n_ctx=1024), [1, 2])
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            got = dict(harvester.harvest(asked))
        assert harvester._shared is False and sorted(got) == list(range(len(asked)))
        for i, states in got.items():
            close(states, wanted[i])


def test_what_llama_cpp_does_not_take(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_decode", lambda *_, **__: 1)
    with pytest.raises(SteeringError, match="cannot read the prompts"):
        Harvester(tapped(tiny), [1]).prompt_state(PROMPT)


def test_the_pass_stops_after_the_last_layer(tiny: Path) -> None:
    llama = tapped(tiny)
    harvester = Harvester(llama, [1])
    seen = []
    on_layer = harvester._on_layer
    harvester._on_layer = lambda layer, rows: (seen.append(layer), on_layer(layer, rows))[1]  # type: ignore[method-assign]
    harvester.prompt_state(PROMPT)
    assert seen == [1]
    assert harvester._on_layer(1, FakeRows()) is False


class FakeRows(Rows):
    def __init__(self) -> None:
        self.n_rows = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.zeros((0, 64), np.float32)


def test_the_models_own_requests_are_not_disturbed(tiny: Path) -> None:
    profile = make_profile(tiny, strength=2.0)
    for profiles in ([], [profile]):
        wanted = answer(steered_llama(tiny, profiles=profiles), PROMPT)
        llama = steered_llama(tiny, profiles=profiles)
        assert answer(llama, PROMPT) == wanted
        harvester = Harvester(llama, [0, 2])
        states = harvester.answer_states(PROMPT, ANSWER)
        assert answer(llama, PROMPT) == wanted
        np.testing.assert_array_equal(harvester.answer_states(PROMPT, ANSWER), states)
        assert answer(llama, PROMPT) == wanted
        # under a steered answer's control vector the states would be others
        close(states, whole_pass(tiny, PROMPT + ANSWER, [0, 2])[:, 21:])


def test_closing(tiny: Path) -> None:
    llama = tapped(tiny)
    harvester = Harvester(llama, [1])
    wanted = harvester.prompt_state(PROMPT)
    harvester.close()
    np.testing.assert_array_equal(harvester.prompt_state(PROMPT), wanted)
    llama.close()  # frees the harvester's context before the model
    assert harvester._context is not None and harvester._context.ctx is None


def test_a_read_that_failed_leaves_nothing_behind(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvester = Harvester(tapped(tiny), [0, 2])
    wanted = harvester.answer_states(PROMPT, ANSWER)
    read = Rows.read
    for error in (ValueError("boom"), KeyboardInterrupt()):

        def broken(self: Rows, start: int, stop: int, error: BaseException = error) -> np.ndarray:
            raise error

        monkeypatch.setattr(Rows, "read", broken)
        with pytest.raises(type(error)):
            harvester.answer_states(PROMPT[::-1], ANSWER)
        monkeypatch.setattr(Rows, "read", read)
        # the same tokens again: what had been read of them is not whole
        other = Harvester(tapped(tiny), [0, 2]).answer_states(PROMPT[::-1], ANSWER)
        np.testing.assert_array_equal(harvester.answer_states(PROMPT[::-1], ANSWER), other)
        np.testing.assert_array_equal(harvester.answer_states(PROMPT, ANSWER), wanted)


def test_a_state_that_is_not_finite(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    harvester = Harvester(tapped(path), [1, 2])
    wanted = harvester.answer_states(PROMPT, ANSWER)
    for bad in ([NAN, *PROMPT], [*PROMPT, NAN], [*PROMPT, *PROMPT, *PROMPT, NAN, *PROMPT]):
        with pytest.raises(SteeringError, match="hidden state is not finite"):
            harvester.prompt_state(bad)
        np.testing.assert_array_equal(harvester.answer_states(PROMPT, ANSWER), wanted)


def test_a_layer_that_is_not_shown(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvester = Harvester(tapped(tiny), [1, 2])
    arm = harvester.tap.arm
    monkeypatch.setattr(harvester.tap, "arm", lambda handlers: arm({k: v for k, v in handlers.items() if k != 1}))
    with pytest.raises(SteeringError, match="does not show"):
        harvester.prompt_state(PROMPT)


@pytest.mark.parametrize(("prompt", "reply"), [([], None), (PROMPT, []), ([], [])])
def test_nothing_to_read(tiny: Path, prompt: list[int], reply: list[int] | None) -> None:
    harvester = Harvester(tapped(tiny), [1])
    with pytest.raises(PromptError, match="empty"):
        harvester.prompt_state(prompt) if reply is None else harvester.answer_states(prompt, reply)


def test_an_answer_without_a_prompt(tiny: Path) -> None:
    got = Harvester(tapped(tiny), [1]).answer_states([], ANSWER)
    close(got, whole_pass(tiny, ANSWER, [1]))


def test_more_than_the_context(tiny: Path) -> None:
    harvester = Harvester(tapped(tiny), [1])
    with pytest.raises(ContextLengthError, match=r"the prompt has 630 tokens, the context only 512"):
        harvester.prompt_state(PROMPT * 30)
    assert harvester.prompt_state(PROMPT * 20).shape == (1, 64)


def test_the_recurrent_model(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "mamba.gguf", "mamba")
    harvester = Harvester(tapped(path), [1, 2])
    asked = [StatesRequest([*PROMPT, *reply], 21) for reply in (ANSWER, ANSWER[::-1], ANSWER)]
    for i, states in harvester.harvest(asked):
        np.testing.assert_allclose(states, whole_pass(path, list(asked[i].tokens), [1, 2])[:, 21:], atol=1e-4)


@pytest.mark.local
def test_the_real_model(smollm2: Path) -> None:
    """Its kernels round activations to 8 bits: any other rounding before them shows."""
    llama = tapped(smollm2)
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    questions = ["Why is the sky blue?", "Why is the sky dark?", "Name a fruit.", "How far is the moon from the earth?"]
    prompts = [llama.tokenize(template.format(text).encode(), special=True) for text in questions]
    reply = llama.tokenize(b"Because light is scattered.", add_bos=False)
    asked = [StatesRequest([*prompt, *reply], 3) for prompt in prompts]
    for i, states in Harvester(llama, [11, 12]).harvest(asked):
        wanted = whole_pass(smollm2, list(asked[i].tokens), [11, 12])[:, 3:]
        difference = np.linalg.norm(states - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert difference.max() < 0.06, difference
        assert np.median(difference) < 0.03
    assert answer(plain_llama(smollm2), prompts[0], 3) == answer(llama, prompts[0], 3)
