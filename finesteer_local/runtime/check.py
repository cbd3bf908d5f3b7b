"""Finds out what kind of request a prompt is, without answering it, and what an answer that was given shows.

The pass stops after the last layer that a gate reads. An answer is read after its prompt, in passes of its own: what is
found of the request is the same, bit for bit, as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesteer_local.errors import ContextLengthError, SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime.prompt import Message
from finesteer_local.runtime.steered_request import Steer, SteeredRequest
from finesteer_local.runtime.trainable import ChatModel
from finesteer_local.steering import OFF, Decision, Kind, likely
from finesteer_local.steering.kinds import Probabilities

if TYPE_CHECKING:
    from finesteer_local.runtime.tapped import TappedLlama  # prompts are made without llama.cpp's context


@dataclass(frozen=True)
class Check:
    """What the profiles found.

    Attributes:
        profiles, decisions: of those that were asked, in their order.
        n_tokens: of the prompt.
        n_answer: of what was answered, where that was read.
    """

    profiles: tuple[Profile, ...]
    decisions: tuple[Decision, ...]
    n_tokens: int
    n_answer: int = 0

    @property
    def flagged(self) -> bool:
        """Whether a gate on the request opened, and its profile's policy does not leave such requests alone, or one
        on the answer did."""
        return any(decision.flagged for decision in self.decisions)

    @property
    def kinds(self) -> Probabilities:
        """(kind, probability) of the request, likeliest first; of several profiles that know a kind, the greatest
        counts. Gates on answers know no kinds."""
        found: dict[str, float] = {}
        for decision in self.decisions:
            for name, probability in decision.kinds:
                found[name] = max(probability, found.get(name, 0.0))
        return tuple(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def likely_kinds(self) -> tuple[str, ...]:
        """What a flagged request counts as: the likeliest kind, and others from .5 on; () where it is not flagged.

        That holds for one whose answer alone showed what it is, improbable as its likeliest kind may be.
        """
        return likely(self.kinds) if self.flagged else ()

    def about(self, name: str) -> Kind:
        """A kind's words and categories; raises `KeyError`."""
        known = {kind.name: kind for profile in self.profiles if profile.kinds for kind in profile.kinds.kinds}
        return known[name]

    def openai(self) -> dict[str, float]:
        """Scores of the categories of OpenAI's moderation API that the kinds belong to: each one's likeliest kind."""
        return self._categories(lambda kind: kind.openai)

    def mlcommons(self) -> dict[str, float]:
        """As `openai`, for the hazard categories of MLCommons' AILuminate."""
        return self._categories(lambda kind: kind.mlcommons)

    def _categories(self, of: Callable[[Kind], tuple[str, ...]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, probability in self.kinds:
            for category in of(self.about(name)):
                found[category] = max(probability, found.get(category, 0.0))
        return found

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "flagged": self.flagged,
            "likely_kinds": list(self.likely_kinds),
            "kinds": dict(self.kinds),
            "openai": self.openai(),
            "mlcommons": self.mlcommons(),
            "decisions": [p.decision_json(d) for p, d in zip(self.profiles, self.decisions, strict=True)],
            "usage": {"prompt_tokens": self.n_tokens, "completion_tokens": self.n_answer},
        }


def asked_for(prompt: str | Sequence[Message]) -> list[Message]:
    """The request that is checked: a conversation up to its last user message; a text is one.

    Raises:
        SteeringError: nobody asks for anything.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    last = max((i for i, message in enumerate(prompt) if message.get("role") == "user"), default=None)
    if last is None:
        raise SteeringError("the conversation has no message of the role 'user'; there is nothing to check")
    return list(prompt[: last + 1])


def answered(llama: ChatModel, prompt: str | Sequence[Message], steer: Iterable[Steer]) -> list[int]:
    """Tokens of what was answered to that request, as they would follow its prompt.

    These are the words of the assistant's messages after the last user message, where the conversation ends with such
    a one: neither the calls of tools in between nor their results. There are none where no profile reads answers.
    """
    if isinstance(prompt, str) or not prompt or prompt[-1].get("role") != "assistant":
        return []
    if all(one.effective_on_answer == OFF for one in steer):
        return []
    given = prompt[len(asked_for(prompt)) :]
    said = [_words(message.get("content")) for message in given if message.get("role") == "assistant"]
    text = "\n\n".join(words for words in said if words)
    return llama.tokenize(text.encode("utf-8", "replace"), add_bos=False, special=False) if text else []


def _words(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part.get("text") or "") for part in content)


def check_room(n_prompt: int, n_answer: int, n_ctx: int) -> None:
    """Raise `ContextLengthError` where a prompt, or with it what was answered, does not fit the context."""
    if n_prompt >= n_ctx or n_prompt + n_answer > n_ctx:
        raise ContextLengthError(n_prompt, n_ctx, n_answer=n_answer)


def read_through(llama: TappedLlama, request: SteeredRequest) -> None:
    """Let the gates read a request and its answer, in the empty cache of `llama`.

    Raises:
        SteeringError: a hidden state is not finite, or llama.cpp did not show what the profiles need.
    """
    try:
        request.begin(0, steers=False)
        llama.tap.arm(request.handlers)
        llama.decode_rows(request.tokens, 0)
        request.decided()
        if request.given.tokens:
            llama.tap.arm(request.given.handlers)
            llama.decode_rows(request.given.tokens, request.n_prompt)
            request.given.check()
    finally:
        llama.tap.disarm()


def checking(steer: Iterable[Steer]) -> tuple[Steer, ...]:
    """Those of the profiles that tell what a request is: the ones with kinds or, where none has any, all.

    Raises:
        SteeringError: there is none.
    """
    steer = tuple(steer)
    if not steer:
        raise SteeringError("there is no profile to check with; name one, such as safety")
    return tuple(one for one in steer if one.profile.kinds) or steer
