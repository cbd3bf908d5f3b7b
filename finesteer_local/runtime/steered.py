"""`SteeredLlama`: `llama_cpp.Llama` that decides for every prompt whether and how to steer its answer.

A request goes: `generate` cuts the cache back to what may be reused; `eval` reads the prompt in one pass, in which the
tap captures `h`, decides, and adds the vectors to the rows in scope; the answer's tokens are steered by llama.cpp's
own control vector, with the tap unarmed but for the tokens that a profile reads (`answer_watch`). What happens to the
request itself is `steered_request`'s.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import LlamaState
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError
from finesteer_local.identity import ModelIdentity, read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime.answer_watch import Opening, StatesOf
from finesteer_local.runtime.check import Check, answered, asked_for, check_room, checking, read_through
from finesteer_local.runtime.compat import asks_reset
from finesteer_local.runtime.control import ControlVector
from finesteer_local.runtime.probe import steerable_layers
from finesteer_local.runtime.prompt import (
    NOTHING,
    Message,
    Unsteered,
    chat_prompt,
    token_text,
    turn_start,
    unsteered_parts,
)
from finesteer_local.runtime.rewindable import RewindableLlama, TakenBack
from finesteer_local.runtime.rpc import check_workers
from finesteer_local.runtime.steered_request import (
    Seen,
    Steer,
    SteeredRequest,
    Steering,
    check_range,
    check_steer,
    steers,
)
from finesteer_local.runtime.thinking import opened_at
from finesteer_local.runtime.trainable import Asked, WholeAnswer
from finesteer_local.steering import REPORT, REWIND, STEER, STOP, Decision

_NEVER = 1 << 62  # a token index that no cache reaches


class SteeredLlama(RewindableLlama):
    """A drop-in `llama_cpp.Llama` with steering profiles.

    Chat and text completion, streaming, stop words, tools, logprobs and sampling are llama-cpp-python's own. While
    every gate is closed, tokens and logits are those of `Llama`, bit for bit. Grammars and JSON schemas are
    llguidance's (`constraint`): an answer fits unless `max_tokens` or the context cut it.

    Args:
        model_path: a GGUF model, as for `Llama`.
        profiles: profiles or paths of profile files, or a single one; each has its own gate, their vectors add up.
        strength: replaces every profile's own strength; 0 decides without steering.
        scope: replaces every profile's own scope: `response`, `turn` or `prompt`.
        policy: what is done about requests that open a gate, by their kind (`steering.ACTIONS`): `steer` the answer,
            which is what those are that it leaves out, `refuse` at once with the profile's own words, `report` only,
            or `leave` alone.
        skip_thinking: leave the thoughts unsteered that a reasoning model writes before its answer, `<think>` to
            `</think>` (`thinking.TAGS`); its prompt is steered as the scope says.
        on_answer: what is done once an answer shows what its prompt hid, of profiles that read answers: `report` it,
            `steer` what follows, `rewind` to before it showed and steer, `stop` the answer, or `off`; None is each
            profile's own. A caller of `eval` has the tokens in hand: there `rewind` steers, and `stop` reports.
        look_ahead: tokens of a stream that are held back, so that they can be taken back; None is what one reading
            needs (`AnswerGate.look_ahead`). Text that went out stays, and the answer goes on from there.
        identity: of the model; None reads it once it is needed.
        kwargs: everything that `Llama` takes.

    Attributes:
        steer: how the next request is steered: the active profiles, with the strength and the scope that were given.
        control: the context's control vector.

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
        policy: Mapping[str, str] | None = None,
        skip_thinking: bool = False,
        on_answer: str | None = None,
        look_ahead: int | None = None,
        identity: ModelIdentity | None = None,
        **kwargs: Any,
    ) -> None:
        self.steer: tuple[Steer, ...] = ()
        self.skip_thinking, self.look_ahead = skip_thinking, look_ahead
        self._identity = identity
        self._layers: frozenset[int] = frozenset()  # those that can be steered, once that was found out
        self._expected: Steering | None = None  # of the next prompt, where more is known of it than the settings say
        self._due: Steering | None = Steering()  # of the prompt that the next `eval` reads; None: an answer goes on
        self._steered_from = _NEVER  # first token in the KV cache that was steered
        super().__init__(model_path, **kwargs)
        self.control = ControlVector(self.ctx, n_layer=self.n_layer, n_embd=self.n_embd())
        try:
            self.set_profiles(profiles, strength=strength, scope=scope, policy=policy, on_answer=on_answer)
        except BaseException:
            self.close()
            raise

    # --- profiles

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The active profiles, in the order in which their vectors are added."""
        return tuple(steer.profile for steer in self.steer)

    @property
    def identity(self) -> ModelIdentity:
        """The loaded model's fingerprint and sizes."""
        if self._identity is None:
            self._identity = read_model_identity(self.model_path)
        return self._identity

    @property
    def last_decision(self) -> Decision | None:
        """The first profile's decision for the prompt read last; None without profiles or before the first prompt."""
        return self.last_decisions[0] if self.last_decisions else None

    @property
    def last_decisions(self) -> tuple[Decision, ...]:
        """The decisions of all active profiles for the prompt read last, in the profiles' order."""
        return self._request.decisions if self._request else ()

    def set_profiles(
        self,
        profiles: Iterable[Profile | str | Path] | Profile | str | Path = (),
        *,
        strength: float | None = None,
        scope: str | None = None,
        policy: Mapping[str, str] | None = None,
        on_answer: str | None = None,
    ) -> None:
        """Replace the active profiles from the next request on; without arguments, steer nothing.

        A stream that was asked for before goes on as it was steered. Arguments and errors as for the constructor.
        After an error the profiles are what they were.
        """
        if isinstance(profiles, str | Path | Profile):
            profiles = (profiles,)
        chosen = [p if isinstance(p, Profile) else Profile.load(p) for p in profiles]
        steer = steers(chosen, strength, scope, policy, on_answer)
        check_range(strength, scope)
        check_steer(steer, self)
        if steer:
            self.check_steerable(layer for one in steer for layer in one.profile.used_layers)
        self.steer = steer
        if self._answering is None:
            self._request, self._due = None, Steering(steer)

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
            self.control.set({})
            return steerable_layers(self, self.identity.architecture)
        vectors, kept = self.control.vectors, (self._due, self._steered_from)
        with self.set_aside():  # an answer goes on
            self.control.set({})
            try:
                return steerable_layers(self, self.identity.architecture)
            finally:
                self.control.set(vectors)
                self._due, self._steered_from = kept

    # --- checks

    def check(self, prompt: str | Sequence[Message]) -> Check:
        """What the active profiles find a request to be, without answering it, and what an answer to it shows.

        The pass stops after the last layer that a gate reads, which is some half of it. What the KV cache holds stays.

        Args:
            prompt: what a user asks, or a conversation. Where it ends with an assistant's message, profiles that read
                answers read what was said after the last user message; everything else that follows it is left out.

        Raises:
            SteeringError: there is no profile, or nothing to check.
            ContextLengthError: it does not fit the context.
        """
        steer, messages = checking(self.steer), asked_for(prompt)
        tokens, answer = chat_prompt(self, messages), answered(self, prompt, steer)
        check_room(len(tokens), len(answer), self.n_ctx())
        steering = Steering(
            steer,
            turn_start(self, messages, tokens),
            unsteered_parts(self, messages, tokens, skip_thinking=False),
        )
        request = SteeredRequest(tokens, steering, self.n_layer, answer)
        vectors = self.control.vectors
        with self.set_aside():
            super().forget()
            self.control.set({})
            try:
                read_through(self, request)
            finally:
                super().forget()
                self.control.set(vectors)
        return Check(tuple(one.profile for one in steer), request.decisions, request.n_prompt, request.n_answer)

    # --- requests

    def expect(self, turn: int = 0, unsteered: Unsteered = NOTHING) -> None:
        """Tell `generate`, or `eval`, of the prompt that it gets next: where its last user message starts, and which
        parts no scope reaches."""
        self._expected = Steering(self.steer, turn, unsteered, self.skip_thinking)

    def _next_steering(self) -> Steering:
        steering, self._expected = self._expected, None
        return steering or Steering(self.steer, skip_thinking=self.skip_thinking)

    def create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.create_completion`. A raw prompt is one user message: the scope `turn` is all of it."""
        prompt = self.without_marks(prompt)
        steering = self._expected = self._steering_of(prompt)
        try:
            result = self.completion(prompt, args, kwargs)
        finally:
            self._expected = None  # where it failed before `generate` took it
        return self._stream(result, steering) if isinstance(result, Iterator) else result

    def _steering_of(self, prompt: str | list[int]) -> Steering:
        """How the request that is being made is steered, as far as its profiles ask."""
        turn, unsteered = 0, NOTHING
        if self.steer and (self.chat or self.skip_thinking):
            tokens = self.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
            if self.chat is None:
                unsteered = Unsteered(thinking=opened_at(tokens, token_text(self), raw=True))
            else:
                messages, options, _ = self.chat
                if any(one.profile.gate.pools or one.effective_scope == "turn" for one in self.steer):
                    turn = turn_start(self, messages, tokens, **options)
                unsteered = unsteered_parts(self, messages, tokens, skip_thinking=self.skip_thinking, **options)
        return Steering(self.steer, turn, unsteered, self.skip_thinking)

    def _stream(self, chunks: Iterator[Any], steering: Steering) -> Iterator[Any]:
        # The prompt is read at the first step of the stream, perhaps after other requests were made.
        self._expected = steering
        try:
            yield from map(self.told, chunks)
        except Exception:
            self._expected = None
            raise

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """As `Llama.generate`. Steered tokens in the cache are never reused by another prompt.

        While profiles read the answer that may take some of it back, tokens come `look_ahead` later than they are
        computed, and no others can be sent. With `stop` the answer ends like any other.
        """
        if self._goes_on is not None:
            begun, self._goes_on = self._goes_on, None
            return self.answer_tokens(None, begun, args, kwargs, whole=self._whole)
        return self._generate(list(tokens), self._next_steering(), args, kwargs, whole=self._whole)

    def _generate(
        self, tokens: list[int], steering: Steering, args: Sequence[Any], kwargs: Mapping[str, Any], *, whole: bool
    ) -> Generator[int, Sequence[int] | None, None]:
        check_workers()
        if kwargs.get("grammar") is not None:
            steering = steering.at_once()
        self._turn_to(steering)
        reset = asks_reset(args, kwargs)
        if not (reset and self._holds_just(tokens, steering)):
            if self.n_tokens > self._steered_from and reset:
                self.n_tokens = self.keep(self._steered_from)
                self.stale = True
            self._due = steering
            if steering.steer:
                self.stale = True  # a decision needs at least the last token's hidden state
        yield from self.answer_tokens(super().generate(tokens, *args, **kwargs), [], args, kwargs, whole=whole)

    def _turn_to(self, steering: Steering) -> None:
        """Steer the next prompt so; a request that was steered by other profiles is over."""
        if self._request and self._request.steering.steer != steering.steer:
            self._request, self._due = None, steering
        elif self._due:
            self._due = steering

    def _holds_just(self, tokens: list[int], steering: Steering) -> bool:
        """Whether this prompt was read last and nothing after it: then its logits and decisions still hold.

        llama-cpp-python samples from such logits at once. Reading the last token again, alone, would round differently.
        """
        if self._request is None or self._due or self.stale or self.n_tokens != len(tokens) or self._request.showed:
            return False
        return self._request.tokens == tokens and self._request.steering == steering

    def reset(self) -> None:
        """As `Llama.reset`: the next eval reads a new prompt."""
        super().reset()  # type: ignore[no-untyped-call]
        self._due = self._due or Steering(self.steer)

    def forget(self) -> None:
        """Empty the KV cache; the next eval reads a new prompt."""
        super().forget()
        self.control.set({})
        self._due, self._steered_from = Steering(self.steer), _NEVER

    def eval(self, tokens: Sequence[int]) -> None:
        """As `Llama.eval`. The first call after `reset`, `load_state` or `set_profiles` reads a prompt and decides;
        later ones read its answer.

        Without `reset` the cached tokens belong to the prompt. Cached tokens that were steered are read again, and so
        are, where a gate pools over the last user turn, the tokens of the turn that the gate has not seen.

        Raises:
            SteeringError: the hidden state or a vector is not finite; the cache is emptied.
        """
        if not len(tokens):
            return
        if not self._stepping:  # the caller's own, not a stream's
            self._turn_to(self._next_steering())
        if self._due is None:
            self._read_answer(tokens)
            return
        request = SteeredRequest([*self.input_ids[: self.n_tokens].tolist(), *tokens], self._due, self.n_layer)
        seen = self._request.seen if self._request else None
        n_reusable = min(self._steered_from, request.may_reuse(seen))
        if self.n_tokens > n_reusable:
            self.n_tokens = self.keep(n_reusable)
        self.control.set({})
        self._request, self._steered_from = None, _NEVER
        unread = request.tokens[self.n_tokens :]
        if request.steering.steer:
            self._read_prompt(unread, request, seen)
        else:
            super().eval(unread)
        self._request, self._due = request, None

    def _read_prompt(self, tokens: list[int], request: SteeredRequest, seen: Seen | None) -> None:
        """Read the prompt's last tokens, `tokens`; the cache holds what comes before them."""
        try:
            request.begin(self.n_tokens, seen)
            self.tap.arm(request.handlers)
            try:
                super().eval(tokens)
            finally:
                self.tap.disarm()
            self.tap.check()
            request.decided()
            if request.read_again_from is not None:
                self._read_again(request, request.read_again_from)
            if request.plan:
                self._steered_from = request.plan[0].start
            self.control.set(request.vectors)
        except BaseException:
            self.forget()  # the cache may hold half a prompt, steered or not: nothing of it may be reused
            raise

    def _read_again(self, request: SteeredRequest, start: int) -> None:
        """Read the request's tokens from `start` on once more, with the control vector that each is due."""
        start = self.keep(start)
        steps = [(segment.start, segment.vectors) for segment in request.plan]
        if start < steps[0][0]:
            steps.insert(0, (start, {}))
        stops = [step for step, _ in steps[1:]] + [request.end]
        for (begin, vectors), stop in zip(steps, stops, strict=True):
            self.n_tokens = begin
            self.control.set(vectors)
            super().eval(request.tokens[begin:stop])

    def _read_answer(self, tokens: Sequence[int]) -> None:
        """Read tokens of an answer; those that end inside thoughts are not steered, if these are to be left alone."""
        request, text_of = self._request, token_text(self)
        assert request is not None
        request.cut(self.n_tokens - request.n_prompt)
        if self._stepping and request.watched:
            tokens = tokens[:1]  # a draft model's guesses are no answer yet
        for run in [[token] for token in tokens] if request.changes else [tokens]:  # several with a draft model
            for token in run:
                request.answer(token, text_of)
            self.control.set(request.vectors)
            if request.vectors:
                self._steered_from = min(self._steered_from, self.n_tokens)
            seen = StatesOf(request.answer_layers(len(run)))
            with seen.shown_by(self.tap):
                self.tap.stand_aside(self.ctx)
                super().eval(run)
            if opening := request.answer_read(seen.rows, len(run)):
                self._act(request, opening)

    def _act(self, request: SteeredRequest, opening: Opening) -> None:
        """Do what follows from what the answer has shown.

        Raises:
            TakenBack: the answer is shorter now.
        """
        action = opening.action
        if not self._stepping:  # the caller of `eval` has the tokens
            action = {REWIND: STEER, STOP: REPORT}.get(action, action)
        request.act(opening, action, at_least=self._n_given)
        if action == REWIND:
            try:
                self._read_again(request, request.plan[0].start)
                self._due = None  # memory that cannot be cut was emptied
                self._steered_from = min(self._steered_from, request.plan[0].start)
                self.control.set(request.vectors)
            except BaseException:
                self.forget()
                raise
        if action in (REWIND, STOP):
            raise TakenBack

    # --- training (trainable.TrainableModel); batch and score are built on this class

    weights = None
    """No model in PyTorch: llama.cpp computes this one."""

    def greedy_answers(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, *, at_most: int = 8
    ) -> Iterator[str]:
        """Greedy answers under the active profiles, in order, several at a time (see `batch.greedy_answers`)."""
        from finesteer_local.runtime.batch import greedy_answers

        return (answer.text for answer in greedy_answers(self, conversations, max_tokens, at_most=at_most))

    def whole_answers(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        temperature: float,
        *,
        seed: int = 0,
        at_most: int = 8,
    ) -> Iterator[WholeAnswer]:
        """Answers under the active profiles, in order, sampled as by `create_chat_completion`, each with the next seed.

        Errors as of `batch.answers`.
        """
        from finesteer_local.runtime.batch import answers, chat_request
        from finesteer_local.runtime.batch.answer import STOP

        options: dict[str, Any] = {"steer": self.steer, "max_tokens": max_tokens, "temperature": temperature}
        requests = [chat_request(self, messages, seed=i, **options) for i, messages in enumerate(conversations, seed)]
        for answer in answers(self, requests, at_most=at_most):
            yield WholeAnswer(answer.text, answer.finished.reason == STOP)

    def answer_logprobs(
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], *, turn: int = 0
    ) -> list[NDArray[np.float64]]:
        """Log-probabilities of given answers; see `score.answer_logprobs`."""
        from finesteer_local.runtime.score import answer_logprobs

        return answer_logprobs(self, prompt, answers, turn=turn)

    def many_logprobs(self, asked: Sequence[Asked]) -> list[list[NDArray[np.float64]]]:
        """Those of many prompts, one after the other."""
        return [self.answer_logprobs(prompt, answers, turn=turn) for prompt, answers, turn in asked]

    # --- saved states

    def __getstate__(self) -> dict[str, Any]:
        strength, scope = (self.steer[0].strength, self.steer[0].scope) if self.steer else (None, None)
        policy = {kind: action for one in self.steer for kind, action in one.policy}
        settings = {"profiles": self.profiles, "strength": strength, "scope": scope, "policy": policy}
        on_answer = next((one.on_answer for one in self.steer if one.on_answer), None)
        settings |= {"on_answer": on_answer, "look_ahead": self.look_ahead, "skip_thinking": self.skip_thinking}
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
        self._due = Steering(self.steer)
