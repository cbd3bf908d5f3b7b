"""An engine with one place, in the model's own context: the command line's."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from batching import tokens
from finesteer_local.profile import SCOPES, Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import GREEDY, Answer, BatchEngine, Request, Steer
from finesteer_local.runtime.batch.context import Token
from reference import steered_llama
from tiny import make_profile

pytestmark = pytest.mark.usefixtures("device")  # exact on every device


def opened(path: Path, *profiles: Profile) -> SteeredLlama:
    return steered_llama(path, profiles=profiles)


def ask(engine: BatchEngine, prompt: list[int], **more: object) -> Answer:
    return engine.submit(Request(prompt, sampling=GREEDY, max_tokens=8, **more)).result()  # type: ignore[arg-type]


def test_answers_as_an_engine_with_a_context_of_its_own(tiny: Path) -> None:
    profiles = [make_profile(tiny, gate=gate, scope=scope) for gate in ("open", "closed") for scope in SCOPES]
    with BatchEngine(opened(tiny), n_parallel=1) as other:
        for profile in [None, *profiles]:
            steer = (Steer(profile),) if profile else ()
            with BatchEngine(opened(tiny, profile) if profile else opened(tiny), own_context=True) as engine:
                for prompt, turn in ((tokens(20), 12), (tokens(300), 30), (tokens(300), 290)):
                    got, wanted = (ask(each, prompt, turn=turn, steer=steer) for each in (engine, other))
                    assert (got.text, got.finished.reason) == (wanted.text, wanted.finished.reason)
                    assert [d.score for d in got.decisions] == [d.score for d in wanted.decisions]


def test_a_conversation_goes_on_from_the_answer(tiny: Path) -> None:
    with BatchEngine(opened(tiny), own_context=True) as engine:
        first = ask(engine, tokens(20), turn=0, logprobs=0)
        answer = [score.token for score in first.scores]
        prompt = [*tokens(20), *answer, *tokens(10, seed=5)]
        second = ask(engine, prompt, turn=20 + len(answer))
        assert second.finished.n_cached == 20 + len(answer) - 1  # the last one was never read
        again = ask(engine, prompt, turn=20 + len(answer))
        assert again.finished.n_cached == 20 + len(answer) and again.text == second.text
        other = ask(engine, tokens(25, seed=9), turn=20)
        assert other.finished.n_cached == 0


@pytest.mark.parametrize("scope", SCOPES)
def test_what_was_steered_is_not_used_again(tiny: Path, scope: str) -> None:
    profile = make_profile(tiny, gate="open", scope=scope)
    llama = opened(tiny, profile)
    with BatchEngine(llama, own_context=True) as engine:
        prompt = tokens(40)
        steered = ask(engine, prompt, turn=20, steer=(Steer(profile),), logprobs=0)
        follows = [*prompt, *(score.token for score in steered.scores), *tokens(10, seed=5)]
        plain = ask(engine, follows, turn=len(follows) - 10)
        assert plain.finished.n_cached == {"prompt": 0, "turn": 20, "response": 39}[scope]
    with BatchEngine(llama, own_context=True) as engine:
        assert ask(engine, follows, turn=len(follows) - 10).text == plain.text


def test_profiles_that_are_tried_meanwhile(tiny: Path) -> None:
    llama = opened(tiny)
    with BatchEngine(llama, own_context=True) as engine:
        plain = ask(engine, tokens(40), turn=20)
        profile = make_profile(tiny, gate="closed")
        llama.set_profiles(profile)  # empties the cache
        closed = ask(engine, tokens(40), turn=20, steer=(Steer(profile),))
        assert closed.text == plain.text and closed.finished.n_cached == 0


def test_the_model_is_as_new_afterwards(tiny: Path) -> None:
    profile = make_profile(tiny, gate="open")
    llama, fresh = opened(tiny, profile), opened(tiny, profile)
    with BatchEngine(llama, own_context=True) as engine:
        ask(engine, tokens(40), turn=20, steer=(Steer(profile),))
    assert llama.control.vectors == {} and llama.n_tokens == 0
    options = {"max_tokens": 8, "temperature": 0.0}
    one, other = (each.create_completion("hello", **options)["choices"] for each in (llama, fresh))
    assert one == other


def test_what_is_cancelled_while_its_prompt_is_read_says_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchEngine(opened(tiny), own_context=True) as engine:
        decode, asked = engine._streams.decode, threading.Event()

        def decode_when_cancelled(rows: list[Token]) -> None:
            assert asked.wait(30)
            decode(rows)

        with monkeypatch.context() as patch:
            patch.setattr(engine._streams, "decode", decode_when_cancelled)
            stream = engine.submit(Request(tokens(20), sampling=GREEDY, max_tokens=8))
            stream.cancel()
            asked.set()
            answer = stream.result()
        assert (answer.text, answer.finished.reason, answer.finished.n_answer) == ("", "cancelled", 0)
        assert ask(engine, tokens(20)).finished.n_answer == 8
