"""`SteeredLlama` against plain llama-cpp-python: bit-equal where the gate is closed, and where llama.cpp's own control
vector does the same.

llama.cpp on a CPU computes a batch of one token by another routine than a larger one, which rounds differently. Two
runs agree bit for bit when they agree on which tokens are read alone; the prompts here are cut so that they do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.profile import Profile
from finesteer_local.runtime.prompt_pass import segments
from finesteer_local.steering import Decision
from reference import answer, control, greedy, logits, plain_llama, read, steered_llama
from tiny import make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = np.random.default_rng(7).integers(3, 250, 41).tolist()
CHAT = [
    {"role": "system", "content": "Be the tiny model."},
    {"role": "user", "content": "Hello there, in the inner turn"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": "and on the other user?"},
]


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of eight layers."""
    return write_tiny_model(tmp_path_factory.mktemp("deep") / "deep.gguf", n_layer=8)


GOES_ON = 8  # the step below whose prompt is the one before with its answer


def test_a_closed_gate_and_no_profile_change_nothing(tiny_model: Path, native_tap: bool) -> None:
    def conversation(llama) -> list:
        """Prefix reuse over turns, an exact repetition, a prompt cut short, and one that goes on from its answer."""
        seen = []

        def keep(text: str) -> str:
            seen.append((text, llama.n_tokens, logits(llama)))
            return text

        messages = CHAT[:2]
        for question in ("and on?", "the other", ""):
            reply = llama.create_chat_completion(messages, max_tokens=6, temperature=0.0)
            text = keep(reply["choices"][0]["message"]["content"])
            messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": question}]
        for prompt, n in ((PROMPT, 1), (PROMPT, 1), (PROMPT, 4), (PROMPT[:20], 3), ([*PROMPT[:20], 90, 91], 3)):
            keep(llama.create_completion(prompt, max_tokens=n, temperature=0.0)["choices"][0]["text"])
        cached = llama._input_ids.tolist()
        keep(llama.create_completion(cached, max_tokens=3, temperature=0.0)["choices"][0]["text"])
        for seed in (1, 1, 2):
            keep(llama.create_completion(PROMPT, max_tokens=6, seed=seed)["choices"][0]["text"])
        return seen

    wanted = conversation(plain_llama(tiny_model))
    closed = [
        make_profile(tiny_model, name="one", gate="closed", layers=(2, 3), scope="turn"),
        make_profile(tiny_model, name="two", gate="closed, last token", layers=(1,), gate_layer=0),
    ]
    for profiles in ((), closed[:1], closed[1:], closed):
        llama = steered_llama(tiny_model, profiles=profiles, native_tap=native_tap)
        for step, (got, want) in enumerate(zip(conversation(llama), wanted, strict=True)):
            assert got[:2] == want[:2], step
            if step == GOES_ON and closed[0] in profiles:
                # a gate that pools has not seen the answer's tokens: they are read again, here more than one at a time
                np.testing.assert_allclose(got[2], want[2], atol=1e-4)
            else:
                np.testing.assert_array_equal(got[2], want[2], err_msg=f"step {step}, {len(profiles)} profiles")
        assert [d.g for d in llama.last_decisions] == [0.0] * len(profiles)


@pytest.mark.parametrize(
    ("gate_layer", "layers"), [(1, (2,)), (0, (1,)), (2, (2,)), (0, (1, 2)), (1, (1, 2, 3)), (3, (3,))]
)
def test_a_steered_prompt_is_the_control_vectors(
    tiny_model: Path, native_tap: bool, gate_layer: int, layers: tuple[int, ...]
) -> None:
    profile = make_profile(tiny_model, gate_layer=gate_layer, layers=layers)
    llama = steered_llama(tiny_model, profiles=[profile], native_tap=native_tap)
    plain = plain_llama(tiny_model)
    llama.reset()
    llama.eval(PROMPT)
    decision = llama.last_decision
    assert decision is not None
    assert decision.open
    assert sorted(decision.vectors) == list(layers)
    unsteered = read(plain, PROMPT)
    np.testing.assert_array_equal(logits(llama), read(plain, PROMPT, [(0, decision.vectors)]))
    assert not np.allclose(logits(llama), unsteered, atol=0.1)
    # and so are the answer's tokens
    assert greedy(llama, 8) == greedy(plain, 8)
    np.testing.assert_array_equal(logits(llama), logits(plain))


