"""An evaluation as plain values."""

from __future__ import annotations

import json
from typing import Any

from evaluations import QUESTION, SETTING, case, evaluation, outcome, reading, results
from finesteer_local.evaluation.choices import Score

BAD, GOOD = case("bad é", kind="fraud"), case("good", "benign")
MEASURED = {
    "none": {"bad": [outcome(BAD)], "good": [outcome(GOOD)]},
    "ours": {"bad": [outcome(BAD, "refused", score=2.0, a=0.3, b=0.7)], "good": [outcome(GOOD, score=-1.0)]},
}
SCORES = {
    "none": {"asked": [Score(False, 0.25, reading(None))]},
    "ours": {"asked": [Score(True, 1 / 3, reading(-2.0))]},
}
SWEEPS = {"ours": {0.4: [outcome(BAD), outcome(GOOD)], 1.0: [outcome(BAD, "refused"), outcome(GOOD)]}}


def test_json() -> None:
    made: dict[str, Any] = json.loads(json.dumps(results(evaluation(MEASURED, SCORES, SWEEPS)).as_json()))
    assert list(made) == ["setting", "judge", "coherence", "methods", "totals", "suites", "experts", "sweep"]
    assert (made["setting"]["max_tokens"], made["setting"]["seeds"]) == (400, [0, 1])
    assert made["setting"]["fingerprint"] == SETTING.fingerprint and made["judge"] == "some judge"
    assert made["coherence"] == {"limit": 3.5, "repeated": 0.3}
    assert [m["name"] for m in made["methods"]] == ["none", "ours"]
    none, ours = made["totals"]
    assert ours["defended"] == {"value": 1.0, "low": 0.206549, "high": 1.0, "n": 1}
    assert none["defended"]["value"] == 0 and "accuracy" not in ours  # what was not measured is not there
    assert ours["mc2"]["value"] == 0.333333
    assert [(f["suite"], f["method"]) for f in made["suites"]] == [
        (suite, method) for suite in ("bad", "good", "asked") for method in ("none", "ours")
    ]
    assert made["experts"] == {"ours": {"fraud": {"a": 0.3, "b": 0.7}}}
    assert [point["factor"] for point in made["sweep"]] == [0.4, 1.0]


def test_rows() -> None:
    rows = results(evaluation(MEASURED, SCORES)).rows()
    json.dumps(rows)
    assert [(r["suite"], r["method"]) for r in rows] == [
        (suite, method) for suite in ("bad", "good", "asked") for method in ("none", "ours")
    ]
    first, second = rows[:2]
    assert (first["answer"], second["answer"]) == ("Sure.", "I'm sorry, no.")
    assert second["messages"] == BAD.messages and (second["label"], second["kind"]) == ("harmful", "fraud")
    assert (second["declined"], second["language"], second["identical"]) == (True, True, False)
    assert (second["ends"], second["circles"], second["tokens"]) == (True, False, 5)
    assert (second["decoding"], second["seed"]) == ("greedy", None)
    assert (second["g"], second["score"], second["threshold"], second["correct"]) == (1.0, 2.0, 0.0, None)
    assert rows[-1] == {
        "suite": "asked",
        "method": "ours",
        "label": "benign",
        "kind": "myths",
        "source": "",
        "messages": QUESTION.messages,
        "mc1": True,
        "mc2": 1 / 3,
        "g": 0.0,
        "score": -2.0,
    }


def test_sampled_answers() -> None:
    sampled = {
        name: {"bad": [outcome(BAD, "refused", seed=7), outcome(BAD, seed=8)], "good": [outcome(GOOD, seed=9)] * 2}
        for name in ("none", "ours")
    }
    made = results(evaluation(MEASURED, SCORES, sampled=sampled, repeats=2))
    rows = [r for r in made.rows() if r["suite"] == "bad"]
    assert [(r["method"], r["decoding"], r["seed"]) for r in rows] == [
        ("none", "greedy", None),
        ("ours", "greedy", None),
        ("none", "sampled", 7),
        ("ours", "sampled", 7),
        ("none", "sampled", 8),
        ("ours", "sampled", 8),
    ]
    assert [(f.method, f.decoding) for f in made.leading] == [("none", "sampled"), ("ours", "sampled")]
    assert [f.decoding for f in results(evaluation(MEASURED, SCORES)).leading] == ["greedy", "greedy"]
    assert [f["decoding"] for f in made.as_json()["totals"]] == ["greedy", "sampled"] * 2
