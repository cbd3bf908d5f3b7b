"""TruthfulQA's scores from log-probabilities, steered and unsteered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.evaluation import choices as module
from finesteer_local.evaluation.choices import score, score_all
from finesteer_local.evaluation.interventions import UNSTEERED, MapSteering, ProfileSteering
from finesteer_local.evaluation.journal import Journal
from finesteer_local.evaluation.suites import Case, Choices
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.score import answer_logprobs
from reference import steered_llama
from tiny import make_profile

CHOICES = Choices("yes.", ("yes.", "it is so."), ("no.", "never at all."))
CASES = [
    Case([{"role": "user", "content": "is it?"}], choices=CHOICES),
    Case(
        [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "what is it then?"},
        ],
        choices=Choices("b.", ("a.", "b."), ("c.",)),
    ),
]


@pytest.mark.parametrize(
    ("logprobs", "mc1", "mc2"),
    [
        (np.log([0.4, 0.1, 0.3, 0.2]), True, 0.5),
        (np.log([0.3, 0.4, 0.2, 0.1]), True, 0.7),
        (np.log([0.2, 0.5, 0.2001, 0.0999]), False, 0.7),  # the best answer counts, not another true one
        ([-5000.0, -5001.0, -5000.0, -5001.0], False, 0.5),  # no underflow; a tie is no win
        ([-1.0, -2.0, -9000.0, -9000.0], True, 1.0),
    ],
)
def test_the_two_scores(logprobs: list[float], mc1: bool, mc2: float) -> None:
    assert score(CHOICES, logprobs) == (mc1, pytest.approx(mc2))


def test_the_best_answer_may_stand_anywhere() -> None:
    assert score(Choices("b.", ("a.", "b."), ("c.",)), np.log([0.1, 0.5, 0.4])) == (True, pytest.approx(0.6))
    assert score(Choices("b.", ("a.", "b."), ("c.",)), np.log([0.5, 0.1, 0.4])) == (False, pytest.approx(0.6))


@pytest.mark.parametrize("scope", ["turn", "response"])
def test_scores_are_of_total_log_probabilities_after_the_chat_prompt(tiny_model: Path, scope: str) -> None:
    profile = make_profile(tiny_model, gate="open", strength=2, scope=scope)
    for steering, profiles in ((UNSTEERED, []), (ProfileSteering((profile,)), [profile])):
        found = score_all(steered_llama(tiny_model), steering, CASES, Journal())
        for case, result in zip(CASES, found, strict=True):
            assert case.choices
            llama = steered_llama(tiny_model, profiles=profiles)
            prompt = chat_prompt(llama, case.messages)
            answers = [
                llama.tokenize(text.encode(), add_bos=False) for text in (*case.choices.correct, *case.choices.wrong)
            ]
            turn = turn_start(llama, case.messages, prompt)
            logprobs = [float(s.sum()) for s in answer_logprobs(llama, prompt, answers, turn=turn)]
            mc1, mc2 = score(case.choices, logprobs)
            assert (result.mc1, result.mc2) == (mc1, pytest.approx(mc2, abs=1e-3))
            assert result.reading.steers == bool(profiles)


def test_steering_moves_them(tiny: Path) -> None:
    llama, journal = steered_llama(tiny), Journal()
    plain = score_all(llama, UNSTEERED, CASES, journal)
    rng = np.random.default_rng(0)
    w, r = (rng.standard_normal(llama.n_embd()).astype(np.float32) for _ in range(2))
    for steering in (ProfileSteering((make_profile(tiny, strength=3),)), MapSteering({2: (w, r)}, 1.0)):
        assert [s.mc2 for s in score_all(llama, steering, CASES, journal)] != [s.mc2 for s in plain]
    assert score_all(llama, UNSTEERED, CASES, Journal()) == plain


def test_a_map_leaves_the_answers_tokens_alone_or_not(tiny: Path) -> None:
    """The prompt is steered in both cases, and its image depends on nothing else."""
    llama = steered_llama(tiny)
    rng = np.random.default_rng(0)
    w, r = (rng.standard_normal(llama.n_embd()).astype(np.float32) for _ in range(2))
    prompt_only, every = (
        score_all(llama, MapSteering({2: (w, r)}, 1.0, every_token), CASES, Journal()) for every_token in (False, True)
    )
    assert [s.mc2 for s in prompt_only] != [s.mc2 for s in every]
    assert [s.reading for s in prompt_only] == [s.reading for s in every]


def test_a_closed_gate_scores_as_unsteered_and_nothing_is_scored_twice(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counting(*args: object, **kwargs: object) -> object:
        asked.append(1)
        return answer_logprobs(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "answer_logprobs", counting)
    llama, journal, done = steered_llama(tiny), Journal(), []
    plain = score_all(llama, UNSTEERED, CASES, journal, on_score=lambda: done.append(1))
    shut = ProfileSteering((make_profile(tiny, gate="closed", strength=5),))
    found = score_all(llama, shut, CASES, journal, on_score=lambda: done.append(1))
    assert [(s.mc1, s.mc2) for s in found] == [(s.mc1, s.mc2) for s in plain]
    assert all(s.reading.g == 0 and s.reading.score is not None for s in found)
    assert score_all(llama, shut, CASES, journal) == found
    assert len(asked) == len(CASES) and len(done) == 2 * len(CASES)
