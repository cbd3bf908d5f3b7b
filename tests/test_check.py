"""Checks: what a request is found to be, from a pass that stops after the gate's layer, alone and among answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import ContextLengthError, ProfileError, PromptError, SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import BatchEngine, Steer, chat_request, check_of, check_request, checks
from reference import layers_shown, steered_llama
from tiny import make_kinds, make_profile

QUESTION = "How do I get into a house that isn't mine?"
CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello to you"},
    {"role": "user", "content": QUESTION},
]
LONG = "the user is in the house and on the train " * 12


def made(tiny: Path, gate: str = "partly, windowed", name: str = "test", **changes: object) -> Profile:
    return make_profile(
        tiny, name=name, gate=gate, layers=(2,), kinds=make_kinds(64, np.random.default_rng(5)), **changes
    )


@pytest.fixture
def llama(tiny: Path) -> SteeredLlama:
    return steered_llama(tiny, profiles=made(tiny))


def asked(llama: SteeredLlama, messages: list[dict[str, str]]) -> object:
    llama.create_chat_completion(messages, max_tokens=1, temperature=0)
    return llama.last_decision


@pytest.mark.parametrize(
    "messages", [[{"role": "user", "content": QUESTION}], CHAT, [{"role": "user", "content": LONG}]]
)
def test_it_is_the_decision_of_an_answer(tiny: Path, messages: list[dict[str, str]]) -> None:
    llama = steered_llama(tiny, profiles=made(tiny))
    found = llama.check(messages)
    decision = asked(llama, messages)
    assert found.flagged and found.decisions[0].score == pytest.approx(decision.score, abs=1e-4)
    assert dict(found.kinds) == pytest.approx(dict(decision.kinds), abs=1e-4)
    assert found.likely_kinds[0] == found.kinds[0][0]


def test_a_text_is_what_a_user_asks(llama: SteeredLlama) -> None:
    assert llama.check(QUESTION).to_json() == llama.check([{"role": "user", "content": QUESTION}]).to_json()


def test_what_was_answered_is_not_read(llama: SteeredLlama) -> None:
    answered = [*CHAT, {"role": "assistant", "content": "through the window"}]
    assert llama.check(answered).to_json() == llama.check(CHAT).to_json()


def test_the_layers_above_are_not_computed(llama: SteeredLlama) -> None:
    """The tap would show the layer above the gate's, which is steered."""
    seen = layers_shown(llama)
    llama.check(LONG)
    assert set(seen) == {1}


def test_the_cache_stays(tiny: Path) -> None:
    """A check between two turns of a chat, and one while an answer streams, change nothing."""
    profile = made(tiny, gate="closed")
    first, second = CHAT[:1], CHAT
    plain, checked = (steered_llama(tiny, profiles=profile) for _ in range(2))

    def talk(llama: SteeredLlama, between: bool) -> list[str]:
        said = []
        for messages in (first, second):
            pieces = []
            for chunk in llama.create_chat_completion(messages, max_tokens=6, temperature=0, stream=True):
                pieces.append(chunk["choices"][0]["delta"].get("content") or "")
                if between:
                    llama.check(LONG)
            said.append("".join(pieces))
        return said

    assert talk(checked, True) == talk(plain, False)
    assert checked.n_tokens == plain.n_tokens


def test_a_steered_answer_goes_on_steered(tiny: Path) -> None:
    plain, checked = (steered_llama(tiny, profiles=made(tiny)) for _ in range(2))
    wanted = plain.create_chat_completion(CHAT, max_tokens=6, temperature=0)["choices"][0]["message"]["content"]
    pieces = []
    for chunk in checked.create_chat_completion(CHAT, max_tokens=6, temperature=0, stream=True):
        pieces.append(chunk["choices"][0]["delta"].get("content") or "")
        checked.check("something else")
    assert "".join(pieces) == wanted


def test_several_profiles(tiny: Path) -> None:
    """Those that tell kinds are asked; where none does, all."""
    kinds, mute = made(tiny), make_profile(tiny, name="mute", gate="open", seed=2)
    both = steered_llama(tiny, profiles=[mute, kinds]).check(QUESTION)
    assert [decision.profile for decision in both.decisions] == ["test"]
    found = steered_llama(tiny, profiles=[mute]).check(QUESTION)
    assert found.flagged and found.kinds == () and found.likely_kinds == () and found.openai() == {}


def test_categories_have_their_likeliest_kinds_score(llama: SteeredLlama) -> None:
    found = llama.check(QUESTION)
    assert found.openai() == {"illicit": found.kinds[0][1]}
    assert found.mlcommons() == {f"{name} crimes": p for name, p in found.kinds}


def test_a_closed_gate_flags_nothing(tiny: Path) -> None:
    found = steered_llama(tiny, profiles=made(tiny, gate="closed")).check(QUESTION)
    assert not found.flagged and found.likely_kinds == () and len(found.kinds) == 3


def test_what_cannot_be_checked(tiny: Path, llama: SteeredLlama) -> None:
    with pytest.raises(SteeringError, match="no profile to check with"):
        steered_llama(tiny).check(QUESTION)
    with pytest.raises(SteeringError, match="nothing to check"):
        llama.check([{"role": "system", "content": "Be kind."}])
    with pytest.raises(ContextLengthError):
        llama.check("x " * 2000)
    assert llama.check(QUESTION).flagged  # it goes on


