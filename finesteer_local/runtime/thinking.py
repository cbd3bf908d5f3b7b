"""The thoughts that a reasoning model writes before its answer: where they begin and where they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TAGS = (
    (b"<think>", b"</think>"),  # DeepSeek R1, Qwen3, SmolLM3, GLM and most others
    (b"[THINK]", b"[/THINK]"),  # Magistral
    (b"<|channel|>analysis<|message|>", b"<|channel|>final<|message|>"),  # gpt-oss
)
"""What opens and what closes thoughts."""


class Thinking:
    """Follows an answer, token by token, while it may be thinking.

    Only thoughts that begin the answer count, or that the prompt has opened: a tag further on is the answer's own text.

    Args:
        opened: the prompt ends inside thoughts.

    Attributes:
        open: whether the tokens so far end inside thoughts. False until an opening tag is there in full: what is not
            known to be thoughts is treated as answer.
    """

    def __init__(self, opened: bool) -> None:
        self._opened = opened
        self._pieces: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self.open = self._opened
        self._closing = tuple(closing for _, closing in TAGS) if self._opened else ()
        self._done = False
        self._tail = b""

    def add(self, piece: bytes) -> None:
        """The answer's next token, as text; special tokens have theirs."""
        self._pieces.append(piece)
        self._follow(piece)

    def cut(self, n_tokens: int) -> None:
        """Forget all tokens but the first `n_tokens`, as when guessed ones were wrong."""
        if n_tokens < len(self._pieces):
            del self._pieces[n_tokens:]
            self._begin()
            for piece in self._pieces:
                self._follow(piece)

    def _follow(self, piece: bytes) -> None:
        if self._done:
            return
        self._tail += piece
        if not self.open:
            start = self._tail.lstrip()
            found = [(opening, closing) for opening, closing in TAGS if start.startswith(opening)]
            if found:
                [(opening, closing)] = found
                self.open, self._closing, self._tail = True, (closing,), start[len(opening) :]
            elif not any(opening.startswith(start) for opening, _ in TAGS):
                self._done = True
                return
        if self.open:
            if any(closing in self._tail for closing in self._closing):
                self.open, self._done = False, True
            longest = max(map(len, self._closing))
            self._tail = self._tail[-longest:]


def opened_at(
    tokens: Sequence[int], text_of: Callable[[int], bytes], first: int = 0, *, raw: bool = False
) -> int | None:
    """Index of the token where the thoughts begin in which a prompt ends; None where it does not.

    Args:
        tokens: of the prompt.
        text_of: a token's text, that of special ones too.
        first: tokens before this one are a conversation's messages, and do not count.
        raw: the prompt was not made by a template: an opening tag counts only at its very end.
    """
    pieces = [text_of(token) for token in tokens[first:]]
    text = b"".join(pieces)
    for opening, closing in TAGS:
        at = text.rfind(opening)
        if at >= 0 and closing not in text[at:] and not (raw and text[at:].strip() != opening):
            end = 0
            for i, piece in enumerate(pieces):
                end += len(piece)
                if end > at:
                    return first + i
    return None
