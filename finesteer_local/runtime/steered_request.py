"""A steered request, whoever computes it: how far gates have read its prompt, what they decided, what comes of that.

`SteeredLlama` drives one, the batch's scheduler many, and training's other backend those that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from finesteer_local.errors import ProfileError, SteeringError
from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import MAX_STRENGTH, SCOPES, Profile
from finesteer_local.runtime.answer_watch import AnswerWatches, GivenAnswer, Opening, sentence_start
from finesteer_local.runtime.control import Vectors
from finesteer_local.runtime.prompt import NOTHING, Unsteered
from finesteer_local.runtime.prompt_pass import PromptPass, Segment, first_in_scope, segments, summed
from finesteer_local.runtime.tap import Addition, Array, Handler
from finesteer_local.runtime.thinking import Thinking
from finesteer_local.steering import ACTIONS, LEAVE, OFF, ON_ANSWER, REPORT, REWIND, STEER, STOP, AnswerGate, Decision


class Identified(Protocol):
    """A model that says which it is."""

    @property
    def identity(self) -> ModelIdentity: ...


@dataclass(frozen=True)
class Steer:
    """A profile as one request uses it.

    Attributes:
        strength, scope: None is the profile's own.
        policy: (kind, action): what is done about requests of a kind (`steering.ACTIONS`); the others are steered.
        on_answer: what is done once the answer shows what its prompt hid (`steering.ON_ANSWER`, or `OFF`); None is the
            profile's own.
    """

    profile: Profile
    strength: float | None = None
    scope: str | None = None
    policy: tuple[tuple[str, str], ...] = ()
    on_answer: str | None = None

    @property
    def effective_on_answer(self) -> str:
        gate = self.profile.answer_gate
        return OFF if gate is None else self.on_answer or gate.action

    @property
    def effective_scope(self) -> str:
        return self.scope or self.profile.scope


def check_range(strength: float | None, scope: str | None) -> None:
    """Raise `ProfileError` for a value outside its range."""
    if strength is not None and not 0 <= strength <= MAX_STRENGTH:
        raise ProfileError(f"strength {strength} is not in [0, {MAX_STRENGTH:g}]")
    if scope is not None and scope not in SCOPES:
        raise ProfileError(f"scope {scope!r} is none of {', '.join(SCOPES)}")


def check_policy(profile: Profile, policy: Iterable[tuple[str, str]]) -> None:
    """Raise `ProfileError` for a kind that `profile` does not know, or for no action."""
    known = profile.kinds.names if profile.kinds else ()
    for kind, action in policy:
        if kind not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none; train it anew"
            raise ProfileError(f"profile {profile.name!r} knows no kind {kind!r}; {has}")
        if action not in ACTIONS:
            raise ProfileError(f"{action!r} is none of {', '.join(ACTIONS)}")


def check_on_answer(profile: Profile, on_answer: str | None) -> None:
    """Raise `ProfileError` for what is no action on an answer, or where `profile` cannot read answers."""
    if on_answer is not None and on_answer not in (*ON_ANSWER, OFF):
        raise ProfileError(f"{on_answer!r} is none of {', '.join((*ON_ANSWER, OFF))}")
    if on_answer not in (None, OFF) and profile.answer_gate is None:
        raise ProfileError(f"profile {profile.name!r} does not read answers; train it anew, or leave on_answer out")


def shared_on_answer(profiles: Sequence[Profile], on_answer: str | None) -> list[str | None]:
    """For each profile `on_answer`, where it reads answers.

    Raises:
        ProfileError: none of them does, or it is no action.
    """
    watching = [profile for profile in profiles if profile.answer_gate is not None]
    if on_answer in (None, OFF) or watching:
        for profile in watching:
            check_on_answer(profile, on_answer)
    else:
        for profile in profiles:
            check_on_answer(profile, on_answer)
        raise ProfileError(f"there is no profile that reads answers; leave on_answer ({on_answer!r}) out")
    return [on_answer if profile.answer_gate is not None else None for profile in profiles]


def shared_policy(profiles: Sequence[Profile], policy: Mapping[str, str]) -> list[tuple[tuple[str, str], ...]]:
    """For each profile the part of `policy` about the kinds that it knows.

    Raises:
        ProfileError: none of them knows a kind, or an action is none of `steering.ACTIONS`.
    """
    known = {name for profile in profiles if profile.kinds for name in profile.kinds.names}
    for kind in policy:
        if kind not in known:
            has = f"there are: {', '.join(sorted(known))}" if known else "they have none; train one anew"
            raise ProfileError(f"none of the profiles knows a kind {kind!r}; {has}")
    found = []
    for profile in profiles:
        names = profile.kinds.names if profile.kinds else ()
        found.append(tuple((kind, action) for kind, action in policy.items() if kind in names))
        check_policy(profile, found[-1])
    return found


def steers(
    profiles: Sequence[Profile],
    strength: float | None,
    scope: str | None,
    policy: Mapping[str, str] | None,
    on_answer: str | None,
) -> tuple[Steer, ...]:
    """These profiles, each with the part of `policy` and of `on_answer` that it can follow.

    Raises:
        ProfileError: no profile can (`shared_policy`, `shared_on_answer`).
    """
    policies, acts = shared_policy(profiles, policy or {}), shared_on_answer(profiles, on_answer)
    found = zip(profiles, policies, acts, strict=True)
    return tuple(Steer(profile, strength, scope, each, act) for profile, each, act in found)


def check_steer(steer: Sequence[Steer], model: Identified) -> None:
    """Raise `ProfileError` where these cannot steer one request of `model` together."""
    names = [one.profile.name for one in steer]
    if len(set(names)) < len(names):
        raise ProfileError("the same profile is active twice; raise its strength instead")
    for one in steer:
        check_range(one.strength, one.scope)
        check_policy(one.profile, one.policy)
        check_on_answer(one.profile, one.on_answer)
        one.profile.check_model(model.identity)


@dataclass(frozen=True)
class Steering:
    """How a request is to be steered.

    Attributes:
        steer: the active profiles, in the order in which their vectors are added; their names differ.
        turn: index of the first token of the last user message (`prompt.turn_start`); 0 for a raw prompt.
        unsteered: the parts of the prompt that no scope reaches, such as tool results.
        skip_thinking: leave the thoughts unsteered that come before the answer.
    """

    steer: tuple[Steer, ...] = ()
    turn: int = 0
    unsteered: Unsteered = NOTHING
    skip_thinking: bool = False

    def at_once(self) -> Steering:
        """The same for an answer that comes at once, as under a grammar, whatever thoughts the template has opened."""
        return replace(self, unsteered=replace(self.unsteered, thinking=None))


class Seen(NamedTuple):
    """What each profile's gate kept of a prompt, so that its tokens need not be read again for it."""

    tokens: list[int]  # of the whole prompt
    start: int  # the first token that a gate read
    rows: list[Array]  # for each profile, one row a token from `start` on


