"""A GGUF model that answers through its weights in PyTorch: as llama.cpp does, many prompts at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp import llama_cpp

from finesteer_local import paths
from finesteer_local.errors import ContextLengthError, SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, batch, open_model, thinking
from finesteer_local.runtime.batch import Sampling
from finesteer_local.runtime.batch.sampler import Sampler
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.trainable import Asked, WholeAnswer
from finesteer_local.steering import AlwaysGate, Experts
from finesteer_local.training import torch_engine as module
from finesteer_local.training.torch_engine import TorchEngine, faster_engine
from finesteer_local.training.weights import weights_of
from tiny import CHATML, make_kinds, make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "in_float32")

CLOSE = 2e-2
"""A token's log-probability: llama.cpp keeps keys and values in float16, PyTorch in float32 here."""
ALONE = 1e-4
"""In a batch and alone: only the order of sums in float32 is another."""
N_CTX = 256

TEXTS = (
    "The user in the inn: 12 34?",
    "on",
    "And the other one, who came in later with the user of the inn? " * 2,
    "zz qq 7 zz 49?",
    "! what is it",
)
ANSWERS = ("the inner", "n", "user of the inn, and so on", "7")


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


CHATS = [chat(text) for text in TEXTS]


@dataclass
class Two:
    path: Path
    llama: SteeredLlama
    engine: TorchEngine

    def profile(self, **options: Any) -> Profile:
        return make_profile(self.path, **options)

    def asked(self) -> list[Asked]:
        """Prompts of different lengths, each with answers of different lengths."""
        found = []
        for i, messages in enumerate(CHATS):
            prompt = chat_prompt(self.llama, messages)
            answers = [self.llama.tokenize(text.encode(), add_bos=False) for text in ANSWERS[: 1 + i % 4]]
            found.append(Asked(prompt, answers, turn_start(self.llama, messages, prompt)))
        return found

    def hooks(self) -> int:
        return sum(len(block._forward_hooks) for block in self.engine._blocks)


def opened(path: Path, **options: Any) -> Two:
    llama = open_model(path, n_ctx=N_CTX, n_threads=1, **options)
    return Two(path, llama, TorchEngine(llama, weights_of(llama)))


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Two:
    return opened(write_tiny_model(tmp_path_factory.mktemp("two") / "tiny.gguf", request.param))


@pytest.fixture
def two(models: Two) -> Iterator[Two]:
    """Both ways of answering, unsteered; nothing is left in the model after any test."""
    models.llama.set_profiles([])
    yield models
    assert models.hooks() == 0


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """Of one architecture, where that does not matter."""
    return opened(write_tiny_model(tmp_path_factory.mktemp("one") / "tiny.gguf"))


@pytest.fixture
def one(lone: Two) -> Iterator[Two]:
    lone.llama.set_profiles([])
    yield lone
    assert lone.hooks() == 0


def check_scores(found: Sequence[Sequence[np.ndarray]], wanted: Sequence[Sequence[np.ndarray]], atol: float) -> None:
    assert [[each.shape for each in some] for some in found] == [[each.shape for each in some] for some in wanted]
    for some, others in zip(found, wanted, strict=True):
        for a, b in zip(some, others, strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, atol=atol)


