"""Answers under a constraint without a model: random walks over its masks, among the tokens of a tiny model."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from llama_cpp import Llama

from finesteer_local.runtime import constraint
from finesteer_local.runtime.constraint import Compiled

LONGEST = 2000  # tokens
_HURRY = 60  # after so many, what closes comes first


class Walker:
    """Walks among the tokens of `llama`."""

    def __init__(self, llama: Llama) -> None:
        vocabulary = constraint._Vocabulary(llama)
        self.llama, self.texts = llama, vocabulary.tokens
        ends = np.zeros(len(self.texts), bool)
        ends[vocabulary.ends] = True
        self._ends = ends
        self._closes = np.array([text in (b'"', b"}", b"]") for text in self.texts])
        self._plain = np.array([text.isascii() and text.decode(errors="replace").isprintable() for text in self.texts])

    def walk(self, compiled: Compiled, seed: int) -> str | None:
        """A whole answer, or None where it did not end.

        Raises:
            PromptError: it became too complex.
        """
        return next((text for text in self._walk(compiled, random.Random(seed)) if text is not None), None)

    def _walk(self, compiled: Compiled, rng: random.Random) -> Iterator[str | None]:
        follower, found = compiled.begin(), b""
        for n in range(LONGEST):
            allowed = follower.allowed()
            ending, going_on = (allowed & self._ends).any(), allowed & ~self._ends
            if ending and (not going_on.any() or rng.random() < 0.3 or n > _HURRY):
                yield found.decode()
                return
            for wanted, share in ((self._closes, 0.9 if n > _HURRY else 0.05), (self._plain, 0.8)):
                if rng.random() < share and (going_on & wanted).any():
                    going_on = going_on & wanted
            token = int(rng.choice(np.flatnonzero(going_on)))
            follower.accept(token)
            found += self.texts[token]
        yield None
