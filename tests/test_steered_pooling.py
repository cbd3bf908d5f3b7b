"""Gates that pool over the last user turn: which tokens they read, and which need not be read again for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import SteeringError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from reference import answer, logits, plain_llama, steered_llama, whole_pass
from tiny import PLACEHOLDER, make_profile, vocabulary, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = np.random.default_rng(7).integers(3, 250, 40).tolist()
CHAT = [
    {"role": "system", "content": "Be the tiny model."},
    {"role": "user", "content": "Hello there, in the inner turn"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": "and on the other user?"},
]


def ask(llama: SteeredLlama, prompt: list[int], turn: int = 0, n: int = 3) -> list[int]:
    llama.expect(turn)
    return answer(llama, prompt, n)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prompt's pass read."""
    seen: list[int] = []
    read_prompt = SteeredLlama._read_prompt

    def spy(self: SteeredLlama, tokens: list[int], *parts: object) -> None:
        seen.append(len(tokens))
        read_prompt(self, tokens, *parts)

    monkeypatch.setattr(SteeredLlama, "_read_prompt", spy)
    return seen


@pytest.mark.local(turn=[1, 20, 38])
@pytest.mark.parametrize("turn", [0, 1, 7, 8, 20, 38, 39])
@pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
def test_it_reads_the_turn_and_nothing_before_it(tiny_model: Path, native_tap: bool, turn: int, settings: dict) -> None:
    """In one batch or several: the decision is, bit for bit, the one for the turn's states."""
    profile = make_profile(tiny_model, gate="partly")
    llama = steered_llama(tiny_model, profiles=[profile], native_tap=native_tap, **settings)
    ask(llama, PROMPT, turn, 1)
    whole = whole_pass(tiny_model, PROMPT, [1], **settings)[0]
    wanted = profile.decide(whole[turn:])
    assert (llama.last_decision.g, llama.last_decision.score) == (wanted.g, wanted.score)
    np.testing.assert_array_equal(llama.last_decision.vectors[2], wanted.vectors[2])
    for other in {turn - 1, turn + 1} & {*range(40)}:
        assert profile.decide(whole[other:]).score != wanted.score


@pytest.mark.local(turn=[34, 39])
@pytest.mark.parametrize("turn", [0, 5, 34, 39])
def test_stretches_of_the_turn_are_the_same_however_it_is_read(tiny: Path, native_tap: bool, turn: int) -> None:
    """Longer than a window or not, in one batch or cut in the middle of a stretch, again or for the first time."""
    profile = make_profile(tiny, gate="partly, windowed")
    plain = replace(profile.gate, window=0)  # type: ignore[type-var]
    for settings in ({}, {"n_batch": 16, "n_ubatch": 8}):
        llama = steered_llama(tiny, profiles=[profile], native_tap=native_tap, **settings)
        states = whole_pass(tiny, PROMPT, [1], **settings)[0][turn:]
        wanted = profile.decide(states)
        assert (wanted.score > plain.score(states[-1], plain.summary(states))) == (turn < 34)
        for _ in range(2):
            ask(llama, PROMPT, turn, 1)
            assert (llama.last_decision.g, llama.last_decision.score) == (wanted.g, wanted.score)
            np.testing.assert_array_equal(llama.last_decision.vectors[2], wanted.vectors[2])


def test_a_chats_turn_is_its_last_user_message(tiny: Path) -> None:
    profile = make_profile(tiny, gate="partly", scope="response")
    llama = steered_llama(tiny, profiles=[profile])
    prompt = chat_prompt(llama, CHAT)
    turn = turn_start(llama, CHAT, prompt)
    whole = whole_pass(tiny, prompt, [1])[0]
    wanted = profile.decide(whole[turn:])
    llama.create_chat_completion(CHAT, max_tokens=1)
    assert llama.last_decision.score == wanted.score
    chunks = llama.create_chat_completion(CHAT, max_tokens=1, stream=True)
    list(chunks)
    np.testing.assert_allclose(llama.last_decision.score, wanted.score, rtol=1e-5)


