"""What a steered request knows at each step, whoever computes it; nothing here runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import ProfileError, SteeringError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime.answer_watch import Opening
from finesteer_local.runtime.prompt import Unsteered
from finesteer_local.runtime.steered_request import Seen, Steer, SteeredRequest, Steering, check_steer
from finesteer_local.runtime.tap import Rows
from finesteer_local.steering import AnswerGate
from tiny import make_profile, write_tiny_model

N_LAYER = 4
PROMPT = list(range(40, 60))
PIECES = {1: b"<think>", 2: b"so", 3: b"</think>", 4: b"yes"}


class FakeRows(Rows):
    def __init__(self, array: np.ndarray) -> None:
        self.array, self.n_rows = array, len(array)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop].copy()

    def write(self, start: int, rows: np.ndarray) -> None:
        self.array[start : start + len(rows)] = rows


def new(*profiles: Profile, turn: int = 0, prompt: Sequence[int] = PROMPT, **options: object) -> SteeredRequest:
    steering = Steering(tuple(Steer(profile) for profile in profiles), turn, **options)  # type: ignore[arg-type]
    return SteeredRequest(prompt, steering, N_LAYER)


def read(request: SteeredRequest, n_past: int = 0, seen: Seen | None = None) -> np.ndarray:
    """Read the prompt's tokens from `n_past` on in one pass; what became of their states, (n_layer, n, n_embd)."""
    request.begin(n_past, seen)
    shape = N_LAYER, 64, request.steering.steer[0].profile.model.n_embd
    states = np.random.default_rng(0).standard_normal(shape).astype(np.float32)[:, n_past : request.n_prompt]
    for layer in sorted(request.handlers):
        if not request.handlers[layer](layer, FakeRows(states[layer])):
            break
    request.decided()
    return states


@pytest.mark.parametrize(
    ("gates", "turn", "limit"),
    [
        ([], 7, 19),
        (["open"], 7, 19),
        (["selective, last token"], 7, 19),
        (["partly"], 7, 7),
        (["open", "partly"], 7, 7),
        (["partly"], 0, 0),
        (["partly"], 40, 19),  # a turn ends with its prompt
    ],
)
def test_what_a_cache_may_hold(tiny: Path, gates: list[str], turn: int, limit: int) -> None:
    profiles = [make_profile(tiny, name=f"p{i}", gate=gate) for i, gate in enumerate(gates)]
    assert new(*profiles, turn=turn).may_reuse() == limit


def test_what_was_seen_need_not_be_read_again(tiny: Path) -> None:
    """A turn that goes on is decided as one that is read from its start."""
    profile = make_profile(tiny, gate="partly")
    longer = [*PROMPT, *range(60, 70)]
    first = new(profile, turn=5)
    read(first)
    assert first.seen is not None and (first.seen.start, len(first.seen.rows[0])) == (5, 15)
    fresh, again = new(profile, turn=5, prompt=longer), new(profile, turn=5, prompt=longer)
    read(fresh)
    assert again.may_reuse() == 5 and again.may_reuse(first.seen) == len(PROMPT)
    read(again, 12, first.seen)
    assert again.decisions[0].score == pytest.approx(fresh.decisions[0].score, rel=1e-5)
    other = [1, 2, *longer[2:]]
    assert new(profile, turn=5, prompt=other).may_reuse(first.seen) == 5
    assert new(profile, turn=2, prompt=longer).may_reuse(first.seen) == 2  # its turn starts before what was seen


def test_one_pass_decides_steers_and_plans(tiny: Path) -> None:
    profile = make_profile(tiny, scope="turn", layers=(2,), answer_strength=0.5)
    request = new(profile, turn=8)
    before, after = read(new(make_profile(tiny, gate="closed"), turn=8)), read(request)
    [decision] = request.decisions
    np.testing.assert_array_equal(after[2, :8], before[2, :8])
    np.testing.assert_array_equal(after[2, 8:], before[2, 8:] + decision.vectors[2])
    assert [segment.start for segment in request.plan] == [8] and request.read_again_from is None
    np.testing.assert_array_equal(request.vectors[2], np.float32(0.5) * decision.vectors[2])


def test_a_gate_that_opens_too_late(tiny: Path) -> None:
    profile = make_profile(tiny, scope="prompt", layers=(1, 3), gate_layer=1)
    request = new(profile, unsteered=Unsteered(tools=((4, 6),)))
    read(request)
    assert request.read_again_from == 0
    [decision] = request.decisions
    spans = [(layer, start, stop) for layer, start, stop, _ in request.additions(0, 20, all_rows=True)]
    assert spans == [(1, 0, 4), (3, 0, 4), (1, 6, 20), (3, 6, 20)]
    assert [(at, *span) for at, *span, _ in request.additions(2, 5, all_rows=True)] == [(1, 0, 2), (3, 0, 2)]
    # the last layer shows only the row that has logits
    assert [(at, *span) for at, *span, _ in request.additions(10, 20, all_rows=False)] == [(1, 0, 10), (3, 0, 1)]
    assert all(vector is decision.vectors[at] for at, _, _, vector in request.additions(8, 20, all_rows=False))


def test_deciding_alone_ends_the_pass(tiny: Path) -> None:
    request = new(make_profile(tiny, layers=(2,)))
    request.begin(0, steers=False)
    states = np.ones((len(PROMPT), 64), np.float32)
    assert [request.handlers[layer](layer, FakeRows(states)) for layer in (1,)] == [False]
    request.decided()
    assert request.plan and (states == 1).all()


def test_layers_that_were_not_shown(tiny: Path) -> None:
    request = new(make_profile(tiny))
    request.begin(0)
    with pytest.raises(SteeringError, match="did not show the layers"):
        request.decided()


