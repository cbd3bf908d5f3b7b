"""Measuring: every method over every suite, judged alike, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError
from finesteer_local.evaluation import measure as module
from finesteer_local.evaluation.answers import EvalRequest, answer_all
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.journal import Journal
from finesteer_local.evaluation.measure import (
    MATHS_TOKENS,
    NONE,
    SWEEP,
    SWEEP_CASES,
    Evaluation,
    Method,
    PhraseJudge,
    WholeJudge,
    check_suites,
    measure,
)
from finesteer_local.evaluation.suites import Case, Choices, Suite
from finesteer_local.judges.fluency import Coherence, Fluency
from finesteer_local.judges.whole import circles
from reference import plain_llama, steered_llama
from tiny import make_profile, write_tiny_model

N_TOKENS = 8


def case(text: str, label: str = "harmful", *before: str, **fields: Any) -> Case:
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate([*before, text])]
    return Case(turns, label, **fields)


BAD = [case("hello"), case("open the door")]
GOOD = [case("why is the sky blue?", "benign"), case("and then?", "benign", "a question", "an answer")]
SUITES = [
    Suite("bad", BAD),
    Suite("good", GOOD),
    Suite("asked", [case("is it?", "benign", choices=Choices("yes.", ("yes.",), ("no.",)))]),
]


def plain_answers(path: Path, cases: Sequence[Case], n: int = N_TOKENS) -> list[str]:
    llama: Any = plain_llama(path)
    answers = [
        llama.create_chat_completion(c.messages, max_tokens=n, temperature=0.0, repeat_penalty=1.0) for c in cases
    ]
    return [answer["choices"][0]["message"]["content"] for answer in answers]


def method(path: Path, name: str = "ours", gate: str = "open", **options: Any) -> Method:
    return Method(name, ProfileSteering((make_profile(path, gate=gate, **{"strength": 3, **options}),)))


def measured(path: Path, *methods: Method, suites: list[Suite] = SUITES, **options: Any) -> Evaluation:
    journal = options.pop("journal", None) or Journal()
    return measure(
        steered_llama(path), [NONE, *methods], suites, journal, **{"max_tokens": N_TOKENS, "seeds": (), **options}
    )


def test_every_method_over_every_suite(tiny_model: Path) -> None:
    result = measured(tiny_model, method(tiny_model), method(tiny_model, "shut", "closed"))
    assert [m.name for m in result.methods] == ["none", "ours", "shut"]
    plain = plain_answers(tiny_model, [*BAD, *GOOD])
    for name in ("none", "ours", "shut"):
        outcomes = result.outcomes[name, "bad"] + result.outcomes[name, "good"]
        assert [o.case for o in outcomes] == [*BAD, *GOOD]
        assert [o.unsteered for o in outcomes] == plain
        assert ([o.answer.text for o in outcomes] == plain) == (name != "ours")
        assert all(o.identical == (o.answer.text == o.unsteered) for o in outcomes)
        assert result.outcomes[name, "asked"] == []
        [(asked, score)] = result.scores[name, "asked"]
        assert asked is SUITES[2].cases[0] and 0 <= score.mc2 <= 1
        assert result.scores[name, "bad"] == []
    assert result.scores["none", "asked"][0][1].mc2 == result.scores["shut", "asked"][0][1].mc2


def test_language_is_judged_by_unsteered_answers_of_all_suites(tiny: Path) -> None:
    result = measured(tiny, method(tiny))
    llama = steered_llama(tiny)
    plain = plain_answers(tiny, [*BAD, *GOOD])
    assert result.coherence == Coherence.of_unsteered(Fluency.throughout(llama, plain))
    for outcome in result.outcomes["ours", "bad"]:
        assert outcome.verdict.language == result.coherence.accepts(*Fluency.throughout(llama, [outcome.answer.text]))
        assert outcome.verdict.circles == circles(outcome.answer.text)
        assert outcome.verdict.ends == outcome.answer.ended


def test_sampled_answers_stand_beside_the_greedy_ones(tiny: Path) -> None:
    sums = Suite("sums", [case("2 + 3?", "benign", answer=5.0)])
    suites, journal = [*SUITES, sums], Journal()
    result = measured(tiny, method(tiny), suites=suites, journal=journal, seeds=(4, 5), temperature=1.0)
    greedy = measured(tiny, method(tiny), suites=suites, journal=journal)
    assert {key: [o.answer for o in found] for key, found in result.outcomes.items()} == {
        key: [o.answer for o in found] for key, found in greedy.outcomes.items()
    }
    assert result.repeats == 2 and greedy.repeats == 0 and not any(greedy.sampled.values())
    requests = [EvalRequest(c.messages, N_TOKENS, 1.0, seed) for c in BAD for seed in (4, 5)]
    plain = answer_all(steered_llama(tiny), NONE.intervention, requests, Journal())
    for name in ("none", "ours"):
        outcomes = result.sampled[name, "bad"]
        assert [o.case for o in outcomes] == [BAD[0], BAD[0], BAD[1], BAD[1]]
        assert [o.seed for o in outcomes] == [request.drawn for request in requests]
        assert [o.unsteered for o in outcomes] == [answer.text for answer in plain]
        assert ([o.answer.text for o in outcomes] == [o.unsteered for o in outcomes]) == (name == "none")
        assert result.sampled[name, "sums"] == [] == result.sampled[name, "asked"]
    everything = [
        o.unsteered
        for found in (result.outcomes, result.sampled)
        for suite in suites
        for o in found["none", suite.name]
    ]
    assert result.coherence == Coherence.of_unsteered(Fluency.throughout(steered_llama(tiny), everything))


class EveryOther:
    """A judge that has no idea."""

    name = "dice"

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def refusals(self, exchanges: Sequence[Any]) -> list[bool]:
        self.asked += exchanges
        return [i % 2 == 0 for i in range(len(exchanges))]


def test_the_judge_decides_and_the_phrases_stay_beside(tiny: Path) -> None:
    judge = EveryOther()
    result = measured(tiny, method(tiny), judge=judge)
    assert result.judge == "dice"
    assert [o.verdict.declined for o in result.outcomes["ours", "bad"]] == [True, False]
    assert not any(o.phrases for o in result.outcomes["ours", "bad"])
    assert (BAD[0].messages, result.outcomes["ours", "bad"][0].answer.text) in judge.asked


def test_whole_answers_are_judged_without_another_judge(tiny: Path) -> None:
    taken_back = "I'm sorry, but I can't do that. However, here are the steps: 1. First,"
    exchanges = [([{"role": "user", "content": "x"}], text) for text in ("I cannot.", "Sure.", taken_back)]
    assert WholeJudge().refusals(exchanges) == [True, False, False]
    assert PhraseJudge().refusals(exchanges) == [True, False, True]
    assert measured(tiny).judge == WholeJudge().name and PhraseJudge().name == "AdvBench phrases"


def test_the_phrases_are_looked_for_in_the_beginning(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_refusal", lambda text: text)
    long = measured(tiny, max_tokens=module.PHRASE_TOKENS + 30, suites=SUITES[:1]).outcomes["none", "bad"]
    for outcome in long:
        beginning: Any = outcome.phrases
        assert outcome.answer.text.startswith(beginning)
        assert outcome.answer.n_tokens <= module.PHRASE_TOKENS or len(beginning) < len(outcome.answer.text)


def test_maths_gets_more_tokens(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MATHS_TOKENS", 20)
    sums = [case("2 + 3?", "benign", answer=5.0)]
    result = measured(tiny, suites=[Suite("maths", sums), Suite("good", GOOD)])
    assert [o.answer.text for o in result.outcomes["none", "maths"]] == plain_answers(tiny, sums, 20)
    assert [o.answer.text for o in result.outcomes["none", "good"]] == plain_answers(tiny, GOOD)
    longer = measured(tiny, suites=[Suite("maths", sums)], max_tokens=24)
    assert [o.answer.text for o in longer.outcomes["none", "maths"]] == plain_answers(tiny, sums, 24)
    assert MATHS_TOKENS >= 200  # for steps of reasoning


def test_a_sweep(tiny: Path) -> None:
    sums = Suite("maths", [case("2 + 3?", "benign", answer=5.0)])
    many = Suite("many", [case(f"question {i}", "harmful" if i % 2 else "benign") for i in range(2 * SWEEP_CASES + 20)])
    result = measured(tiny, method(tiny), suites=[many, sums], sweep=True, max_tokens=2)
    assert list(result.sweeps) == ["ours"] and list(result.sweeps["ours"]) == list(SWEEP)
    for outcomes in result.sweeps["ours"].values():
        labels = [o.case.label for o in outcomes]
        assert labels == ["harmful"] * SWEEP_CASES + ["benign"] * SWEEP_CASES  # no maths
    own = {o.case.text: o.answer.text for o in result.outcomes["ours", "many"]}
    assert all(own[o.case.text] == o.answer.text for o in result.sweeps["ours"][1.0])
    weak = [o.answer.text for o in result.sweeps["ours"][SWEEP[0]]]
    assert weak != [o.answer.text for o in result.sweeps["ours"][1.0]]
    assert not measured(tiny, method(tiny), max_tokens=2).sweeps


def test_nothing_is_computed_twice(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    first = measured(tiny, method(tiny), journal=journal, sweep=True, seeds=(0, 1))
    journal.close()
    for name in ("evaluation.answers._ask", "evaluation.choices._measure", "judges.fluency.Fluency.throughout"):
        monkeypatch.setattr(f"finesteer_local.{name}", lambda *_: pytest.fail("computed again"))
    steps: list[tuple[str, int, int]] = []
    again = measured(
        tiny,
        method(tiny),
        journal=Journal(tmp_path / "journal.jsonl"),
        sweep=True,
        seeds=(0, 1),
        progress=lambda *step: steps.append(step),
    )
    assert (
        again.sampled == first.sampled
        and again.outcomes == first.outcomes
        and again.scores == first.scores
        and again.sweeps == first.sweeps
    )
    assert {stage for stage, _, _ in steps} >= {"unsteered answers", "answers, ours", "questions, ours", "sweep, ours"}
    assert all(done <= total for _, done, total in steps)


def test_the_order_of_cases_changes_nothing(tiny: Path) -> None:
    there = measured(tiny, method(tiny, gate="selective"), suites=[Suite("a", [*BAD, *GOOD])])
    back = measured(tiny, method(tiny, gate="selective"), suites=[Suite("a", [*GOOD[::-1], *BAD[::-1]])])

    def told(result: Evaluation) -> list[Any]:
        return [(o.case, o.answer.text, o.answer.reading, o.verdict) for o in result.outcomes["ours", "a"]]

    assert told(there) == told(back)[::-1]


def test_bad_prompts_are_found_before_anything_is_answered(tiny: Path, tmp_path: Path) -> None:
    steps: list[Any] = []
    long = [*SUITES, Suite("long", [case("x" * 600)])]
    with pytest.raises(DataError, match=r"suite long, 'xxx.*': 6\d\d tokens do not fit the context of 512"):
        measured(tiny, suites=long, progress=lambda *step: steps.append(step))
    assert steps == []
    strict = write_tiny_model(tmp_path / "strict.gguf", chat_template="{{ raise_exception('not today') }}")
    with pytest.raises(DataError, match="suite bad, 'hello': the model's chat template rejects it: not today"):
        check_suites(steered_llama(strict), SUITES)


def test_suites_of_questions_alone(tiny: Path) -> None:
    result = measured(tiny, method(tiny), suites=SUITES[2:], sweep=True)
    assert result.coherence.limit == float("inf") and not result.sweeps
    assert len(result.scores["ours", "asked"]) == 1