class SteeredRequest:
    """A request whose prompt is read in one pass, or twice where a gate opened too late, and then its answer.

    A driver asks how much of a cache it may reuse (`may_reuse`), says how much of the prompt the cache holds (`begin`),
    lets `handlers` see the pass over the rest, and calls `decided` after it. Where `read_again_from` is set, the driver
    reads the prompt's tokens from there on once more, steered by `plan`. It reports every token of the answer
    (`answer`), and steers it by `vectors`.

    Where profiles read the answer, the driver shows the tap `answer_layers` while it computes the answer's tokens, and
    tells what it saw (`answer_read`). What that returns it does (`act`): with `STOP` the answer ends, with `REWIND` the
    tokens after the first `n_answer` are gone, and all tokens from `plan`'s first on are read once more, steered.

    What was answered to a request that is only checked (`begin` without `steers`) is read by the same gates, once its
    prompt was: after `decided` the driver shows `given.handlers` the pass over `given.tokens`.

    Args:
        tokens: of the prompt, at least one.
        steering: how it is steered.
        n_layer: layers of the model.
        answered: what was answered, where the request is only checked.

    Attributes:
        tokens: of the prompt and of the answer so far.
        turn: the first token of the last user message.
        plan: where the steering changes of what is read once more: of the prompt (`prompt_pass.segments`), and of the
            beginning of the answer that is left where some was taken back.
        end: the tokens that are read before the next is chosen: the prompt's, and of the answer those.
        words: the answer, where a profile refuses the request at once: nothing is to be generated.
        given: what was answered, and the gates that read it.
    """

    def __init__(self, tokens: Sequence[int], steering: Steering, n_layer: int, answered: Sequence[int] = ()) -> None:
        self.tokens, self.n_prompt = list(tokens), len(tokens)
        self.steering, self.turn = steering, min(steering.turn, self.n_prompt - 1)
        self._decisions: tuple[Decision, ...] = ()
        self.plan: list[Segment] = []
        self.end = self.n_prompt
        self.words: str | None = None
        self._n_layer = n_layer
        self._profiles = [steer.profile for steer in steering.steer]
        self._starts = [first_in_scope(steer.effective_scope, self.n_prompt, self.turn) for steer in steering.steer]
        self._reading: PromptPass | None = None
        self._vectors: Vectors = {}  # for the answer
        self._thinking: Thinking | None = None  # follows an answer whose thoughts are to be left alone
        self._watches = AnswerWatches({})
        self._steers = True
        self.given = GivenAnswer(answered, self._gates_on_answers)
        self._texts: list[bytes] = []  # of the answer's tokens, where it is watched

    # --- the prompt

    @property
    def _read_from(self) -> int:
        """The first token that a gate reads: 0 where one reads the whole prompt, else the turn's first."""
        return 0 if any(profile.gate.whole for profile in self._profiles) else self.turn

    def may_reuse(self, seen: Seen | None = None) -> int:
        """Up to this token a cached beginning can be used: a gate that pools must have seen what it pools over.

        `seen` is what the same profiles saw of a prompt before, whose tokens the cache holds.
        """
        last = self.n_prompt - 1
        if not any(profile.gate.pools for profile in self._profiles):
            return last
        n_seen = n_common(seen.tokens, self.tokens) if seen and seen.start <= self._read_from else 0
        return min(last, max(self._read_from, n_seen))

    def begin(self, n_past: int, seen: Seen | None = None, *, steers: bool = True) -> None:
        """The prompt is read after `n_past` tokens that the cache holds, at most `may_reuse(seen)`.

        Without `steers` the pass ends as soon as all is decided.
        """
        self._steers = steers
        if not self._profiles:
            return
        if seen and seen.start <= self._read_from < n_past:
            known = [rows[self._read_from - seen.start : n_past - seen.start] for rows in seen.rows]
        else:
            known = [p.summary(np.empty((0, p.model.n_embd), np.float32)) for p in self._profiles]
        self._reading = PromptPass(
            self._profiles,
            self._starts,
            turn=self.turn,
            read_from=self._read_from,
            unsteered=self.steering.unsteered,
            known=known,
            n_past=n_past,
            n_prompt=self.n_prompt,
            n_layer=self._n_layer,
            decide=self._decide,
            steers=steers,
            until=self.given.layer,
        )

    def _decide(self, profile: Profile, h: Array, summary: Array, n_tokens: int, held_open: bool = False) -> Decision:
        steer = next(steer for steer in self.steering.steer if steer.profile is profile)
        policy = dict(steer.policy)
        return profile.decide_from(
            h,
            summary,
            strength=steer.strength,
            scope=steer.scope,
            n_tokens=n_tokens,
            policy=policy,
            held_open=held_open,
        )

    @property
    def handlers(self) -> Mapping[int, Handler]:
        """What the tap is to be armed with while the prompt is read for the first time."""
        return self._reading.handlers if self._reading else {}

    @property
    def read_again_from(self) -> int | None:
        """Set by the first reading where a gate opened too late: that reading has ended early."""
        return self._reading.read_again_from if self._reading else None

    def decided(self) -> None:
        """The prompt was read for the first time.

        Raises:
            SteeringError: llama.cpp did not show what the profiles need.
        """
        if self._reading is None:
            return
        if not self._reading.complete:
            raise SteeringError("llama.cpp did not show the layers that the profiles use; nothing was generated")
        self._decisions = self._reading.decisions
        self.words = next((decision.words for decision in self._decisions if decision.refused), None)
        unsteered = self.steering.unsteered
        self.plan = segments(self._decisions, self._starts, unsteered)
        self._vectors = summed(decision.answer_vectors for decision in self._decisions)
        if self._steers:
            self._watches = AnswerWatches(self._answer_gates())
        else:
            self.given.leave_to({i for i, decision in enumerate(self._decisions) if decision.action != LEAVE})
            self.tokens += self.given.tokens
            self.end = len(self.tokens)
        if (self._vectors or self.watched) and self.steering.skip_thinking:
            self._thinking = Thinking(opened=unsteered.thinking is not None)

    @property
    def _gates_on_answers(self) -> dict[int, AnswerGate]:
        """The gates that may read an answer, by their profile's place."""
        reads = (
            (i, steer.profile.answer_gate, steer.effective_on_answer) for i, steer in enumerate(self.steering.steer)
        )
        return {i: gate for i, gate, action in reads if gate is not None and action != OFF}

    def _answer_gates(self) -> dict[int, tuple[AnswerGate, str]]:
        """The gates that read the answer: of the profiles that found nothing in its prompt."""
        found = {}
        for i, gate in self._gates_on_answers.items():
            action, decision = self.steering.steer[i].effective_on_answer, self._decisions[i]
            if decision.action is not None:
                continue
            if decision.strength == 0.0 and action in (STEER, REWIND):
                action = REPORT
            found[i] = gate, action
        return found

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """One a profile, in order, once they are taken; with what has been found in the answer so far."""
        if not (self._watches.readings or self.given.tokens):
            return self._decisions
        return tuple(self._with_answer(i, decision) for i, decision in enumerate(self._decisions))

    def _with_answer(self, i: int, decision: Decision) -> Decision:
        reading = self._watches.reading(i) or self.given.reading(i)
        if reading is None:
            return decision
        # An answer that is being written was acted upon (`act`); of a given one it is only told.
        shows = not self._steers and reading.opened_at is not None and decision.action is None
        return replace(decision, answer=reading, action=REPORT if shows else decision.action)

    @property
    def seen(self) -> Seen | None:
        """What the gates kept of the prompt, once that is read; None without profiles."""
        return Seen(self.tokens[: self.n_prompt], self._read_from, self._reading.summaries) if self._reading else None

    def additions(self, start: int, stop: int, *, all_rows: bool) -> list[Addition]:
        """What the plan adds to the rows of the tokens [start, stop).

        Args:
            all_rows: whether the last layer shows all rows, or only the last that is read, which has logits.
        """
        found: list[Addition] = []
        limits = [*(segment.start for segment in self.plan), self.end][1:]
        for segment, limit in zip(self.plan, limits, strict=True):
            first, last = max(segment.start, start) - start, min(limit, stop) - start
            if first >= last:
                continue
            for layer, vector in segment.vectors.items():
                if layer < self._n_layer - 1 or all_rows:
                    found.append((layer, first, last, vector))
                elif last == self.end - start:
                    found.append((layer, 0, 1, vector))
        return found

    # --- the answer

    @property
    def vectors(self) -> Vectors:
        """What the answer's last token is steered by."""
        return {} if self._thinking is not None and self._thinking.open else self._vectors

    @property
    def changes(self) -> bool:
        """Whether `vectors` may change with every token of the answer."""
        return self._thinking is not None

    @property
    def n_answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.n_prompt

    def answer(self, token: int, text_of: Callable[[int], bytes]) -> None:
        """Append a token; `text_of` gives a token's text, that of special ones too."""
        self.tokens.append(token)
        if self._thinking is not None:
            self._thinking.add(text_of(token))
        if self.watched:
            self._texts.append(text_of(token))

    def cut(self, n_answer: int) -> None:
        """Forget all tokens of the answer but the first `n_answer`, as when guessed ones were wrong."""
        n_answer = max(n_answer, 0)
        del self.tokens[self.n_prompt + n_answer :], self._texts[n_answer:]
        self._watches.cut(n_answer)
        if self._thinking is not None:
            self._thinking.cut(n_answer)

    # --- the gates that read it

    @property
    def watched(self) -> bool:
        """Whether a gate still reads the answer."""
        return bool(self._watches.shut)

    @property
    def look_ahead(self) -> int:
        """Tokens to hold back from whoever reads the answer as it comes, so that they can still be taken back."""
        return self._watches.look_ahead

    @property
    def showed(self) -> bool:
        """Whether a gate on the answer has opened."""
        return any(reading.opened_at is not None for reading in self._watches.readings)

    @property
    def stopped(self) -> bool:
        """Whether one has ended it."""
        return any(reading.opened_at is not None and reading.action == STOP for reading in self._watches.readings)

    def answer_layers(self, n: int = 1) -> set[int]:
        """The layers that the pass over the answer's last `n` tokens, which were reported, is to show the tap."""
        return set() if self._thinks else self._watches.layers(n)

    @property
    def _thinks(self) -> bool:
        return self._thinking is not None and self._thinking.open

    def answer_read(self, states: Mapping[int, Array], n: int = 1) -> Opening | None:
        """The answer's last `n` tokens were computed; `states` are those of `answer_layers`, one row a token.

        Returns what is to be done now, if anything: the strictest of what opened. Milder ones are told, no more.

        Raises:
            SteeringError: a layer was not shown, or a state is not finite.
        """
        if not self.watched:
            return None
        if self._thinks:
            self._watches.skip(n)
            return None
        opened = self._watches.read(n, states, self._keep_from)
        for opening in opened[:-1]:
            self.act(opening, STEER if opening.action == REWIND else opening.action)
        return opened[-1] if opened else None

    def _keep_from(self, first: int, at: int) -> int:
        return sentence_start(self._texts, first, at)

    def act(self, opening: Opening, action: str | None = None, *, at_least: int = 0) -> None:
        """Do what follows from an opening, with the `action` that the driver can do, or the opening's own.

        Args:
            at_least: tokens of the answer that cannot be taken back, because somebody has read them.
        """
        action, i, n_answer = action or opening.action, opening.profile, self.n_answer
        keep = min(max(opening.keep, at_least), n_answer) if action in (REWIND, STOP) else n_answer
        self._watches.took_back(i, action, n_answer - keep)
        if action in (STEER, REWIND):
            assert self._reading is not None
            held = self._decide(self._profiles[i], *self._reading.evidence(i), held_open=True)
            self._decisions = (*self._decisions[:i], held, *self._decisions[i + 1 :])
            self._vectors = summed(decision.answer_vectors for decision in self._decisions)
        else:
            self._decisions = tuple(
                replace(decision, action=REPORT) if j == i else decision for j, decision in enumerate(self._decisions)
            )
        self.cut(keep)
        if action == REWIND:
            self.plan = segments(self._decisions, self._starts, self.steering.unsteered)
            self.end = len(self.tokens)
            first, answered = self.n_prompt, self.n_prompt + self._watches.n_before
            steps = [(first, {}), (answered, self._vectors)] if answered > first else [(first, self._vectors)]
            self.plan += [Segment(start, vectors) for start, vectors in steps if start < self.end]


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
