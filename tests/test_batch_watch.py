"""Many requests at once whose answers are read: each has its own gates, and one that goes back touches no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from batching import Batch, alone, request, tokens
from finesteer_local.errors import OptionError, ProfileError
from finesteer_local.runtime.batch import (
    Answer,
    BatchEngine,
    Decided,
    Finished,
    Piece,
    Request,
    Sampling,
    Showed,
    Steer,
    answers,
)
from finesteer_local.runtime.batch.request import WHOLE
from finesteer_local.runtime.batch.shown import Shown
from finesteer_local.runtime.constraint import json_schema
from finesteer_local.steering import AnswerReading
from reference import steered_llama
from test_steered_watch import FIRST, held_open, keep_back_to, watching
from tiny import make_profile
from tiny_architectures import write_family


def told(answer: Answer) -> list[tuple[int, float | None]]:
    """The tokens of an answer with their log-probabilities."""
    return [(score.token, score.logprob) for score in answer.scores]


def same_reading(a: AnswerReading | None, b: AnswerReading | None) -> bool:
    """Whether two answers were found to be the same; a batch rounds otherwise than one token alone."""
    return (
        a is not None
        and b is not None
        and a.score == pytest.approx(b.score, abs=1e-4)
        and replace(a, score=b.score) == b
    )


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("every", [1, 3])
def test_until_it_opens_nothing_changes(tiny_model: Path, native_tap: bool, every: int) -> None:
    llama = steered_llama(tiny_model)
    profile = watching(tiny_model, opens=False, every=every, layer=1)
    prompts = [tokens(12 + i, seed=i) for i in range(3)]
    with Batch(llama, native_tap=native_tap) as batch:
        plain = batch.run(*(request(prompt, logprobs=0) for prompt in prompts))
    with Batch(llama, native_tap=native_tap) as batch:
        read = batch.run(*(request(prompt, profile, logprobs=0) for prompt in prompts))
    assert [told(answer) for answer in read] == [told(answer) for answer in plain]
    for answer in read:
        found = answer.decisions[0].answer
        assert found is not None and found.score is not None and found.opened_at is None


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "gemma2", "deepseek2", "falcon-h1", "mamba2", "lfm2"])
def test_other_families(name: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", name)
    llama, prompts = steered_llama(path), [tokens(12, seed=i) for i in range(3)]
    shut, opens = watching(path, opens=False, every=2), watching(path)
    with Batch(llama) as batch:
        plain = batch.run(*(request(prompt) for prompt in prompts))
    with Batch(llama) as batch:
        steered = batch.run(request(prompts[2], held_open(opens)))
    with Batch(llama) as batch:
        read = batch.run(*(request(prompt, opens if i == 2 else shut) for i, prompt in enumerate(prompts)))
    assert [answer.text for answer in read] == [plain[0].text, plain[1].text, steered[0].text]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("keep", [0, 2])
def test_one_that_goes_back_touches_no_other(
    tiny_model: Path, native_tap: bool, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_back_to(monkeypatch, keep)
    llama = steered_llama(tiny_model)
    profile, other = watching(tiny_model), make_profile(tiny_model, name="other", seed=3)
    neighbours = [
        request(tokens(20, seed=1), logprobs=0, max_tokens=24),
        request(tokens(9, seed=2), other, logprobs=0, max_tokens=24),
        request(tokens(14, seed=3), watching(tiny_model, opens=False), logprobs=0, max_tokens=24),
    ]
    rewinds = request(tokens(15, seed=4), profile, logprobs=0)
    with Batch(llama, native_tap=native_tap) as batch:
        undisturbed = batch.run(*neighbours)
    with Batch(llama, native_tap=native_tap) as batch:
        *others, taken = batch.run(*neighbours, rewinds)
    # What is left when all others have ended is computed alone, and rounded otherwise.
    assert [told(answer)[:16] for answer in others] == [told(answer)[:16] for answer in undisturbed]
    found = taken.decisions[0].answer
    assert found is not None and (found.opened_at, found.taken_back) == (FIRST, FIRST - keep)
    text, [decision] = alone(llama, replace(rewinds, steer=(Steer(profile),)))
    assert taken.text == text and same_reading(decision.answer, found)
    assert "".join(score.text.decode() for score in taken.scores) == taken.text
    assert taken.finished.n_answer == 12


def test_steered_from_there_and_reported(tiny: Path) -> None:
    llama = steered_llama(tiny)
    for action in ("steer", "report"):
        asked = request(tokens(15), watching(tiny, action=action))
        with Batch(llama) as batch:
            [got] = batch.run(asked)
        text, decisions = alone(llama, asked)
        assert got.text == text and same_reading(got.decisions[0].answer, decisions[0].answer)


def test_what_is_told_and_when(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama) as batch:
        [taken] = batch.run(request(tokens(15), watching(tiny)))
        stream = batch.submit(request(tokens(15), watching(tiny)))
        batch.finish()
        events = list(stream)
    kinds = [type(event) for event in events]
    assert kinds[:2] == [Decided, Showed] and kinds[-1] is Finished and set(kinds[2:-1]) == {Piece}
    decided, showed, finished = events[0], events[1], events[-1]
    assert decided.decisions[0].answer.opened_at is None and not decided.decisions[0].open
    assert showed.decisions[0].answer.opened_at == FIRST and showed.decisions[0].open
    assert finished.decisions[0].answer == showed.decisions[0].answer
    assert "".join(event.text for event in events if isinstance(event, Piece)) == taken.text


@pytest.mark.parametrize("look_ahead", [0, 2, None, WHOLE])
def test_what_went_out_stays(tiny: Path, look_ahead: int | None) -> None:
    llama = steered_llama(tiny)
    asked = request(tokens(15), watching(tiny), look_ahead=look_ahead)
    with Batch(llama) as batch:
        [plain] = batch.run(request(tokens(15)))
        [got] = batch.run(asked)
    n_out = FIRST - (FIRST if look_ahead is None else min(look_ahead, FIRST))
    found = got.decisions[0].answer
    assert found is not None and found.taken_back == FIRST - n_out
    assert got.text[:n_out] == plain.text[:n_out] and got.text != plain.text and len(got.text) == 12


def test_stopped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_back_to(monkeypatch, 2)
    llama, steer = steered_llama(tiny), (Steer(watching(tiny), on_answer="stop"),)
    with Batch(llama) as batch:
        [plain] = batch.run(request(tokens(15)))
        [got] = batch.run(replace(request(tokens(15)), steer=steer))
    assert (got.text, got.finished.reason, got.finished.n_answer) == (plain.text[:2], "content_filter", 2)
    assert got.decisions[0].answer is not None and got.decisions[0].answer.action == "stop"


def test_a_stop_word_ends_an_answer_that_is_held_back(tiny: Path) -> None:
    llama, profile = steered_llama(tiny), watching(tiny, opens=False, first=200)
    with Batch(llama) as batch:
        [plain] = batch.run(request(tokens(15), max_tokens=60))
        word = plain.text[9:11]
        wanted, got = batch.run(
            request(tokens(15), stop=(word,), max_tokens=60, logprobs=0),
            request(tokens(15), profile, stop=(word,), max_tokens=60, logprobs=0, look_ahead=WHOLE),
        )
    assert (got.text, got.finished.reason, got.finished.n_answer) == (
        wanted.text, wanted.finished.reason, wanted.finished.n_answer
    )  # fmt: skip
    assert told(got) == told(wanted)


@pytest.mark.parametrize("keep", [0, 3])
def test_after_a_rewind_the_grammar_is_where_the_text_is(
    tiny: Path, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_back_to(monkeypatch, keep)
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}, "required": ["a"]}
    for sampling in (Sampling(temperature=0.0), Sampling(seed=5, repeat_penalty=1.3)):
        sampling = replace(sampling, grammar=json_schema(schema))
        with Batch(steered_llama(tiny)) as batch:
            asked = request(tokens(15), watching(tiny), sampling=sampling, max_tokens=200)
            first, second = batch.run(asked, asked)
        assert first.text == second.text and list(json.loads(first.text)) == ["a"]
        assert first.decisions[0].answer is not None and first.decisions[0].answer.taken_back == FIRST - keep


def test_a_scored_prompt_is_told_once(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama) as batch:
        stream = batch.submit(request(tokens(15), watching(tiny), logprobs=1, prompt_logprobs=True))
        batch.finish()
        events = list(stream)
        [plain] = batch.run(request(tokens(15), logprobs=1, prompt_logprobs=True))
    [decided] = [event for event in events if isinstance(event, Decided)]
    assert [s.logprob for s in decided.prompt_scores] == [s.logprob for s in plain.prompt_scores]


def test_thoughts_that_are_left_alone_are_not_read(tiny: Path) -> None:
    """An answer that thinks all along: nothing of it is read, nothing opens."""
    from finesteer_local.runtime.prompt import Unsteered

    asked = request(tokens(15), watching(tiny), unsteered=Unsteered(thinking=14), skip_thinking=True)
    with Batch(steered_llama(tiny)) as batch:
        [plain] = batch.run(request(tokens(15)))
        [got] = batch.run(asked)
    assert got.text == plain.text and got.decisions[0].answer is not None
    assert (got.decisions[0].answer.score, got.decisions[0].answer.opened_at) == (None, None)


def test_its_place_serves_others_as_if_nothing_had_been(tiny: Path) -> None:
    llama, shared = steered_llama(tiny), tokens(40, seed=8)
    with Batch(llama, n_parallel=1) as batch:
        [fresh] = batch.run(request([*shared, *tokens(5, seed=9)], turn=40, logprobs=0))
    with Batch(llama, n_parallel=1) as batch:
        batch.run(request([*shared, *tokens(6)], watching(tiny, scope="turn"), turn=40))
        [after] = batch.run(request([*shared, *tokens(5, seed=9)], turn=40, logprobs=0))
    assert told(after) == told(fresh) and after.finished.n_cached > 0


def test_answers_that_nobody_reads_before_their_end_go_back_all_the_way(tiny: Path) -> None:
    llama = steered_llama(tiny)
    asked = [request(tokens(15, seed=i), watching(tiny, first=8, every=4), max_tokens=20) for i in range(3)]
    for answer in answers(llama, asked):
        found = answer.decisions[0].answer
        assert found is not None and (found.opened_at, found.taken_back) == (8, 8)


def test_the_own_context_rewinds_too(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[watching(tiny)])
    asked = request(tokens(15), watching(tiny))
    with BatchEngine(llama, own_context=True) as engine:
        first, second = engine.submit(asked).result(), engine.submit(asked).result()
    assert first.text == second.text == alone(llama, asked)[0]


def test_what_is_refused(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with pytest.raises(OptionError, match="look_ahead"):
        Request([1], look_ahead=-1).check(llama, 99)
    with pytest.raises(ProfileError, match="does not read answers"):
        Request([1], steer=(Steer(make_profile(tiny), on_answer="stop"),)).check(llama, 99)


def test_what_is_shown_and_held_back() -> None:
    shown = Shown(("cd",))
    for letter in b"abc":
        shown.add(bytes([letter]), None)
    piece = shown.piece(1)
    assert piece is not None and (piece.text, shown.n_tokens) == ("ab", 2)
    assert shown.piece(1) is None and not shown.stopped
    shown.cut([b"a", b"b"])
    shown.add(b"d", None)
    assert not shown.stopped  # the c is gone
    shown.add(b"c", None)
    shown.add(b"d", None)
    assert shown.stopped
    last = shown.last()
    assert last is not None and last.text == "d" and shown.last() is None