def test_generate_steers_the_answer(tiny_model: Path) -> None:
    profile = make_profile(tiny_model, strength=4.0)
    llama = steered_llama(tiny_model, profiles=[profile])
    got = answer(llama, PROMPT)
    plain = plain_llama(tiny_model)
    read(plain, PROMPT, [(0, llama.last_decision.vectors)])
    assert got == greedy(plain, 8)
    assert got != answer(plain_llama(tiny_model), PROMPT)


def test_tokens_may_come_from_an_iterator(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny)])
    assert answer(llama, iter(PROMPT)) == answer(steered_llama(tiny, profiles=[make_profile(tiny)]), PROMPT)


def test_the_decision_is_that_of_the_prompts_last_token(tiny_model: Path, native_tap: bool) -> None:
    """The states come from the model alone: they do not depend on what the profile then does."""
    seen = {}
    for gate in ("selective", "selective, last token", "partly"):
        llama = steered_llama(tiny_model, profiles=[make_profile(tiny_model, gate=gate)], native_tap=native_tap)
        values = []
        for seed in range(20):
            llama.reset()
            llama.eval(np.random.default_rng(seed).integers(3, 250, 21).tolist())
            decision = llama.last_decision
            assert decision.open == (decision.g > 0)
            values.append((decision.g, decision.score))
        seen[gate] = values
    assert {g for g, _ in seen["selective"]} == {0.0, 1.0}
    assert len({g for g, _ in seen["selective, last token"]}) > 1
    assert all(0 < g < 1 for g, _ in seen["partly"])
    assert len({score for _, score in seen["partly"]}) == 20


def test_the_gates_value_and_the_strength_scale_the_vector(tiny: Path) -> None:
    profile = make_profile(tiny, gate="partly", strength=2.0)
    vectors = {}
    for strength in (None, 1.0, 0.5):
        llama = steered_llama(tiny, profiles=[profile], strength=strength)
        llama.reset()
        llama.eval(PROMPT)
        decision = llama.last_decision
        assert decision.strength == (strength or 2.0)
        vectors[strength] = decision.vectors[2]
        experts = profile.experts[2]
        mixed = experts.mix(decision.alpha[2], decision.beta[2])
        np.testing.assert_array_equal(decision.vectors[2], np.float32(decision.strength * decision.g) * mixed)
    np.testing.assert_allclose(vectors[None], 2 * vectors[1.0], rtol=1e-6)
    np.testing.assert_allclose(vectors[1.0], 2 * vectors[0.5], rtol=1e-6)


def test_strength_zero_decides_and_changes_nothing(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny)], strength=0.0)
    plain = plain_llama(tiny)
    assert answer(llama, PROMPT) == answer(plain, PROMPT)
    np.testing.assert_array_equal(logits(llama), logits(plain))
    assert llama.last_decision.g == 1.0
    assert not llama.last_decision.open


