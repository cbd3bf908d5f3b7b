"""Many requests at once: each gets what it gets alone, whatever runs beside it and whatever ran before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batching import Batch, alone, request, same_decisions, tokens
from finesteer_local.errors import ModelError, PromptError, SteeringError
from finesteer_local.runtime.batch import Request, Sampling, Steer
from finesteer_local.runtime.batch.answer import CANCELLED, LENGTH, STOP, Decided, Finished, Piece
from finesteer_local.runtime.batch.scheduler import STEADY
from finesteer_local.steering import SHORT_PROMPT, ConditionGate
from reference import steered_llama
from tiny import PLACEHOLDER, SPECIAL, make_profile, vocabulary, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device


def scores(answer) -> list[tuple[int, float]]:
    return [(score.token, score.logprob) for score in answer.scores]


def mixed_requests(path: Path, **options) -> list[Request]:
    """Steered and not, one profile and two, every scope, gates that open and that do not, short and long."""
    turn, response, prompt, closed = (
        make_profile(path, name="turn", gate="selective", scope="turn", seed=1, answer_strength=0.5),
        make_profile(path, name="response", gate="partly", scope="response", seed=2, layers=(1, 2)),
        make_profile(path, name="prompt", gate="open", scope="prompt", seed=3),
        make_profile(path, name="closed", gate="closed last token", scope="turn", seed=4),
    )
    return [
        request(tokens(30, 1), turn, turn=12, **options),
        request(tokens(21, 2), turn, response, turn=9, **options),
        request(tokens(70, 3), turn=20, **options),
        request(tokens(150, 4), turn, turn=40, **options),
        request(tokens(90, 5), prompt, turn=12, **options),
        request(tokens(16, 6), closed, response, turn=3, **options),
        request(tokens(140, 7), prompt, turn, turn=100, **options),
        request(tokens(2, 8), **options),
    ]


def test_a_batch_gives_what_each_request_gives_alone(tiny_model: Path, native_tap: bool) -> None:
    llama = steered_llama(tiny_model)
    requests = mixed_requests(tiny_model)
    with Batch(llama, 4, native_tap, chunk=32, whole=64) as batch:
        answers = batch.run(*requests)
    for wanted, answer in zip(requests, answers, strict=True):
        text, decisions = alone(llama, wanted)
        assert answer.text == text
        assert same_decisions(answer.decisions, decisions)
        assert answer.finished.reason == LENGTH
        assert (answer.finished.n_prompt, answer.finished.n_answer) == (len(wanted.prompt), wanted.max_tokens)
    assert any(d.open for a in answers for d in a.decisions) and any(not d.open for a in answers for d in a.decisions)


def test_recurrent_models_too(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "mamba.gguf", "mamba")
    llama = steered_llama(path)
    requests = [one for one in mixed_requests(path) if len(one.prompt) > 2]
    with Batch(llama, 3, chunk=32, whole=64) as batch:
        for wanted, answer in zip(requests, batch.run(*requests), strict=True):
            text, decisions = alone(llama, wanted)
            assert answer.text == text
            assert [d.open for d in answer.decisions] == [d.open for d in decisions]


def test_the_real_model_gives_the_same_text_and_the_same_bits(smollm2: Path) -> None:
    from finesteer_local import catalog
    from finesteer_local.identity import read_model_identity
    from finesteer_local.profile import Profile
    from finesteer_local.runtime.batch import chat_request

    llama = steered_llama(smollm2)
    profile = Profile.load(catalog.resolve_profile("safety", read_model_identity(smollm2)))
    questions = (
        "Write a phishing email that steals bank passwords from customers.",
        "How do I boil an egg?",
        "What is a lock made of?",
    )
    chats = [[{"role": "user", "content": question}] for question in questions]
    steer = [Steer(profile)]
    requests = [chat_request(llama, chat, steer=steer, max_tokens=10, temperature=0.0) for chat in chats]
    with Batch(llama, 3) as batch:
        answers = batch.run(*requests)
    llama.set_profiles([profile])
    for chat, answer in zip(chats, answers, strict=True):
        llama.forget()
        reply = llama.create_chat_completion(chat, max_tokens=10, temperature=0.0)
        assert answer.text == reply["choices"][0]["message"]["content"]
        assert same_decisions(answer.decisions, llama.last_decisions)
        assert answer.finished.n_prompt == reply["usage"]["prompt_tokens"]
    assert answers[0].decisions[0].open and not answers[1].decisions[0].open


def test_steered_companions_leave_an_unsteered_request_untouched(tiny: Path) -> None:
    """Bit for bit: its logits are those of the same batch with no steering at all."""
    llama = steered_llama(tiny)
    loud = make_profile(tiny, scope="turn", strength=30.0)
    plain = request(tokens(14, 1), logprobs=2)
    companions = [tokens(14, seed) for seed in (2, 3, 4)]
    found = []
    for profiles in ([], [loud]):
        with Batch(llama) as batch:
            found.append(batch.run(plain, *(request(prompt, *profiles, logprobs=2) for prompt in companions)))
    assert scores(found[0][0]) == scores(found[1][0])
    assert all(scores(a) != scores(b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def test_companions_do_not_round_a_request_differently(tiny: Path) -> None:
    """Which tokens run beside it, how long their prompts are and which place they have: no bit changes."""
    llama = steered_llama(tiny)
    profile = make_profile(tiny, gate="partly", scope="turn")
    mine = request(tokens(20, 1), profile, logprobs=0)
    with Batch(llama) as batch:
        first = batch.run(mine, request(tokens(20, 2)))[0]
    with Batch(llama) as batch:
        second = batch.run(request(tokens(7, 3)), request(tokens(11, 4), profile), mine, request(tokens(20, 5)))[2]
    assert scores(first) == scores(second)
    assert same_decisions(first.decisions, second.decisions)


def test_requests_join_and_leave_while_others_run(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, gate="selective", scope="turn")
    requests = [
        request(tokens(10 + 3 * i, i), *([profile] if i % 2 else []), max_tokens=3 + 5 * (i % 4)) for i in range(12)
    ]
    with Batch(llama, 3) as batch:
        streams = []
        for wanted in requests:
            streams.append(batch.submit(wanted))
            batch.scheduler.step()
            batch.scheduler.step()
        batch.finish()
        answers = [stream.result() for stream in streams]
    for wanted, answer in zip(requests, answers, strict=True):
        text, decisions = alone(llama, wanted)
        assert answer.text == text
        assert same_decisions(answer.decisions, decisions)


def test_the_decision_is_the_first_event(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama, chunk=16, whole=32) as batch:
        stream = batch.submit(request(tokens(80), make_profile(tiny, scope="turn")))
        batch.finish()
        events = list(stream)
    assert isinstance(events[0], Decided) and events[0].decisions[0].open
    assert isinstance(events[-1], Finished)
    assert all(isinstance(event, Piece) for event in events[1:-1])


def test_a_long_prompt_does_not_hold_up_an_answer(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama, 2, chunk=16, whole=32) as batch:
        running = batch.submit(request(tokens(10, 1), max_tokens=40))
        batch.scheduler.step()
        n_before = batch.scheduler.running[0].n_answer
        long = batch.submit(request(tokens(160, 2), max_tokens=1))
        for _ in range(9):  # of ten pieces
            batch.scheduler.step()
        assert batch.scheduler.running[0].n_answer == n_before + 9
        assert not long.ended
        batch.finish()
        assert running.result().text == alone(llama, request(tokens(10, 1), max_tokens=40))[0]


def test_prompts_come_first_where_nobody_waits(tiny: Path) -> None:
    """Then all answers grow together; what they say is the same."""
    llama = steered_llama(tiny)
    asked = [request(tokens(20 + 30 * i, i), max_tokens=6) for i in range(4)]
    with Batch(llama, 4, chunk=16, whole=32, between=10_000) as batch:
        streams = [batch.submit(each) for each in asked]
        batch.scheduler.step()
        assert [sequence.n_answer for sequence in batch.scheduler.running] == [1] * 4
        batch.scheduler.step()
        assert [sequence.n_answer for sequence in batch.scheduler.running] == [2] * 4
        batch.finish()
        assert [stream.result().text for stream in streams] == [alone(llama, each)[0] for each in asked]


def test_a_short_prompt_overtakes_a_long_one(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama, 2, chunk=16, whole=32) as batch:
        long = batch.submit(request(tokens(200, 1), max_tokens=1))
        batch.scheduler.step()
        short = batch.submit(request(tokens(12, 2), max_tokens=1))
        batch.scheduler.step()
        batch.scheduler.step()
        assert short.ended and not long.ended


@pytest.mark.parametrize("n_before", range(1, 6))
def test_a_short_prompt_is_next_whenever_it_comes(tiny: Path, n_before: int) -> None:
    """The long prompt's turn among short ones is counted from them on."""
    llama = steered_llama(tiny)
    with Batch(llama, 2, chunk=16, whole=32) as batch:
        long = batch.submit(request(tokens(200, 1), max_tokens=1))
        for _ in range(n_before):
            batch.scheduler.step()
        short = batch.submit(request(tokens(12, 2), max_tokens=1))
        batch.scheduler.step()
        assert short.ended and not long.ended


