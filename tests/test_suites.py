"""Evaluation suites as files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError, UnknownNameError
from finesteer_local.evaluation import suites as module
from finesteer_local.evaluation.suites import (
    Case,
    Choices,
    builtin_suites,
    last_number,
    load_suites,
    read_suite,
    sentence,
)

USER = {"role": "user", "content": "hello"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "some suite.jsonl"


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_cases(file: Path) -> None:
    write(
        file,
        {"prompt": "hello", "label": "harmful", "source": "x"},
        {"messages": [{"role": "system", "content": "Be brief."}, USER], "label": "benign"},
        {"prompt": "hello"},
    )
    suite = read_suite(file)
    assert suite.name == "some suite"
    assert suite.cases == [
        Case([USER], "harmful", source="x"),
        Case([{"role": "system", "content": "Be brief."}, USER], "benign"),
        Case([USER], "benign"),
    ]


@pytest.mark.parametrize("label", ["Harmful", "", None, 1, True, ["harmful"]], ids=json.dumps)
def test_an_unknown_label_names_the_line(file: Path, label: object) -> None:
    with pytest.raises(DataError, match=r"some suite\.jsonl, line 2: label .* is none of harmful, benign"):
        read_suite(write(file, {"prompt": "hello"}, {"prompt": "hello", "label": label}))


@pytest.mark.parametrize(
    "row", [{}, {"prompt": ""}, {"prompt": 3}, {"messages": []}, {"text": "hello"}], ids=json.dumps
)
def test_no_prompt_names_the_line(file: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"some suite\.jsonl, line 1: the field 'prompt' is missing or empty"):
        read_suite(write(file, row))


def test_nothing_in_it(file: Path) -> None:
    file.write_text("\n\n")
    with pytest.raises(DataError, match=r"some suite\.jsonl holds no cases"):
        read_suite(file)
    with pytest.raises(DataError, match=r"cannot read .*absent\.jsonl"):
        read_suite(file.with_name("absent.jsonl"))


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (10, range(10)), (99, range(10))],
)
def test_a_limit_spreads_over_the_file(file: Path, limit: int, kept: list[int]) -> None:
    write(file, *({"prompt": str(i)} for i in range(10)))
    assert [int(case.messages[0]["content"]) for case in read_suite(file, limit).cases] == list(kept)
    assert len(read_suite(file, None).cases) == 10


def test_a_limit_does_not_hide_a_bad_line(file: Path) -> None:
    with pytest.raises(DataError, match="line 3"):
        read_suite(write(file, {"prompt": "a"}, {"prompt": "b"}, {"prompt": ""}), 1)


# --- what a row may hold besides


def test_kind_and_family(file: Path) -> None:
    [case] = read_suite(write(file, {"prompt": "hello", "kind": "fraud", "family": "role play"})).cases
    assert (case.kind, case.family, case.text) == ("fraud", "role play", "hello")


@pytest.mark.parametrize(
    ("answer", "number"),
    [("72", 72), (72, 72), (0.5, 0.5), ("1,250", 1250), ("16 - 3 = 13\n#### 13", 13), ("none", None), ("", None)],
)
def test_maths(file: Path, answer: object, number: float | None) -> None:
    [case] = read_suite(write(file, {"prompt": "how many?", "answer": answer})).cases
    assert case.answer == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she has 18 left.", 18),
        ("18", 18),
        ("It costs $1,234.50.", 1234.5),
        ("12 - 5 = -7", -7),
        ("He pays 3, then 4, and so 7 in all. That is it!", 7),
        ("1. First, add.\n2. Then 5 x 3 = 15.", 15),
        (".5 of it", 0.5),
        ("in 5-10 days", 10),
        ("nothing", None),
        ("", None),
    ],
)
def test_the_last_number_counts(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_questions(file: Path) -> None:
    row = {"prompt": "What?", "best": "A", "correct": ["A", "B."], "wrong": ["C", "D."]}
    [case] = read_suite(write(file, row)).cases
    assert case.choices == Choices("A.", ("A.", "B."), ("C.", "D."))
    [case] = read_suite(write(file, {"prompt": "What?", "correct": ["B", "A"], "wrong": ["C"]})).cases
    assert case.choices == Choices("B.", ("B.", "A."), ("C.",))  # the first is the best
    [case] = read_suite(write(file, {"prompt": "What?", "best": "A", "correct": ["B"], "wrong": ["C", "C."]})).cases
    assert case.choices == Choices("A.", ("A.", "B."), ("C.",))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"best": "A", "correct": ["A"], "wrong": []}, "at least one wrong answer"),
        ({"best": "A", "correct": "A", "wrong": ["B"]}, "'correct' must hold answers"),
        ({"best": "A", "correct": ["A"], "wrong": [""]}, "'wrong' must hold answers"),
        ({"best": "A", "correct": ["A"], "wrong": "B"}, "'wrong' must hold answers"),
        ({"correct": [], "wrong": ["B"]}, "'best' must hold answers"),
        ({"best": 3, "correct": ["A"], "wrong": ["B"]}, "'best' must hold answers"),
    ],
)
def test_bad_questions_name_the_line(file: Path, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=f"line 2: .*{what}"):
        read_suite(write(file, {"prompt": "fine"}, {"prompt": "What?", **row}))


def test_sentences() -> None:
    assert [sentence(text) for text in (" yes ", "yes.", "yes?")] == ["yes.", "yes.", "yes?."]


# --- TruthfulQA's own file

HEAD = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers\n"


def test_truthfulqa(tmp_path: Path) -> None:
    path = tmp_path / "truthfulqa.csv"
    path.write_text(
        HEAD
        + 'Adversarial,Myths,"Why, then?",Because,Because; It just is;,"No idea; Never, ever."\n'
        + 'Adversarial,Law,"Is ""it"" so?\nReally?",Yes.,No; Yes,Yes\n',
        encoding="utf-8-sig",
    )
    one, two = read_suite(path).cases
    assert one.text == "Why, then?" and one.kind == "Myths" and one.label == "benign"
    assert one.choices == Choices("Because.", ("Because.", "It just is."), ("No idea.", "Never, ever."))
    assert two.text == 'Is "it" so?\nReally?'
    assert two.choices == Choices("Yes.", ("Yes.", "No."), ("Yes.",))  # in both lists, as TruthfulQA has some
    assert len(read_suite(path, 1).cases) == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Question,Answer\nWhy?,Because\n", "line 2: expected TruthfulQA's columns"),
        (HEAD + "a,b,Why?,,Yes,No\n", "line 2: expected"),
        (HEAD + "a,b,Why?,Yes,Yes,\n", "line 2: expected"),
        (HEAD + "a,b,Why?,Yes,Yes,;\n", "line 2: a question needs at least one wrong answer"),
        (HEAD + "a,b,Why?\n", "line 2: expected"),
        (HEAD, "holds no cases"),
        ("", "holds no cases"),
    ],
)
def test_a_bad_csv(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "some.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=what):
        read_suite(path)


def test_a_csv_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent\.csv"):
        read_suite(tmp_path / "absent.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.csv is not UTF-8 text"):
        read_suite(tmp_path / "bytes.csv")


# --- names


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "builtin"
    folder.mkdir()
    for name in ("harmful", "benign"):
        write(folder / f"{name}.jsonl", {"prompt": f"a {name} one", "label": name})
    monkeypatch.setattr(module, "BUILTIN", folder)
    return folder


def test_suites_by_name(builtin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert builtin_suites() == ["benign", "harmful"]
    assert [suite.name for suite in load_suites([])] == ["benign", "harmful"]
    assert [suite.cases[0].text for suite in load_suites(["harmful"])] == ["a harmful one"]
    mine = write(tmp_path / "mine.jsonl", *({"prompt": str(i)} for i in range(9)))
    assert [(s.name, len(s.cases)) for s in load_suites([mine, "benign"], 3)] == [("mine", 3), ("benign", 1)]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "harmful", {"prompt": "a file of that name"})
    assert load_suites(["harmful"])[0].cases[0].text == "a file of that name"


def test_unknown_names(builtin: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown suite 'harmfull'; .*one of: harmful, benign"):
        load_suites(["harmfull"])
    for path in ("harmfull.jsonl", "./harmfull"):
        with pytest.raises(DataError, match=r"cannot read .*harmfull"):
            load_suites([path])


def test_two_of_one_name(builtin: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    twin = write(tmp_path / "elsewhere" / "benign.jsonl", {"prompt": "hello"})
    with pytest.raises(DataError, match="two suites are called 'benign'"):
        load_suites(["benign", twin])


def test_nothing_built_in(builtin: Path) -> None:
    for path in builtin.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="name a file with --suite"):
        load_suites([])


def test_the_built_in_suites_can_be_read() -> None:
    suites = {suite.name: suite.cases for suite in load_suites([])}
    assert list(suites) == builtin_suites() and all(suites.values())
    for name in ("plain", "foreign"):
        assert {case.source for case in suites[name]} == {name}
        assert all(case.kind for case in suites[name])
