"""`SteeredLlama` with profiles that read answers: llama.cpp's own bits until a gate opens, then what was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from finesteer_local.errors import ProfileError, SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, steered_request
from finesteer_local.steering import AlwaysGate
from reference import answer, control, greedy, logits, plain_llama, read, steered_llama
from tiny import make_answer_gate, make_profile, write_tiny_model
from tiny_architectures import FAMILIES, write_family

PROMPT = np.random.default_rng(7).integers(3, 250, 41).tolist()
FIRST = 4
CHAT = [{"role": "user", "content": "Hello there, in the inner turn"}]


def watching(path: Path, *, gate: str = "closed", scope: str = "prompt", opens: bool = True, **changes: Any) -> Profile:
    """A profile whose gate leaves the prompt alone, and which opens at the `FIRST` token of the answer, or never."""
    threshold = -1e6 if opens else 1e6
    made = make_profile(path, gate=gate, scope=scope, strength=3.0)
    reads = make_answer_gate(made.model.n_embd, **{"threshold": threshold, "first": FIRST, **changes})
    return replace(made, answer_gate=reads, answer_strength=0.5)


def held_open(profile: Profile) -> Profile:
    """The same with its gate open for every prompt."""
    return replace(profile, gate=AlwaysGate(), answer_gate=None)


def keep_back_to(monkeypatch: pytest.MonkeyPatch, n_tokens: int) -> None:
    """Let so many tokens of the answer be from before the harm showed."""
    monkeypatch.setattr(steered_request, "sentence_start", lambda texts, first, at: n_tokens)


def texts(llama: Any) -> Iterator[tuple[str, int, np.ndarray]]:
    """Greedy, sampled and streamed answers, a chat that goes on, and the state after each."""
    for prompt, options in (
        (PROMPT, {"max_tokens": 9, "temperature": 0.0}),
        (PROMPT[:20], {"max_tokens": 7, "seed": 3}),
        ([*PROMPT[:20], 90, 91], {"max_tokens": 7, "seed": 4, "repeat_penalty": 1.3}),
        (PROMPT, {"max_tokens": 9, "temperature": 0.0, "stop": ["e", "t"]}),
    ):
        yield llama.create_completion(prompt, **options)["choices"][0]["text"], llama.n_tokens, logits(llama)
    messages = CHAT
    for _ in range(2):
        reply = llama.create_chat_completion(messages, max_tokens=6, temperature=0.0)["choices"][0]
        yield reply["message"]["content"], llama.n_tokens, logits(llama)
        messages = [*messages, reply["message"], {"role": "user", "content": "and on?"}]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("every", [1, 3])
def test_until_it_opens_nothing_changes(tiny_model: Path, native_tap: bool, every: int) -> None:
    profile = watching(tiny_model, gate="closed, last token", opens=False, every=every, layer=1)
    llama = steered_llama(tiny_model, profiles=[profile], native_tap=native_tap)
    for step, (got, want) in enumerate(zip(texts(llama), texts(plain_llama(tiny_model)), strict=True)):
        assert got[:2] == want[:2], step
        np.testing.assert_array_equal(got[2], want[2], err_msg=f"step {step}")
    [decision] = llama.last_decisions
    assert decision.answer is not None and decision.answer.opened_at is None and decision.answer.score is not None


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("plamo2", "gemma3n")])
def test_every_family_is_read_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", name)
    llama, plain = steered_llama(path, profiles=[watching(path, opens=False, every=2)]), plain_llama(path)
    options = {"max_tokens": 8, "temperature": 0.0}
    said = [each.create_completion(PROMPT, **options)["choices"][0]["text"] for each in (llama, plain)]
    assert said[0] == said[1]
    np.testing.assert_array_equal(logits(llama), logits(plain))
    [decision] = llama.last_decisions
    assert decision.answer is not None and decision.answer.score is not None
    # and it can be taken back: the answer is that of a gate which was open from the beginning
    profile = watching(path)
    llama.set_profiles([profile])
    taken = llama.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]
    llama.set_profiles([held_open(profile)])
    assert taken == llama.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]


@pytest.mark.usefixtures("device")
def test_rewound_to_the_beginning_it_is_the_answer_of_an_open_gate(tiny_model: Path, native_tap: bool) -> None:
    profile = watching(tiny_model)
    llama = steered_llama(tiny_model, profiles=[profile], native_tap=native_tap)
    text = llama.create_completion(PROMPT, max_tokens=12, temperature=0.0)["choices"][0]["text"]
    plain = plain_llama(tiny_model)
    [decision] = llama.last_decisions
    read(plain, PROMPT, [(0, decision.vectors)])
    control(plain, decision.answer_vectors)
    wanted = greedy(plain, 12)
    assert text == llama.detokenize(wanted).decode(errors="ignore")
    assert (decision.g, decision.open, decision.action) == (1.0, True, "steer")
    found = decision.answer
    assert found is not None and (found.action, found.opened_at, found.taken_back) == ("rewind", FIRST, FIRST)
    # each token of the answer was read by the same vector as by its sampler: go on from the same state
    assert llama.n_tokens == len(PROMPT) + 11


@pytest.mark.parametrize("scope", ["response", "turn"])
def test_the_scope_is_read_anew(tiny: Path, scope: str) -> None:
    profile = watching(tiny, scope=scope)
    llama = steered_llama(tiny, profiles=[profile])
    options = {"max_tokens": 12, "temperature": 0.0}
    messages = [{"role": "system", "content": "Be the tiny model."}, *CHAT]
    taken = llama.create_chat_completion(messages, **options)["choices"][0]["message"]["content"]
    [decision] = llama.last_decisions
    assert decision.open and decision.scope == scope
    llama.set_profiles([held_open(profile)])
    assert taken == llama.create_chat_completion(messages, **options)["choices"][0]["message"]["content"]


@pytest.mark.usefixtures("device")
def test_what_was_said_before_stays(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_back_to(monkeypatch, 3)
    llama, plain = steered_llama(tiny_model, profiles=[watching(tiny_model, first=6)]), plain_llama(tiny_model)
    text = llama.create_completion(PROMPT, max_tokens=12, temperature=0.0)["choices"][0]["text"]
    [decision] = llama.last_decisions
    kept = answer(plain, PROMPT, 3)
    read(plain, [*PROMPT, *kept], [(0, decision.vectors), (len(PROMPT), decision.answer_vectors)])
    wanted = [*kept, *greedy(plain, 9)]
    assert text == llama.detokenize(wanted).decode(errors="ignore")
    assert decision.answer is not None and (decision.answer.opened_at, decision.answer.taken_back) == (6, 3)


@pytest.mark.usefixtures("device")
def test_steered_from_there(tiny_model: Path) -> None:
    llama = steered_llama(tiny_model, profiles=[watching(tiny_model)], on_answer="steer")
    plain = plain_llama(tiny_model)
    got = answer(llama, PROMPT, 12)
    [decision] = llama.last_decisions
    read(plain, PROMPT)
    wanted = []
    for i in range(12):
        wanted.append(int(logits(plain).argmax()))
        if i == FIRST:
            control(plain, decision.answer_vectors)
        plain.eval(wanted[-1:])
    assert got == wanted and got[: FIRST + 1] == answer(plain_llama(tiny_model), PROMPT, FIRST + 1)
    assert decision.answer is not None and (decision.answer.action, decision.answer.taken_back) == ("steer", 0)


def test_reported_alone(tiny: Path) -> None:
    llama, plain = steered_llama(tiny, profiles=[watching(tiny, action="report")]), plain_llama(tiny)
    assert answer(llama, PROMPT, 12) == answer(plain, PROMPT, 12)
    np.testing.assert_array_equal(logits(llama), logits(plain))
    [decision] = llama.last_decisions
    assert decision.flagged and not decision.open and decision.action == "report" and decision.g == 0
    assert decision.answer is not None and decision.answer.opened_at == FIRST
    # without strength there is nothing to steer with
    llama.set_profiles([watching(tiny)], strength=0.0)
    assert answer(llama, PROMPT, 12) == answer(plain, PROMPT, 12)
    assert llama.last_decisions[0].answer.action == "report"


@pytest.mark.parametrize("stream", [False, True])
def test_stopped(tiny: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny, profiles=[watching(tiny)], on_answer="stop")

    def ask(chat: bool = False) -> tuple[str, str]:
        options = {"max_tokens": 12, "temperature": 0.0, "stream": stream}
        made = llama.create_chat_completion(CHAT, **options) if chat else llama.create_completion(PROMPT, **options)
        parts = [part["choices"][0] for part in (made if stream else [made])]
        where = "delta" if stream else "message"
        said = [part[where].get("content") or "" if chat else part["text"] for part in parts]
        return "".join(said), parts[-1]["finish_reason"]

    assert ask() == ("", "content_filter")
    assert ask(chat=True) == ("", "content_filter")
    keep_back_to(monkeypatch, 2)
    begun = llama.detokenize(answer(plain_llama(tiny), PROMPT, 2)).decode()
    assert ask() == (begun, "content_filter")
    [decision] = llama.last_decisions
    assert decision.answer is not None and (decision.answer.action, decision.answer.taken_back) == ("stop", 2)
    llama.set_profiles()
    assert ask() == (plain_llama(tiny).create_completion(PROMPT, max_tokens=12, temperature=0.0)["choices"][0]["text"],
                     "length")  # fmt: skip


def test_a_stream_never_takes_back_what_went_out(tiny: Path) -> None:
    profile, options = watching(tiny), {"max_tokens": 12, "temperature": 0.0}

    def streamed(look_ahead: int | None) -> tuple[str, int]:
        llama = steered_llama(tiny, profiles=[profile], look_ahead=look_ahead)
        parts = [part["choices"][0]["text"] for part in llama.create_completion(PROMPT, stream=True, **options)]
        found = llama.last_decisions[0].answer
        assert found is not None
        return "".join(parts), found.taken_back

    whole = steered_llama(tiny, profiles=[profile]).create_completion(PROMPT, **options)["choices"][0]["text"]
    unsteered = plain_llama(tiny).create_completion(PROMPT, **options)["choices"][0]["text"]
    assert streamed(None) == (whole, FIRST) == streamed(100)
    for look_ahead in (0, 2):
        text, taken_back = streamed(look_ahead)
        n_out = FIRST - look_ahead
        assert taken_back == look_ahead and len(text) == 12
        assert text[:n_out] == unsteered[:n_out] and text != unsteered


def test_a_stream_ends_where_it_should(tiny: Path) -> None:
    """Looking ahead neither adds tokens nor runs out of the context."""
    profile = watching(tiny, opens=False, first=30)
    llama, plain = steered_llama(tiny, profiles=[profile], n_ctx=256), plain_llama(tiny, n_ctx=256)
    for options in ({"max_tokens": 5}, {"max_tokens": None}, {"max_tokens": 50, "stop": ["e"]}):
        made = [
            list(each.create_completion(PROMPT, temperature=0.0, stream=True, **options)) for each in (llama, plain)
        ]
        mine, wanted = ([part["choices"][0] for part in parts] for parts in made)
        assert "".join(part["text"] for part in mine) == "".join(part["text"] for part in wanted)
        assert mine[-1]["finish_reason"] == wanted[-1]["finish_reason"]


def test_a_callers_own_eval_is_steered_instead(tiny: Path) -> None:
    llama, plain = steered_llama(tiny, profiles=[watching(tiny)]), plain_llama(tiny)
    llama.reset()
    llama.eval(PROMPT)
    read(plain, PROMPT)
    assert greedy(llama, FIRST) == greedy(plain, FIRST)
    [decision] = llama.last_decisions
    assert decision.answer is not None and decision.answer.action == "steer"
    control(plain, decision.answer_vectors)
    assert greedy(llama, 8) == greedy(plain, 8)


def test_nothing_leaks_into_the_next_request(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[watching(tiny)])
    options = {"max_tokens": 9, "temperature": 0.0}
    first = llama.create_completion(PROMPT, **options)["choices"][0]["text"]
    decisions = llama.last_decisions
    assert llama.create_completion(PROMPT, **options)["choices"][0]["text"] == first
    assert llama.last_decisions[0].answer == decisions[0].answer
    llama.create_completion(PROMPT, max_tokens=FIRST + 1, temperature=0.0)
    assert llama.create_completion(PROMPT, **options)["choices"][0]["text"] == first
    llama.set_profiles()
    wanted = plain_llama(tiny).create_completion(PROMPT, **options)["choices"][0]["text"]
    assert llama.create_completion(PROMPT, **options)["choices"][0]["text"] == wanted


def test_sampled_answers_are_the_same_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_back_to(monkeypatch, 2)
    llama = steered_llama(tiny, profiles=[watching(tiny)])
    options = {"max_tokens": 12, "repeat_penalty": 1.5}
    said = [llama.create_completion(PROMPT, seed=seed, **options)["choices"][0]["text"] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("keep", [0, 3])
def test_after_a_rewind_the_grammar_is_where_the_text_is(
    tiny: Path, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_back_to(monkeypatch, keep)
    llama = steered_llama(tiny, profiles=[watching(tiny)])
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}, "required": ["a"]}
    form = {"type": "json_object", "schema": schema}
    made = llama.create_chat_completion(CHAT, response_format=form, max_tokens=200, temperature=0.0)["choices"][0]
    assert list(json.loads(made["message"]["content"])) == ["a"] and made["finish_reason"] == "stop"
    assert llama.last_decisions[0].answer.taken_back == FIRST - keep
    parts = llama.create_chat_completion(CHAT, response_format=form, max_tokens=200, temperature=0.0, stream=True)
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
    assert text == made["message"]["content"]


def test_logprobs_are_those_of_the_text(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[watching(tiny)], logits_all=True)
    made = llama.create_completion(PROMPT, max_tokens=8, temperature=0.0, logprobs=1)["choices"][0]
    assert "".join(made["logprobs"]["tokens"]) == made["text"]
    assert all(list(top) == [token] for top, token in zip(made["logprobs"]["top_logprobs"], made["logprobs"]["tokens"],
                                                        strict=True))  # fmt: skip


def test_a_draft_models_guesses_are_no_answer(tiny: Path) -> None:
    profile = watching(tiny)
    plain = steered_llama(tiny, profiles=[profile], logits_all=True)
    drafted = steered_llama(tiny, profiles=[profile], draft_model=LlamaPromptLookupDecoding(2, 4), logits_all=True)
    prompt = PROMPT[:8] * 4
    options = {"max_tokens": 20, "temperature": 0.0}
    wanted = plain.create_completion(prompt, **options)["choices"][0]["text"]
    assert drafted.create_completion(prompt, **options)["choices"][0]["text"] == wanted
    assert drafted.last_decisions[0].answer == plain.last_decisions[0].answer


def test_memory_that_cannot_be_cut(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "mamba.gguf", "mamba")
    llama = steered_llama(path, profiles=[watching(path, scope="response")])
    options = {"max_tokens": 9, "temperature": 0.0}
    taken = llama.create_completion(PROMPT, **options)["choices"][0]["text"]
    llama.set_profiles([held_open(watching(path, scope="response"))])
    assert taken == llama.create_completion(PROMPT, **options)["choices"][0]["text"]


def test_an_open_gate_needs_no_watch(tiny: Path) -> None:
    profile = replace(watching(tiny), gate=AlwaysGate())
    llama = steered_llama(tiny, profiles=[profile])
    answer(llama, PROMPT)
    assert llama.last_decisions[0].answer is None
    llama.set_profiles([watching(tiny)], on_answer="off")
    assert answer(llama, PROMPT) == answer(plain_llama(tiny), PROMPT)
    assert llama.last_decisions[0].answer is None


def test_two_profiles_that_read(tiny: Path) -> None:
    """The strictest is done first, and the other reads on what is then written."""
    late = replace(watching(tiny, first=6), name="late", experts=make_profile(tiny, seed=5, layers=(1,)).experts)
    llama = steered_llama(tiny, profiles=[watching(tiny), late])
    text = llama.create_completion(PROMPT, max_tokens=12, temperature=0.0)["choices"][0]["text"]
    first, second = llama.last_decisions
    assert first.answer.opened_at == FIRST and second.answer.opened_at == 6 and first.open and second.open
    both = [held_open(watching(tiny)), held_open(late)]
    other = steered_llama(tiny, profiles=both)
    assert text == other.create_completion(PROMPT, max_tokens=12, temperature=0.0)["choices"][0]["text"]


def test_what_cannot_be_asked_for(tiny: Path) -> None:
    with pytest.raises(ProfileError, match="'erase' is none of report, steer, rewind, stop, off"):
        steered_llama(tiny, profiles=[watching(tiny)], on_answer="erase")
    with pytest.raises(ProfileError, match="does not read answers"):
        steered_llama(tiny, profiles=[make_profile(tiny)], on_answer="stop")
    with pytest.raises(ProfileError, match="no profile that reads answers"):
        steered_llama(tiny, on_answer="stop")
    llama = steered_llama(tiny, profiles=[make_profile(tiny, name="other"), watching(tiny)], on_answer="stop")
    assert [steer.effective_on_answer for steer in llama.steer] == ["off", "stop"]
    assert [steer.on_answer for steer in llama.steer] == [None, "stop"]


def test_nobody_can_send_tokens_into_it(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[watching(tiny, opens=False)])
    stream = llama.generate(PROMPT, temp=0.0)
    next(stream)
    with pytest.raises(SteeringError, match="on_answer='off'"):
        stream.send([65])


def test_a_state_that_is_not_finite_ends_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = watching(tiny)
    assert profile.answer_gate is not None
    huge = replace(profile.answer_gate, weight=np.full_like(profile.answer_gate.weight, 3e38))
    llama = SteeredLlama(
        str(tiny), n_ctx=512, n_threads=1, verbose=False, profiles=[replace(profile, answer_gate=huge)]
    )
    with pytest.raises(SteeringError, match="not finite"):
        llama.create_completion(PROMPT, max_tokens=12)
