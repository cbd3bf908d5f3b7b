"""One pass over a prompt: capture `h`, decide, and steer the rows in scope, all inside the eval callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from finesteer_local.errors import SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime.control import Vectors
from finesteer_local.runtime.prompt import NOTHING, Unsteered
from finesteer_local.runtime.tap import Array, Handler, Rows
from finesteer_local.steering import Decision


@dataclass(frozen=True)
class Segment:
    """From the prompt's token `start` on, `vectors` are added to the hidden states of their layers."""

    start: int
    vectors: Vectors


def first_in_scope(scope: str, n_prompt: int, turn: int) -> int:
    """The first of a prompt's tokens that a scope reaches; the last user message starts at `turn`."""
    return {"response": n_prompt - 1, "turn": min(turn, n_prompt - 1), "prompt": 0}[scope]


def segments(decisions: Sequence[Decision], starts: Sequence[int], unsteered: Unsteered = NOTHING) -> list[Segment]:
    """Where the prompt's steering changes, ascending; `starts[i]` is the first token that `decisions[i]` steers.

    Vectors that meet at a layer are summed before they are added to the hidden states, in the decisions' order: the
    tap and the control vector then round alike. Segments without vectors are the parts that stay `unsteered`.
    """
    opened = [(decision, start) for decision, start in zip(decisions, starts, strict=True) if decision.open]
    steps = {start for _, start in opened}
    if steps:
        steps |= {step for step in unsteered.borders if step > min(steps)}
    found: list[Segment] = []
    for step in sorted(steps):
        vectors = {} if unsteered.holds(step) else summed(d.vectors for d, start in opened if start <= step)
        if found or vectors:
            found.append(Segment(step, vectors))
    return found


def summed(parts: Iterable[Vectors]) -> dict[int, Array]:
    """The vectors of several profiles, added up layer by layer in the order given."""
    total: dict[int, Array] = {}
    for vectors in parts:
        for layer, vector in vectors.items():
            total[layer] = total[layer] + vector if layer in total else vector
    return total