def check_answers(two: Two, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Equal, or parted by tokens that llama.cpp finds as likely as each other."""
    for messages, a, b in zip(CHATS, found, wanted, strict=True):
        if a == b:
            continue
        at = next(i for i in range(min(len(a), len(b))) if a[i] != b[i])
        prompt = chat_prompt(two.llama, messages)
        answers = [two.llama.tokenize(each[: at + 1].encode(), add_bos=False) for each in (a, b)]
        x, y = two.llama.answer_logprobs(prompt, answers, turn=turn_start(two.llama, messages, prompt))
        assert x.sum() == pytest.approx(y.sum(), abs=CLOSE), (a, b)


def fixed(two: Two, layers: Sequence[int], *, seed: int = 0, name: str = "fixed", **changes: Any) -> Profile:
    rng = np.random.default_rng(seed)
    made = two.profile(gate=AlwaysGate(), layers=layers, gate_layer=min(*layers, 2), name=name)
    experts = {layer: Experts.fixed(rng.normal(0, 1, 64).astype(np.float32)) for layer in layers}
    return replace(made, experts=experts, strength=1.0, **changes)


def selective(two: Two, **changes: Any) -> Profile:
    """A profile whose gate opens for some of the prompts, and leaves room between them and the others."""
    made = two.profile(gate="partly", layers=(2,), strength=2.0, **changes)
    two.llama.set_profiles([made])
    scores = []
    for each in two.asked():
        two.llama.answer_logprobs(each.prompt, each.answers[:1], turn=each.turn)
        scores.append(two.llama.last_decisions[0].score)
    two.llama.set_profiles([])
    scores.sort()
    at = int(np.argmax(np.diff(scores)))
    border = (scores[at] + scores[at + 1]) / 2
    return replace(made, gate=replace(made.gate, low=border, high=border))


def steering(two: Two, name: str) -> list[Profile]:
    if name in ("response", "turn", "prompt"):
        return [fixed(two, (1, 2), scope=name)]
    made = {
        "less for answers": lambda: [fixed(two, (1, 2), scope="turn", answer_strength=0.4)],
        "less for long ones": lambda: [fixed(two, (1, 2), scope="turn", length_decay=0.5)],
        "experts": lambda: [two.profile(gate="open", layers=(1, 2), scope="turn", strength=2.0)],
        "some prompts": lambda: [selective(two)],
        "windowed": lambda: [two.profile(gate="partly, windowed", layers=(2,), scope="turn", strength=2.0)],
        "last token": lambda: [two.profile(gate="last token", layers=(2,), scope="prompt", strength=2.0)],
        "two profiles": lambda: [
            fixed(two, (2,), scope="turn"),
            two.profile(gate="open", layers=(2, 3), gate_layer=2, scope="response", strength=1.5, name="other"),
        ],
        "last layer": lambda: [fixed(two, (1, 3), scope="turn")],
        "late gate": lambda: [  # which reads what the other one does not steer yet
            fixed(two, (1,), scope="prompt"),
            two.profile(gate="partly", layers=(2,), gate_layer=2, strength=2.0, name="other"),
        ],
        "gate at the last layer": lambda: [two.profile(gate="open", layers=(3,), gate_layer=3, strength=2.0)],
    }
    return made[name]()


STEERINGS = (
    "response",
    "turn",
    "prompt",
    "less for answers",
    "less for long ones",
    "experts",
    "some prompts",
    "windowed",
    "last token",
    "two profiles",
    "last layer",
    "late gate",
    "gate at the last layer",
)


# --- log-probabilities


@pytest.mark.parametrize("name", ["nothing", *STEERINGS])
def test_answers_are_as_likely_as_to_llama_cpp(two: Two, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = two.asked()
    plain = two.llama.many_logprobs(asked)
    if name != "nothing":
        two.engine.set_profiles(steering(two, name), strength=1.5)
        assert two.llama.profiles  # they reach it through the engine
    wanted, found = two.llama.many_logprobs(asked), two.engine.many_logprobs(asked)
    check_scores(found, wanted, CLOSE)
    moved = [
        max(np.abs(x - y).max() for x, y in zip(*each, strict=True)) > 0.1 for each in zip(wanted, plain, strict=True)
    ]
    assert any(moved) == (name != "nothing")
    assert all(moved) == (name not in ("nothing", "some prompts")) or name == "last token"
    for one_asked, scores in zip(asked, found, strict=True):
        check_scores([two.engine.answer_logprobs(*one_asked[:2], turn=one_asked.turn)], [scores], ALONE)
    check_scores(two.engine.many_logprobs(asked[::-1])[::-1], found, ALONE)
    for n_tokens in (1, 120):
        monkeypatch.setattr(module, "TOKENS", n_tokens)
        check_scores(two.engine.many_logprobs(asked), found, ALONE)
    assert two.engine.many_logprobs([]) == []


@pytest.mark.parametrize("name", ["nothing", "turn", "experts", "last layer"])
def test_in_bfloat16_they_are_nearly_as_likely(one: Two, name: str, weights_in: Any) -> None:
    """Rounding to 8 binary digits moves a token of a random model by .1, the mean; other weights by whole units."""
    engine = TorchEngine(one.llama, weights_in(torch.bfloat16, one.llama))
    if name != "nothing":
        one.llama.set_profiles(steering(one, name), strength=1.5)
    asked = one.asked()
    for found, wanted in zip(engine.many_logprobs(asked), one.llama.many_logprobs(asked), strict=True):
        assert np.abs(np.concatenate(found) - np.concatenate(wanted)).mean() < 0.4
    answers = list(engine.greedy_answers(CHATS, 8, at_most=8))
    assert [len(text) for text in answers] == [8] * len(CHATS)


def test_experts_are_told_apart(two: Two) -> None:
    """What steers is each prompt's own, in one batch."""
    two.llama.set_profiles(steering(two, "experts"))
    asked = two.asked()
    with torch.inference_mode():
        decided = two.engine._decided(
            [each.prompt for each in asked], [batch.Request(e.prompt, e.turn, two.llama.steer).steering for e in asked]
        )
    vectors = [request.decisions[0].vectors[2] for request in decided]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2
    for request, each in zip(decided, asked, strict=True):
        two.llama.answer_logprobs(*each[:2], turn=each.turn)
        [wanted], [found] = two.llama.last_decisions, request.decisions
        assert found.g == pytest.approx(wanted.g, abs=1e-3)
        np.testing.assert_allclose(found.vectors[2], wanted.vectors[2], atol=CLOSE)


def test_prompts_are_read_up_to_the_highest_gate(one: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not up to the layers that are steered, and not at all where nothing steers."""
    read: list[int] = []
    for layer, block in enumerate(one.engine._blocks):
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda *a, f=forward, n=layer, **k: (read.append(n), f(*a, **k))[1])
    one.llama.set_profiles([one.profile(gate="partly", layers=(2, 3), gate_layer=1)])
    asked = one.asked()
    request = batch.Request(asked[0].prompt, asked[0].turn, one.llama.steer)
    with torch.inference_mode():
        one.engine._decided([request.prompt], [request.steering])
        assert read == [0, 1]
        one.engine._decided([request.prompt], [replace(request, steer=()).steering])
    assert read == [0, 1]


# --- greedy answers


@pytest.mark.parametrize("name", ["nothing", *STEERINGS])
def test_greedy_answers_are_those_of_llama_cpp(two: Two, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = list(two.engine.greedy_answers(CHATS, 12, at_most=8))
    if name != "nothing":
        two.engine.set_profiles(steering(two, name), strength=1.5)
    found = list(two.engine.greedy_answers(CHATS, 12, at_most=8))
    assert [len(text) for text in found] == [12] * len(CHATS) and (found != plain) == (name != "nothing")
    check_answers(two, found, list(two.llama.greedy_answers(CHATS, 12, at_most=8)))
    check_answers(two, [text for each in CHATS for text in two.engine.greedy_answers([each], 12, at_most=1)], found)
    for at_once, n_tokens in ((2, 8192), (64, 100)):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        monkeypatch.setattr(module, "TOKENS", n_tokens)
        check_answers(two, list(two.engine.greedy_answers(CHATS, 12, at_most=8)), found)


def ending_with(letters: str, two: Two, patch: pytest.MonkeyPatch) -> None:
    ends = {two.llama.tokenize(letter.encode(), add_bos=False)[0] for letter in letters}
    patch.setattr(llama_cpp, "llama_vocab_is_eog", lambda _, token: token in ends)


def cut_at(text: str, ends: Sequence[str]) -> int | None:
    return min((text.index(letter) for letter in ends if letter in text), default=None)


def test_answers_that_end_leave_the_others_alone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.llama.set_profiles([fixed(two, (1, 2), scope="turn")])
    full = list(two.engine.greedy_answers(CHATS, 20, at_most=8))
    assert not any(ended for _, ended in two.engine.whole_answers(CHATS, 20, 0.0, at_most=8))
    widths: list[int] = []
    sampled = module._Answering.step
    monkeypatch.setattr(module._Answering, "step", lambda self: (sampled(self), widths.append(len(self._rows)))[0])
    ends = next(
        each
        for each in combinations(sorted(set("".join(full))), 2)
        if len(set(cuts := [cut_at(text, each) for text in full])) > 2 and None in cuts
    )
    ending_with("".join(ends), two, monkeypatch)
    found = list(two.engine.whole_answers(CHATS, 20, 0.0, at_most=8))
    assert found == [WholeAnswer(text[: cut_at(text, ends)], cut_at(text, ends) is not None) for text in full]
    assert widths[0] == len(CHATS) and widths[-1] < len(CHATS)
    wanted = list(two.llama.whole_answers(CHATS, 20, 0.0, at_most=8))
    check_answers(two, [text for text, _ in found], [text for text, _ in wanted])


@pytest.mark.parametrize("n_letters", [1, 2])
def test_stop_words_of_the_template(one: Two, n_letters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    full = list(one.engine.greedy_answers(CHATS, 12, at_most=8))
    stop = (full[0][4 : 4 + n_letters], full[2][6 : 6 + n_letters])
    made = batch.chat_request
    for where in (batch, module):
        monkeypatch.setattr(where, "chat_request", lambda *a, **rest: replace(made(*a, **rest), stop=stop))
    found = list(one.engine.whole_answers(CHATS, 12, 0.0, at_most=8))
    assert found == list(one.llama.whole_answers(CHATS, 12, 0.0, at_most=8))
    assert found[0] == WholeAnswer(full[0][: min(full[0].index(each) for each in stop if each in full[0])], True)
    assert not all(answer.ended for answer in found) or n_letters == 1


def test_the_end_of_the_context(one: Two) -> None:
    """Where the answer has to stop, and what has no room at all."""
    long = chat("in the inn " * 8)
    room = N_CTX - len(chat_prompt(one.llama, long))
    chats = [long, chat("on")]
    for max_tokens in (room - 1, room, room + 30):
        found = list(one.engine.whole_answers(chats, max_tokens, 0.0, at_most=2))
        assert [(len(text), ended) for text, ended in found] == [(min(max_tokens, room), False), (max_tokens, False)]
    with pytest.raises(ContextLengthError):
        list(one.engine.greedy_answers([chat("on"), chat("x " * N_CTX)], 4, at_most=2))
    assert list(one.engine.greedy_answers([], 4, at_most=2)) == []


def test_letters_of_several_tokens(one: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is whole letters; what is left of one at the end is not shown."""
    tokens = [*one.llama.tokenize("aé".encode(), add_bos=False), one.llama.tokenize("é".encode(), add_bos=False)[0]]
    assert len(tokens) == 4
    said = iter(tokens)
    monkeypatch.setattr(module, "_sampled", lambda *_: next(said))
    assert list(one.engine.whole_answers(CHATS[:1], 4, 0.0, at_most=1)) == [WholeAnswer("aé", False)]


def test_a_policy_that_refuses_at_once(two: Two) -> None:
    """Such a request is not answered, and the others are as ever."""
    made = selective(two)
    kinds = make_kinds(64, np.random.default_rng(0))
    refuse = dict.fromkeys(kinds.names, "refuse")
    two.llama.set_profiles([replace(made, kinds=kinds)], policy=refuse)
    found, wanted = (list(each.whole_answers(CHATS, 12, 0.0, at_most=8)) for each in (two.engine, two.llama))
    assert [answer.ended for answer in found] == [answer.ended for answer in wanted]
    check_answers(two, [text for text, _ in found], [text for text, _ in wanted])
    refused = [answer for answer in found if answer.ended]
    assert 0 < len(refused) < len(CHATS) and all(answer.text.startswith("No ") for answer in refused)
    low = replace(made.gate, low=-1e6, high=-1e6)
    two.llama.set_profiles([replace(made, gate=low, kinds=kinds)], policy=refuse)
    words = list(two.engine.whole_answers(CHATS, 12, 0.8, at_most=8))
    assert words == list(two.llama.whole_answers(CHATS, 12, 0.8, at_most=8)) and all(answer.ended for answer in words)


def test_thoughts_stay_unsteered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What steers begins in the middle of the answer, where its thoughts end."""
    path = write_tiny_model(tmp_path / "thinks.gguf", chat_template=CHATML.replace("assistant\n", "assistant\n<think>"))
    two = opened(path, skip_thinking=True)
    plain = list(two.engine.greedy_answers(CHATS, 16, at_most=8))
    closing = plain[0][3]
    monkeypatch.setattr(thinking, "TAGS", ((b"<think>", closing.encode()),))
    two.llama.set_profiles([fixed(two, (1, 2), scope="response")])
    found = list(two.engine.greedy_answers(CHATS, 16, at_most=8))
    assert found == list(two.llama.greedy_answers(CHATS, 16, at_most=8))
    assert found[0][:4] == plain[0][:4] and found[0] != plain[0]
    two.llama.skip_thinking = False
    assert list(two.engine.greedy_answers(CHATS, 16, at_most=8)) != found
    assert two.hooks() == 0


def test_profiles_that_change_while_answers_come(one: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are steered as the first was."""
    monkeypatch.setattr(module, "AT_ONCE", 1)
    plain = list(one.engine.greedy_answers(CHATS, 8, at_most=8))
    one.engine.set_profiles([fixed(one, (1, 2))])
    wanted = list(one.engine.greedy_answers(CHATS, 8, at_most=8))
    answers = one.engine.greedy_answers(CHATS, 8, at_most=8)
    found = [next(answers)]
    one.engine.set_profiles([])
    assert [*found, *answers] == wanted != plain
    assert list(one.engine.greedy_answers(CHATS, 8, at_most=8)) == plain


def test_nothing_is_left_after_an_error(one: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = one.asked()
    plain = one.engine.many_logprobs(asked)
    one.engine.set_profiles([one.profile(gate="open", layers=(1, 2))])
    steered = list(one.engine.greedy_answers(CHATS, 6, at_most=8))

    def fails(*_: Any, **__: Any) -> Any:
        assert one.hooks() > 0
        raise RuntimeError("in the middle")

    last = one.engine._blocks[-1]
    for of, name in ((module.BlockRows, "read"), (last, "forward")):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, fails)
            for ask in (
                lambda: one.engine.many_logprobs(asked),
                lambda: [*one.engine.greedy_answers(CHATS, 6, at_most=8)],
            ):
                with pytest.raises(RuntimeError, match="in the middle"):
                    ask()
                assert one.hooks() == 0
    assert list(one.engine.greedy_answers(CHATS, 6, at_most=8)) == steered
    one.engine.set_profiles([])
    check_scores(one.engine.many_logprobs(asked), plain, 0.0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite(temperature: float) -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(SteeringError, match="not finite"):
            module._sampled(torch.tensor([1.0, bad, 0.0]), Sampling(temperature=temperature), torch.Generator())


# --- sampling


def test_a_seed_gives_an_answer(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(chats: Sequence[Any], seed: int) -> list[WholeAnswer]:
        return list(two.engine.whole_answers(chats, 8, 0.9, seed=seed, at_most=8))

    found = answers(CHATS, 5)
    assert answers(CHATS, 5) == found != answers(CHATS, 50)
    for i, messages in enumerate(CHATS):
        assert answers([messages], 5 + i) == [found[i]]
    assert answers([CHATS[2], CHATS[3]], 7) == found[2:4]
    monkeypatch.setattr(module, "AT_ONCE", 2)
    assert answers(CHATS, 5) == found
    assert len({text for text, _ in answers([CHATS[0]] * 5, 0)}) > 1


SAMPLINGS = (
    Sampling(),
    Sampling(temperature=2.0, top_k=10, top_p=0.8, min_p=0.1),
    Sampling(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0),
    Sampling(temperature=1.5, top_k=0, top_p=0.5, min_p=0.0),
    Sampling(temperature=0.7, top_k=12, top_p=0.99, min_p=0.3),
    Sampling(temperature=1.0, top_k=1000, top_p=0.0, min_p=1.0),
)


def exactly(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probability of every token, float64: top-k, top-p and min-p at temperature 1, then the temperature."""
    order = np.argsort(-logits)[: sampling.top_k or None]
    p = np.exp(logits[order] - logits[order[0]])
    p /= p.sum()
    kept = [i for i in range(len(order)) if i == 0 or (p[:i].sum() < sampling.top_p and p[i] >= sampling.min_p * p[0])]
    weights = np.exp((logits[order[kept]] - logits[order[0]]) / sampling.temperature)
    found = np.zeros(len(logits))
    found[order[kept]] = weights / weights.sum()
    return found


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_tokens_are_drawn_as_llama_cpp_draws_them(one: Two, sampling: Sampling) -> None:
    """By PyTorch and by llama.cpp: within five standard deviations of a share of so many draws, with fixed seeds."""
    n = 8000
    logits = np.random.default_rng(1).normal(0, 2, one.llama.n_vocab()).astype(np.float32)
    wanted = exactly(logits.astype(np.float64), sampling)
    generator, own = torch.Generator().manual_seed(0), Sampler(one.llama, sampling, 0)
    drawn = [module._sampled(torch.from_numpy(logits), sampling, generator) for _ in range(n)]
    theirs = [own.sample(logits) for _ in range(n)]
    own.close()
    for tokens in (drawn, theirs):
        shares = np.bincount(tokens, minlength=len(logits)) / n
        assert not shares[wanted == 0].any()
        assert (np.abs(shares - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / n)).all()


def test_seeds_next_to_each_other_draw_apart() -> None:
    """The first draw of as many seeds is spread as the draws of one seed are."""
    n, logits = 4000, torch.zeros(4)
    drawn = [
        module._sampled(logits, Sampling(temperature=1.0, min_p=0.0), torch.Generator().manual_seed(i))
        for i in range(n)
    ]
    shares = np.bincount(drawn, minlength=4) / n
    assert (np.abs(shares - 0.25) <= 5 * np.sqrt(0.25 * 0.75 / n)).all()


def test_without_temperature_the_likeliest_is_taken() -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    found = {module._sampled(logits, Sampling(temperature=0.0), torch.Generator().manual_seed(i)) for i in range(5)}
    assert found == {int(logits.argmax())}


# --- which of both answers


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the two take, by what they are, and who was asked; models of any size may be answered for."""
    told: dict[str, Any] = {"engine": 1.0, "llama": 2.0, "asked": []}

    def seconds(model: Any, prompts: Sequence[Any]) -> float:
        name = "engine" if isinstance(model, TorchEngine) else "llama"
        told["asked"].append(name)
        return float(told[name])

    monkeypatch.setattr(module, "_seconds", seconds)
    monkeypatch.setattr(module, "LEAST_PARAMETERS", 0)
    return told


def test_what_cannot_answer_in_pytorch(one: Two, timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = one.engine._model
    assert faster_engine(one.llama, None, CHATS) is one.llama
    with monkeypatch.context() as patch:
        patch.setattr(module, "LEAST_PARAMETERS", one.llama.n_parameters + 1)
        assert faster_engine(one.llama, weights, CHATS) is one.llama
    with monkeypatch.context() as patch:  # with an adapter, or computed elsewhere
        patch.setattr(SteeredLlama, "plain_gguf", False)
        assert faster_engine(one.llama, weights, CHATS) is one.llama
    assert timed["asked"] == []
    assert isinstance(faster_engine(one.llama, weights, CHATS), TorchEngine)


@pytest.mark.parametrize("wins", [True, False])
def test_the_faster_one_is_found_once(one: Two, timed: dict[str, Any], wins: bool) -> None:
    timed["engine"] = 1.0 if wins else 3.0
    for _ in range(2):
        found = faster_engine(one.llama, one.engine._model, CHATS)
        assert isinstance(found, TorchEngine) if wins else found is one.llama
        assert timed["asked"] == ["engine", "llama"]
        timed["engine"] = 4.0 - timed["engine"]  # it would be the other way round now
    assert module.worth_opening(one.llama) == wins
    [key] = module._choices._read()
    for damaged in ("yes", None, 1, []):
        timed["asked"].clear()
        timed["engine"] = 1.0
        module._choices.keep(key, damaged)
        assert isinstance(faster_engine(one.llama, one.engine._model, CHATS), TorchEngine)
        assert timed["asked"] == ["engine", "llama"]
    (paths.cache_dir() / "engines.json").write_text("no JSON")
    faster_engine(one.llama, one.engine._model, CHATS)
    assert timed["asked"] == ["engine", "llama"] * 2


def test_what_answers_otherwise_does_not_answer(
    one: Two, timed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast it is: other weights, a model that fails on padding or a cache, and one that is built otherwise."""
    other = opened(write_tiny_model(tmp_path / "other.gguf", seed=5))
    for weights in (other.engine._model, torch.nn.Linear(2, 2)):
        assert faster_engine(one.llama, weights, CHATS) is one.llama
        (paths.cache_dir() / "engines.json").unlink()
    monkeypatch.setattr(TorchEngine, "_answered", lambda *_: 1 / 0)
    assert faster_engine(one.llama, one.engine._model, CHATS) is one.llama
    assert timed["asked"] == []


def test_both_are_timed_on_the_same_answers(one: Two) -> None:
    asked: list[tuple[int, int, int]] = []

    class Told:
        def greedy_answers(self, prompts: Sequence[Any], max_tokens: int, *, at_most: int) -> Iterator[str]:
            asked.append((len(prompts), max_tokens, at_most))
            return iter(())

    assert module._seconds(Told(), CHATS) >= 0  # type: ignore[arg-type]
    assert asked == [(2, 2, len(CHATS)), (len(CHATS), module._TIMED_TOKENS, len(CHATS))]


def test_it_is_imported_without_transformers() -> None:
    """Which is an extra, and takes seconds."""
    code = "import sys; import finesteer_local.training.run; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("lengths", "at_most", "n_tokens", "wanted"),
    [
        ([], 4, 100, []),
        ([5, 5, 5], 4, 100, [range(3)]),
        ([5, 5, 5], 2, 100, [range(2), range(2, 3)]),
        ([5, 5, 50, 5], 4, 100, [range(2), range(2, 4)]),
        ([500, 5, 500], 4, 100, [range(1), range(1, 2), range(2, 3)]),
    ],
)
def test_parts(
    lengths: list[int], at_most: int, n_tokens: int, wanted: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(module._parts(lengths, at_most, n_tokens)) == wanted
