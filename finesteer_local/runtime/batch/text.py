"""From tokens to text that may be shown: whole letters, and nothing that may yet become a stop word."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class AnswerText:
    """The text of one answer, token by token.

    Bytes that are not UTF-8 are left out, as llama-cpp-python leaves them out. Where several stop words end with the
    same token, the one that begins first counts.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._held = ""
        self.stopped_by: str | None = None

    def add(self, piece: bytes) -> str:
        """Append one token's bytes; returns what can be shown now. After a stop word nothing more is to come."""
        self._held += self._decoder.decode(piece)
        found = [(at, word) for word in self._stop if (at := self._held.find(word)) >= 0]
        if found:
            at, self.stopped_by = min(found, key=lambda pair: pair[0])
            shown, self._held = self._held[:at], ""
            return shown
        n_held = max((_overlap(self._held, word) for word in self._stop), default=0)
        cut = len(self._held) - n_held
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """What was held back, once no further token comes."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, word: str) -> int:
    """Length of the longest beginning of `word`, not all of it, that `text` ends with."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
