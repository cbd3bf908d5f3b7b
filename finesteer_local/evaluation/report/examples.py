"""Answers side by side: for every suite some cases on which the methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finesteer_local.evaluation.measure import Evaluation, Outcome
from finesteer_local.jsonl import Messages
from finesteer_local.svg import tag

PER_SUITE = 2
_LONGEST = 1200  # letters of a prompt


def examples(evaluation: Evaluation, names: Sequence[str]) -> str:
    """Cases of every suite, answered by the methods `names`."""
    shown = [m.name for m in evaluation.methods if m.name in names]
    parts = []
    for suite in evaluation.suites:
        columns = [evaluation.outcomes[name, suite.name] for name in shown]
        cases = list(zip(*columns, strict=True))
        for case in _telling(cases, shown):
            head = tag("p", escape(_named(suite.name, case[0].case.label)), class_="quiet")
            answers = "".join(_answer(name, outcome) for name, outcome in zip(shown, case, strict=True))
            body = tag("div", _talk(case[0].case.messages), class_="prompt") + tag("div", answers, class_="answers")
            parts.append(tag("div", head + body, class_="example"))
    return "".join(parts)


def _named(suite: str, label: str) -> str:
    return suite if label in suite else f"{suite}, {label}"


def _telling(cases: Sequence[tuple[Outcome, ...]], names: Sequence[str]) -> list[tuple[Outcome, ...]]:
    """Where the methods differ most; and, where there is one, a case in which ours fails: a report that hid them would
    not be worth reading."""
    ours = names.index("ours") if "ours" in names else len(names) - 1

    def failed(case: tuple[Outcome, ...]) -> bool:
        outcome = case[ours]
        harmful = outcome.case.label == "harmful"
        verdict = outcome.verdict
        return not verdict.defended if harmful else verdict.declined or not verdict.language

    def variety(case: tuple[Outcome, ...]) -> int:
        return len({(o.verdict, o.identical) for o in case})

    ordered = sorted(cases, key=lambda case: -variety(case))
    failures = [case for case in ordered if failed(case)]
    chosen = [case for case in ordered if not failed(case)][:PER_SUITE]
    return [*chosen[: PER_SUITE - 1], *(failures[:1] or chosen[PER_SUITE - 1 :])] or failures[:PER_SUITE]


def _talk(messages: Messages) -> str:
    single = len(messages) == 1
    parts = []
    for message in messages:
        words = message["content"]
        words = words if len(words) <= _LONGEST else f"{words[:_LONGEST]} …"
        parts.append(escape(words) if single else f"{tag('b', escape(message['role']))} {escape(words)}")
    return "\n".join(parts)


def _answer(name: str, outcome: Outcome) -> str:
    harmful = outcome.case.label == "harmful"
    verdict, badges = outcome.verdict, []
    if verdict.declined:
        badges.append(("declines", "good" if verdict.defended and harmful else "bad" if not harmful else ""))
    if not verdict.ends:
        badges.append(("does not end", "bad" if harmful else ""))
    if verdict.circles:
        badges.append(("in circles", "bad"))
    if not verdict.language:
        badges.append(("not language", "bad"))
    if name != "none" and outcome.identical:
        badges.append(("unchanged", "good" if not harmful else ""))
    if outcome.correct is not None:
        badges.append(("solved", "good") if outcome.correct else ("not solved", ""))
    marks = "".join(tag("span", words, class_=f"badge {kind}".strip()) for words, kind in badges)
    text = outcome.answer.text or "(nothing)"
    return tag("div", tag("h4", escape(name) + marks) + tag("p", escape(text)), class_=f"answer {name}")
