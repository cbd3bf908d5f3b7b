"""Deeds in the words in which people ask for them: "forge a passport" becomes "how do i forge a passport".

A gate must know many subjects, and each in any form. Rows that bring the subject alone (`do`: what follows "how do I",
`write`: what follows "write me") are put into phrasings, the same ones for requests of both sides, so that no form
gives a request away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError
from finesteer_local.jsonl import is_text, read_rows
from finesteer_local.training.data import Prompt, drawn_by, prompt_of

DEEDS = ("do", "write")
_SLOT = re.compile(r"\{(\w*)\}")


class Phrasings:
    """Templates with the place of a deed. A deed's own text decides which is its: what else a recipe holds changes
    neither the prompt nor the hidden states that are kept for it."""

    def __init__(self, templates: Sequence[str]) -> None:
        """
        Args:
            templates: each with `{do}` or `{write}` in it, once.

        Raises:
            DataError: a template has another slot, none or several.
        """
        self._of_deed: dict[str, list[str]] = {deed: [] for deed in DEEDS}
        for template in templates:
            slots = _SLOT.findall(template)
            if len(slots) != 1 or slots[0] not in DEEDS:
                raise DataError(f"the phrasing {template[:60]!r} must have one of {{do}} and {{write}}, once")
            self._of_deed[slots[0]].append(template)

    def phrased(self, deed: str, text: str) -> str:
        """The request for a deed; raises `DataError` where no phrasing has a place for it."""
        templates = self._of_deed[deed]
        if not templates:
            raise DataError(f"no phrasing of the recipe has a place for {deed!r}")
        return templates[drawn_by(text) % len(templates)].replace(f"{{{deed}}}", text)


def read_requests(path: Path, phrasings: Phrasings) -> list[Prompt]:
    """Prompts of a JSONL file whose rows may have a deed in place of a prompt; raises `DataError` naming the line."""
    return [prompt_of(_asked(row, where, phrasings), where) for where, row in read_rows(path)]


def _asked(row: dict[str, Any], where: str, phrasings: Phrasings) -> dict[str, Any]:
    found = [field for field in (*DEEDS, "prompt", "messages") if field in row]
    if len(found) > 1:
        raise DataError(f"{where}: give only one of {', '.join(map(repr, found))}")
    if not found or found[0] not in DEEDS:
        return row
    deed = found[0]
    if not is_text(row[deed]):
        raise DataError(f"{where}: the field {deed!r} is missing or empty")
    try:
        return {**row, "prompt": phrasings.phrased(deed, row[deed])}
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