@pytest.mark.parametrize("gate", ["closed", "partly"])
def test_a_repeated_prompt_reads_its_last_token_only(tiny: Path, reads: list[int], gate: str) -> None:
    """As llama-cpp-python does; what the gate kept of the others is still known."""
    llama = steered_llama(tiny, profiles=[make_profile(tiny, gate=gate, scope="response")])
    plain = plain_llama(tiny)
    ask(llama, PROMPT, 10)
    first = llama.last_decision
    answer(plain, PROMPT, 3)
    ask(llama, PROMPT, 10)
    assert reads == [40, 1]
    np.testing.assert_allclose(llama.last_decision.score, first.score, rtol=1e-5)
    answer(plain, PROMPT, 3)
    if gate == "closed":
        np.testing.assert_array_equal(logits(llama), logits(plain))
    # the turn's end is another: the beginning is still known
    ask(llama, [*PROMPT[:25], *range(100, 110)], 10)
    assert reads == [40, 1, 10]
    # and so is that of a turn that starts later, but not of one that starts earlier
    ask(llama, PROMPT, 20)
    ask(llama, PROMPT, 10)
    assert reads == [40, 1, 10, 15, 30]


def test_an_answer_that_becomes_part_of_the_turn_is_read_again(tiny: Path, reads: list[int]) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny, gate="closed")])
    got = ask(llama, PROMPT, 10, 5)
    ask(llama, [*PROMPT, *got[:4], 90, 91], 10)
    assert reads == [40, 6]
    ask(llama, [*PROMPT, *got[:4], 90, 91, *range(100, 105)], 46)
    assert reads == [40, 6, 5]


@pytest.mark.parametrize("history", ["other profiles", "a state", "low-level", "another prompt", "a failure"])
@pytest.mark.parametrize("scope", ["turn", "response"])
def test_what_is_known_is_never_of_other_tokens(tmp_path: Path, history: str, scope: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", nan_token=True)
    profile = make_profile(path, gate="partly", scope=scope)
    fresh = steered_llama(path, profiles=[profile])
    wanted = ask(fresh, PROMPT, 10, 6)
    llama = steered_llama(path, profiles=[profile])
    other = [*PROMPT[:15], *range(100, 125)]
    ask(llama, PROMPT, 10)
    if history == "other profiles":
        llama.set_profiles([make_profile(path, name="b", gate="partly", seed=4), make_profile(path, name="c")])
        ask(llama, PROMPT, 10)
        llama.set_profiles([profile])
    elif history == "a state":
        state = llama.save_state()
        ask(llama, other, 10)
        llama.load_state(state)
    elif history == "low-level":
        llama.n_tokens = 15
        llama.eval(other[15:])  # as an answer's tokens
    elif history == "another prompt":
        ask(llama, other, 10)
        ask(llama, PROMPT[:12], 3)
    else:
        with pytest.raises(SteeringError):
            ask(llama, [*PROMPT[:30], vocabulary().index(PLACEHOLDER), 60], 10)
    got = ask(llama, PROMPT, 10, 6)
    assert got == wanted
    np.testing.assert_allclose(llama.last_decision.score, fresh.last_decision.score, rtol=1e-5)
    np.testing.assert_allclose(logits(llama), logits(fresh), atol=1e-3)


def test_a_state_that_is_not_finite_anywhere_in_the_turn(tmp_path: Path) -> None:
    """Attention hands it on to every later token, so it is never missed."""
    path = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    nan = vocabulary().index(PLACEHOLDER)
    for at in (0, 20, 39):
        for settings in ({}, {"n_batch": 16, "n_ubatch": 8}):
            llama = steered_llama(path, profiles=[make_profile(path, gate="closed")], **settings)
            with pytest.raises(SteeringError, match="not finite"):
                ask(llama, [*PROMPT[:at], nan, *PROMPT[at:]], 10)


def test_one_that_pools_beside_one_that_does_not(tiny: Path) -> None:
    """At the same layer and at others, each decides as it does alone."""
    shapes = [("partly", 1), ("selective, last token", 1), ("partly", 0), ("selective, last token", 2)]
    profiles = [
        make_profile(tiny, name=f"p{i}", gate=gate, gate_layer=layer, seed=i) for i, (gate, layer) in enumerate(shapes)
    ]
    for settings in ({}, {"n_batch": 16, "n_ubatch": 8}):
        llama = steered_llama(tiny, profiles=profiles, **settings)
        for prompt in (PROMPT, PROMPT, [*PROMPT[:30], *range(100, 110)]):
            ask(llama, prompt, 12)
            for profile, decision in zip(profiles, llama.last_decisions, strict=True):
                alone = steered_llama(tiny, profiles=[profile], **settings)
                ask(alone, prompt, 12)
                np.testing.assert_allclose(decision.score, alone.last_decision.score, rtol=1e-5)
        fresh = steered_llama(tiny, profiles=profiles, **settings)
        ask(fresh, PROMPT, 12)
        for profile, decision in zip(profiles, fresh.last_decisions, strict=True):
            alone = steered_llama(tiny, profiles=[profile], **settings)
            ask(alone, PROMPT, 12)
            assert decision.score == alone.last_decision.score