def test_thoughts_are_followed_and_guesses_taken_back(tiny: Path) -> None:
    request = new(make_profile(tiny), skip_thinking=True)
    read(request)
    assert request.changes and request.vectors
    steered = []
    for token in (1, 2, 3, 4):
        request.answer(token, PIECES.__getitem__)
        steered.append(bool(request.vectors))
    assert steered == [False, False, True, True] and request.n_answer == 4
    request.cut(2)
    assert request.tokens == [*PROMPT, 1, 2] and not request.vectors
    request.cut(-3)  # a cache that was cut into the prompt
    assert request.tokens == PROMPT and request.vectors


def test_an_answer_at_once_has_no_thoughts_before_it(tiny: Path) -> None:
    steering = Steering((Steer(make_profile(tiny)),), 3, Unsteered(((1, 2),), 15), True)
    assert steering.at_once() == Steering(steering.steer, 3, Unsteered(((1, 2),)), True)


def test_what_cannot_steer_together(tiny: Path, tmp_path: Path) -> None:
    class Model:
        identity = read_model_identity(tiny)

    one = make_profile(tiny)
    check_steer([Steer(one, 0.0, "turn"), Steer(make_profile(tiny, name="other"))], Model())
    other = make_profile(write_tiny_model(tmp_path / "tuned.gguf", nudge=0.5), name="other")
    for steer, said in (
        ([Steer(one), Steer(make_profile(tiny))], "active twice"),
        ([Steer(one, strength=-1.0)], "strength -1.0 is not in"),
        ([Steer(one, strength=float("nan"))], "strength nan is not in"),
        ([Steer(one, scope="answer")], "scope 'answer' is none of"),
        ([Steer(other)], "other"),
    ):
        with pytest.raises(ProfileError, match=said):
            check_steer(steer, Model())


def answered(request: SteeredRequest, *tokens: int, score: float = 0.0) -> list[object]:
    """What came of each of some tokens of the answer, all of whose states have this score."""
    found: list[object] = []
    for token in tokens:
        request.answer(token, PIECES.__getitem__)
        rows = {layer: np.full((1, 64), score / 64, np.float32) for layer in request.answer_layers()}
        found.append(request.answer_read(rows))
    return found


def test_thoughts_that_are_left_alone_stay_when_the_answer_is_taken_back(tiny: Path) -> None:
    reads = AnswerGate(2, np.ones(64, np.float32), bias=0.0, decay=0.0, threshold=1.0, first=2)
    profile = make_profile(tiny, gate="closed", scope="turn", answer_gate=reads, answer_strength=0.5)
    request = new(profile, turn=8, skip_thinking=True)
    read(request)
    assert request.watched and request.changes and not request.vectors and request.look_ahead == 2
    assert request.answer_layers() == {2}
    assert answered(request, 1, 2, score=9.0) == [None, None]  # nobody reads thoughts
    assert request.answer_layers() == set()
    assert answered(request, 3, 4) == [None, None]  # from where they end on
    [opening] = answered(request, 4, score=9.0)
    assert isinstance(opening, Opening) and opening == (0, "rewind", 2)
    request.act(opening)
    assert request.tokens == [*PROMPT, 1, 2] and request.end == 22 and not request.watched and request.showed
    [decision] = request.decisions
    assert decision.g == 1.0 and decision.answer is not None
    assert (decision.answer.opened_at, decision.answer.taken_back) == (5, 3)
    assert [(segment.start, bool(segment.vectors)) for segment in request.plan] == [(8, True), (20, False)]
    assert not request.vectors  # it thinks
    request.answer(3, PIECES.__getitem__)
    np.testing.assert_array_equal(request.vectors[2], np.float32(0.5) * decision.vectors[2])


def test_what_is_left_of_an_answer_is_steered_as_an_answer(tiny: Path) -> None:
    reads = AnswerGate(2, np.ones(64, np.float32), bias=0.0, decay=0.0, threshold=1.0, first=1)
    profile = make_profile(tiny, gate="closed", scope="prompt", answer_gate=reads, answer_strength=0.5)
    request = new(profile)
    read(request)
    assert answered(request, 4, 4, 4) == [None, None, None]
    [opening] = answered(request, 4, score=9.0)
    assert isinstance(opening, Opening) and opening.keep == 0
    request.act(opening, at_least=2)  # so many have gone out
    vector = request.decisions[0].vectors[2]
    assert request.n_answer == 2
    spans = request.additions(0, 22, all_rows=False)
    assert [(layer, start, stop) for layer, start, stop, _ in spans] == [(2, 0, 20), (2, 20, 22)]
    np.testing.assert_array_equal(spans[0][3], vector)
    np.testing.assert_array_equal(spans[1][3], np.float32(0.5) * vector)


@pytest.mark.parametrize(("strength", "action", "does"), [(0.0, "rewind", "report"), (None, "stop", "stop")])
def test_what_a_watch_does(tiny: Path, strength: float | None, action: str, does: str) -> None:
    reads = AnswerGate(2, np.ones(64, np.float32), bias=0.0, decay=0.0, threshold=1.0, first=1)
    profile = make_profile(tiny, gate="closed", answer_gate=reads)
    request = SteeredRequest(PROMPT, Steering((Steer(profile, strength, on_answer=action),)), N_LAYER)
    read(request)
    [opening] = answered(request, 4, score=9.0)
    assert isinstance(opening, Opening) and opening.action == does
    request.act(opening)
    assert request.stopped == (does == "stop") and not request.vectors
    assert request.decisions[0].action == "report" and request.n_answer == (0 if does == "stop" else 1)
