"""The state of a chat and what changes it; nothing here reads the keyboard."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesteer_local.cli._answers import INTERRUPTED, OnText, TimedAnswer, answer
from finesteer_local.cli._options import Sampling
from finesteer_local.errors import ContextLengthError, DataError, PromptError, StorageError
from finesteer_local.paths import atomic_write
from finesteer_local.profile import Profile

if TYPE_CHECKING:
    from finesteer_local.runtime import SteeredLlama
    from finesteer_local.runtime.batch import BatchEngine

FORMAT = "finesteer-chat"
_MAX_FILE = 1 << 26  # bytes


class Chat:
    """A conversation with a model.

    Attributes:
        engine: has one place (`_answers.engine_of`).
        model: as the user named it.
        messages: questions and answers in turn, without the system prompt.
        last: the last answer, None before the first.
    """

    def __init__(
        self,
        engine: BatchEngine,
        model: str,
        sampling: Sampling,
        *,
        system: str | None = None,
        strength: float | None = None,
        scope: str | None = None,
        policy: Mapping[str, str] | None = None,
        on_answer: str | None = None,
    ) -> None:
        self.engine, self.model, self.system = engine, model, system
        self.strength, self.scope, self.policy = strength, scope, dict(policy or {})
        self._on_answer = on_answer
        self.messages: list[dict[str, str]] = []
        self.last: TimedAnswer | None = None
        self._sampling = sampling
        self._n_asked = 0

    @property
    def llama(self) -> SteeredLlama:
        """The engine's model."""
        return self.engine.llama

    @property
    def greedy(self) -> bool:
        """Whether the same question always gets the same answer."""
        return self._sampling.temperature == 0

    @property
    def question(self) -> str | None:
        """The last question."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), None)

    @property
    def asked(self) -> list[dict[str, str]]:
        """What the last answer answers: the conversation up to its question, with the system prompt."""
        return self._with_system(self._up_to_question())

    def ask(self, question: str, on_text: OnText | None = None) -> TimedAnswer:
        """Answer `question` and keep both; an answer stopped before its first word leaves the chat as it was.

        Raises:
            PromptError: the conversation does not fit the context, or the template rejects it.
        """
        return self._answer([*self.messages, {"role": "user", "content": question}], on_text)

    def again(self, on_text: OnText | None = None) -> TimedAnswer:
        """Answer the last question once more; otherwise as `ask`."""
        return self._answer(self._up_to_question(), on_text)

    def compare(
        self, on_plain: OnText | None = None, on_steered: OnText | None = None
    ) -> tuple[TimedAnswer, TimedAnswer | None]:
        """Answer the last question without and with steering, alike in all else; the chat stays as it is.

        The second answer is missing where the first was stopped.
        """
        messages, sampling = self._with_system(self._up_to_question()), self._next_sampling()
        if sampling.seed is None:  # chance must not tell the two apart
            sampling = replace(sampling, seed=secrets.randbits(31))
        profiles = self.llama.profiles
        self.llama.set_profiles()
        try:
            plain = answer(self.engine, messages, sampling, on_plain)
        finally:
            self._set_profiles(profiles, self.strength)
        if plain.finish == INTERRUPTED:
            return plain, None
        return plain, answer(self.engine, messages, sampling, on_steered)

    def steer(self, profiles: Any = None, strength: float | None = None) -> None:
        """Use these profiles (None: the same as before) and this strength (None: the profiles' own)."""
        self._set_profiles(self.llama.profiles if profiles is None else profiles, strength)
        self.strength = strength

    def _set_profiles(self, profiles: Iterable[Any], strength: float | None) -> None:
        """Use these profiles, with what the chat says about kinds that they know, and about answers that they read."""
        chosen = [each if isinstance(each, Profile) else Profile.load(each) for each in profiles]
        known = {name for profile in chosen if profile.kinds for name in profile.kinds.names}
        policy = {kind: action for kind, action in self.policy.items() if kind in known}
        on_answer = self._on_answer if any(profile.answer_gate for profile in chosen) else None
        self.llama.set_profiles(chosen, strength=strength, scope=self.scope, policy=policy, on_answer=on_answer)

    def clear(self) -> None:
        """Forget the conversation; model, profiles and system prompt stay."""
        self.messages, self.last = [], None

    def _up_to_question(self) -> list[dict[str, str]]:
        if self.question is None:
            raise PromptError("there is no question yet")
        end = max(i for i, m in enumerate(self.messages) if m["role"] == "user")
        return self.messages[: end + 1]

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages

    def _next_sampling(self) -> Sampling:
        """The same --seed gives the same chat, and /regen still a new answer."""
        seed = self._sampling.seed
        return self._sampling if seed is None else replace(self._sampling, seed=(seed + self._n_asked) % (2**32 - 1))

    def _answer(self, messages: list[dict[str, str]], on_text: OnText | None) -> TimedAnswer:
        try:
            got = answer(self.engine, self._with_system(messages), self._next_sampling(), on_text)
        except ContextLengthError as error:
            if len(messages) == 1:
                raise
            raise PromptError(
                f"the conversation has {error.n_prompt:,} tokens, the context only {error.n_ctx:,}; "
                "/clear starts anew, or start again with a larger --ctx"
            ) from error
        self._n_asked += 1
        if got.text or got.finish != INTERRUPTED:
            self.messages = [*messages, {"role": "assistant", "content": got.text}]
            self.last = got
        return got

    # --- files

    def save(self, path: Path) -> None:
        """Write the chat as JSON.

        Raises:
            StorageError: it cannot be written, or a file that is no saved chat is in the way.
        """
        if path.exists():
            try:
                _read(path)
            except DataError as error:
                raise StorageError(f"{path} exists and is not a saved chat; choose another name") from error
        data = {
            "format": FORMAT,
            "version": 1,
            "model": {"name": self.llama.identity.name, "fingerprint": self.llama.identity.fingerprint},
            "profiles": [profile.name for profile in self.llama.profiles],
            "strength": self.strength,
            "scope": self.scope,
            "system": self.system,
            "messages": self.messages,
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Take messages and system prompt from a saved chat; model and profiles stay.

        Raises:
            DataError: it is no saved chat; the chat is what it was.
        """
        data = _read(path)
        self.messages, self.system, self.last = data["messages"], data["system"], None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise DataError(f"{path} is too large for a saved chat")
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a saved chat: not JSON") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{path} is not a saved chat")
    if data.get("version") != 1:
        raise DataError(f"{path} was saved by a newer finesteer-local")
    system, messages = data.get("system"), data.get("messages")
    if not (system is None or _is_text(system)) or not isinstance(messages, list):
        raise DataError(f"{path} is not a saved chat: `system` or `messages` is damaged")
    for i, message in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role or not _is_text(message.get("content")):
            raise DataError(f"{path} is not a saved chat: message {i + 1} should be text by the {role}")
    if len(messages) % 2:
        raise DataError(f"{path} is not a saved chat: the last question has no answer")
    return {"system": system, "messages": [{"role": m["role"], "content": m["content"]} for m in messages]}


def _is_text(value: Any) -> bool:
    """Text that can be tokenised: JSON can escape half a surrogate pair."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value