@pytest.mark.parametrize("cached", [0, 5, 20], ids=lambda n: f"{n} cached")
@pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
class TestScopes:
    """The prompt's tokens that a scope covers, and no others, are read with the control vector set.

    `cached`: so many tokens of the prompt are in the cache before, left by an unsteered request.
    """

    def steered(self, path: Path, scope: str, cached: int, settings: dict, prompt: list[int], turn: int = 0):
        llama = steered_llama(path, profiles=[make_profile(path)], **settings)
        if cached:
            llama.set_profiles([])
            answer(llama, [*prompt[:cached], 17, 18], 2)
        llama.set_profiles([make_profile(path)], scope=scope)
        assert llama.n_tokens == (cached + 3 if cached else 0)
        llama.expect(turn)
        next(llama.generate(prompt, temp=0.0))
        return llama

    def test_prompt(self, tiny_model: Path, cached: int, settings: dict) -> None:
        llama = self.steered(tiny_model, "prompt", cached, settings, PROMPT)
        plain = plain_llama(tiny_model, **settings)
        np.testing.assert_array_equal(logits(llama), read(plain, PROMPT, [(0, llama.last_decision.vectors)]))

    @pytest.mark.parametrize("turn", [3, 12, 30, 38])
    def test_turn(self, tiny: Path, cached: int, settings: dict, turn: int) -> None:
        llama = self.steered(tiny, "turn", cached, settings, PROMPT, turn)
        plain = plain_llama(tiny, **settings)
        wanted = read(plain, PROMPT, [(turn, llama.last_decision.vectors)])
        if settings:
            # 41 tokens leave single tokens at other places when they are cut at `turn`
            np.testing.assert_allclose(logits(llama), wanted, atol=1e-4)
        else:
            np.testing.assert_array_equal(logits(llama), wanted)
        others = [read(plain, PROMPT, [(turn + i, llama.last_decision.vectors)]) for i in (-1, 1)]
        assert all(np.abs(logits(llama) - other).max() > 1e-2 for other in others)

    def test_response(self, tiny_model: Path, cached: int, settings: dict) -> None:
        llama = self.steered(tiny_model, "response", cached, settings, PROMPT)
        plain = plain_llama(tiny_model, **settings)
        wanted = read(plain, PROMPT, [(40, llama.last_decision.vectors)])
        if settings and not cached:  # the last token is alone in its micro-batch
            np.testing.assert_array_equal(logits(llama), wanted)
        else:
            np.testing.assert_allclose(logits(llama), wanted, atol=1e-4)
        assert np.abs(logits(llama) - read(plain, PROMPT)).max() > 1e-2
        assert np.abs(logits(llama) - read(plain, PROMPT, [(39, llama.last_decision.vectors)])).max() > 1e-2


@pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
def test_the_turn_starts_at_the_last_user_messages_first_token(tiny: Path, settings: dict) -> None:
    profile = make_profile(tiny, scope="turn")
    llama = steered_llama(tiny, profiles=[profile], **settings)
    llama.create_chat_completion(CHAT, max_tokens=1, temperature=0.0)
    head, _, _ = text_of(CHAT).rpartition("and on the other")
    tokens = llama.tokenize(text_of(CHAT).encode(), special=True)
    turn = len(llama.tokenize(head.encode(), special=True))
    assert llama.detokenize(tokens[turn:]).startswith(b"and on the other user?")
    plain = plain_llama(tiny, **settings)
    wanted = read(plain, tokens, [(turn, llama.last_decision.vectors)])
    np.testing.assert_allclose(logits(llama), wanted, atol=1e-4)
    if not settings:
        np.testing.assert_array_equal(logits(llama), wanted)
    for other in (turn - 1, turn + 1, 0):
        assert np.abs(wanted - read(plain, tokens, [(other, llama.last_decision.vectors)])).max() > 1e-2
    # a cached prefix that reaches into the turn changes nothing
    again = steered_llama(tiny, profiles=[profile], **settings)
    again.set_profiles([])
    answer(again, tokens[: turn + 3], 2)
    again.set_profiles([profile])
    assert again.n_tokens == turn + 4
    again.create_chat_completion(CHAT, max_tokens=1, temperature=0.0)
    assert again.last_decision.score == llama.last_decision.score
    np.testing.assert_allclose(logits(again), wanted, atol=1e-4)


def text_of(messages: list[dict[str, str]]) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n"


def test_a_raw_prompt_is_one_user_message(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny, scope="turn")])
    llama.create_chat_completion(CHAT, max_tokens=1, temperature=0.0)
    llama.create_completion(PROMPT, max_tokens=1, temperature=0.0)
    wanted = read(plain_llama(tiny), PROMPT, [(0, llama.last_decision.vectors)])
    np.testing.assert_array_equal(logits(llama), wanted)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 24, 25, 32, 33])
def test_every_length_of_prompt_with_small_micro_batches(tiny: Path, n: int) -> None:
    settings = {"n_batch": 16, "n_ubatch": 8}
    llama = steered_llama(tiny, profiles=[make_profile(tiny)], **settings)
    plain = plain_llama(tiny, **settings)
    for prompt in (PROMPT[:n], PROMPT[2 : n + 2]):
        llama.reset()
        llama.eval(prompt)
        np.testing.assert_array_equal(logits(llama), read(plain, prompt, [(0, llama.last_decision.vectors)]))
        assert llama.n_tokens == n


