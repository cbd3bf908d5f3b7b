"""Evaluation suites: prompts with the label that says what should happen.

Three kinds of rows, which may be mixed: a prompt that should be refused or answered (`label`), a maths problem
(`answer`, a number), and a question with true and false answers (`best`, `correct`, `wrong`), as TruthfulQA has them.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError, UnknownNameError
from finesteer_local.jsonl import Messages, is_text, messages_of, read_rows

LABELS = ("harmful", "benign")
BUILTIN = Path(__file__).with_name("builtin")
_TRUTHFULQA = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
_NUMBER = re.compile(r"(?<!\d)-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Choices:
    """A question's answers; `best` is one of the correct ones."""

    best: str
    correct: tuple[str, ...]
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """One prompt of a suite, as chat messages; `harmful` ones should be refused, `benign` ones answered.

    Attributes:
        kind, family, source: what is asked for, how it is wrapped, and where it comes from.
        answer: the number that a maths problem comes to.
        choices: the answers of a question that is scored by their log-probabilities, and not answered.
    """

    messages: Messages
    label: str = "benign"
    kind: str = ""
    family: str = ""
    source: str = ""
    answer: float | None = None
    choices: Choices | None = None

    @property
    def text(self) -> str:
        """The last message's words."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Suite:
    """A named list of cases."""

    name: str
    cases: list[Case]


def builtin_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in BUILTIN.glob("*.jsonl"))


def load_suites(names: Sequence[str | Path], limit: int | None = None) -> list[Suite]:
    """Read suites by path or built-in name; without names all built-in ones. `limit` as for `read_suite`.

    Raises:
        UnknownNameError: no such file and no such built-in suite.
        DataError: a suite cannot be used, or two have the same name.
    """
    builtin = builtin_suites()
    if not names and not builtin:
        raise DataError("no suite comes with this installation; name a file with --suite")
    paths = [_find(str(name), builtin) for name in names] or [BUILTIN / f"{name}.jsonl" for name in builtin]
    suites = [read_suite(path, limit) for path in paths]
    called = [suite.name for suite in suites]
    for name in called:
        if called.count(name) > 1:
            raise DataError(f"two suites are called {name!r}; rename a file")
    return suites


def _find(given: str, builtin: Sequence[str]) -> Path:
    path = Path(given).expanduser()
    if not path.exists() and given in builtin:
        return BUILTIN / f"{given}.jsonl"
    if not path.exists() and not path.suffix and path.name == given != "-":
        near = difflib.get_close_matches(given, builtin, 3, 0.0)
        raise UnknownNameError(f"unknown suite {given!r}; name a file, or one of: {', '.join(near) or 'none'}")
    return path


def read_suite(path: Path, limit: int | None = None) -> Suite:
    """Read a suite; at most `limit` rows, spread over the file.

    A JSONL file has `prompt` (or `messages`) and `label` a row; without a label a row is `benign`. A CSV file has
    TruthfulQA's columns.

    Raises:
        DataError: the file cannot be read, or a row cannot be used; the message names the line.
    """
    cases = list(_read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path))
    if not cases:
        raise DataError(f"{path} holds no cases")
    if limit and limit < len(cases):
        step = len(cases) / limit
        cases = [cases[int(i * step)] for i in range(limit)]
    return Suite(path.stem, cases)


def _read_jsonl(path: Path) -> Iterator[Case]:
    for where, row in read_rows(path):
        label = row.get("label", "benign")
        if label not in LABELS:
            raise DataError(f"{where}: label {label!r} is none of {', '.join(LABELS)}")
        yield Case(
            messages_of(row, where),
            label,
            kind=str(row.get("kind") or ""),
            family=str(row.get("family") or ""),
            source=str(row.get("source") or ""),
            answer=last_number(str(row.get("answer", ""))),
            choices=_choices(row, where) if "wrong" in row else None,
        )


def _choices(row: dict[str, Any], where: str) -> Choices:
    correct, wrong = row.get("correct", []), row["wrong"]
    best = row.get("best") or (correct[0] if isinstance(correct, list) and correct else None)
    for name, answers in (("correct", correct), ("wrong", wrong), ("best", [best])):
        if not isinstance(answers, list) or not all(map(is_text, answers)):
            raise DataError(f"{where}: the field {name!r} must hold answers")
    return _checked(str(best), correct, wrong, where)


def _checked(best: str, correct: Sequence[str], wrong: Sequence[str], where: str) -> Choices:
    best = sentence(best)
    right = dict.fromkeys([best, *map(sentence, correct)])
    false = dict.fromkeys(map(sentence, wrong))
    if not false:
        raise DataError(f"{where}: a question needs at least one wrong answer")
    # TruthfulQA has a few answers in both lists; its own scoring counts them in both.
    return Choices(best, tuple(right), tuple(false))


def _read_csv(path: Path) -> Iterator[Case]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            question, best, correct, wrong = (row.get(column) for column in _TRUTHFULQA)
            if not (is_text(question) and is_text(best) and wrong):
                raise DataError(f"{where}: expected TruthfulQA's columns {', '.join(_TRUTHFULQA)}")
            yield Case(
                [{"role": "user", "content": str(question).strip()}],
                kind=str(row.get("Category") or ""),
                choices=_checked(str(best), _answers(correct), _answers(wrong), where),
            )
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _answers(text: str | None) -> list[str]:
    return [answer for answer in (text or "").split(";") if answer.strip()]


def sentence(answer: str) -> str:
    """An answer with its full stop, as TruthfulQA's own scoring has them (arXiv 2109.07958, `split_multi_answer`)."""
    answer = answer.strip()
    return answer if answer.endswith(".") else f"{answer}."


def last_number(text: str) -> float | None:
    """The last number in a text, by which maths answers are judged; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
