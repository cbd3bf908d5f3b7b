"""The page: whole, harmless, and true."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from evaluations import SETTING, case, evaluation, outcome, reading
from finesteer_local.evaluation.choices import Score
from finesteer_local.evaluation.measure import Evaluation
from finesteer_local.evaluation.report import render
from finesteer_local.evaluation.results import Results

EVIL = "<script>alert(1)</script> & \"quotes\" <img src=x onerror='y'>"
BAD, GOOD = case(f"bad {EVIL}", kind=EVIL), case("good", "benign")
VOID = {"meta", "br", "img", "link"}
SELF_CLOSED = {"line", "path", "polyline", "rect", "circle"}


class Page(HTMLParser):
    """Checks that tags are closed in order; gathers tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        assert tag in SELF_CLOSED | {"text", "td", "h2"}, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


def measured(**extra: Any) -> Evaluation:
    outcomes = {
        "none": {"bad": [outcome(BAD)] * 4, "good": [outcome(GOOD)] * 4},
        "cast": {
            "bad": [outcome(BAD, "refused", score=1.0)] * 2 + [outcome(BAD, "refused mush", score=0.5)] * 2,
            "good": [outcome(GOOD, score=-1.0)] * 4,
        },
        "ours": {
            "bad": [outcome(BAD, "refused", score=2.0, a=0.3, b=0.7)] * 3 + [outcome(BAD, EVIL, score=-2.0)],
            "good": [outcome(GOOD, score=-3.0)] * 4,
        },
        **extra,
    }
    scores = {
        name: {"asked": [Score(i > 0, 0.25 + 0.25 * i, reading(None if name == "none" else -1.0))]}
        for i, name in enumerate(outcomes)
    }
    return evaluation(outcomes, scores)


def page(evaluation: Evaluation, **setting: Any) -> tuple[str, Page]:
    html = render(Results.of(evaluation, replace(SETTING, **setting)))
    return html, Page(html)


def test_it_is_one_sound_file_that_needs_nothing_else() -> None:
    html, found = page(measured())
    assert html.startswith("<!doctype html>") and '<meta charset="utf-8">' in html
    assert "width=device-width" in html and "prefers-color-scheme: dark" in html
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not {"src", "href", "srcset", "data"} & attributes.keys(), tag
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", html)
    assert "Content-Security-Policy" in html and "default-src 'none'" in html


def test_nothing_that_a_model_or_a_prompt_says_becomes_markup() -> None:
    html, found = page(measured(), model=EVIL, profiles=(EVIL,), command=EVIL, remarks=(EVIL,), versions={EVIL: EVIL})
    assert "<script" not in html and "<img" not in html
    assert EVIL in found.text  # shown as it is
    assert found.text.count("<script>alert(1)</script>") >= 5


def test_what_it_says() -> None:
    _, found = page(measured())
    said = re.sub(r"\s+", " ", found.text)
    assert "With this profile, 75.0 % of 4 harmful requests are defended: the answer declines, ends by itself" in said
    assert "Without steering it is 0.0 %." in said
    assert "Of 4 harmless requests it declines +0.0 % compared with the model alone; 100.0 % of the answers" in said
    assert "MC1 is 1.000 (unsteered 0.000) and MC2 0.750 (unsteered 0.250)" in said
    assert "The other method declines no more harmless requests and defends 50.0 % (cast); ours is ahead." in said
    assert SETTING.command in said and SETTING.fingerprint in said and "finesteer-local 0.1.0" in said
    assert "some judge" in said and "3.50 nats a token" in said
    assert "up to 400 tokens (maths more) and are greedy, and sampled at temperature 0.8 with the seeds 0, 1." in said
    for heading in (
        "All methods",
        "Beside it",
        "Defence against over-refusal",
        "When it steers",
        "Which experts answer to what",
        "Examples",
        "Suite by suite",
        "What the methods are",
        "How it was measured",
        "To reproduce",
    ):
        assert heading in said