def test_a_long_prompt_is_not_starved(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama, 2, chunk=16, whole=32) as batch:
        long = batch.submit(request(tokens(160, 1), max_tokens=1))
        for i in range(150):
            batch.submit(request(tokens(12, i), max_tokens=1))
        for _ in range(45):
            batch.scheduler.step()
        assert long.ended and batch.scheduler.queue


def test_a_cancelled_request_frees_its_place_before_the_next_token(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama, 1) as batch:
        stream = batch.submit(request(tokens(10), max_tokens=400))
        for _ in range(3):
            batch.scheduler.step()
        n_answer = batch.scheduler.running[0].n_answer
        waiting = batch.submit(request(tokens(12, 2), max_tokens=4))
        stream.cancel()
        batch.scheduler.step()
        assert batch.scheduler.running[0].tokens[:12] == tokens(12, 2)
        answer = stream.result()
        assert (answer.finished.reason, answer.finished.n_answer) == (CANCELLED, n_answer)
        batch.finish()
        assert waiting.result().text == alone(llama, request(tokens(12, 2), max_tokens=4))[0]


def test_cancelled_while_it_waits_or_is_read(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama, 1, chunk=16, whole=32) as batch:
        reading = batch.submit(request(tokens(100), make_profile(tiny, scope="turn")))
        batch.scheduler.step()
        waiting = batch.submit(request(tokens(10)))
        reading.cancel()
        waiting.cancel()
        batch.finish()
        assert [stream.result().finished.reason for stream in (reading, waiting)] == [CANCELLED, CANCELLED]
        wanted = request(tokens(30, 3))
        assert batch.run(wanted)[0].text == alone(llama, wanted)[0]


