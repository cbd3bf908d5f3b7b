"""Settings of `SteeredLlama` that are changed while a stream runs hold from the next request on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from reference import steered_llama
from templates import QWEN3
from tiny import make_profile, write_tiny_model

CHAT: Any = [{"role": "user", "content": "Hello there"}]
OPTIONS: Any = {"max_tokens": 16, "temperature": 0.0, "stream": True}


@pytest.fixture(scope="module")
def profiles(tiny: Path) -> tuple[Profile, ...]:
    return tuple(make_profile(tiny, name=f"p{i}", seed=i, gate="open", layers=(2, 3)) for i in range(2))


def text_of(stream: Any) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream)


CHANGES: dict[str, Callable[[SteeredLlama, tuple[Profile, ...]], Any]] = {
    "none": lambda llama, p: llama.set_profiles(),
    "another": lambda llama, p: llama.set_profiles(p[1:]),
    "both": lambda llama, p: llama.set_profiles(p),
    "strength": lambda llama, p: llama.set_profiles(p[:1], strength=0.1),
    "scope": lambda llama, p: llama.set_profiles(p[:1], scope="response"),
    "thinking": lambda llama, p: setattr(llama, "skip_thinking", True),
}


@pytest.mark.parametrize("after", [0, 1, 5], ids="after {} tokens".format)
@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_goes_on_as_it_was_asked_for(
    tiny: Path, profiles: tuple[Profile, ...], change: str, after: int
) -> None:
    llama = steered_llama(tiny, profiles=profiles[:1])
    wanted = text_of(llama.create_chat_completion(CHAT, **OPTIONS))
    fresh = steered_llama(tiny, profiles=profiles[:1])
    CHANGES[change](fresh, profiles)
    changed = text_of(fresh.create_chat_completion(CHAT, **OPTIONS))

    stream: Any = llama.create_chat_completion(CHAT, **OPTIONS)
    found = text_of([next(stream) for _ in range(after)])
    CHANGES[change](llama, profiles)
    assert found + text_of(stream) == wanted
    assert len(llama.last_decisions) == 1
    assert text_of(llama.create_chat_completion(CHAT, **OPTIONS)) == changed
    assert len(llama.last_decisions) == len(llama.profiles)


def test_the_first_profiles_of_a_model_come_during_a_stream(tiny: Path, profiles: tuple[Profile, ...]) -> None:
    wanted = text_of(steered_llama(tiny).create_chat_completion(CHAT, **OPTIONS))
    llama = steered_llama(tiny)
    stream: Any = llama.create_chat_completion(CHAT, **OPTIONS)
    found = text_of([next(stream) for _ in range(4)])
    llama.set_profiles(profiles)  # asks for the first time whether this model can be steered
    assert found + text_of(stream) == wanted
    steered = steered_llama(tiny, profiles=profiles)
    assert text_of(llama.create_chat_completion(CHAT, **OPTIONS)) == text_of(
        steered.create_chat_completion(CHAT, **OPTIONS)
    )


def test_tokens_from_generate_too(tiny: Path, profiles: tuple[Profile, ...]) -> None:
    llama = steered_llama(tiny, profiles=profiles[:1])
    prompt = llama.tokenize(b"Hello there")
    tokens = llama.generate(prompt, temp=0.0)
    wanted = [next(tokens) for _ in range(8)]
    tokens.close()
    tokens = llama.generate(prompt, temp=0.0)
    llama.set_profiles()
    found = [next(tokens) for _ in range(3)]
    llama.set_profiles(profiles)
    assert [*found, *(next(tokens) for _ in range(5))] == wanted


def test_a_stream_that_nobody_ended_keeps_nothing_back(tiny: Path, profiles: tuple[Profile, ...]) -> None:
    llama = steered_llama(tiny, profiles=profiles[:1])
    stream: Any = llama.create_chat_completion(CHAT, **OPTIONS)
    next(stream)
    llama.set_profiles()
    other = text_of(llama.create_chat_completion(CHAT, **OPTIONS))
    assert other == text_of(steered_llama(tiny).create_chat_completion(CHAT, **OPTIONS))
    assert llama.last_decisions == ()


def test_thoughts_are_left_alone_as_the_request_was_made(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", chat_template=QWEN3 + "<think>")
    profile = make_profile(path, gate="open")

    def llama(skips: bool) -> SteeredLlama:
        return steered_llama(path, profiles=[profile], skip_thinking=skips)

    wanted = text_of(llama(True).create_chat_completion(CHAT, **OPTIONS))
    assert wanted != text_of(llama(False).create_chat_completion(CHAT, **OPTIONS))
    changing = llama(True)
    stream: Any = changing.create_chat_completion(CHAT, **OPTIONS)
    changing.skip_thinking = False
    assert text_of(stream) == wanted
