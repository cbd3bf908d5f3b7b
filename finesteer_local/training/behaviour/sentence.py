"""Reads a behaviour's sentence: what is done, and where it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from finesteer_local.errors import DataError

MAX_LETTERS = 400
_EXCEPT = re.compile(r"[,;:]?\s+\b(?:but not|but|except that|except|unless|other than)\b\s+", re.IGNORECASE)
_WHEN = re.compile(
    r"[,;:]?\s+\b((?:only\s+)?(?:when|whenever|if|where|as soon as)|only\s+(?:for|in|with|about|on))\b\s+",
    re.IGNORECASE,
)
_FIRST = re.compile(r"^(?:when|whenever|if)\s+(.+?),\s*(.+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Behaviour:
    """A rule for answers.

    Attributes:
        sentence: as the user gave it.
        what: what the assistant does, a verb in the third person first: "answers briefly".
        when: where the rule holds, "when the user complains"; "" where it holds for everything.
        exception: where it does not hold although it would, "never shortens code"; "" where there is none.
    """

    sentence: str
    what: str
    when: str = ""
    exception: str = ""

    @property
    def selective(self) -> bool:
        """Whether there is anything that must stay untouched, and so anything for a gate to tell apart."""
        return bool(self.when or self.exception)


def read_sentence(text: str) -> Behaviour:
    """The behaviour that a sentence asks for.

    It is cut at the words that people limit a rule by: "but", "except", "unless" before an exception; "when", "if",
    "only for" before where it holds.

    Raises:
        DataError: it is empty, too long, or says nothing that is done.
    """
    sentence = " ".join(text.split()).strip(" .")
    if not sentence:
        raise DataError("the behaviour is empty; say in a sentence what the answers should be like")
    if len(sentence) > MAX_LETTERS:
        raise DataError(f"the behaviour has {len(sentence)} letters; say it in one sentence of {MAX_LETTERS} at most")
    rest, when = sentence, ""
    if turned := _FIRST.match(rest):
        when, rest = f"when {turned[1]}", turned[2]
    rest, exception = _cut(_EXCEPT, rest)
    if not when:
        found = _WHEN.search(rest)
        if found:
            when, rest = f"{found[1].lower()} {rest[found.end() :]}", rest[: found.start()]
    what = re.sub(r"^(?:it|the (?:assistant|model|answer)|please)\s+", "", rest.strip(" ,;:"), flags=re.IGNORECASE)
    if not what:
        raise DataError(f"{sentence!r} says when, but not what; begin with what the answers should do")
    return Behaviour(sentence, what[0].lower() + what[1:], when.strip(), exception.strip(" ,;:"))


def _cut(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    """What stands before the first match, and what stands behind it; "" without one."""
    found = pattern.search(text)
    return (text[: found.start()], text[found.end() :]) if found else (text, "")
