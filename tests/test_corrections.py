"""Corrections: kept once a turn, listed, deleted, and a damaged file named."""

from __future__ import annotations

from pathlib import Path

import pytest

from finesteer_local import corrections
from finesteer_local.corrections import LEAVE, STEER, Correction
from finesteer_local.errors import DataError, UnknownNameError

MODEL = "ab" * 32


def correction(
    text: str = "what is this?", should: str = STEER, profile: str = "safety", model: str = MODEL
) -> Correction:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]
    return Correction(profile, model, messages, should, score=-1.5, threshold=0.25, model_path="/models/a.gguf")


def test_kept_and_read_again(home: Path) -> None:
    assert corrections.kept() == []
    first = corrections.keep(correction())
    second = corrections.keep(correction("and this, ü?", LEAVE, "truthful"))
    assert corrections.kept() == [first, second] and first.kept > 0
    assert (first.text, first.messages[0]["content"]) == ("what is this?", "be kind")
    assert corrections.kept("truthful") == [second] and corrections.kept("safety", "cd" * 32) == []
    assert corrections.file().is_relative_to(home / "data")


def test_the_same_turn_counts_once_and_the_last_word_holds() -> None:
    corrections.keep(correction())
    corrections.keep(correction("other"))
    corrections.keep(correction(should=LEAVE))
    assert [(each.text, each.should) for each in corrections.kept()] == [("other", STEER), ("what is this?", LEAVE)]
    corrections.keep(correction(model="cd" * 32))
    assert len(corrections.kept()) == 3


def test_deleted_by_id_or_its_beginning() -> None:
    first, second = corrections.keep(correction()), corrections.keep(correction("other"))
    assert corrections.delete([first.id[:6]]) == [first] and corrections.kept() == [second]
    for ids in (["zzz"], [""], [second.id, "zzz"]):
        with pytest.raises(UnknownNameError, match="lists them"):
            corrections.delete(ids)
    assert corrections.kept() == [second]
    assert corrections.delete_all() == 1 and corrections.kept() == [] and corrections.delete_all() == 0


def test_an_id_that_several_begin_with() -> None:
    known = [corrections.keep(correction(str(i))).id[0] for i in range(17)]  # two begin with the same of sixteen digits
    twice = next(digit for digit in known if known.count(digit) > 1)
    with pytest.raises(UnknownNameError, match="there are several corrections"):
        corrections.delete([twice])


@pytest.mark.parametrize(
    "line",
    [
        '{"profile": "safety"}',
        "[1]",
        "{",
        '{"profile": "a", "fingerprint": "b", "should": "perhaps", "messages": []}',
        '{"profile": "a", "fingerprint": "b", "should": "steer", "prompt": "c", "score": "d"}',
    ],
)
def test_a_damaged_file_names_its_line(line: str) -> None:
    corrections.keep(correction())
    with corrections.file().open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match="line 2"):
        corrections.kept()
    with pytest.raises(DataError, match="line 2"):
        corrections.keep(correction("other"))
    assert len(corrections.file().read_text(encoding="utf-8").splitlines()) == 2