class TestSeveralProfiles:
    def alone(self, path: Path, profile: Profile, turn: int, **settings) -> Decision:
        llama = steered_llama(path, profiles=[profile], **settings)
        llama.expect(turn)
        next(llama.generate(PROMPT, temp=0.0))
        return llama.last_decision

    @pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
    @pytest.mark.parametrize(
        "shapes",
        [
            [(1, (2,), "prompt"), (0, (3, 4), "turn")],
            [(1, (2, 5), "turn"), (2, (2, 3), "response"), (2, (3,), "prompt")],
            [(0, (1,), "turn"), (1, (1,), "turn")],
            # a gate above the first steered layer of another profile: the prompt is read twice
            [(1, (2,), "prompt"), (4, (5,), "turn")],
            [(1, (2,), "turn"), (6, (7,), "turn")],
            # a gate in the last layer, whose rows are only those that have logits
            [(1, (2,), "turn"), (7, (7,), "prompt")],
        ],
    )
    def test_each_decides_alone_and_their_vectors_add_up(
        self, deep: Path, native_tap: bool, shapes: list, settings: dict
    ) -> None:
        turn = 19
        profiles = [
            # one that pools, unless it reads the last layer
            make_profile(
                deep,
                name=f"p{i}",
                gate="open" if gate == 7 else "partly",
                gate_layer=gate,
                layers=layers,
                scope=scope,
                seed=i,
            )
            for i, (gate, layers, scope) in enumerate(shapes)
        ]
        llama = steered_llama(deep, profiles=profiles, native_tap=native_tap, **settings)
        llama.expect(turn)
        got = answer(llama, PROMPT, 1)
        starts = [{"prompt": 0, "turn": turn, "response": 40}[profile.scope] for profile in profiles]
        for decision, profile in zip(llama.last_decisions, profiles, strict=True):
            alone = self.alone(deep, profile, turn, **settings)
            assert decision.profile == profile.name
            assert (decision.g, decision.score, decision.scope) == (alone.g, alone.score, profile.scope)
            for layer in profile.layers:
                np.testing.assert_array_equal(decision.vectors[layer], alone.vectors[layer])
        plan = [(s.start, s.vectors) for s in segments(llama.last_decisions, starts)]
        plain = plain_llama(deep, **settings)
        wanted = read(plain, PROMPT, plan)
        if settings or "response" in [profile.scope for profile in profiles]:
            np.testing.assert_allclose(logits(llama), wanted, atol=2e-4)  # other tokens are read alone
        else:
            np.testing.assert_array_equal(logits(llama), wanted)
        assert got == [wanted.argmax()]
        llama.eval(got)
        plain.eval(got)
        np.testing.assert_allclose(logits(llama), logits(plain), atol=2e-4)

    def test_an_open_one_beside_a_closed_one_is_the_open_one(self, deep: Path) -> None:
        opened = make_profile(deep, name="opened", layers=(3,))
        closed = make_profile(deep, name="closed", gate="closed", gate_layer=0, layers=(2, 4), scope="turn")
        high = make_profile(deep, name="high", gate="closed", gate_layer=5, layers=(6,))
        alone = steered_llama(deep, profiles=[opened])
        wanted = answer(alone, PROMPT)
        for profiles in ([opened, closed], [closed, opened], [high, opened]):
            llama = steered_llama(deep, profiles=profiles)
            assert answer(llama, PROMPT) == wanted
            np.testing.assert_array_equal(logits(llama), logits(alone))
            assert {d.profile: d.open for d in llama.last_decisions}["opened"]
            assert sum(d.open for d in llama.last_decisions) == 1

    def test_the_order_of_profiles_does_not_matter_for_two(self, deep: Path) -> None:
        one, two = (make_profile(deep, name=f"p{i}", seed=i) for i in range(2))
        first, second = steered_llama(deep, profiles=[one, two]), steered_llama(deep, profiles=[two, one])
        assert answer(first, PROMPT) == answer(second, PROMPT)
        np.testing.assert_array_equal(logits(first), logits(second))


