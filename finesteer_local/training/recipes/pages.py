"""Requests in pages of ordinary text: the same pages around requests that must be declined and around harmless ones.

Pages come in groups that begin with the same text, which a harvest then reads once (runtime/packing.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import numpy as np

from finesteer_local.training.data import PAGE, Prompt, in_drawn_order

PLACES = ("beginning", "middle", "end")
WORDS = (100, 160, 240, 360, 540, 800)
"""Lengths of pages; several thousand tokens are the same windows once more (steering/gate.py)."""
GROUPS = 2  # of each place and length
IN_GROUP = {"beginning": 3, "middle": 5, "end": 16}
"""Requests of each label in a group. What stands behind a request is read once for each, so most stand at the end."""
_MAX_REQUEST = 200  # letters
_SLOT = re.compile(r"\{(page|rest|request)\}")


@dataclass(frozen=True)
class Document:
    """A text, cut into paragraphs."""

    name: str
    paragraphs: tuple[str, ...]


class Frame(NamedTuple):
    """How a request is put into a page: a template with the slots {page}, {request} and, in the middle, {rest}."""

    template: str
    place: str

    @property
    def problem(self) -> str:
        """What is wrong with its slots; "" where nothing is."""
        wanted = ["page", "request", *(["rest"] if self.place == "middle" else [])]
        if sorted(_SLOT.findall(self.template)) == wanted:
            return ""
        return f"must have each of these once, and no other: {', '.join(f'{{{slot}}}' for slot in wanted)}"


def pages(
    documents: Sequence[Document],
    frames: Sequence[Frame],
    questions: Sequence[str],
    positive: Sequence[Prompt],
    contrast: Sequence[Prompt],
    rng: np.random.Generator,
) -> tuple[list[Prompt], list[Prompt]]:
    """Pages with a request that needs intervention, and as many and more with a harmless one, a question about the
    text, or none.

    Args:
        documents: the ordinary text; a page's family is the document with which it begins.
        frames: at least one of each place.
        questions: about a text, whichever it is.
        positive, contrast: the prompts whose requests are put into pages, those that `fits`: at least one of each.
        rng: deals out everything but the prompts, which their own texts draw: a recipe with more of them puts the most
            into the same pages, and hidden states that were kept for these serve it.
    """
    harmful, harmless = (cycle(in_drawn_order(list(filter(fits, each)), PAGE)) for each in (positive, contrast))
    asked = _dealer([Prompt([{"role": "user", "content": text}], "about_the_text") for text in questions], rng)
    of_place = {place: _dealer([frame for frame in frames if frame.place == place], rng) for place in PLACES}
    starts = _dealer(range(len(documents)), rng)
    inside: list[Prompt] = []
    outside: list[Prompt] = []
    for words in (words for words in WORDS for _ in range(GROUPS)):
        for place, n in IN_GROUP.items():
            start = next(starts)
            text = _text(documents, start, words)
            # The first paragraphs stand before a request in the middle, the others behind it.
            cut = len(text)
            if place == "middle":
                cut = max(1, min(round(len(text) * rng.uniform(0.2, 0.8)), len(text) - 1))
            page, rest = "\n\n".join(text[:cut]), "\n\n".join(text[cut:])
            family, frame = f"page {documents[start].name}", next(of_place[place])
            requests = [(inside, next(harmful)) for _ in range(n)] + [(outside, next(harmless)) for _ in range(n)]
            for label, request in [*requests, (outside, next(asked))]:
                slots = {"page": page, "rest": rest, "request": request.text}
                label.append(_prompt(_filled(frame.template, slots), request.kind, family, request.text))
            if place == "end":
                outside.append(_prompt(page, "no_request", family, ""))
    return inside, outside


def fits(prompt: Prompt) -> bool:
    """Whether a prompt's request may stand in a page: one short message without a dress of its own."""
    return not prompt.family and len(prompt.messages) == 1 and len(prompt.text) <= _MAX_REQUEST


def _dealer(items: Sequence, rng: np.random.Generator) -> Iterator:  # type: ignore[type-arg]
    """The items in a random order, shuffled anew whenever all are dealt."""
    while True:
        for i in rng.permutation(len(items)):
            yield items[i]


def _text(documents: Sequence[Document], start: int, n_words: int) -> list[str]:
    """Paragraphs of `n_words` words or so, of the document at `start` and of those that follow it."""
    found: list[str] = []
    missing = n_words
    for i in range(len(documents)):
        for paragraph in documents[(start + i) % len(documents)].paragraphs:
            if missing <= 0:
                return found
            found.append(paragraph)
            missing -= max(len(paragraph.split()), len(paragraph) // 6)  # Chinese has no spaces
    return found


def _filled(template: str, slots: dict[str, str]) -> str:
    return _SLOT.sub(lambda slot: slots[slot[1]], template).strip()


def _prompt(text: str, kind: str, family: str, request: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}], kind, family, PAGE, request)