class PromptPass:
    """The tap's handlers for one prompt, and what they found.

    Args:
        profiles: the active profiles.
        starts: for each profile the index of the first prompt token in its scope.
        turn: index of the first token of the last user message; a gate that pools reads from there on.
        known: for each profile what its gate keeps of the tokens from `read_from` to `n_past`.
        n_past: tokens of the prompt that the cache already holds.
        n_prompt: tokens of the whole prompt.
        n_layer: layers of the model.
        unsteered: the parts of the prompt that are not steered, and, for gates that pool, not read.
        decide: profile, `h`, the gate's summary of the turn and the number of tokens in scope to decision.
        read_from: index from which gates read: 0 where one reads the whole prompt; `turn` where none does.
        steers: False ends the pass after the last gate's layer, and each micro-batch before: what is decided is all
            that is wanted, and the cache holds nothing above.
        until: without `steers` a layer up to which the cache is needed all the same.

    Attributes:
        decisions: one a profile, in order, once the pass is over.
        read_again_from: token from which the prompt has to be read once more with the control vector set, because a
            gate opened after tokens in its scope had passed; None where the pass did everything.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        starts: Sequence[int],
        *,
        turn: int,
        known: Sequence[Array],
        n_past: int,
        n_prompt: int,
        n_layer: int,
        decide: Callable[[Profile, Array, Array, int], Decision],
        read_from: int | None = None,
        unsteered: Unsteered = NOTHING,
        steers: bool = True,
        until: int = 0,
    ) -> None:
        read_from = turn if read_from is None else read_from
        self._profiles, self._starts, self._unsteered = profiles, starts, unsteered
        self._read_from, self._before_turn, self._n_prompt = read_from, turn - read_from, n_prompt
        self._decide = decide
        self._summaries = [[summary] for summary in known]
        self._found: dict[int, Decision] = {}  # index of the profile -> its decision
        self._last_states: dict[int, Array] = {}  # and the state of the prompt's last token
        self._plan: list[Segment] | None = None
        gate_layers = {profile.gate_layer for profile in profiles}
        steered = {layer for profile in profiles for layer in profile.experts}
        self._last_gate = max(gate_layers)
        # Every gate must read an unsteered state, and the last layer's output holds only the rows that have logits.
        self._one_pass = steers and self._last_gate <= min(steered) and n_layer - 1 not in steered | gate_layers
        self._steers = steers
        # So the lowest layer counts the rows, and the last layer is never the one.
        self._counter = min(*gate_layers, n_layer - 2)
        self._until = self._last_gate if steers else max(self._last_gate, until)
        self._layers = {self._counter, self._until} | gate_layers | steered
        self._first, self._stop = n_past, n_past  # the micro-batch's rows, as indices of the prompt
        self._steered: set[int] = set()
        self.read_again_from: int | None = None

    @property
    def handlers(self) -> dict[int, Handler]:
        """What the tap is to be armed with."""
        return dict.fromkeys(self._layers, self._on_layer)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self._found[i] for i in range(len(self._profiles)))

    @property
    def summaries(self) -> list[Array]:
        """For each profile what its gate kept from `read_from` on, one row a token where it pools."""
        return [np.concatenate(pieces) for pieces in self._summaries]

    @property
    def complete(self) -> bool:
        """Whether the tap saw every layer that it had to: all gates decided, and all due vectors were added."""
        due = {layer for segment in self._plan or () for layer in segment.vectors}
        return len(self._found) == len(self._profiles) and self._steered == due

    def _on_layer(self, layer: int, rows: Rows) -> bool:
        if layer == self._counter:
            self._first, self._stop = self._stop, self._stop + rows.n_rows
            if self._stop > self._n_prompt:
                raise SteeringError("llama.cpp showed more rows than the prompt has tokens; nothing was generated")
        if layer <= self._last_gate:
            self._read_gates(layer, rows)
            if layer == self._last_gate and not self._goes_on() and layer == self._until:
                return False
        if self._plan:
            self._steer(layer, rows)
        return self._steers or layer < self._until

    def _read_gates(self, layer: int, rows: Rows) -> None:
        gates = [i for i, profile in enumerate(self._profiles) if profile.gate_layer == layer]
        last = self._stop >= self._n_prompt
        pools = any(self._profiles[i].gate.pools for i in gates)
        # Rows to be read in this micro-batch; the prompt's last token belongs to every turn.
        begin = max(self._read_from - self._first, 0) if pools else rows.n_rows - 1
        if not gates or begin >= rows.n_rows or not (pools or last):
            return
        states = rows.read(begin, rows.n_rows)
        for i in gates:
            profile = self._profiles[i]
            self._summaries[i].append(profile.summary(states))
            if last:
                self._last_states[i] = states[-1].copy()
                self._found[i] = self._decide(profile, *self.evidence(i))

    def evidence(self, i: int) -> tuple[Array, Array, int]:
        """What profile `i` decides by: `h`, its gate's summary of the turn, and the number of tokens in scope."""
        in_scope = self._unsteered.outside(self._starts[i], self._n_prompt)
        return self._last_states[i], self._summary(i), in_scope

    def _summary(self, i: int) -> Array:
        """What gate `i` keeps of the tokens that it is to read."""
        gate, rows = self._profiles[i].gate, self.summaries[i]
        if not gate.pools:
            return rows
        reads = np.ones(len(rows), bool)
        if not gate.whole:
            reads[: self._before_turn] = False
        for start, stop in self._unsteered.tools:
            reads[max(start - self._read_from, 0) : max(stop - self._read_from, 0)] = False
        return rows if reads.all() else rows[reads]

    def _goes_on(self) -> bool:
        """Whether there is a use for the layers above the last gate's."""
        return self._plan_steering() if self._stop >= self._n_prompt else self._steers

    def _plan_steering(self) -> bool:
        """Decide what this pass still does; False ends it, because its results would be thrown away."""
        if len(self._found) < len(self._profiles):
            return False  # a gate's layer was not shown
        plan = segments(self.decisions, self._starts, self._unsteered)
        if plan and not (self._one_pass and plan[0].start >= self._first):
            # All rows of this micro-batch are read again, so its upper layers need not be computed.
            self.read_again_from = min(plan[0].start, self._first)
            return False
        self._plan = plan
        return self._steers

    def _steer(self, layer: int, rows: Rows) -> None:
        assert self._plan is not None
        stops = [segment.start for segment in self._plan[1:]] + [self._stop]
        for segment, stop in zip(self._plan, stops, strict=True):
            if layer in segment.vectors:
                start = segment.start - self._first
                rows.write(start, rows.read(start, stop - self._first) + segment.vectors[layer])
                self._steered.add(layer)