def test_both_filters_decide_and_steer_alike(tiny_model: Path) -> None:
    seen = []
    for native in (True, False):
        llama = steered_llama(
            tiny_model,
            profiles=[make_profile(tiny_model, gate="selective, last token", scope="turn")],
            n_ubatch=8,
            native_tap=native,
        )
        assert llama.tap.native == native
        tokens, states = [], []
        for last in range(40, 52):
            tokens.append(answer(llama, [*PROMPT, last], 4))
            states.append((llama.last_decision.g, llama.last_decision.score, logits(llama).tobytes()))
        seen.append((tokens, states))
    assert seen[0] == seen[1]
    assert len({g for g, _, _ in seen[0][1]}) > 1


def test_the_real_model_is_steered_as_by_the_control_vector(smollm2: Path) -> None:
    prompt = "Write a short note about how the sea sounds at night, and why people like it."
    profile = make_profile(smollm2, gate_layer=11, layers=(12, 14), strength=0.3, scope="prompt")
    llama = steered_llama(smollm2, profiles=[profile])
    plain = plain_llama(smollm2)
    tokens = llama.tokenize(text_of([{"role": "user", "content": prompt}]).encode(), special=True)
    llama.reset()
    llama.eval(tokens)
    np.testing.assert_array_equal(logits(llama), read(plain, tokens, [(0, llama.last_decision.vectors)]))
    assert greedy(llama, 5) == greedy(plain, 5)
    np.testing.assert_array_equal(logits(llama), logits(plain))
    unsteered = read(plain, tokens)
    assert not np.array_equal(logits(llama), unsteered)
    # closed: as if we were not there
    llama.set_profiles([make_profile(smollm2, gate="closed", gate_layer=11, layers=(12,))])
    messages = [{"role": "user", "content": prompt}]
    fresh = plain_llama(smollm2)
    for _ in range(2):
        got, want = (m.create_chat_completion(messages, max_tokens=8, temperature=0.0) for m in (llama, fresh))
        assert got["choices"][0]["message"] == want["choices"][0]["message"]
        np.testing.assert_array_equal(logits(llama), logits(fresh))


def test_control_vectors_of_the_reference_are_cleared(tiny: Path) -> None:
    """The reference itself: without a vector it is plain again."""
    plain = plain_llama(tiny)
    before = read(plain, PROMPT)
    read(plain, PROMPT, [(0, {2: np.ones(64, np.float32)})])
    control(plain, {})
    np.testing.assert_array_equal(read(plain, PROMPT), before)


@pytest.mark.parametrize("answer_strength", [0.0, 0.4])
@pytest.mark.parametrize("scope", ["response", "turn", "prompt"])
def test_the_answer_can_get_less(tiny_model: Path, native_tap: bool, scope: str, answer_strength: float) -> None:
    """All of the vector for the prompt, a share of it for the answer: what two control vectors would do."""
    whole = make_profile(tiny_model, name="whole", scope=scope, strength=2.0, layers=(1, 2))
    partly = make_profile(tiny_model, name="partly", scope=scope, strength=2.0, answer_strength=answer_strength, seed=1)
    start = len(PROMPT) - 1 if scope == "response" else 0
    for profiles in ([partly], [whole, partly]):
        llama = steered_llama(tiny_model, profiles=profiles, native_tap=native_tap)
        plain = plain_llama(tiny_model)
        for _ in range(2):  # the second time on the cache of the first
            llama.reset()
            llama.eval(PROMPT)
            prompt = segments(llama.last_decisions, [start] * len(profiles))[0].vectors
            wanted = read(plain, PROMPT, [(start, prompt)])
            if start == 0:  # else the prompt's last token is read alone here, and rounds differently
                np.testing.assert_array_equal(logits(llama), wanted)
            later: dict[int, np.ndarray] = {}
            for decision in llama.last_decisions:
                share = np.float32(answer_strength if decision.profile == "partly" else 1.0)
                for layer, vector in decision.vectors.items():
                    later[layer] = later[layer] + share * vector if layer in later else share * vector
            control(plain, later)
            for token in (70, 71, 72):
                llama.eval([token])
                plain.eval([token])
            np.testing.assert_allclose(logits(llama), logits(plain), atol=1e-4 if start else 0)
        read(plain, PROMPT, [(start, prompt)])
        for token in (70, 71, 72):
            plain.eval([token])
        assert not np.allclose(logits(llama), logits(plain), atol=0.01)  # with all of it for the answer
