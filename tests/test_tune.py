"""Tuning: which layer, strengths and scope, on a model whose answers are made up. No tuned number is tested."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.profile import Profile
from finesteer_local.runtime.trainable import Asked
from finesteer_local.steering import Experts
from finesteer_local.training import model_data
from finesteer_local.training import trials as judging
from finesteer_local.training.data import Pair, Prompt
from finesteer_local.training.effort import NO_DEADLINE, Deadline
from finesteer_local.training.model_data import WholeAnswer
from finesteer_local.training.search import SEARCHES, Setting, Trial, as_rows
from finesteer_local.training.trials import ANSWERS, BLOCK, LARGE_BLOCK, TEMPERATURE, WHOLE_TOKENS, Trials
from finesteer_local.training.tune import tune
from tiny import make_experts, make_profile, write_tiny_model

LAYERS = (3, 5, 7, 9)
SCOPES, ANSWER_STRENGTHS = SEARCHES["refusal"].scopes, SEARCHES["refusal"].answer_strengths
STRENGTHS, FIRST_ANSWER_STRENGTH = SEARCHES["refusal"].strengths, SEARCHES["refusal"].first_answer_strength
[FIRST_STRENGTH] = SEARCHES["refusal"].first_strengths
PAIRS = [Pair(Prompt([{"role": "user", "content": f"question {i}"}]), f"no {i}", f"yes {i}") for i in range(ANSWERS)]
LONG = [
    Prompt([{"role": "user", "content": f"page {i} ".ljust(judging.MAX_PROMPT + 1, "x")}])
    for i in range(round(ANSWERS * judging.LONG_SHARE))
]
REFUSAL, COMPLIANCE = "I can't help with that.", "Sure, here it is."
Quality = Callable[[int, float, str], tuple[float, float]]
"""(layer, strength, scope) -> share of answers as wanted, share in good language."""


@dataclass
class FakeLlama:
    """Remembers what is active."""

    quality: Quality
    margins: dict[int, float]
    by_answer_strength: Callable[[float], tuple[float, float]] | None = None
    active: tuple[int, float, str] | None = None
    together: tuple[int, ...] = ()
    """Layers that are steered together; () where each is alone."""
    ending: float = 1.0
    """Share of answers that end by themselves."""
    by_length_decay: Callable[[float], tuple[float, float]] | None = None
    answer_strength: float = 1.0
    length_decay: float = 0.0
    generated: list[tuple[int, float, str]] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    interrupt_after: int = 10**9

    def set_profiles(self, profiles: Any = (), *, strength: float | None = None) -> None:
        self.active = None
        for profile in profiles:
            layer, *others = profile.layers
            assert tuple(profile.layers) == self.together if self.together else not others
            assert profile.gate.kind == "always" and profile.gate_layer == layer
            assert strength is not None
            self.active = (layer, strength, profile.scope)
            self.answer_strength, self.length_decay = profile.answer_strength, profile.length_decay

    def answer_logprobs(self, prompt: str, answers: list[str], *, turn: int) -> list[np.ndarray]:
        if self.active is None:
            return [np.array([-1.0] * 2), np.array([-1.0])]
        assert turn == 5 and prompt.startswith("question") and answers[0].startswith("no")
        self.scored.append(self.active[0])
        return [np.array([-1.0 + self.margins[self.active[0]]] * 2), np.array([-1.0])]

    def many_logprobs(self, asked: list[Asked]) -> list[list[np.ndarray]]:
        return [self.answer_logprobs(prompt, answers, turn=turn) for prompt, answers, turn in asked]


class FakeFluency:
    """A reading is the text itself."""

    @staticmethod
    def throughout(llama: FakeLlama, answers: list[str]) -> list[str]:
        assert llama.active is None  # judged by the unsteered model
        return list(answers)


@dataclass(frozen=True)
class FakeCoherence:
    limit: float

    @classmethod
    def of_unsteered(cls, readings: list[str]) -> FakeCoherence:
        assert readings and set(readings) == {"mine"}
        return cls(7.5)

    def accepts(self, reading: str) -> bool:
        assert self.limit == 7.5
        return "mush" not in reading


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def generate(llama: FakeLlama, asked: list[Prompt], max_tokens: int) -> Iterator[str]:
        return (answer(llama, prompt).text for prompt in asked)

    def whole_answers(
        llama: FakeLlama, asked: list[Prompt], max_tokens: int, temperature: float, *, seed: int
    ) -> Iterator[WholeAnswer]:
        assert (max_tokens, temperature) == (WHOLE_TOKENS, TEMPERATURE)
        return (answer(llama, prompt) for prompt in asked)

    def answer(llama: FakeLlama, prompt: Prompt) -> WholeAnswer:
        assert llama.active is not None
        if len(llama.generated) == llama.interrupt_after:
            raise KeyboardInterrupt
        llama.generated.append(llama.active)
        wanted, coherent = llama.quality(*llama.active)
        if llama.by_answer_strength:
            wanted, coherent = llama.by_answer_strength(llama.answer_strength)
        if prompt in LONG:
            assert llama.by_length_decay is not None
            wanted, coherent = llama.by_length_decay(llama.length_decay)
            i = LONG.index(prompt) * ANSWERS // len(LONG)
        else:
            i = prompts.index(prompt)
        text = (REFUSAL if i < wanted * ANSWERS else COMPLIANCE) + (" mush" if i >= coherent * ANSWERS else "")
        return WholeAnswer(text, i < llama.ending * ANSWERS)

    prompts = [pair.prompt for pair in PAIRS]
    monkeypatch.setattr(judging, "generate", generate)
    monkeypatch.setattr(judging, "whole_answers", whole_answers)
    monkeypatch.setattr(judging, "Fluency", FakeFluency)
    monkeypatch.setattr(judging, "Coherence", FakeCoherence)
    monkeypatch.setattr(model_data, "answer_tokens", lambda llama, text: text)
    monkeypatch.setattr(judging, "answer_tokens", lambda llama, text: text[::4])
    monkeypatch.setattr(model_data, "chat_prompt", lambda llama, messages: messages[-1]["content"])
    monkeypatch.setattr(model_data, "turn_start", lambda llama, messages, prompt: 5)
    yield


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    model = write_tiny_model(tmp_path_factory.mktemp("tuned") / "tiny.gguf", n_layer=12)
    return make_profile(model, gate_layer=1, layers=(1,))


def tuned(
    llama: FakeLlama,
    blank: Profile,
    folder: Path,
    *,
    judge: str = "refusal",
    layers: tuple[int, ...] = LAYERS,
    pairs: list[Pair] = PAIRS,
    prompts: list[Prompt] | None = None,
    learnt: bool = False,
    keep: bool = False,
    deadline: Deadline = NO_DEADLINE,
    block: int = BLOCK,
) -> tuple[Trial, list[Trial]]:
    rng = np.random.default_rng(0)
    experts = {layer: make_experts(64, rng) for layer in layers}
    steps: list[tuple[str, int, int]] = []
    result = tune(
        llama,  # type: ignore[arg-type]
        blank,
        experts,
        pairs,
        [pair.prompt for pair in pairs] if prompts is None else prompts,
        ["mine"] * ANSWERS,
        judge=judge,
        learnt=learnt,
        folder=folder,
        keep=keep,
        deadline=deadline,
        block=block,
        progress=lambda *step: steps.append(step),
    )
    assert {stage for stage, _, _ in steps} == {"tuning"}
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert all(done <= total for _, done, total in steps)
    return result


MARGINS = {3: 0.1, 5: 0.9, 7: 0.5, 9: -0.2}


def llama(quality: Quality, **options: Any) -> FakeLlama:
    return FakeLlama(quality, MARGINS, **options)


def test_answers_are_generated_at_the_two_layers_with_the_best_margins(blank: Profile, tmp_path: Path) -> None:
    model = llama(lambda layer, strength, scope: (0.9 if layer == 7 else 0.5, 1.0))
    chosen, trials = tuned(model, blank, tmp_path)
    assert set(model.scored) == set(LAYERS)
    assert [(trial.layers, trial.scope) for trial in trials[:3]] == [
        ((5,), SCOPES[0]),
        ((7,), SCOPES[0]),
        ((7,), SCOPES[1]),
    ]
    assert {trial.strength for trial in trials[:3]} == {FIRST_STRENGTH}
    assert chosen.layers == (7,) and {trial.layers for trial in trials[1:]} == {(7,)}
    assert chosen in trials


def test_what_cannot_be_beaten_meets_no_rivals(blank: Profile, tmp_path: Path) -> None:
    """A second layer or a wider scope would have to be better by more than there is."""
    chosen, trials = tuned(llama(lambda *_: (1.0, 1.0)), blank, tmp_path)
    assert {(trial.layers, trial.scope) for trial in trials} == {((5,), SCOPES[0])} == {(chosen.layers, chosen.scope)}


def test_nothing_more_is_tried_when_time_is_up(blank: Profile, tmp_path: Path) -> None:
    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (1.0 if layer == 7 else 0.5, 1.0)

    chosen, trials = tuned(llama(quality), blank, tmp_path / "late", deadline=Deadline(0.0))
    assert trials == [chosen] and chosen.layers == (5,)  # the best margin
    everything = [
        tuned(llama(quality), blank, tmp_path / f"{i}", deadline=d)
        for i, d in enumerate((Deadline(None), Deadline(3600)))
    ]
    assert everything[0] == everything[1] and len(everything[0][1]) > 4


def test_the_better_scope_is_kept(blank: Profile, tmp_path: Path) -> None:
    for scope in SCOPES:
        chosen, trials = tuned(
            llama(lambda *s, best=scope: (0.9 if s[2] == best else 0.5, 1.0)), blank, tmp_path / scope
        )
        assert chosen.scope == scope
        assert {trial.scope for trial in trials[3:]} == {scope}


def test_a_score_is_the_share_that_is_wanted_and_language(blank: Profile, tmp_path: Path) -> None:
    chosen, trials = tuned(llama(lambda *_: (0.75, 0.5)), blank, tmp_path)
    assert chosen in trials
    for trial in trials:
        assert (trial.wanted, trial.coherent, trial.score) == pytest.approx((0.75, 0.5, 0.5), abs=0.05)
    chosen, _ = tuned(llama(lambda *_: (0.25, 0.75)), blank, tmp_path / "other")
    assert chosen.score == pytest.approx(0.25, abs=0.05)


def test_a_refusal_that_does_not_end_is_none(blank: Profile, tmp_path: Path) -> None:
    """Nor one that goes round in circles before it ends; what is counted is one answer that is all of it."""
    chosen, trials = tuned(llama(lambda *_: (0.75, 1.0), ending=0.5), blank, tmp_path)
    for trial in trials:
        figures = (trial.wanted, trial.ended, trial.coherent, trial.score)
        assert figures == pytest.approx((0.75, 0.5, 1.0, 0.5), abs=0.03)
    assert chosen in trials


def test_a_refusal_in_circles_is_none(blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "I can't help with that. " + "I really cannot do that for you. " * 9
    answers = [WholeAnswer(endless, True), WholeAnswer(REFUSAL, True)] * (BLOCK // 2)
    monkeypatch.setattr(judging, "whole_answers", lambda *_, **__: answers)
    chosen, _ = tuned(llama(lambda *_: (1.0, 1.0)), blank, tmp_path)
    assert (chosen.wanted, chosen.ended, chosen.coherent, chosen.score) == (1.0, 0.5, 1.0, 0.5)


def test_a_refusal_that_is_taken_back_is_none(blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides is the whole answer, not how it begins."""
    taken_back = "I can't help with that. However, here is how you do it:\n1. Take the car.\n2. Open the door."
    answers = [WholeAnswer(taken_back, True), WholeAnswer(REFUSAL, True)] * (BLOCK // 2)
    monkeypatch.setattr(judging, "whole_answers", lambda *_, **__: answers)
    chosen, _ = tuned(llama(lambda *_: (1.0, 1.0)), blank, tmp_path)
    assert (chosen.wanted, chosen.score) == (0.5, 0.5)


def test_what_was_learnt_together_is_steered_together(blank: Profile, tmp_path: Path) -> None:
    """One candidate of all layers: none is ranked. It was learnt for strength 1, the turn, and the whole answer."""
    search = SEARCHES["refusal, learnt"]
    model = llama(lambda *_: (0.8, 1.0), together=LAYERS)
    chosen, trials = tuned(model, blank, tmp_path, learnt=True)
    assert {trial.layers for trial in trials} == {LAYERS} == {chosen.layers} and model.scored == []
    first = trials[0]
    assert (first.strength, first.scope, first.answer_strength) == (1.0, "turn", 1.0)
    assert {trial.strength for trial in trials} == set(search.strengths) and 1.0 in search.strengths
    assert {trial.scope for trial in trials} == {"turn"}
    assert {trial.answer_strength for trial in trials} == set(search.answer_strengths)
    assert [*json.loads((tmp_path / "trials.json").read_text("utf-8"))][1] == "3,5,7,9 1.0 turn 1.0 0.0 short"


def test_what_was_learnt_for_a_strength_keeps_it(blank: Profile, tmp_path: Path) -> None:
    """Others are tried only where they could be better, and taken only where they are."""
    search = SEARCHES["refusal, learnt"]
    chosen, trials = tuned(llama(lambda *_: (1.0, 1.0), together=LAYERS), blank, tmp_path / "all", learnt=True)
    assert [trial.strength for trial in trials] == [1.0] and chosen.strength == 1.0
    chosen, trials = tuned(llama(lambda *_: (0.8, 1.0), together=LAYERS), blank, tmp_path / "alike", learnt=True)
    assert {trial.strength for trial in trials} == set(search.strengths) and chosen.strength == 1.0
    weak = llama(lambda layer, strength, scope: (1.0 if strength > 1.3 else 0.8, 1.0), together=LAYERS)
    assert tuned(weak, blank, tmp_path / "weak", learnt=True)[0].strength == 1.4


def test_experts_that_go_by_kind_answer_their_own(
    blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head tells kinds while answers are tried: each prompt is steered by the expert that its recipe names."""
    answered: list[tuple[float, str]] = []

    def whole_answers(model: Any, block: list[Prompt], *_: Any, seed: int) -> list[WholeAnswer]:
        [experts] = model.profile.experts.values()
        answered.extend((float(experts.prototypes[0, 0]), prompt.text) for prompt in block)
        return [WholeAnswer(prompt.text, True) for prompt in block]

    model = llama(lambda layer, strength, scope: (1.0, 1.0))
    monkeypatch.setattr(
        model, "set_profiles", lambda profiles, **_: setattr(model, "profile", next(iter(profiles), None))
    )
    monkeypatch.setattr(judging, "whole_answers", whole_answers)
    vectors = {name: np.full(64, value, np.float32) for name, value in (("odd", 1.0), ("even", 2.0))}
    experts = {3: Experts.for_kinds(vectors, {"odd": 0.5, "even": 0.5})}
    prompts = [pair.prompt for pair in PAIRS]
    trials = Trials(
        model,  # type: ignore[arg-type]
        blank,
        experts,
        PAIRS,
        prompts,
        "refusal",
        True,
        tmp_path,
        lambda *_: None,
        expert=lambda prompt: ("even", "odd")[prompts.index(prompt) % 2],
    )
    block = prompts[:7]
    setting = Setting((3,), 1.0, "turn", 1.0, 0.0)
    assert [answer.text for answer in trials._answers(setting, block, seed=0)] == [prompt.text for prompt in block]
    assert sorted(answered) == sorted((2.0 - i % 2, prompt.text) for i, prompt in enumerate(block))


def test_what_was_learnt_from_pairs_is_judged_by_pairs(blank: Profile, tmp_path: Path) -> None:
    model = FakeLlama(lambda *_: (0.0, 1.0), {5: 0.9}, together=(5,))
    chosen, trials = tuned(model, blank, tmp_path, judge="margin", layers=(5,), learnt=True)
    assert {trial.layers for trial in trials} == {(5,)} and 5 in model.scored
    assert {trial.strength for trial in trials} <= set(SEARCHES["margin"].strengths)
    assert chosen.wanted > 0.5 and chosen.ended == 1.0


def test_of_equals_one_in_the_upper_half(blank: Profile, tmp_path: Path) -> None:
    """Away from where the steering fails, and less so from where the text does, which the score sees."""
    everything = sorted(STRENGTHS)
    for folder, quality in (("good", (1.0, 1.0)), ("mush", (1.0, 0.5))):
        chosen, trials = tuned(llama(lambda *_, q=quality: q), blank, tmp_path / folder)
        assert {trial.strength for trial in trials} == set(everything)
        assert chosen.strength == everything[2 * len(everything) // 3]


def test_nearly_as_good_is_good_enough(blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = sorted(STRENGTHS)

    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (1.0, 1.0 if strength <= FIRST_STRENGTH else 0.9)

    monkeypatch.setitem(SEARCHES, "refusal", replace(SEARCHES["refusal"], tolerance=0.2))
    assert tuned(llama(quality), blank, tmp_path / "a")[0].strength == everything[2 * len(everything) // 3]
    monkeypatch.setitem(SEARCHES, "refusal", replace(SEARCHES["refusal"], tolerance=0.01))
    best = [strength for strength in everything if strength <= FIRST_STRENGTH]
    assert tuned(llama(quality), blank, tmp_path / "b")[0].strength == best[2 * len(best) // 3]


@pytest.mark.parametrize(("n", "wanted"), [(48, 0.05), (32, 2 / 32), (16, 2 / 16)])
def test_of_few_answers_two_say_nothing(blank: Profile, tmp_path: Path, n: int, wanted: float) -> None:
    experts = {3: Experts.fixed(np.ones(64, np.float32))}
    for judge, tolerance in (("refusal", wanted), ("margin", SEARCHES["margin"].tolerance)):
        asked = [replace(PAIRS[0].prompt, messages=[{"role": "user", "content": f"do {i}"}]) for i in range(60)]
        trials = Trials(
            llama(lambda *_: (1.0, 1.0)),  # type: ignore[arg-type]
            blank,
            experts,
            PAIRS,
            asked,
            judge,
            False,
            tmp_path,
            lambda *_: None,
            n,
        )
        assert trials.search.tolerance == pytest.approx(tolerance)


def test_of_equals_the_one_that_steers_more_often(blank: Profile, tmp_path: Path) -> None:
    """As many answers are right, but of the weaker setting's failures more are the unwanted behaviour itself."""
    up = sorted(strength for strength in STRENGTHS if strength > FIRST_STRENGTH)

    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (1.0, 0.8) if strength >= up[0] else (0.8, 1.0)

    chosen, trials = tuned(llama(quality), blank, tmp_path)
    assert len({trial.score for trial in trials}) == 1
    assert (chosen.strength, chosen.wanted) == (up[2 * len(up) // 3], 1.0)


def test_stronger_while_it_helps(blank: Profile, tmp_path: Path) -> None:
    """Refusals grow with the strength until the text falls apart; the search stops there."""
    up = sorted(strength for strength in STRENGTHS if strength > FIRST_STRENGTH)
    best, broken = up[-3], up[-2]

    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        wanted = 0.9 if strength >= best else 0.5 if strength >= FIRST_STRENGTH else 0.2
        return wanted, 0.1 if strength >= broken else 1.0

    chosen, trials = tuned(llama(quality), blank, tmp_path)
    assert chosen.strength == best
    assert max(trial.strength for trial in trials) == broken


def test_stronger_where_nothing_happens_yet(blank: Profile, tmp_path: Path) -> None:
    """That a weaker setting does as little is no reason to take it."""
    enough = sorted(strength for strength in STRENGTHS if strength > FIRST_STRENGTH)[1]
    chosen, _ = tuned(llama(lambda _, strength, __: (1.0 if strength >= enough else 0.05, 1.0)), blank, tmp_path)
    assert chosen.strength >= enough and chosen.score == 1.0


def test_weaker_where_the_text_falls_apart(blank: Profile, tmp_path: Path) -> None:
    down = sorted((strength for strength in STRENGTHS if strength < FIRST_STRENGTH), reverse=True)

    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (1.0 if strength >= down[1] else 0.2, 1.0 if strength <= down[1] else 0.5)

    chosen, trials = tuned(llama(quality), blank, tmp_path)
    assert chosen.strength == down[1]
    assert min(trial.strength for trial in trials) == down[2]


def test_the_answer_gets_what_it_needs(blank: Profile, tmp_path: Path) -> None:
    """Half of the vector, but for a better reason than chance."""
    assert FIRST_ANSWER_STRENGTH in ANSWER_STRENGTHS and all(0 < s <= 1 for s in ANSWER_STRENGTHS)
    for best in ANSWER_STRENGTHS:
        model = llama(lambda *_: (0.0, 0.0), by_answer_strength=lambda s, best=best: (0.9 if s == best else 0.5, 1.0))
        chosen, trials = tuned(model, blank, tmp_path / str(best))
        assert chosen.answer_strength == best and chosen in trials
    chosen, trials = tuned(llama(lambda *_: (0.9, 1.0)), blank, tmp_path / "alike")
    assert chosen.answer_strength == FIRST_ANSWER_STRENGTH
    assert {trial.answer_strength for trial in trials} == set(ANSWER_STRENGTHS)


def test_long_prompts_get_as_little_less_as_will_do(blank: Profile, tmp_path: Path) -> None:
    decays = SEARCHES["refusal"].length_decays
    assert decays[0] == 0.0 and list(decays) == sorted(decays)
    asked = [pair.prompt for pair in PAIRS] + LONG
    for best in decays:
        model = llama(lambda *_: (0.9, 1.0), by_length_decay=lambda d, best=best: (1.0, 0.9 if d >= best else 0.5))
        chosen, trials = tuned(model, blank, tmp_path / str(best), prompts=asked)
        assert chosen.length_decay == best and chosen.prompts == "short"
        assert chosen.score == pytest.approx(0.9, abs=0.05)  # that of the short prompts
        tried = [trial.length_decay for trial in trials if trial.prompts == "long"]
        assert tried == list(decays[: decays.index(best) + 1])  # the next could only be as good
    model = llama(lambda *_: (0.9, 1.0), by_length_decay=lambda d: (0.8 - 2 * d, 1.0))
    chosen, trials = tuned(model, blank, tmp_path / "less", prompts=asked)
    assert chosen.length_decay == 0.0 and [t.length_decay for t in trials if t.prompts == "long"] == list(decays[:2])


def test_a_few_long_prompts_say_nothing(blank: Profile, tmp_path: Path) -> None:
    asked = [pair.prompt for pair in PAIRS] + LONG[: judging.FEW_LONG - 1]
    chosen, trials = tuned(llama(lambda *_: (0.9, 1.0)), blank, tmp_path, prompts=asked)
    assert chosen.length_decay == 0.0 and {trial.prompts for trial in trials} == {"short"}


def test_pairs_can_judge(blank: Profile, tmp_path: Path) -> None:
    """Where only the pairs can tell, what counts is the chosen answer's share of the probability of both."""
    model = FakeLlama(lambda *_: (0.0, 1.0), {5: 0.5, 7: -0.1})
    chosen, trials = tuned(model, blank, tmp_path, judge="margin", layers=(5, 7))

    def share(margin: float) -> float:
        likely, unlikely = np.exp(2 * (-1.0 + margin)), np.exp(-1.0)  # two tokens and one, as the fake scores them
        return likely / (likely + unlikely)

    assert chosen.layers == (5,) and chosen.wanted == chosen.score == pytest.approx(share(0.5))
    assert [trial.wanted for trial in trials if trial.layers == (7,)] == [pytest.approx(share(-0.1))]
    assert set(model.scored) == {5, 7} and not model.active


def surer(monkeypatch: pytest.MonkeyPatch, margin: Callable[[float], float]) -> None:
    """The chosen answer's margin over the rejected one follows the strength."""

    def answer_logprobs(llama: FakeLlama, prompt: str, answers: list[str], *, turn: int) -> list[np.ndarray]:
        return [np.array([margin(llama.active[1]) if llama.active else 0.0]), np.array([0.0])]

    monkeypatch.setattr(FakeLlama, "answer_logprobs", answer_logprobs)


def test_pairs_that_grow_surer_do_not_pay_for_language(
    blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chosen answers' probability goes on rising with the strength while every fourth answer is mush."""
    surer(monkeypatch, lambda strength: strength)
    model = FakeLlama(lambda _, strength, __: (0.0, 1.0 if strength <= 1 else 0.75), {})
    chosen, trials = tuned(model, blank, tmp_path, judge="margin", layers=(5,))
    beyond = [trial for trial in trials if trial.strength > 1]
    assert max(trial.wanted for trial in beyond) > chosen.wanted + 0.1 and chosen.strength == 1.0
    assert all(trial.score == pytest.approx(max(trial.wanted * 0.75 - 0.25, 0)) for trial in beyond)


def test_a_larger_share_does_not_pay_for_unlikelier_answers(
    blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too strong a direction makes both answers unlikely, the rejected one more so, and what is said falls apart."""

    def answer_logprobs(llama: FakeLlama, prompt: str, answers: list[str], *, turn: int) -> list[np.ndarray]:
        strength = llama.active[1] if llama.active else 0.0
        chosen = 0.5 * strength if strength <= 1 else 0.5 - 2 * (strength - 1)
        return [np.array([chosen - 1]), np.array([chosen - 1 - 2 * strength])]

    monkeypatch.setattr(FakeLlama, "answer_logprobs", answer_logprobs)
    chosen, trials = tuned(FakeLlama(lambda *_: (0.0, 1.0), {}), blank, tmp_path, judge="margin", layers=(5,))
    assert chosen.strength == 1.0 and chosen.score == chosen.wanted
    beyond = [trial for trial in trials if trial.strength > 1]
    assert beyond and all(trial.wanted > chosen.wanted for trial in beyond)
    for trial in beyond:
        lost = min(0.5 - 2 * (trial.strength - 1) + judging.FREE, 0.0)
        assert trial.score == pytest.approx(trial.wanted * np.exp(lost))


def test_of_strengths_that_are_as_sure_the_weakest(
    blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surer(monkeypatch, lambda strength: 6.0 if strength >= 1.4 else 0.0)
    chosen, trials = tuned(FakeLlama(lambda *_: (0.0, 1.0), {}), blank, tmp_path, judge="margin", layers=(5,))
    assert trials[0].strength == 2.0 and chosen.strength == 1.4  # of 1, 2 and 4, and then of all


def test_going_round_in_circles_is_no_language(blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surer(monkeypatch, lambda strength: 6.0)
    told = judging.generate
    monkeypatch.setattr(judging, "generate", lambda *args: [text + " and on and on" * 20 for text in told(*args)])
    chosen, _ = tuned(FakeLlama(lambda *_: (0.0, 1.0), {}), blank, tmp_path, judge="margin", layers=(5,))
    assert chosen.coherent == chosen.score == 0.0


def test_layers_are_compared_at_the_strength_that_suits_each(
    blank: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A direction that is weak at one layer may be the best one when it is followed far enough."""
    wide = SEARCHES["margin"].first_strengths

    def answer_logprobs(llama: FakeLlama, prompt: str, answers: list[str], *, turn: int) -> list[np.ndarray]:
        if llama.active is None:
            return [np.array([0.0]), np.array([0.0])]
        layer, strength, _ = llama.active
        margin = strength if layer == 5 else 1 / strength  # layer 5 needs the most, the other the least
        return [np.array([margin * (0.6 if layer == 5 else 0.5)]), np.array([0.0])]

    monkeypatch.setattr(FakeLlama, "answer_logprobs", answer_logprobs)
    model = FakeLlama(lambda *_: (0.0, 1.0), {})
    chosen, trials = tuned(model, blank, tmp_path, judge="margin", layers=(5, 7))
    assert [(trial.layers, trial.strength) for trial in trials[:2]] == [((5,), max(wide)), ((7,), min(wide))]
    assert chosen.layers == (5,) and chosen.strength >= max(wide)


def test_of_many_pairs_some_from_everywhere(blank: Profile, tmp_path: Path) -> None:
    new = [Pair(Prompt([{"role": "user", "content": "question"}]), "no", "yes")] * 2
    chosen, _ = tuned(llama(lambda *_: (0.5, 1.0)), blank, tmp_path, pairs=[p for pair in PAIRS for p in (pair, *new)])
    assert chosen.wanted == pytest.approx(0.5, abs=0.05)  # every third was asked: the first half of them is refused


def test_long_prompts_are_left_out_where_there_are_others(blank: Profile, tmp_path: Path) -> None:
    long = [Pair(Prompt([{"role": "user", "content": "x" * (judging.MAX_PROMPT + 1)}]), "no", "yes")] * 3
    model = llama(lambda *_: (0.5, 1.0))
    chosen, _ = tuned(model, blank, tmp_path, pairs=long + PAIRS)  # the fake knows the answers to PAIRS only
    assert chosen.wanted == pytest.approx(0.5, abs=0.05)


def test_what_is_answered_needs_no_pair(blank: Profile, tmp_path: Path) -> None:
    asked = [pair.prompt for pair in PAIRS]
    compared = [Pair(Prompt([{"role": "user", "content": f"question {i} of others"}]), "no", "yes") for i in range(9)]
    model = llama(lambda *_: (0.5, 1.0))
    chosen, _ = tuned(model, blank, tmp_path, pairs=compared, prompts=asked)  # the fake answers PAIRS only
    assert chosen.wanted == pytest.approx(0.5, abs=0.05) and set(model.scored) == set(LAYERS)


def test_one_candidate(blank: Profile, tmp_path: Path) -> None:
    """There is nothing to rank."""
    model = llama(lambda *_: (1.0, 1.0))
    chosen, trials = tuned(model, blank, tmp_path, layers=(9,))
    assert {trial.layers for trial in trials} == {(9,)} == {chosen.layers} and model.scored == []


def test_nothing_works(blank: Profile, tmp_path: Path) -> None:
    chosen, trials = tuned(llama(lambda *_: (0.0, 1.0)), blank, tmp_path)
    assert chosen.score == 0 and chosen in trials


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_an_interrupted_tuning_goes_on(blank: Profile, tmp_path: Path, share: float) -> None:
    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return 0.5 + strength / 5, 1.2 - strength / 5

    whole = llama(quality)
    wanted = tuned(whole, blank, tmp_path / "whole")
    first = llama(quality, interrupt_after=int(share * len(whole.generated)))
    with pytest.raises(KeyboardInterrupt):
        tuned(first, blank, tmp_path / "parts")
    second = llama(quality)
    assert tuned(second, blank, tmp_path / "parts") == wanted
    assert second.scored == []  # the margins are remembered, and so is every block of answers that was finished
    finished = len(first.generated) // BLOCK * BLOCK
    assert second.generated == whole.generated[finished:]
    third = llama(quality)
    assert tuned(third, blank, tmp_path / "parts") == wanted
    assert third.generated == []


@pytest.mark.parametrize("first", [BLOCK, LARGE_BLOCK])
def test_a_tuning_that_goes_on_looks_as_often_as_before(blank: Profile, tmp_path: Path, first: int) -> None:
    """What answers may be another by then: the prompts' order, which tells verdicts apart, goes with it."""

    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return 0.5 + strength / 5, 1.2 - strength / 5

    whole = llama(quality)
    wanted = tuned(whole, blank, tmp_path / "whole", block=first)
    interrupted = llama(quality, interrupt_after=len(whole.generated) // 2)
    with pytest.raises(KeyboardInterrupt):
        tuned(interrupted, blank, tmp_path / "parts", block=first)
    again = llama(quality)
    assert tuned(again, blank, tmp_path / "parts", block=BLOCK + LARGE_BLOCK - first) == wanted
    assert again.generated == whole.generated[-len(again.generated) :]


def test_a_larger_block_is_given_up_later(blank: Profile, tmp_path: Path) -> None:
    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (1.0, 1.0) if strength == FIRST_STRENGTH else (0.0, 1.0)

    for block in (BLOCK, LARGE_BLOCK):
        _, trials = tuned(llama(quality), blank, tmp_path / str(block), block=block)
        assert {trial.n_answers for trial in trials if trial.lost} == {block}


def test_what_is_remembered_is_json(blank: Profile, tmp_path: Path) -> None:
    _, trials = tuned(llama(lambda *_: (0.5, 1.0)), blank, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trials.json"]
    known = json.loads((tmp_path / "trials.json").read_text("utf-8"))
    assert len(known) == len(LAYERS) + 1 + len(trials)
    row = json.loads(json.dumps(as_rows(trials)))[0]
    assert tuple(row.pop("layers")) == trials[0].layers
    verdicts = known["5 0.9 turn 0.5 0.0 short"]
    assert len(verdicts) == row["n_answers"] == ANSWERS
    for name, share in zip(("wanted", "ended", "coherent"), np.mean(verdicts, axis=0), strict=True):
        assert row[name] == share
    assert row["score"] == np.mean([all(verdict) for verdict in verdicts])


def test_what_is_behind_is_not_answered_to_the_end(blank: Profile, tmp_path: Path) -> None:
    """A strength that fails is given up after one block; what is nearly as good is not."""

    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (1.0, 0.2 if strength > FIRST_STRENGTH else 0.95 if strength < FIRST_STRENGTH else 1.0)

    chosen, trials = tuned(llama(quality), blank, tmp_path)
    short = [trial for trial in trials if trial.prompts == "short"]
    lost = [trial for trial in short if trial.lost]
    assert {trial.n_answers for trial in lost} == {BLOCK} and {trial.strength > FIRST_STRENGTH for trial in lost} == {
        True
    }
    assert {trial.n_answers for trial in short if not trial.lost} == {ANSWERS}
    assert not chosen.lost


def test_an_interruption_keeps_the_best_so_far(blank: Profile, tmp_path: Path) -> None:
    def quality(layer: int, strength: float, scope: str) -> tuple[float, float]:
        return (0.9 if layer == 7 else 0.5, 1.0)

    whole = llama(quality)
    tuned(whole, blank, tmp_path / "whole")
    for share, at in ((0.1, None), (0.5, 7), (0.95, 7)):
        model = llama(quality, interrupt_after=int(share * len(whole.generated)))
        if at is None:  # nothing was tried to the end
            with pytest.raises(KeyboardInterrupt):
                tuned(model, blank, tmp_path / str(share), keep=True)
        else:
            chosen, _ = tuned(model, blank, tmp_path / str(share), keep=True)
            assert chosen.layers == (at,) and chosen.score == pytest.approx(0.9, abs=0.03)


def test_what_cannot_be_better_is_not_tried(blank: Profile, tmp_path: Path) -> None:
    asked = [pair.prompt for pair in PAIRS] + LONG
    chosen, trials = tuned(
        llama(lambda *_: (1.0, 1.0), by_length_decay=lambda _: (1.0, 1.0)), blank, tmp_path, prompts=asked
    )
    assert chosen.answer_strength == SEARCHES["refusal"].first_answer_strength and chosen.length_decay == 0.0
    assert {trial.answer_strength for trial in trials} == {chosen.answer_strength}
    assert {trial.length_decay for trial in trials} == {0.0}