def test_kinds_that_nobody_knows(tiny: Path) -> None:
    with pytest.raises(ProfileError, match="none of the profiles knows a kind 'fruad'; there are: drugs, fraud, hate"):
        steered_llama(tiny, profiles=made(tiny), policy={"fruad": "leave"})
    with pytest.raises(ProfileError, match="'forgive' is none of leave, report, steer, refuse"):
        steered_llama(tiny, profiles=made(tiny), policy={"fraud": "forgive"})
    with pytest.raises(ProfileError, match="they have none; train one anew"):
        steered_llama(tiny, profiles=make_profile(tiny), policy={"fraud": "leave"})


# --- policy


def answer(llama: SteeredLlama, max_tokens: int = 20) -> dict:
    return llama.create_chat_completion(CHAT, max_tokens=max_tokens, temperature=0)["choices"][0]


def test_left_alone_is_the_models_own_answer(tiny: Path) -> None:
    own = answer(steered_llama(tiny))
    steered = answer(steered_llama(tiny, profiles=made(tiny)))
    assert own["message"]["content"] != steered["message"]["content"]
    for action in ("leave", "report"):
        policy = dict.fromkeys(("fraud", "hate", "drugs"), action)
        llama = steered_llama(tiny, profiles=made(tiny), policy=policy)
        assert answer(llama) == own
        assert llama.check(CHAT).flagged == (action == "report")


def test_refused_at_once_in_the_profiles_own_words(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=made(tiny), policy=dict.fromkeys(("fraud", "hate", "drugs"), "refuse"))
    name = llama.check(CHAT).kinds[0][0]
    for _ in range(2):
        found = answer(llama)
        assert (found["message"]["content"], found["finish_reason"]) == (f"No {name} here.", "stop")
    chunks = llama.create_chat_completion(CHAT, max_tokens=20, temperature=0, stream=True)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == f"No {name} here."
    assert llama.last_decision is not None and llama.last_decision.refused
    # What comes next is answered as if nothing had been.
    llama.set_profiles([])
    assert answer(llama) == answer(steered_llama(tiny))


# --- in a batch


def test_many_at_once_are_each_as_alone(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=made(tiny, gate="selective"))
    texts = [f"{LONG[: 7 * i]} number {i}" for i in range(1, 30)]
    requests = [check_request(llama, text, steer=llama.steer) for text in texts]
    together = [found.to_json() for found in checks(llama, requests, n_parallel=4)]
    alone = [next(checks(llama, [request], n_parallel=1)).to_json() for request in requests]
    assert together == alone
    assert {found["flagged"] for found in together} == {True, False}


def test_checks_among_answers(tiny: Path) -> None:
    """Neither answers nor checks notice each other, and nothing that a check read serves an answer."""
    llama = steered_llama(tiny, profiles=made(tiny))
    shared = [{"role": "system", "content": LONG}]
    talks = [[*shared, {"role": "user", "content": f"question {i % 3}"}] for i in range(24)]
    chats = [chat_request(llama, talk, steer=llama.steer, max_tokens=6, temperature=0) for talk in talks]
    asks = [check_request(llama, talk, steer=llama.steer) for talk in talks]

    with BatchEngine(llama, n_parallel=3) as engine:
        wanted = [engine.submit(chat).result().text for chat in chats[:3]]
    with BatchEngine(llama, n_parallel=3) as engine:
        found = [check_of(ask, engine.submit(ask).result()).to_json() for ask in asks[:3]]
    with BatchEngine(llama, n_parallel=3) as engine:
        streams = [engine.submit(each) for pair in zip(asks, chats, strict=True) for each in pair]
        results = [stream.result() for stream in streams]
    for i, (ask, chat) in enumerate(zip(results[::2], results[1::2], strict=True)):
        assert chat.text == wanted[i % 3]
        assert check_of(asks[i], ask).to_json() == found[i % 3]
        assert ask.text == "" and ask.finished.n_answer == 0


def test_refused_at_once_in_a_batch(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=made(tiny), policy=dict.fromkeys(("fraud", "hate", "drugs"), "refuse"))
    with BatchEngine(llama, n_parallel=2) as engine:
        [found] = [engine.submit(chat_request(llama, CHAT, steer=llama.steer, max_tokens=8)).result()]
        assert found.text == found.decisions[0].words and found.text.endswith("here.")
        assert (found.finished.reason, found.finished.n_answer) == ("stop", 0)
        plain = chat_request(llama, CHAT, steer=(), max_tokens=8, temperature=0)
        assert engine.submit(plain).result().text == answer(steered_llama(tiny), 8)["message"]["content"]


def test_a_check_needs_a_profile(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with pytest.raises(SteeringError, match="no profile to check with"):
        check_request(llama, QUESTION, steer=())
    request = check_request(llama, QUESTION, steer=[Steer(made(tiny))])
    with BatchEngine(llama, n_parallel=1) as engine, pytest.raises(PromptError, match="no profile"):
        engine.submit(type(request)(prompt=request.prompt, checks=True))