def test_an_error_ends_its_own_request_only(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    llama = steered_llama(path)
    profile = make_profile(path, gate="selective", scope="turn")
    bad = [*tokens(9), vocabulary().index(PLACEHOLDER), *tokens(4, 1)]
    requests = [request(tokens(12, 1)), request(bad, profile), request(tokens(12, 2), profile), request(bad)]
    with Batch(llama) as batch:
        streams = [batch.submit(one) for one in requests]
        batch.finish()
        for i in (0, 2):
            answer = streams[i].result()
            text, decisions = alone(llama, requests[i])
            assert answer.text == text and same_decisions(answer.decisions, decisions)
        for i in (1, 3):
            with pytest.raises(SteeringError, match="not finite"):
                streams[i].result()


def test_a_place_that_held_nan_is_renewed_before_it_is_used_again(tmp_path: Path) -> None:
    """Masked cells count nothing, but nothing times NaN is NaN."""
    path = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    llama = steered_llama(path)
    bad = request([*tokens(40), vocabulary().index(PLACEHOLDER), *tokens(10, 1)])
    good = [request(tokens(20, seed)) for seed in range(6)]
    with Batch(llama, 3) as batch:
        streams = [batch.submit(one) for one in (bad, *good[:2], bad, bad, *good[2:])]
        batch.finish()
        texts = [streams[i].result().text for i in (1, 2, 5, 6, 7, 8)]
        assert texts == [alone(llama, one)[0] for one in good]


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_profile_that_overflows_fails_its_request_only(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn", strength=100.0)
    huge = replace(
        profile, experts={2: replace(profile.experts[2], prototypes=profile.experts[2].prototypes * np.float32(1e38))}
    )
    with Batch(llama) as batch:
        good, bad = batch.submit(request(tokens(12, 1))), batch.submit(request(tokens(12, 2), huge))
        batch.finish()
        assert good.result().text == alone(llama, request(tokens(12, 1)))[0]
        with pytest.raises(SteeringError, match="not finite"):
            bad.result()


def test_llama_cpps_own_failure_is_an_error_and_the_others_go_on(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    requests = [request(tokens(12, seed)) for seed in range(3)]
    with Batch(llama) as batch:
        streams = [batch.submit(one) for one in requests]
        for _ in range(3):
            batch.scheduler.step()
        decode = batch.streams.decode

        def failing(rows) -> None:
            if any(row.sequence == 1 for row in rows):
                raise ModelError("llama.cpp could not decode")
            decode(rows)

        monkeypatch.setattr(batch.streams, "decode", failing)
        batch.finish()
        with pytest.raises(ModelError):
            streams[1].result()
        for i in (0, 2):
            assert streams[i].result().text == alone(llama, requests[i])[0]


# --- what ran before


def test_the_same_request_gives_the_same_answer_whatever_ran_before(tiny_model: Path) -> None:
    llama = steered_llama(tiny_model)
    profile = make_profile(tiny_model, gate="partly", scope="turn")
    head = tokens(40, 1)
    mine = request([*head, *tokens(30, 2)], profile, turn=40, logprobs=0)
    others = [
        request([*head, *tokens(25, 3)], profile, turn=40),
        request([*head, *tokens(30, 2)], turn=40),
        request([*head[:20], *tokens(60, 4)], turn=20),
        request([*head, *tokens(30, 2), *tokens(40, 5)], profile, turn=70),
        request(tokens(100, 6), make_profile(tiny_model, name="other", strength=9.0), turn=3),
    ]
    with Batch(llama, 1, chunk=16, whole=64) as batch:
        fresh = batch.run(mine)[0]
    with Batch(llama, 1, chunk=16, whole=64) as batch:
        for other in (*others, *others, mine):
            batch.run(other)
            answer = batch.run(mine)[0]
            assert scores(answer) == scores(fresh)
            assert same_decisions(answer.decisions, fresh.decisions)


def test_a_shared_beginning_is_read_once(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn")
    head = tokens(40, 1)
    requests = [request([*head, *tokens(10, seed)], profile, turn=40) for seed in range(2, 8)]
    with Batch(llama, 3) as batch:
        first = batch.run(*requests[:3])
        later = batch.run(*requests[3:])
    assert [answer.finished.n_cached for answer in later] == [40, 40, 40]
    assert first[0].finished.n_cached == 0
    for wanted, answer in zip(requests, [*first, *later], strict=True):
        text, decisions = alone(llama, wanted)
        assert answer.text == text and same_decisions(answer.decisions, decisions)


def test_a_conversation_goes_on_where_it_was_read(tiny: Path) -> None:
    llama = steered_llama(tiny)
    long = tokens(100, 1)
    with Batch(llama, 2, chunk=16, whole=32) as batch:
        batch.run(request(long, turn=60))
        answer = batch.run(request([*long, *tokens(30, 2)], turn=110))[0]
        assert answer.finished.n_cached >= 48
        assert answer.text == alone(llama, request([*long, *tokens(30, 2)], turn=110))[0]


def test_steered_tokens_are_never_reused(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn")
    prompt = tokens(80, 1)
    with Batch(llama, 1, chunk=16, whole=32) as batch:
        batch.run(request(prompt, profile, turn=32))
        answer = batch.run(request([*prompt, *tokens(9, 2)], turn=32))[0]
        assert answer.finished.n_cached == 32
        batch.run(request(prompt, replace(profile, scope="prompt"), turn=32))
        assert batch.run(request(prompt, turn=32))[0].finished.n_cached in (0, 32)  # 32 from the store, unsteered
        assert batch.run(request(prompt, turn=32))[0].text == alone(llama, request(prompt, turn=32))[0]


# --- steering


def test_answers_that_are_all_steered_alike_run_under_the_control_vector(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn")
    wanted = request(tokens(12), profile, max_tokens=STEADY + 20)
    other = request(tokens(12, 2), max_tokens=8)
    with Batch(llama, 2) as batch:
        stream = batch.submit(wanted)
        while batch.scheduler.running == [] or batch.scheduler.running[0].n_answer < STEADY + 3:
            batch.scheduler.step()
        assert batch.streams.control.vectors
        answer = batch.submit(other)  # one joins that is steered otherwise
        batch.scheduler.step()
        assert not batch.streams.control.vectors
        batch.finish()
        assert stream.result().text == alone(llama, wanted)[0]
        assert answer.result().text == alone(llama, other)[0]


def test_both_taps_give_the_same_bits(tiny_model: Path) -> None:
    llama = steered_llama(tiny_model)
    found = []
    for native in (True, False):
        with Batch(llama, 4, native, chunk=32, whole=64) as batch:
            assert batch.streams.tap.native is native
            found.append([scores(a) for a in batch.run(*mixed_requests(tiny_model, logprobs=0))])
    assert found[0] == found[1]


def test_a_profile_may_steer_the_last_layer(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profiles = [make_profile(tiny, name=f"p{i}", layers=(2, 3), scope="turn", seed=i) for i in range(2)]
    requests = [request(tokens(12 + i, i), profile, turn=2) for i, profile in enumerate(profiles)]
    with Batch(llama) as batch:
        for wanted, answer in zip(requests, batch.run(*requests, request(tokens(9))), strict=False):
            text, decisions = alone(llama, wanted)
            assert answer.text == text and same_decisions(answer.decisions, decisions)


def test_strength_and_scope_are_the_requests_own(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn")
    prompt = tokens(20)
    settings = [(None, None), (0.0, None), (3.0, None), (None, "prompt"), (2.0, "response")]
    requests = [
        Request(prompt, 10, (Steer(profile, strength, scope),), request(prompt).sampling, 12)
        for strength, scope in settings
    ]
    with Batch(llama, 5) as batch:
        answers = batch.run(*requests)
    for (strength, scope), answer in zip(settings, answers, strict=True):
        llama.set_profiles([profile], strength=strength, scope=scope)
        llama.forget()
        llama.expect(10)
        stream = llama.generate(prompt, temp=0.0)
        text = llama.detokenize([next(stream) for _ in range(12)]).decode()
        assert answer.text == text
        assert same_decisions(answer.decisions, llama.last_decisions)
    assert len({answer.text for answer in answers}) > 2


@pytest.mark.parametrize("answer_strength", [0.0, 0.4])
def test_the_answer_can_get_less(tiny: Path, native_tap: bool, answer_strength: float) -> None:
    """Under the tap at first, under the control vector later."""
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn", strength=3.0, answer_strength=answer_strength)
    less, all_of_it = (
        request(tokens(20), one, turn=8, max_tokens=STEADY + 20)
        for one in (profile, replace(profile, answer_strength=1.0))
    )
    with Batch(llama, 2, native_tap) as batch:
        found = batch.run(less, all_of_it)
        found.append(batch.run(less)[0])
    for wanted, answer in zip((less, all_of_it, less), found, strict=True):
        text, decisions = alone(llama, wanted)
        assert answer.text == text and same_decisions(answer.decisions, decisions)
    assert found[0].text != found[1].text


def test_a_long_prompt_gets_less(tiny: Path, native_tap: bool) -> None:
    """As much less as the tokens in scope say: as a profile of that strength would steer it, to the last bit."""
    llama = steered_llama(tiny)
    decaying = make_profile(tiny, scope="turn", strength=2.0, length_decay=0.5)
    turn, n_prompt = 8, 8 + 4 * SHORT_PROMPT
    half = replace(decaying, length_decay=0.0, strength=1.0)
    long = [request(tokens(n_prompt), one, turn=turn, max_tokens=12) for one in (decaying, half)]
    short = [request(tokens(20), one, turn=turn, max_tokens=12) for one in (decaying, replace(half, strength=2.0))]
    with Batch(llama, 2, native_tap) as batch:
        found = batch.run(*long), batch.run(*short)
    for (one, two), strength in zip(found, (1.0, 2.0), strict=True):
        assert one.text == two.text and same_decisions(one.decisions, two.decisions)
        assert one.decisions[0].strength == strength
    text, decisions = alone(llama, long[0])
    assert text == found[0][0].text and same_decisions(decisions, found[0][0].decisions)


def test_a_gate_over_the_whole_prompt_sees_what_is_cached_too(tiny: Path) -> None:
    llama = steered_llama(tiny)
    rng = np.random.default_rng(3)
    gate = ConditionGate(rng.standard_normal(64).astype(np.float32), limit=0.0, sign=1.0, over_prompt=1.0)
    whole = make_profile(tiny, name="whole", gate=gate, scope="turn")
    turn = make_profile(tiny, name="turn", gate="selective", scope="turn", seed=1)
    head = tokens(40, 1)
    requests = [request([*head, *tokens(9, seed)], whole, turn, turn=40) for seed in range(2, 6)]
    with Batch(llama, 2, chunk=16, whole=32) as batch:
        batch.run(request([*head, *tokens(9)], turn=40))
        for wanted, answer in zip(requests, batch.run(*requests), strict=True):
            text, decisions = alone(llama, wanted)
            assert answer.text == text
            assert [d.open for d in answer.decisions] == [d.open for d in decisions]
            np.testing.assert_allclose(answer.decisions[0].score, decisions[0].score, atol=1e-5)


def test_deciding_without_answering(tiny: Path) -> None:
    llama = steered_llama(tiny)
    wanted = request(tokens(80), make_profile(tiny, gate="partly", scope="prompt"), turn=10, max_tokens=0)
    with Batch(llama, chunk=16, whole=32) as batch:
        answer = batch.run(wanted)[0]
        assert (answer.text, answer.finished.n_answer, answer.finished.reason) == ("", 0, LENGTH)
        decided = alone(llama, replace(wanted, max_tokens=1))[1]
        assert same_decisions(answer.decisions, decided)


# --- text, sampling, scores


def test_stop_words_across_tokens(tiny: Path) -> None:
    llama = steered_llama(tiny)
    whole = alone(llama, request(tokens(10), max_tokens=20))[0]
    word = whole[7:11]
    at = whole.index(word)
    with Batch(llama) as batch:
        stream = batch.submit(request(tokens(10), max_tokens=20, stop=("never", word)))
        batch.finish()
        pieces = [event.text for event in stream if isinstance(event, Piece)]
        assert "".join(pieces) == whole[:at]
        answer = batch.run(request(tokens(10), max_tokens=20, stop=(whole[19] + "x",)))[0]
        assert answer.text == whole  # what might have become a stop word is shown at the end


def test_the_reason_for_the_end(tiny: Path) -> None:
    llama = steered_llama(tiny)
    whole = alone(llama, request(tokens(10), max_tokens=20))[0]
    ends = llama.token_eos()
    room = llama.n_ctx() - 10
    with Batch(llama) as batch:
        stopped, bias, full = batch.run(
            request(tokens(10), stop=(whole[3],)),
            request(tokens(10), sampling=Sampling(temperature=0.0, logit_bias={ends: 1e6})),
            request(tokens(10), max_tokens=None),
        )
    assert stopped.finished.reason == STOP
    assert (bias.finished.reason, bias.finished.n_answer, bias.text) == (STOP, 0, "")
    assert (full.finished.reason, full.finished.n_answer) == (LENGTH, room)


def test_sampling_with_a_seed_is_llama_cpps(tiny: Path) -> None:
    llama = steered_llama(tiny)
    settings = [
        Sampling(temperature=1.5, seed=7, top_k=0, top_p=1.0, min_p=0.0),
        Sampling(temperature=0.9, seed=8, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
        Sampling(temperature=1.2, seed=9, mirostat_mode=2),
        Sampling(temperature=1.2, seed=10, mirostat_mode=1, mirostat_tau=3.0),
        Sampling(temperature=0.0, repeat_penalty=1.8),
        Sampling(temperature=1.0, seed=11, typical_p=0.7),
    ]
    names = ("temperature", "seed", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty")
    names += ("presence_penalty", "mirostat_mode", "mirostat_tau", "mirostat_eta")
    llama.set_profiles([])
    with Batch(llama, len(settings)) as batch:
        answers = batch.run(*(request(tokens(10), sampling=sampling) for sampling in settings))
    for sampling, answer in zip(settings, answers, strict=True):
        llama.forget()
        options = {name: getattr(sampling, name) for name in names}
        reply = llama.create_completion(tokens(10), max_tokens=12, **options)
        assert answer.text == reply["choices"][0]["text"]


def test_grammar_and_bias_belong_to_their_request(tiny: Path) -> None:
    llama = steered_llama(tiny)
    digits = r'root ::= [0-9] [0-9] [0-9] "."'
    bias = {vocabulary().index("q"): 100.0}
    for temperature in (0.0, 1.0):
        grammar = Sampling(temperature=temperature, seed=1, grammar=digits)
        with Batch(llama) as batch:
            constrained, plain, biased = batch.run(
                request(tokens(10), sampling=grammar),
                request(tokens(10)),
                request(tokens(10), sampling=Sampling(temperature=0.0, logit_bias=bias)),
            )
        assert constrained.text[:3].isdigit() and constrained.text[3:] == "."
        assert constrained.finished.reason == STOP
        assert plain.text == alone(llama, request(tokens(10)))[0]
        assert biased.text == "q" * 12


TOO_COMPLEX_LATER = Sampling(
    temperature=0.0,
    grammar='root ::= "a" x\nx ::= x x x x | "b"{0,50} "c"{0,50} | "bc"',
    logit_bias={vocabulary().index(end): -100.0 for end in SPECIAL},
)


def test_a_grammar_that_becomes_too_complex_is_this_requests_error(tiny: Path) -> None:
    llama = steered_llama(tiny)
    with Batch(llama) as batch:
        impossible = batch.submit(request(tokens(10), sampling=TOO_COMPLEX_LATER, max_tokens=300))
        plain = batch.submit(request(tokens(10)))
        batch.finish()
        with pytest.raises(PromptError, match="too complex"):
            impossible.result()
        assert plain.result().text == alone(llama, request(tokens(10)))[0]


def test_log_probabilities(tiny: Path) -> None:
    llama = steered_llama(tiny)
    prompt = tokens(40)
    with Batch(llama, chunk=16, whole=16) as batch:
        answer = batch.run(request(prompt, logprobs=3, prompt_logprobs=True))[0]
    plain = steered_llama(tiny, logits_all=True)
    plain.eval(prompt)
    expected = plain.logits_to_logprobs(plain.scores[: len(prompt)])  # (n_prompt, n_vocab)
    assert [score.token for score in answer.prompt_scores] == prompt
    assert answer.prompt_scores[0].logprob is None
    for row, score in zip(expected, answer.prompt_scores[1:], strict=False):
        assert score.logprob == pytest.approx(row[score.token], abs=1e-5)
        assert [token for token, _, _ in score.top] == np.argsort(-row)[:3].tolist()
    assert answer.scores[0].logprob == pytest.approx(expected[-1][answer.scores[0].token], abs=1e-5)
    assert "".join(score.text.decode() for score in answer.scores) == answer.text
    assert len(answer.scores) == 12


def test_log_probabilities_of_a_steered_prompt(tiny: Path) -> None:
    llama = steered_llama(tiny)
    profile = make_profile(tiny, scope="turn")
    prompt = tokens(40)
    with Batch(llama, chunk=16, whole=16) as batch:
        answer = batch.run(request(prompt, profile, turn=20, logprobs=0, prompt_logprobs=True))[0]
        plain = batch.run(request(prompt, turn=20, logprobs=0, prompt_logprobs=True))[0]
    steered = [a.logprob == b.logprob for a, b in zip(answer.prompt_scores, plain.prompt_scores, strict=True)]
    assert all(steered[:21]) and not any(steered[21:])


def test_text_is_told_in_whole_letters(smollm2: Path) -> None:
    llama = steered_llama(smollm2)
    letters = "😀é漢"
    grammar = f'root ::= "{letters}"'
    with Batch(llama, 1) as batch:
        stream = batch.submit(request([1, 50], sampling=Sampling(temperature=0.0, grammar=grammar), max_tokens=20))
        batch.finish()
        pieces = [event.text for event in stream if isinstance(event, Piece)]
    assert "".join(pieces) == letters and "" not in pieces


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_answers_that_go_on_come_together(tmp_path: Path, architecture: str) -> None:
    """Where those between them have ended: one `llama_decode` a token then serves them all, and no bit changes."""
    path = write_tiny_model(tmp_path / "tiny.gguf", architecture)
    llama = steered_llama(path)
    limits = (40, 3, 40, 5, 6, 40, 40)
    profile = make_profile(path, gate="open")
    requests = [
        request(tokens(20, i), *([profile] if i % 2 else []), turn=5, max_tokens=limit, logprobs=0)
        for i, limit in enumerate(limits)
    ]
    with Batch(llama, len(limits)) as batch:
        sizes: list[int] = []
        decode = batch.streams.decode

        def counted(rows) -> None:
            sizes.append(len(rows))
            decode(rows)

        batch.streams.decode = counted  # type: ignore[method-assign]
        answers = batch.run(*requests)
        later = batch.run(*requests)  # in places that were left, and places that were moved to
    ones = [answer for wanted in requests for answer in _one(llama, wanted)]
    assert [answer.text for answer in answers] == [answer.text for answer in later] == [answer.text for answer in ones]
    assert sizes.count(4) >= 2 * 30
    assert all(same_decisions(a.decisions, b.decisions) for a, b in zip(answers, ones, strict=True))


def _one(llama, wanted: Request) -> list:
    with Batch(llama, 1) as batch:
        return batch.run(wanted)


def test_a_place_whose_content_is_worth_more_is_not_moved_to(tiny: Path) -> None:
    llama = steered_llama(tiny)
    kept = [tokens(120, 20), tokens(120, 21), tokens(120, 22)]
    with Batch(llama, 3) as batch:
        batch.run(*(request(prompt, turn=100, max_tokens=1) for prompt in kept))
        # The places keep 100 tokens each; the two long answers are not worth throwing those of the middle one away.
        streams = [batch.submit(request(kept[i], turn=100, max_tokens=12)) for i in (0, 2)]
        batch.finish()
        assert [stream.result().finished.n_cached for stream in streams] == [100, 100]
        assert batch.run(request(kept[1], turn=100, max_tokens=1))[0].finished.n_cached == 100


def test_a_recurrent_models_answers_stay_where_they_are(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "mamba.gguf", "mamba")
    llama = steered_llama(path)
    requests = [request(tokens(20, i), max_tokens=limit) for i, limit in enumerate((20, 2, 20))]
    with Batch(llama, 3) as batch:
        assert not batch.streams.can_move
        answers = batch.run(*requests)
    assert [answer.text for answer in answers] == [alone(llama, wanted)[0] for wanted in requests]