def test_sampled_answers_lead() -> None:
    whole = measured()
    rows = {name: {suite: whole.outcomes[name, suite] for suite in ("bad", "good")} for name in ("none", "ours")}
    sampled = {
        name: {
            "bad": [outcome(BAD, "refused", seed=1, score=1.0, circles=name == "none", tokens=33)] * 4,
            "good": [outcome(GOOD, seed=1)] * 4,
        }
        for name in rows
    }
    _, found = page(evaluation(rows, sampled=sampled, repeats=1))
    said = re.sub(r"\s+", " ", found.text)
    assert "100.0 % of 4 harmful requests are defended" in said and "Without steering it is 0.0 %" in said
    for words in (
        "none, greedy",
        "none, sampled",
        "ours, greedy",
        "ours, sampled",
        "in circles",
        "good language",
        "33",
    ):
        assert words in said


def test_a_rival_that_is_better_is_not_hidden() -> None:
    better = {"bad": [outcome(BAD, "refused", score=1.0)] * 4, "good": [outcome(GOOD, score=-1.0)] * 4}
    _, found = page(measured(pca=better))
    assert "Of the 2 other methods, the best that declines no more harmless requests" in found.text
    assert "defends 100.0\N{NO-BREAK SPACE}% (pca); ours is not ahead" in found.text
    worse = {"bad": better["bad"], "good": [outcome(GOOD, "refused", score=1.0)] * 4}
    whole = measured(pca=worse)
    rows = {name: {suite: whole.outcomes[name, suite] for suite in ("bad", "good")} for name in ("none", "pca", "ours")}
    _, found = page(evaluation(rows))
    said = "The other method declines more harmless requests than ours does; pca defends 100.0 % at +100.0 %."
    assert said in found.text.replace("\N{NO-BREAK SPACE}", " ")
    worst = {"bad": [outcome(BAD, score=1.0)] * 4, "good": worse["good"]}
    _, found = page(measured(pca=worse, cast=worst))
    said = "Each of the 2 other methods declines more harmless requests than ours does; the strongest, pca, defends 100"
    assert said in found.text.replace("\N{NO-BREAK SPACE}", " ")


def test_without_harmless_requests_nothing_is_said_of_them() -> None:
    rows = {name: {"bad": measured().outcomes[name, "bad"]} for name in ("none", "cast", "ours")}
    _, found = page(evaluation(rows))
    assert (
        "75.0\N{NO-BREAK SPACE}% of 4 harmful requests are defended" in found.text
        and "more harmless requests" not in found.text
    )


def test_failures_are_among_the_examples() -> None:
    _, found = page(measured())
    examples = found.text[found.text.index("Examples") : found.text.index("Suite by suite")]
    assert "alert(1)" in examples and "I'm sorry, no." in examples
    assert "not language" in examples and "unchanged" in examples


def test_examples_say_what_is_wrong_with_an_answer() -> None:
    rows = {"none": {"bad": [outcome(BAD)]}, "ours": {"bad": [outcome(BAD, "refused", ends=False, circles=True)]}}
    _, found = page(evaluation(rows))
    examples = found.text[found.text.index("Examples") : found.text.index("Suite by suite")]
    assert "does not end" in examples and "in circles" in examples and "declines" in examples


def test_conversations_and_long_prompts() -> None:
    talk = replace(
        GOOD,
        messages=[
            {"role": "user", "content": "first <b>"},
            {"role": "assistant", "content": "second"},
            {"role": "user", "content": "x" * 5000},
        ],
    )
    html, found = page(
        evaluation({"none": {"good": [outcome(talk)]}, "ours": {"good": [outcome(talk, "refused", score=1.0)]}})
    )
    assert "first <b>" in found.text and "assistant second" in found.text
    assert "x" * 1200 + " …" in found.text and "x" * 1300 not in html


@pytest.mark.parametrize("names", [("none",), ("none", "ours"), ("ours",), ("none", "cast")])
@pytest.mark.parametrize("suites", [("bad",), ("good",), ("asked",), ("bad", "good", "asked")])
def test_whatever_was_left_out(names: tuple[str, ...], suites: tuple[str, ...]) -> None:
    whole = measured()
    outcomes = {name: {s: whole.outcomes[name, s] for s in suites if s != "asked"} for name in names}
    scores = {name: {s: [x for _, x in whole.scores[name, s]] for s in suites if s == "asked"} for name in names}
    html, found = page(evaluation(outcomes, scores), profiles=(), command="")
    assert "None" not in found.text and "nan" not in found.text
    assert "Suite by suite" in html
