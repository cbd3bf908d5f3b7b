"""What of an answer was shown, and what is held back because it may yet be taken back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from finesteer_local.runtime.batch.answer import Piece, TokenScore
from finesteer_local.runtime.batch.text import AnswerText

_Held = tuple[bytes, TokenScore | None]


class Shown:
    """An answer's tokens on their way out.

    Attributes:
        n_tokens: those that have gone out, or are on their way and cannot be taken back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._text = AnswerText(stop)
        self._all = AnswerText(stop)  # with what is held back
        self._held: deque[_Held] = deque()
        self._scores: list[TokenScore] = []  # of tokens that no piece has told yet
        self.n_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether the answer has come to a stop word."""
        return self._all.stopped_by is not None

    def add(self, text: bytes, score: TokenScore | None) -> None:
        """The answer's next token."""
        self._held.append((text, score))
        self._all.add(text)

    def piece(self, n_held: int) -> Piece | None:
        """What can be shown now, all tokens but the last `n_held`, if that is anything."""
        text, n_told = self._let_out(n_held)
        if not text:
            return None
        scores, self._scores = tuple(self._scores[:n_told]), self._scores[n_told:]
        return Piece(text, scores)

    def last(self, score: TokenScore | None = None) -> Piece | None:
        """The rest, once no further token comes, if that is anything; `score` is that of the token that ends it."""
        text, n_told = self._let_out(0)
        text += self._text.end()
        scores = self._scores[:n_told]
        if self._text.stopped_by is None:
            scores = [*self._scores, *([score] if score else ())]
        return Piece(text, tuple(scores)) if text or scores else None

    def _let_out(self, n_held: int) -> tuple[str, int]:
        """The text that can be shown, and how many scores belong to what was shown."""
        text, n_told = "", 0
        while len(self._held) > n_held and self._text.stopped_by is None:
            piece, score = self._held.popleft()
            self.n_tokens += 1
            if score is not None:
                self._scores.append(score)
            if shown := self._text.add(piece):
                text, n_told = text + shown, len(self._scores)
        return text, n_told

    def cut(self, texts: Sequence[bytes]) -> None:
        """Take back all but the tokens with these texts, at least those that have gone out."""
        while len(self._held) > len(texts) - self.n_tokens:
            self._held.pop()
        self._all = AnswerText(self._stop)
        for text in texts:
            self._all.add(text)
