"""`SteeredLlama`: `llama_cpp.Llama` that decides for every prompt whether and how to steer its answer.

A request goes: `generate` cuts the cache back to what may be reused; `eval` reads the prompt in one pass, in which the
tap captures `h`, decides, and adds the vectors to the rows in scope; the answer's tokens are steered by llama.cpp's
own control vector, with the tap unarmed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import is_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llama_cpp import LlamaState

from finesteer_local.errors import ProfileError, SteeringError
from finesteer_local.identity import ModelIdentity, read_model_identity
from finesteer_local.profile import MAX_STRENGTH, SCOPES, Profile
from finesteer_local.runtime.compat import asks_reset
from finesteer_local.runtime.constrained import ConstrainedLlama
from finesteer_local.runtime.contents import Guard, tokenise_guarded
from finesteer_local.runtime.control import Vectors, same_vectors, set_control_vector
from finesteer_local.runtime.probe import steerable_layers
from finesteer_local.runtime.prompt import (
    NOTHING,
    Unsteered,
    guarded_messages,
    token_text,
    turn_start,
    unsteered_parts,
)
from finesteer_local.runtime.prompt_pass import PromptPass, first_in_scope, segments, summed
from finesteer_local.runtime.rpc import check_workers
from finesteer_local.runtime.tap import Array
from finesteer_local.runtime.tapped import TappedLlama
from finesteer_local.runtime.template import with_arguments
from finesteer_local.runtime.thinking import Thinking, opened_at
from finesteer_local.steering import Decision

_NEVER = 1 << 62  # a token index that no cache reaches


class _Summaries(NamedTuple):
    """What each profile's gate kept of the turn of a prompt, so that its tokens need not be read again for it."""

    tokens: list[int]  # of the whole prompt
    turn: int
    rows: list[Array]  # for each profile, one row a token from `turn` on


class _Steering(NamedTuple):
    """How a request is steered."""

    profiles: tuple[Profile, ...] = ()
    strength: float | None = None
    scope: str | None = None
    skip_thinking: bool = False


class _Prompt(NamedTuple):
    tokens: list[int]
    turn: int
    unsteered: Unsteered
    skip_thinking: bool


TEMPLATE_OPTIONS = ("functions", "function_call", "tools", "tool_choice")  # create_chat_completion's order
_OF_AN_ANSWER = ("_steered_from", "_prompt_due", "_prompt_turn", "_prompt_unsteered", "_prompt_read")


