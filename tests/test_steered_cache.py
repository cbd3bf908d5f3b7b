"""The same request gives the same answer, whatever ran before.

Decisions and vectors are those of a fresh model bit for bit wherever the last token is not read alone; where it is,
llama.cpp rounds differently and they are equal to its precision.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import LlamaDiskCache, LlamaRAMCache

from finesteer_local.errors import SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from reference import answer, greedy, logits, plain_llama, read, steered_llama
from tiny import make_profile

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = np.random.default_rng(7).integers(3, 250, 30).tolist()
OTHER = [*PROMPT[:20], *range(100, 112)]  # shares 20 tokens
LONGER = [*PROMPT, *range(100, 105)]
STRANGE = list(range(200, 215))  # shares none

History = Callable[[SteeredLlama, Profile], object]


def abandoned(llama: SteeredLlama, prompt: list[int]) -> None:
    stream = llama.create_completion(prompt, max_tokens=20, temperature=0.0, stream=True)
    for _ in range(3):
        next(stream)


def without_profiles(llama: SteeredLlama, profile: Profile, prompt: list[int], n: int = 5) -> None:
    llama.set_profiles([])
    answer(llama, prompt, n)
    llama.set_profiles([profile])


def stronger(llama: SteeredLlama, profile: Profile, prompt: list[int]) -> None:
    llama.set_profiles([profile], strength=3.0, scope="prompt")
    answer(llama, prompt, 5)
    llama.set_profiles([profile])


def restored(llama: SteeredLlama, profile: Profile, prompt: list[int]) -> None:
    llama.set_profiles([profile], strength=3.0)
    answer(llama, prompt, 5)
    state = llama.save_state()
    answer(llama, STRANGE, 2)
    llama.set_profiles([profile])
    llama.load_state(state)


def failed(llama: SteeredLlama, prompt: list[int]) -> None:
    with pytest.raises(RuntimeError):
        llama.eval(prompt * 20)  # more than the context holds


def cached(llama: SteeredLlama, prompt: list[int]) -> None:
    llama.set_cache(LlamaRAMCache())
    llama.create_completion(prompt, max_tokens=5, temperature=0.0)
    llama.create_completion(STRANGE, max_tokens=5, temperature=0.0)


HISTORIES: dict[str, History] = {
    "the same": lambda llama, _: answer(llama, PROMPT, 5),
    "the same, one token": lambda llama, _: answer(llama, PROMPT, 1),
    "another with the same beginning": lambda llama, _: answer(llama, OTHER, 5),
    "a longer one": lambda llama, _: answer(llama, LONGER, 5),
    "its beginning": lambda llama, _: answer(llama, PROMPT[:12], 5),
    "another one": lambda llama, _: answer(llama, STRANGE, 5),
    "the same, unsteered": lambda llama, p: without_profiles(llama, p, PROMPT),
    "the same, unsteered, one token": lambda llama, p: without_profiles(llama, p, PROMPT, 1),
    "another with the same beginning, unsteered": lambda llama, p: without_profiles(llama, p, OTHER),
    "the same, stronger": lambda llama, p: stronger(llama, p, PROMPT),
    "another with the same beginning, stronger": lambda llama, p: stronger(llama, p, OTHER),
    "an abandoned stream": lambda llama, _: abandoned(llama, PROMPT),
    "an abandoned stream of another": lambda llama, _: abandoned(llama, OTHER),
    "a restored state": lambda llama, p: restored(llama, p, PROMPT),
    "a restored state of another": lambda llama, p: restored(llama, p, OTHER),
    "a cache with the same": lambda llama, _: cached(llama, PROMPT),
    "a cache with another": lambda llama, _: cached(llama, OTHER),
    "low-level use": lambda llama, _: (llama.reset(), llama.eval(OTHER), greedy(llama, 3)),
    "an evaluation that failed": lambda llama, _: failed(llama, OTHER),
}


@pytest.mark.local(gate=["open", "closed"], scope=["response"])
@pytest.mark.parametrize("gate", ["open", "partly", "closed", "selective, last token"])
@pytest.mark.parametrize("scope", ["prompt", "turn", "response"])
@pytest.mark.parametrize("history", HISTORIES)
def test_the_same_request_gives_the_same_answer(
    tiny: Path, history: str, scope: str, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = make_profile(tiny, gate=gate, scope=scope)
    fresh = steered_llama(tiny, profiles=[profile])
    wanted = fresh.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]
    llama = steered_llama(tiny, profiles=[profile])
    HISTORIES[history](llama, profile)
    n_read = []
    read_prompt = llama._read_prompt
    monkeypatch.setattr(
        llama, "_read_prompt", lambda tokens, *parts: (n_read.append(len(tokens)), read_prompt(tokens, *parts))
    )
    got = llama.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]
    assert got == wanted
    if n_read == [1]:  # the last token alone: the rest was cached, unsteered
        assert history.startswith(("the same", "a longer one", "a restored", "a cache", "an abandoned"))
        np.testing.assert_allclose(llama.last_decision.score, fresh.last_decision.score, rtol=1e-5)
        np.testing.assert_allclose(logits(llama), logits(fresh), atol=1e-3)
    else:
        assert llama.last_decision.score == fresh.last_decision.score
        np.testing.assert_array_equal(logits(llama), logits(fresh))


@pytest.mark.parametrize("scope", ["prompt", "turn", "response"])
def test_nothing_stays_steered_after_a_profile_is_gone(tiny: Path, scope: str) -> None:
    """Every way from a steered answer to an unsteered one, against plain llama-cpp-python from scratch."""
    profile = make_profile(tiny, scope=scope, strength=3.0)
    wanted = answer(plain_llama(tiny), PROMPT)
    for name in (
        "the same",
        "the same, one token",  # whose logits would be at hand
        "another with the same beginning",
        "an abandoned stream",
        "a cache with the same",
    ):
        llama = steered_llama(tiny, profiles=[profile])
        HISTORIES[name](llama, profile)
        llama.set_profiles([])
        assert answer(llama, PROMPT) == wanted, name
        assert llama.last_decisions == ()


@pytest.mark.parametrize("n", [1, 4])
def test_nothing_stays_steered_after_several_profiles_are_gone(tiny: Path, n: int) -> None:
    profiles = [
        make_profile(tiny, name=scope, scope=scope, strength=3.0, layers=(i + 1,))
        for i, scope in enumerate(("response", "turn", "prompt"))
    ]
    for active in (profiles[:2], profiles[::2], profiles):
        llama = steered_llama(tiny, profiles=active)
        llama.expect(12)
        answer(llama, PROMPT, n)
        llama.set_profiles([])
        assert answer(llama, PROMPT) == answer(plain_llama(tiny), PROMPT)


@pytest.mark.parametrize("again", ["reset", "no reset", "eval"])
def test_low_level_use_reads_steered_tokens_again(tiny: Path, again: str) -> None:
    """A prompt that goes on from steered tokens is, as a whole, one prompt."""
    profile = make_profile(tiny, strength=2.0)
    whole = [*PROMPT, *STRANGE]
    for profiles in ([profile], []):
        llama = steered_llama(tiny, profiles=[profile])
        llama.reset()
        llama.eval(PROMPT)
        llama.set_profiles(profiles)
        if again == "reset":
            llama.reset()
            llama.eval(whole)
        elif again == "no reset":
            next(llama.generate(STRANGE, temp=0.0, reset=False))
        else:
            llama.eval(STRANGE)
        assert llama._input_ids.tolist() == whole
        plan = [(0, d.vectors) for d in llama.last_decisions]
        np.testing.assert_array_equal(logits(llama), read(plain_llama(tiny), whole, plan))
        fresh = steered_llama(tiny, profiles=profiles)
        fresh.reset()
        fresh.eval(whole)
        assert [d.score for d in llama.last_decisions] == [d.score for d in fresh.last_decisions]
        assert greedy(llama, 5) == greedy(fresh, 5)


def test_reset_may_be_given_by_position(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny)])
    answer(llama, PROMPT, 1)
    next(llama.generate(STRANGE, 40, 0.95, 0.05, 1.0, 0.0, 1.0, False))
    assert llama._input_ids.tolist() == [*PROMPT, *STRANGE]
    wanted = read(plain_llama(tiny), [*PROMPT, *STRANGE], [(0, llama.last_decision.vectors)])
    np.testing.assert_array_equal(logits(llama), wanted)


def test_reset_eval_sample_gives_the_answer_of_generate(tiny: Path) -> None:
    profile = make_profile(tiny)
    wanted = answer(steered_llama(tiny, profiles=[profile]), PROMPT)
    llama = steered_llama(tiny, profiles=[profile])
    for _ in range(2):
        llama.reset()
        llama.eval(PROMPT)
        got = []
        for _ in range(8):
            got.append(llama.sample(temp=0.0))
            llama.eval([got[-1]])
        assert got == wanted


def test_a_prompt_read_by_eval_is_not_read_again_by_generate(tiny: Path) -> None:
    """llama-cpp-python samples at once where just the prompt is cached; a decision taken for it still holds."""
    llama = steered_llama(tiny, profiles=[make_profile(tiny)])
    llama.reset()
    llama.eval(PROMPT)
    decision, state = llama.last_decision, logits(llama)
    next(llama.generate(PROMPT, temp=0.0))
    assert llama.last_decision is decision
    np.testing.assert_array_equal(logits(llama), state)


@pytest.mark.parametrize("disk", [False, True])
def test_a_cache_never_brings_steered_tokens_back(tiny: Path, tmp_path: Path, disk: bool) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny, strength=3.0)])
    llama.set_cache(LlamaDiskCache(str(tmp_path / "cache")) if disk else LlamaRAMCache())
    steered = llama.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]
    llama.set_profiles([])
    llama.create_completion(STRANGE, max_tokens=3, temperature=0.0)
    plain = plain_llama(tiny)
    wanted = plain.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"]
    assert steered != wanted
    assert llama.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"] == wanted
    llama.create_completion(STRANGE, max_tokens=3, temperature=0.0)
    llama.set_profiles([make_profile(tiny, strength=3.0)])
    assert llama.create_completion(PROMPT, max_tokens=8, temperature=0.0)["choices"][0]["text"] == steered


def test_a_state_tells_another_model_what_was_steered(tiny: Path) -> None:
    profile = make_profile(tiny, scope="response", strength=3.0)
    llama = steered_llama(tiny, profiles=[profile])
    answer(llama, PROMPT, 5)
    state = pickle.loads(pickle.dumps(llama.save_state()))
    other = steered_llama(tiny)
    other.load_state(state)
    np.testing.assert_array_equal(other._input_ids, llama._input_ids)
    whole = other._input_ids.tolist()
    assert answer(other, whole) == answer(plain_llama(tiny), whole)


def test_a_plain_state_is_unsteered(tiny: Path) -> None:
    plain = plain_llama(tiny)
    read(plain, PROMPT)
    llama = steered_llama(tiny, profiles=[make_profile(tiny, scope="response")])
    llama.load_state(plain.save_state())
    got = answer(llama, LONGER)
    assert got == answer(steered_llama(tiny, profiles=[make_profile(tiny, scope="response")]), LONGER)


def test_an_unstarted_stream_keeps_its_own_request(tiny: Path) -> None:
    """A stream reads its prompt when it is first asked, perhaps after other requests."""
    messages = [{"role": "user", "content": "the first user"}, {"role": "user", "content": "in the inner turn"}]
    profile = make_profile(tiny, scope="turn", strength=2.0)
    llama = steered_llama(tiny, profiles=[profile])

    def chat(stream: bool):
        return llama.create_chat_completion(messages, max_tokens=8, temperature=0.0, stream=stream)

    wanted = chat(False)["choices"][0]["message"]["content"]
    late = chat(True)
    answer(llama, STRANGE, 3)
    llama.create_chat_completion(messages[:1], max_tokens=3)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in late) == wanted


def test_a_request_that_was_refused_leaves_its_turn_to_nobody(tiny: Path) -> None:
    profile = make_profile(tiny, scope="turn")
    llama = steered_llama(tiny, profiles=[profile])
    messages = [{"role": "system", "content": "inner " * 30}, {"role": "user", "content": "the user " * 300}]
    for stream in (False, True):
        with pytest.raises(ValueError, match="exceed context window"):
            list(llama.create_chat_completion(messages, stream=stream))
        next(llama.generate(PROMPT, temp=0.0))
        wanted = read(plain_llama(tiny), PROMPT, [(0, llama.last_decision.vectors)])
        np.testing.assert_array_equal(logits(llama), wanted)


def test_a_pickled_model_keeps_its_profiles(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny, strength=3.0)], strength=2.0, native_tap=False)
    wanted = answer(llama, PROMPT)
    copy = pickle.loads(pickle.dumps(llama))
    assert copy.tap.native is False
    assert answer(copy, PROMPT) == wanted
    assert copy.last_decision.strength == 2.0


def test_forget_empties_everything(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny, strength=3.0)])
    answer(llama, PROMPT, 4)
    llama.forget()
    assert llama.n_tokens == 0
    llama.set_profiles([])
    llama.eval(PROMPT)
    np.testing.assert_array_equal(logits(llama), read(plain_llama(tiny), PROMPT))


def test_set_profiles_after_an_error_are_what_they_were(tiny: Path) -> None:
    profile = make_profile(tiny)
    llama = steered_llama(tiny, profiles=[profile], strength=0.5)
    for bad in ({"strength": -1.0}, {"strength": float("nan")}, {"strength": 1e9}, {"scope": "answer"}):
        with pytest.raises(ValueError, match=r"strength|scope"):
            llama.set_profiles([], **bad)
    with pytest.raises(ValueError, match="twice"):
        llama.set_profiles([profile, make_profile(tiny, seed=1)])
    assert llama.profiles == (profile,)
    answer(llama, PROMPT, 1)
    assert llama.last_decision.strength == 0.5


def test_profiles_need_text(tiny: Path) -> None:
    llama = steered_llama(tiny, embedding=True)
    assert len(llama.embed("hello")) > 0
    with pytest.raises(SteeringError, match="embedding"):
        llama.set_profiles([make_profile(tiny)])


@pytest.mark.local(seed=range(4, 12))
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
def test_any_sequence_of_requests(tiny: Path, settings: dict, seed: int) -> None:
    """Twelve random requests under random profiles, in one model; each is answered as by a fresh one."""
    rng = random.Random(seed)
    shapes = [
        ("partly", "turn", 0),
        ("open", "response", 1),
        ("selective, last token", "prompt", 1),
        ("closed", "turn", 1),
    ]
    profiles = [
        make_profile(
            tiny, name=f"p{i}", gate=gate, scope=scope, gate_layer=layer, layers=(layer + 1,), seed=i, strength=2
        )
        for i, (gate, scope, layer) in enumerate(shapes)
    ]
    choices = [[], *([p] for p in profiles), profiles[:2], profiles[1:3], profiles]
    llama = steered_llama(tiny, profiles=profiles, **settings)
    llama.set_cache(LlamaRAMCache())
    state = llama.save_state()
    active, options = choices[-1], {}
    for step in range(12):
        if rng.random() < 0.4:
            active = rng.choice(choices)
            options = rng.choice([{}, {"scope": "prompt"}, {"strength": 0.5}, {"strength": 0.0}])
            llama.set_profiles(active, **options)
        action = rng.random()
        if action < 0.1:
            llama.load_state(state)
        elif action < 0.2:
            state = llama.save_state()
        elif action < 0.3:
            llama.reset()
            llama.eval(rng.choice([OTHER, PROMPT[:7]]))
            greedy(llama, 2)
        prompt = rng.choice([PROMPT, OTHER, LONGER, PROMPT[:12], STRANGE, [*OTHER[:25], *STRANGE]])
        turn = rng.choice([0, 3, 11])
        n = rng.choice([1, 2, 6])
        llama.expect(turn)
        if action > 0.8:
            stream = llama.create_completion(prompt, max_tokens=9, temperature=0.0, stream=True)
            for _ in range(n):
                next(stream)
            continue
        got = answer(llama, prompt, n)
        fresh = steered_llama(tiny, profiles=active, **options, **settings)
        fresh.expect(turn)
        assert got == answer(fresh, prompt, n), step
        assert [d.open for d in llama.last_decisions] == [d.open for d in fresh.last_decisions], step
        np.testing.assert_allclose(logits(llama), logits(fresh), atol=2e-3, err_msg=f"step {step}")
