"""Many prompts in one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from batching import request, same_decisions, tokens
from finesteer_local.errors import PromptError, SteeringError
from finesteer_local.runtime.batch import answers, greedy_answers, many
from finesteer_local.runtime.prompt import greedy_answer
from reference import steered_llama
from tiny import PLACEHOLDER, make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device


def chats(n: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": "word " * (1 + i % 5) + str(i)}] for i in range(n)]


def test_the_answers_are_those_of_one_after_the_other(tiny_model: Path) -> None:
    llama = steered_llama(tiny_model)
    profile = make_profile(tiny_model, gate="selective", scope="turn", answer_strength=0.4)
    for profiles in ([], [profile]):
        llama.set_profiles(profiles, strength=1.5)
        found = list(greedy_answers(llama, chats(20), 7))
        for chat, answer in zip(chats(20), found, strict=True):
            llama.forget()
            assert answer.text == greedy_answer(llama, chat, 7)
            assert same_decisions(answer.decisions, llama.last_decisions)
    assert {answer.decisions[0].open for answer in found} == {True, False}
    assert list(greedy_answers(llama, [], 7)) == []


def test_the_model_is_left_as_it_was(tiny: Path) -> None:
    llama = steered_llama(tiny)
    llama.set_profiles([make_profile(tiny, scope="turn")])
    llama.eval(tokens(10))
    decisions = llama.last_decisions
    list(greedy_answers(llama, chats(3), 4))
    assert llama.n_tokens == 10 and llama.last_decisions is decisions


def test_answers_come_in_order_and_as_they_are_done(tiny: Path) -> None:
    llama = steered_llama(tiny)
    requests = [request(tokens(8 + i, i), max_tokens=1 + (7 * i) % 40) for i in range(60)]
    stream = answers(llama, requests, n_parallel=3)
    first = next(stream)
    assert first.finished.n_answer == 1
    assert [a.finished.n_answer for a in stream] == [r.max_tokens for r in requests[1:]]


def test_what_is_not_wanted_is_not_answered(tiny: Path) -> None:
    profile = make_profile(tiny, gate="selective", strength=3, seed=3)
    asked = [request(tokens(8, i), profile, max_tokens=50) for i in range(40)]
    found = list(answers(steered_llama(tiny), asked, n_parallel=3, wanted=lambda decisions: decisions[0].open))
    everything = list(answers(steered_llama(tiny), asked, n_parallel=3))
    opened = [a.decisions[0].open for a in everything]
    assert set(opened) == {True, False}
    assert [a.finished.reason != "cancelled" for a in found] == opened
    assert [a.text for a in found if a.decisions[0].open] == [a.text for a in everything if a.decisions[0].open]


def test_leaving_early_ends_the_engine(tiny: Path) -> None:
    stream = answers(steered_llama(tiny), [request(tokens(8, i)) for i in range(30)])
    next(stream)
    stream.close()


def test_nothing_is_answered_where_one_does_not_fit(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "BatchEngine", None)
    with pytest.raises(PromptError, match="tokens, the context only 512"):
        list(answers(steered_llama(tiny), [request(tokens(8)), request(tokens(600))]))


def test_memory_decides_how_many_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    engine = many.BatchEngine

    def spy(llama, **options):
        seen.append((options["n_parallel"], options["n_ctx"]))
        return engine(llama, **options)

    monkeypatch.setattr(many, "BatchEngine", spy)
    llama = steered_llama(tiny)
    requests = [request(tokens(88, i), max_tokens=12) for i in range(9)]
    list(answers(llama, requests))
    list(answers(llama, requests[:3]))
    monkeypatch.setattr(many, "_CACHE_BYTES", 2 * 100 * many.bytes_per_token(llama))
    list(answers(llama, requests))
    monkeypatch.setattr(many, "_CACHE_BYTES", 1)
    list(answers(llama, requests))
    assert seen == [(8, 100), (3, 100), (2, 100), (1, 100)]


def test_an_error_is_raised(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    llama = steered_llama(path)
    llama.set_profiles([make_profile(path)])
    conversations = chats(3)
    conversations[1][0]["content"] = f"a{PLACEHOLDER}b"
    with pytest.raises(SteeringError, match="not finite"):
        list(greedy_answers(llama, conversations, 5))
