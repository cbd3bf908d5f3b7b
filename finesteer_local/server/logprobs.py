"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from finesteer_local.runtime.batch import TokenScore


def token_text(data: bytes) -> str:
    r"""A token as text; one that is part of a letter as OpenAI writes it, `bytes:\xe2\x80`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    """As a chat's choice holds them."""
    return {
        "content": [
            {
                **_token(score.text, score.logprob or 0.0),
                "top_logprobs": [_token(text, logprob) for _, text, logprob in score.top],
            }
            for score in scores
        ]
    }


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(text), "logprob": logprob, "bytes": list(text)}


class Offsets:
    """Where each token begins in a text, in letters, as the tokens come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._letters = 0

    def logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """As a completion's choice holds them."""
        offsets = []
        for score in scores:
            offsets.append(self._letters)
            self._letters += len(self._decoder.decode(score.text))
        return {
            "tokens": [token_text(score.text) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [_top(score) for score in scores],
            "text_offset": offsets,
        }


def _top(score: TokenScore) -> dict[str, float] | None:
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for _, text, logprob in score.top:
        found.setdefault(token_text(text), logprob)  # of tokens that read alike, the likelier
    return found