class SteeredLlama(ConstrainedLlama, TappedLlama):
    """A drop-in `llama_cpp.Llama` with steering profiles.

    Chat and text completion, streaming, stop words, tools, logprobs and sampling are llama-cpp-python's own. While
    every gate is closed, tokens and logits are those of `Llama`, bit for bit. Grammars and JSON schemas are
    llguidance's (`constraint`): an answer fits unless `max_tokens` or the context cut it.

    Args:
        model_path: a GGUF model, as for `Llama`.
        profiles: profiles or paths of profile files, or a single one; each has its own gate, their vectors add up.
        strength: replaces every profile's own strength; 0 decides without steering.
        scope: replaces every profile's own scope: `response`, `turn` or `prompt`.
        skip_thinking: leave the thoughts unsteered that a reasoning model writes before its answer, `<think>` to
            `</think>` (`thinking.TAGS`); its prompt is steered as the scope says.
        kwargs: everything that `Llama` takes.

    Raises:
        ProfileError: a profile is damaged, or made for another model (`ProfileMismatchError`).
        SteeringError: llama.cpp cannot steer this model's architecture.
    """

    def __init__(
        self,
        model_path: str,
        *,
        profiles: Iterable[Profile | str | Path] | Profile | str | Path = (),
        strength: float | None = None,
        scope: str | None = None,
        skip_thinking: bool = False,
        **kwargs: Any,
    ) -> None:
        self.skip_thinking = skip_thinking
        self._profiles: tuple[Profile, ...] = ()
        self._strength: float | None = None
        self._scope: str | None = None
        self._now = _Steering()  # of the prompt read last; the settings above are the next request's
        self._asked: _Steering | None = None  # of the request that `generate` gets next
        self._answering: object = None  # the stream whose answer goes on
        self._stepping = False  # while it computes
        self._guarded: Guard | None = None  # of the chat request being rendered
        self._decisions: tuple[Decision, ...] = ()
        self._identity: ModelIdentity | None = None
        self._layers: frozenset[int] = frozenset()  # those that can be steered, once that was found out
        self._steered_from = _NEVER  # first token in the KV cache that was steered
        self._vectors: Vectors = {}  # the control vector that the context holds
        self._messages: tuple[list[Any], Mapping[str, Any]] | None = None  # of the chat request being rendered
        self._turn = 0  # first token of the last user message of the prompt that the next `generate` gets
        self._prompt_turn = 0  # the same, for the next `eval`
        self._unsteered = self._prompt_unsteered = NOTHING  # parts of these prompts that no scope reaches
        self._answer_vectors: Vectors = {}  # for the answer to the prompt read last
        self._n_prompt = 0  # tokens of that prompt
        self._thinking: Thinking | None = None  # follows an answer whose thoughts are to be left alone
        self._prompt_due = True  # the next eval reads a prompt, not tokens of an answer
        self._prompt_read: _Prompt | None = None  # the prompt decided last
        self._summaries = _Summaries([], 0, [])  # of the prompt read last
        super().__init__(model_path, **kwargs)
        try:
            self.set_profiles(profiles, strength=strength, scope=scope)
        except BaseException:
            self.close()
            raise

    # --- profiles

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The active profiles, in the order in which their vectors are added."""
        return self._profiles

    @property
    def identity(self) -> ModelIdentity:
        """The loaded model's fingerprint and sizes."""
        if self._identity is None:
            self._identity = read_model_identity(self.model_path)
        return self._identity

    @property
    def last_decision(self) -> Decision | None:
        """The first profile's decision for the prompt read last; None without profiles or before the first prompt."""
        return self._decisions[0] if self._decisions else None

    @property
    def last_decisions(self) -> tuple[Decision, ...]:
        """The decisions of all active profiles for the prompt read last, in the profiles' order."""
        return self._decisions

    def set_profiles(
        self,
        profiles: Iterable[Profile | str | Path] | Profile | str | Path = (),
        *,
        strength: float | None = None,
        scope: str | None = None,
    ) -> None:
        """Replace the active profiles from the next request on; without arguments, steer nothing.

        A stream that was asked for before goes on as it was steered. Arguments and errors as for the constructor.
        After an error the profiles are what they were.
        """
        if isinstance(profiles, str | Path | Profile):
            profiles = (profiles,)
        chosen = tuple(p if isinstance(p, Profile) else Profile.load(p) for p in profiles)
        if strength is not None and not 0 <= strength <= MAX_STRENGTH:
            raise ProfileError(f"strength {strength} is not in [0, {MAX_STRENGTH:g}]")
        if scope is not None and scope not in SCOPES:
            raise ProfileError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
        names = [profile.name for profile in chosen]
        if len(set(names)) < len(names):
            raise ProfileError("the same profile is active twice; raise its strength instead")
        if chosen:
            for profile in chosen:
                profile.check_model(self.identity)
            self.check_steerable(layer for profile in chosen for layer in profile.used_layers)
        self._profiles, self._strength, self._scope = chosen, strength, scope
        if self._answering is None:
            self._use(self._settings(), anew=True)

    def _settings(self) -> _Steering:
        return _Steering(self._profiles, self._strength, self._scope, self.skip_thinking)

    def _use(self, steering: _Steering, *, anew: bool = False) -> None:
        """Steer the next prompt so; what was decided otherwise before is forgotten."""
        before, self._now = self._now, steering
        same = len(before.profiles) == len(steering.profiles) and all(map(is_, before.profiles, steering.profiles))
        if same and before[1:3] == steering[1:3] and not anew:
            return
        self._decisions = ()
        nothing = [np.empty((0, profile.model.n_embd), np.float32) for profile in steering.profiles]
        summaries = [p.gate.summary(h) for p, h in zip(steering.profiles, nothing, strict=True)]
        self._summaries = _Summaries([], 0, summaries)
        self._expect_prompt()

    def check_steerable(self, layers: Iterable[int] = ()) -> None:
        """Make sure that llama.cpp can steer this model, in all of `layers`; the first time, the KV cache is emptied.

        Raises:
            SteeringError: it cannot, or the model was opened for something else than text.
        """
        if self.context_params.embeddings:
            raise SteeringError("profiles steer text, not embeddings; load the model without embedding=True")
        if hasattr(self.chat_handler, "mtmd_ctx"):
            raise SteeringError("image prompts cannot be steered; load the model without its multimodal handler")
        if not self._layers:
            self._layers = self._found_layers()
        if missing := set(layers) - self._layers:
            raise SteeringError(
                f"llama.cpp cannot steer layer {min(missing)} of architecture {self.identity.architecture!r}: "
                "use a profile that leaves it alone"
            )

    def _found_layers(self) -> frozenset[int]:
        if self._answering is None:
            self._set_vectors({})
            return steerable_layers(self, self.identity.architecture)
        vectors, kept = self._vectors, {name: getattr(self, name) for name in _OF_AN_ANSWER}
        with self.set_aside():  # an answer goes on
            self._set_vectors({})
            try:
                return steerable_layers(self, self.identity.architecture)
            finally:
                self._set_vectors(vectors)
                vars(self).update(kept)

    # --- requests

    def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.create_chat_completion`; `last_decision` tells how the prompt was decided once it is read.

        The arguments of tool calls reach the template in the form that it needs (`template.with_arguments`).
        """
        messages = with_arguments(self, messages)
        given = {**dict(zip(TEMPLATE_OPTIONS, args, strict=False)), **kwargs}
        self._messages = (list(messages), {k: given[k] for k in TEMPLATE_OPTIONS if given.get(k) is not None})
        try:
            messages, self._guarded = guarded_messages(self, messages, self._messages[1])
            return super().create_chat_completion(messages, *args, **kwargs)
        finally:
            self._messages = self._guarded = None

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As `Llama.tokenize`, for any text; special tokens in a chat's contents stay text (`contents.guard`)."""
        guarded, self._guarded = self._guarded, None
        try:
            if guarded and special:
                return tokenise_guarded(self, text, add_bos, guarded)
            return super().tokenize(text, add_bos, special)
        finally:
            self._guarded = guarded

    def create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.create_completion`. A raw prompt is one user message: the scope `turn` is all of it."""
        if self._guarded and isinstance(prompt, str):
            prompt = self.tokenize(prompt.encode(), special=True)  # a stream would do it too late
        steering = self._settings()
        turn, unsteered = self._parts(prompt)
        self._turn, self._unsteered, self._asked = turn, unsteered, steering
        try:
            result = super().create_completion(prompt, *args, **kwargs)
        finally:
            self._turn, self._unsteered, self._asked = 0, NOTHING, None  # where it failed before `generate` took it
        return self._stream(result, turn, unsteered, steering) if isinstance(result, Iterator) else result

    def _parts(self, prompt: str | list[int]) -> tuple[int, Unsteered]:
        """The first token of the last user message, and the parts that no scope reaches; as far as profiles ask."""
        if not self._profiles or (self._messages is None and not self.skip_thinking):
            return 0, NOTHING
        tokens = self.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
        if self._messages is None:
            return 0, Unsteered(thinking=opened_at(tokens, token_text(self), raw=True))
        messages, options = self._messages
        turn = 0
        if any(profile.gate.pools or (self._scope or profile.scope) == "turn" for profile in self._profiles):
            turn = turn_start(self, messages, tokens, **options)
        return turn, unsteered_parts(self, messages, tokens, skip_thinking=self.skip_thinking, **options)

    def _stream(self, chunks: Iterator[Any], turn: int, unsteered: Unsteered, steering: _Steering) -> Iterator[Any]:
        # The prompt is read at the first step of the stream, perhaps after other requests were made.
        self._turn, self._unsteered, self._asked = turn, unsteered, steering
        try:
            yield from chunks
        except Exception:
            self._turn, self._unsteered, self._asked = 0, NOTHING, None
            raise

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """As `Llama.generate`. Steered tokens in the cache are never reused by another prompt."""
        steering = self._asked or self._settings()
        prompt = _Prompt(list(tokens), self._turn, self._unsteered, steering.skip_thinking)
        self._turn, self._unsteered, self._asked = 0, NOTHING, None
        return self._generate(prompt, steering, args, kwargs)

    def _generate(
        self, prompt: _Prompt, steering: _Steering, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        check_workers()
        if kwargs.get("grammar") is not None:  # then the answer comes at once, whatever the template opened
            prompt = prompt._replace(unsteered=replace(prompt.unsteered, thinking=None))
        self._use(steering)
        reset = asks_reset(args, kwargs)
        if not (reset and self._holds_just(prompt)):
            if self.n_tokens > self._steered_from and reset:
                self.n_tokens = self.keep(self._steered_from)
                self.stale = True
            self._expect_prompt(prompt.turn, prompt.unsteered)
            if steering.profiles:
                self.stale = True  # a decision needs at least the last token's hidden state
        this = self._answering = object()
        answer = super().generate(prompt.tokens, *args, **kwargs)
        try:
            more: Sequence[int] | None = None
            while True:
                self._stepping = True
                try:
                    token = answer.send(more)
                except StopIteration:
                    return
                finally:
                    self._stepping = False
                more = yield token
        finally:
            answer.close()
            if self._answering is this:
                self._answering = None

    def reset(self) -> None:
        """As `Llama.reset`: the next eval reads a new prompt."""
        super().reset()  # type: ignore[no-untyped-call]
        self._expect_prompt(self._prompt_turn, self._prompt_unsteered)

    def forget(self) -> None:
        """Empty the KV cache; the next eval reads a new prompt."""
        super().forget()
        self._set_vectors({})
        self._steered_from = _NEVER
        self._expect_prompt()

    def _expect_prompt(self, turn: int = 0, unsteered: Unsteered = NOTHING) -> None:
        self._prompt_due, self._prompt_turn, self._prompt_unsteered, self._prompt_read = True, turn, unsteered, None

    def _holds_just(self, prompt: _Prompt) -> bool:
        """Whether `prompt` was read last and nothing after it: then its logits and decisions still hold.

        llama-cpp-python samples from such logits at once. Reading the last token again, alone, would round differently.
        """
        return self._prompt_read == prompt and self.n_tokens == len(prompt.tokens) and not self.stale

    def eval(self, tokens: Sequence[int]) -> None:
        """As `Llama.eval`. The first call after `reset`, `load_state` or `set_profiles` reads a prompt and decides;
        later ones read its answer.

        Without `reset` the cached tokens belong to the prompt. Those that were steered are read again, and, where a
        gate pools over the last user turn, those of the turn that it has not seen.

        Raises:
            SteeringError: the hidden state or a vector is not finite; the cache is emptied.
        """
        if not len(tokens):
            return
        if not self._stepping:  # the caller's own, not a stream's
            self._use(self._settings())
        if not self._prompt_due:
            read = self.input_ids[: self.n_tokens].tolist()
            self._prompt_read = None
            self._read_answer(tokens)
            return
        prompt, turn, unsteered = list(tokens), self._prompt_turn, self._prompt_unsteered
        reusable = self._steered_from
        if any(profile.gate.pools for profile in self._now.profiles):
            read_from = self._read_from(turn)
            reusable = min(reusable, max(read_from, self._summarised(read_from)))
        if self.n_tokens > reusable:
            cached = self.input_ids[: self.n_tokens].tolist()
            self.n_tokens = self.keep(reusable)
            prompt = cached[self.n_tokens :] + prompt
        self._set_vectors({})
        self._steered_from = _NEVER
        self._decisions = ()
        self._answer_vectors, self._thinking = {}, None
        if not self._now.profiles:
            super().eval(prompt)
        else:
            try:
                self._read_prompt(prompt, turn, unsteered)
            except BaseException:
                # The cache may hold half a prompt, steered or not: nothing of it may be reused.
                self._decisions = ()
                self.forget()
                raise
            read = self.input_ids[: self.n_tokens].tolist()
            self._prompt_read = _Prompt(read, turn, unsteered, self._now.skip_thinking)
        self._prompt_due, self._prompt_turn, self._prompt_unsteered = False, 0, NOTHING

    def _read_answer(self, tokens: Sequence[int]) -> None:
        """Read tokens of an answer; those that end inside thoughts are not steered, if these are to be left alone."""
        if self._thinking is None:
            self._read_alike(tokens)
            return
        self._thinking.cut(self.n_tokens - self._n_prompt)
        text_of = token_text(self)
        for token in tokens:  # more than one only with a draft model
            self._thinking.add(text_of(token))
            self._set_vectors({} if self._thinking.open else self._answer_vectors)
            self._read_alike([token])

    def _read_alike(self, tokens: Sequence[int]) -> None:
        """Read tokens of an answer under the control vector that is set."""
        if self._vectors:
            self._steered_from = min(self._steered_from, self.n_tokens)
        self.tap.stand_aside(self.ctx)
        super().eval(tokens)

    def _read_from(self, turn: int) -> int:
        """The first token that a gate reads: 0 where one reads the whole prompt, else the turn's first."""
        return 0 if any(profile.gate.whole for profile in self._now.profiles) else turn

    def _summarised(self, turn: int) -> int:
        """The cached token up to which the gates have seen a turn that starts at `turn`."""
        tokens, known_from, _ = self._summaries
        return self.longest_token_prefix(tokens, self.input_ids[: self.n_tokens].tolist()) if known_from <= turn else 0

    def _read_prompt(self, tokens: list[int], turn: int, unsteered: Unsteered) -> None:
        n_past = self.n_tokens
        n_prompt = n_past + len(tokens)
        turn = min(turn, n_prompt - 1)
        read_from, known_from = self._read_from(turn), self._summaries.turn
        known = slice(read_from - known_from, n_past - known_from) if read_from < n_past else slice(0)
        starts = [first_in_scope(self._now.scope or profile.scope, n_prompt, turn) for profile in self._now.profiles]
        reading = PromptPass(
            self._now.profiles,
            starts,
            turn=turn,
            read_from=read_from,
            unsteered=unsteered,
            known=[rows[known] for rows in self._summaries.rows],
            n_past=n_past,
            n_prompt=n_prompt,
            n_layer=self.n_layer,
            decide=self._decide,
        )
        self.tap.arm(reading.handlers)
        try:
            super().eval(tokens)
        finally:
            self.tap.disarm()
        self.tap.check()
        if not reading.complete:
            raise SteeringError("llama.cpp did not show the layers that the profiles use; nothing was generated")
        self._decisions = reading.decisions
        self._summaries = _Summaries(self.input_ids[: self.n_tokens].tolist(), read_from, reading.summaries)
        plan = segments(self._decisions, starts, unsteered)
        if reading.read_again_from is not None:
            self._read_again(reading.read_again_from, n_prompt, [(s.start, s.vectors) for s in plan])
        if plan:
            self._steered_from = plan[0].start
        self._answer_vectors = summed(decision.answer_vectors for decision in self._decisions)
        self._n_prompt = n_prompt
        if self._answer_vectors and self._now.skip_thinking:
            self._thinking = Thinking(opened=unsteered.thinking is not None)
        self._set_vectors({} if self._thinking is not None and self._thinking.open else self._answer_vectors)

    def _read_again(self, start: int, n_prompt: int, plan: list[tuple[int, Vectors]]) -> None:
        """Read the prompt's tokens from `start` on once more, with the control vector that each is due."""
        tokens = self.input_ids[:n_prompt].tolist()
        start = self.keep(start)
        steps = [(start, {}), *plan] if start < plan[0][0] else plan
        stops = [step for step, _ in steps[1:]] + [n_prompt]
        for (begin, vectors), stop in zip(steps, stops, strict=True):
            self.n_tokens = begin
            self._set_vectors(vectors)
            super().eval(tokens[begin:stop])

    def _decide(self, profile: Profile, h: Array, summary: Array, n_tokens: int) -> Decision:
        return profile.decide_from(h, summary, strength=self._now.strength, scope=self._now.scope, n_tokens=n_tokens)

    def _set_vectors(self, vectors: Vectors) -> None:
        """Make `vectors` the context's control vector; a no-op where it is already."""
        if not same_vectors(vectors, self._vectors):
            set_control_vector(self.ctx, vectors, n_layer=self.n_layer, n_embd=self.n_embd())
            self._vectors = dict(vectors)

    # --- saved states

    def __getstate__(self) -> dict[str, Any]:
        settings = {"profiles": self._profiles, "strength": self._strength, "scope": self._scope}
        settings["skip_thinking"] = self.skip_thinking
        return {**super().__getstate__(), **settings}

    def save_state(self) -> LlamaState:
        """As `Llama.save_state`; the state remembers from where on it was steered."""
        state = super().save_state()
        state.steered_from = self._steered_from  # type: ignore[attr-defined]
        return state

    def load_state(self, state: LlamaState) -> None:
        """As `Llama.load_state`; steered tokens of the state are never reused by another prompt."""
        super().load_state(state)
        self._steered_from = getattr(state, "steered_from", _NEVER)
        self._expect_prompt()
