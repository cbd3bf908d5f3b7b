"""What a method does to the model: profiles, and linear maps through the tap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.errors import SteeringError
from finesteer_local.evaluation.interventions import UNSTEERED, MapSteering, ProfileSteering, Reading
from finesteer_local.profile import MAX_STRENGTH
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.prompt import chat_prompt, greedy_answer
from finesteer_local.steering import Experts
from reference import logits, plain_llama, steered_llama
from tiny import make_profile

MESSAGES = [{"role": "user", "content": "hello there"}]
N = 12


@pytest.fixture
def llama(tiny: Path) -> Iterator[SteeredLlama]:
    yield steered_llama(tiny)


def answer(llama: SteeredLlama, intervention: Any) -> str:
    with intervention.applied(llama):
        intervention.expect(len(chat_prompt(llama, MESSAGES)))
        text = greedy_answer(llama, MESSAGES, N)
        llama.tap.check()
    return text


def rank_one(n_embd: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(n_embd).astype(np.float32) for _ in range(2))  # type: ignore[return-value]


def plain_text(path: Path) -> str:
    answer: Any = plain_llama(path).create_chat_completion(
        MESSAGES,
        max_tokens=N,
        temperature=0.0,
        repeat_penalty=1.0,  # type: ignore[arg-type]
    )
    return str(answer["choices"][0]["message"]["content"])


# --- readings


def test_a_reading_of_nothing() -> None:
    assert Reading.of(()) == Reading(g=0.0, score=None, threshold=None, steers=False, experts=())


def test_readings_of_profiles(tiny: Path, llama: SteeredLlama) -> None:
    shut = make_profile(tiny, name="shut", gate="closed")
    partly = make_profile(tiny, name="partly", gate="partly")
    one = ProfileSteering((partly,))
    with one.applied(llama):
        greedy_answer(llama, MESSAGES, 1)
        [decision] = llama.last_decisions
        reading = one.reading(llama)
    assert (reading.g, reading.score, reading.threshold) == (decision.g, decision.score, decision.threshold)
    assert reading.steers and 0 < reading.g < 1
    assert dict(reading.experts).keys() == {f"expert {letter}" for letter in "abcd"}
    assert sum(weight for _, weight in reading.experts) == pytest.approx(1)
    both = ProfileSteering((shut, partly))
    with both.applied(llama):
        greedy_answer(llama, MESSAGES, 1)
        together = both.reading(llama)
    assert together.g == reading.g and together.steers
    assert (together.score, together.threshold) == (pytest.approx(decision.score - decision.threshold), 0.0)
    assert {name for name, _ in together.experts} == {f"partly: expert {letter}" for letter in "abcd"}


def test_a_reading_of_vectors_that_do_not_differ(tiny: Path, llama: SteeredLlama) -> None:
    """It steers, and names no experts."""
    fixed = make_profile(tiny, experts={2: Experts.fixed(np.ones(64, np.float32))})
    with ProfileSteering((fixed,)).applied(llama):
        greedy_answer(llama, MESSAGES, 1)
        reading = ProfileSteering((fixed,)).reading(llama)
    assert reading.steers and reading.experts == ()


def test_a_reading_survives_json() -> None:
    reading = Reading(0.5, 1.5, 1.0, True, (("a", 0.25), ("b", 0.75)))
    values = {"g": 0.5, "score": 1.5, "threshold": 1.0, "steers": True, "experts": [["a", 0.25], ["b", 0.75]]}
    assert Reading.stored(values) == reading


# --- profiles


def test_profiles_are_those_of_the_runtime(tiny: Path, llama: SteeredLlama) -> None:
    profile = make_profile(tiny, strength=3)
    fresh = greedy_answer(steered_llama(tiny, profiles=[profile]), MESSAGES, N)
    assert answer(llama, ProfileSteering((profile,))) == fresh != plain_text(tiny)
    assert llama.profiles == ()
    assert answer(llama, UNSTEERED) == plain_text(tiny)


def test_scaling_profiles(tiny: Path) -> None:
    steering = ProfileSteering((make_profile(tiny, strength=2), make_profile(tiny, name="other", strength=80)))
    assert [p.strength for p in steering.scaled(0.5).profiles] == [1, 40]
    assert [p.strength for p in steering.scaled(2).profiles] == [4, MAX_STRENGTH]
    assert "layer 2, strength 2, scope prompt; layer 2, strength 80" in steering.summary


def test_a_digest_is_of_what_decides(tiny: Path) -> None:
    profile = make_profile(tiny)
    steering = ProfileSteering((profile,))
    assert steering.digest == ProfileSteering((make_profile(tiny, description="words", training={"a": 1}),)).digest
    others = [
        UNSTEERED,
        steering.scaled(0.5),
        ProfileSteering((make_profile(tiny, seed=1),)),
        ProfileSteering((make_profile(tiny, scope="turn"),)),
        ProfileSteering((replace(profile, answer_strength=0.5),)),
        ProfileSteering((replace(profile, length_decay=0.5),)),
        ProfileSteering((make_profile(tiny, gate="closed"),)),
        ProfileSteering((make_profile(tiny, layers=(3,)),)),
        ProfileSteering((profile, make_profile(tiny, name="other"))),
    ]
    assert len({steering.digest, *(other.digest for other in others)}) == len(others) + 1


# --- maps


def test_a_map_of_strength_zero_changes_nothing(tiny: Path, llama: SteeredLlama) -> None:
    maps = {2: rank_one(llama.n_embd())}
    assert answer(llama, MapSteering(maps, 0.0)) == plain_text(tiny)
    assert answer(llama, MapSteering(maps, 0.0, every_token=True)) == plain_text(tiny)


def states_of(llama: SteeredLlama, tokens: list[int], layer: int) -> np.ndarray:
    seen: list[np.ndarray] = []
    llama.forget()
    llama.tap.arm({layer: lambda _, rows: seen.append(rows.read(0, rows.n_rows)) or True})  # type: ignore[func-returns-value]
    llama.decode_rows(tokens, 0)
    llama.tap.disarm()
    llama.forget()
    return seen[0]


@pytest.mark.parametrize("every_token", [False, True])
def test_the_map_is_the_formula(tiny_model: Path, every_token: bool) -> None:
    """Against states read, moved by hand, and written."""
    llama = steered_llama(tiny_model)
    tokens = chat_prompt(llama, MESSAGES)
    w, r = rank_one(llama.n_embd())
    before = states_of(llama, tokens, 1)
    image = before @ w
    moved = before + np.float32(0.5) * ((image if every_token else image[-1:])[:, None] * r)

    def by_hand(_: int, rows: Any) -> bool:
        rows.write(0, moved)
        return True

    llama.tap.arm({1: by_hand})
    llama.decode_rows(tokens, 0)
    llama.tap.disarm()
    wanted = logits(llama)
    steering = MapSteering({1: (w, r)}, 0.5, every_token)
    with steering.applied(llama):
        steering.expect(len(tokens))
        llama.eval(tokens)
        reading = steering.reading(llama)
        assert np.array_equal(logits(llama), wanted)
        llama.eval([tokens[0]])
        after = logits(llama)
    assert reading.score == pytest.approx(float(image[-1]), rel=1e-6)
    assert reading.steers and reading.g == 1 and reading.threshold is None
    # An answer's token is moved by its own state, or left alone.
    free = MapSteering({1: (w, r)}, 0.5, not every_token)
    with steering.applied(llama):
        steering.expect(len(tokens))
        llama.eval(tokens)
        llama.tap.disarm()
        llama.eval([tokens[0]])
        assert np.array_equal(logits(llama), after) != every_token
    assert free.digest != steering.digest


def test_the_score_is_the_mean_over_the_layers(llama: SteeredLlama) -> None:
    tokens = chat_prompt(llama, MESSAGES)
    w, r = rank_one(llama.n_embd())
    steering = MapSteering({1: (w, 0 * r), 2: (w, 0 * r)}, 1.0)
    expected = np.mean([states_of(llama, tokens, layer)[-1] @ w for layer in (1, 2)])
    with steering.applied(llama):
        steering.expect(len(tokens))
        llama.eval(tokens)
        assert steering.reading(llama).score == pytest.approx(float(expected), rel=1e-5)


def test_nothing_of_a_map_stays_behind(tiny: Path, llama: SteeredLlama) -> None:
    steered = answer(llama, MapSteering({2: rank_one(llama.n_embd())}, 2.0, every_token=True))
    assert steered != plain_text(tiny)
    assert answer(llama, UNSTEERED) == plain_text(tiny)
    profile = make_profile(tiny, strength=3)
    assert answer(llama, ProfileSteering((profile,))) == greedy_answer(
        steered_llama(tiny, profiles=[profile]), MESSAGES, N
    )


def test_scaling_a_map(llama: SteeredLlama) -> None:
    steering = MapSteering({2: rank_one(llama.n_embd())}, 2.0)
    assert (steering.scaled(0.5).strength, steering.scaled(0.5).every_token) == (1.0, False)
    assert steering.scaled(0.5).digest != steering.digest == steering.scaled(1.0).digest
    assert steering.summary == "layer 2, strength 2, the prompt's tokens"


def test_a_layer_that_is_not_shown_is_an_error(llama: SteeredLlama) -> None:
    steering = MapSteering({2: rank_one(llama.n_embd())}, 1.0)
    with steering.applied(llama):
        steering.expect(3)
        with pytest.raises(SteeringError, match="did not show the layers"):
            steering.reading(llama)


def test_a_mistake_in_the_tap_is_raised(llama: SteeredLlama) -> None:
    steering = MapSteering({2: rank_one(llama.n_embd() + 1)}, 1.0)
    with pytest.raises(ValueError, match="matmul"), steering.applied(llama):
        steering.expect(len(chat_prompt(llama, MESSAGES)))
        llama.eval(chat_prompt(llama, MESSAGES))
        steering.reading(llama)
    llama.eval(chat_prompt(llama, MESSAGES))  # unarmed again
    llama.tap.check()
