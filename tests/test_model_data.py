"""What training reads from a model: exact, resumable, and kept in a folder of the run's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local import paths
from finesteer_local.errors import DataError, StorageError
from finesteer_local.runtime import SteeredLlama, batch
from finesteer_local.runtime import cached_harvest as cache
from finesteer_local.runtime import harvest as reading
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.training import model_data as training
from finesteer_local.training.data import Pair, Prompt, TrainingData
from finesteer_local.training.model_data import (
    ModelData,
    Turns,
    answer_tokens,
    generate,
    run_folder,
    whole_answers,
)
from finesteer_local.training.progress import Progress, quiet
from reference import steered_llama
from tiny import make_profile, write_tiny_model

N = 40
WORDS = ["alpha", "beta", "gamma", "delta", "rho", "tau", "sigma"]


def prompt(text: str, *before: str) -> Prompt:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate([*before, text])]
    return Prompt(messages)


# The 32nd and the 33rd share their prompt, as preference data often does: a cache would make a difference there.
PAIRS = [
    Pair(prompt(f"how to {WORDS[i // 2 % 7]} {i // 2}"), f"no {WORDS[i % 5]}", f"sure {WORDS[i % 6]}, {i}")
    for i in range(1, N + 1)
]
DATA = TrainingData("some", PAIRS, [prompt("hello"), prompt("bye", "hello", "hm")])


PAGE_TEXT = "alpha beta gamma. " * 12


class Stop(Exception):
    pass


@pytest.fixture
def llama(tiny_model: Path) -> Iterator[SteeredLlama]:
    model = steered_llama(tiny_model)
    yield model
    model.close()


@pytest.fixture
def one(tiny: Path) -> SteeredLlama:
    """The llama architecture alone, where it makes no difference."""
    return steered_llama(tiny)


def until(n: int) -> Progress:
    """Progress that ends the run after `n` rows."""

    def report(stage: str, done: int, total: int) -> None:
        if done == n:
            raise Stop

    return report


def counted(steps: list[tuple[str, int, int]]) -> Progress:
    return lambda *step: steps.append(step)


def test_deltas_are_mean_answer_states_apart(llama: SteeredLlama, tmp_path: Path) -> None:
    states, deltas = ModelData(llama, DATA, tmp_path).deltas(PAIRS[:3], [1, 2])
    assert states.shape == deltas.shape == (3, 2, 64)
    assert states.dtype == deltas.dtype == np.float32
    for i, pair in enumerate(PAIRS[:3]):
        harvester = Harvester(llama, [1, 2])
        tokens = chat_prompt(llama, pair.prompt.messages)
        np.testing.assert_allclose(states[i], harvester.prompt_state(tokens), rtol=5e-3, atol=5e-3)
        chosen, rejected = (
            harvester.answer_states(tokens, llama.tokenize(text.encode(), add_bos=False)).mean(axis=1)
            for text in (pair.chosen, pair.rejected)
        )
        np.testing.assert_allclose(deltas[i], chosen - rejected, rtol=5e-3, atol=5e-3)
    assert np.abs(deltas).max() > 0.1


def test_turns(llama: SteeredLlama, tmp_path: Path) -> None:
    prompts = [prompt("hello"), prompt("and then?", "a first question", "an answer"), prompt("x")]
    got = ModelData(llama, DATA, tmp_path).turns(prompts, 1)
    assert isinstance(got, Turns) and len(got) == 3
    assert got.states.dtype == np.float16 and got[0].dtype == np.float32
    harvester = Harvester(llama, [1])
    for i, each in enumerate(prompts):
        tokens = chat_prompt(llama, each.messages)
        wanted = harvester.turn_states(tokens, turn_start(llama, each.messages, tokens))[0]
        np.testing.assert_allclose(got[i], wanted, rtol=5e-3, atol=5e-3)
        np.testing.assert_array_equal(got.last[i], got[i][-1])
    assert len(got[1]) < len(chat_prompt(llama, prompts[1].messages)) - 20  # the last turn alone
    assert got.last.shape == (3, 64)


def test_a_part_of_the_turns() -> None:
    states = np.arange(20, dtype=np.float16).reshape(10, 2)
    whole = Turns(states, np.array([0, 3, 4, 10]))
    np.testing.assert_array_equal(whole[1], states[3:4])
    np.testing.assert_array_equal(whole.last, states[[2, 3, 9]])
    part = Turns(states[4:], np.array([4, 10]) - 4)
    assert len(part) == 1
    np.testing.assert_array_equal(part[0], whole[2])
    for n in range(1, 3):
        first, others = whole.parted(n)
        assert (len(first), len(others)) == (n, 3 - n)
        for i, turn in enumerate([first[i] for i in range(n)] + [others[i] for i in range(3 - n)]):
            np.testing.assert_array_equal(turn, whole[i])


def test_of_a_long_turn_the_end_is_kept(one: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_TURN", 50)
    long, short = prompt("abcdefgh " * 20), prompt("abcdefgh")
    got = ModelData(one, DATA, tmp_path).turns([long, short], 1)
    tokens = chat_prompt(one, long.messages)
    assert len(got[0]) == 50 > len(got[1]) >= 8
    wanted = Harvester(one, [1]).turn_states(tokens, len(tokens) - 50)[0]
    np.testing.assert_allclose(got[0], wanted, rtol=5e-3, atol=5e-3)


def test_states_that_float16_cannot_hold(one: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's first tokens have activations of 1e5 and more: cut, never infinite."""
    harvest = Harvester.harvest
    monkeypatch.setattr(Harvester, "harvest", lambda *args: ((i, 1e6 * h) for i, h in harvest(*args)))
    got = ModelData(one, DATA, tmp_path).turns([prompt("hello")], 1)
    assert np.isfinite(got.states).all()
    assert np.abs(got.states).max() == np.finfo(np.float16).max


@pytest.mark.parametrize("rows", [1, 32, 33, N])
def test_interrupted_replies_go_on(tiny_model: Path, tmp_path: Path, rows: int) -> None:
    """End with the very same text, and none that was saved is generated again."""

    def read(folder: Path, progress: Progress) -> list[str]:
        return ModelData(steered_llama(tiny_model), DATA, folder, progress).replies(PAIRS, 6)

    wanted = read(tmp_path / "whole", quiet)
    with pytest.raises(Stop):
        read(tmp_path / "parts", until(rows))
    steps: list[tuple[str, int, int]] = []
    assert read(tmp_path / "parts", counted(steps)) == wanted
    kept = rows if rows == N else rows // 32 * 32  # blocks of 32 are saved
    assert [done for _, done, _ in steps] == list(range(kept + 1, N + 1))
    assert {total for _, _, total in steps} <= {N}
    assert read(tmp_path / "parts", until(-1))[0] is not None  # finished: nothing is generated


@pytest.mark.parametrize("what", ["deltas", "turns"])
def test_an_interrupted_harvest_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Ends with the very same numbers, and reads nothing that was saved again."""
    monkeypatch.setattr(cache, "_SAVE", 16)
    monkeypatch.setattr(reading, "MICRO_BATCH", 64)
    prompts = [prompt(f"how to {WORDS[i % 7]} {i}") for i in range(N)]
    total = N if what == "turns" else 3 * N

    def read(home: str, progress: Progress) -> list[Any]:
        monkeypatch.setenv("FINESTEER_HOME", str(tmp_path / home))
        model_data = ModelData(steered_llama(tiny_model), DATA, tmp_path / home / "run", progress)
        if what == "deltas":
            return list(model_data.deltas(PAIRS, [1, 2]))
        turns = model_data.turns(prompts, 2)
        return [np.array(turns.states), turns.offsets]

    wanted = read("whole", quiet)
    for rows in (5, 20, 35):
        with pytest.raises(Stop):
            read("parts", until(rows))
    steps: list[tuple[str, int, int]] = []
    got = read("parts", counted(steps))
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
    done = [n for _, n, _ in steps]
    assert done[0] >= 32 and done[-1] == total and done == sorted(done)
    steps.clear()
    again = read("parts", counted(steps))
    assert [n for _, n, _ in steps] == [total]  # finished: nothing is read
    assert all(np.array_equal(a, b) for a, b in zip(again, wanted, strict=True))


def test_layers_are_harvested_apart(one: SteeredLlama, tmp_path: Path) -> None:
    model_data = ModelData(one, DATA, tmp_path)
    first, second = model_data.turns([prompt("hello")], 1), model_data.turns([prompt("hello")], 2)
    assert not np.array_equal(first.states, second.states)


def test_another_run_reads_only_what_is_new(one: SteeredLlama, tmp_path: Path) -> None:
    first = ModelData(one, DATA, tmp_path / "a").deltas(PAIRS[:3], [1])
    steps: list[tuple[str, int, int]] = []
    second = ModelData(one, DATA, tmp_path / "b", counted(steps)).deltas(PAIRS[:4], [1])
    assert steps[0][1:] == (9, 12)
    assert all(np.array_equal(a, b[:3]) for a, b in zip(first, second, strict=True))


def test_replies_are_the_models_own(tiny: Path, tmp_path: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny, strength=3)])
    [steered] = generate(llama, [PAIRS[0].prompt], 6)
    got = ModelData(llama, DATA, tmp_path).replies(PAIRS[:2], 6)
    assert got == list(generate(steered_llama(tiny), [pair.prompt for pair in PAIRS[:2]], 6))
    assert got[0] != steered
    assert ModelData(llama, DATA, tmp_path).replies(PAIRS[:1], 6) == got[:1]


def test_whole_answers_are_those_of_chat(tiny: Path) -> None:
    """Sampled with a seed of each prompt's own, under the active profiles, batched or not."""
    profile = make_profile(tiny, strength=1.5, scope="turn")
    llama = steered_llama(tiny, profiles=[profile])
    prompts = [pair.prompt for pair in PAIRS[:5]]
    got = list(whole_answers(llama, prompts, 12, 0.8))
    assert [answer.ended for answer in got] == [False] * 5  # a tiny model never ends by itself
    for i, each in enumerate(prompts):
        alone = steered_llama(tiny, profiles=[profile])
        said = alone.create_chat_completion(each.messages, max_tokens=12, temperature=0.8, seed=i)  # type: ignore
        assert got[i].text == said["choices"][0]["message"]["content"]  # type: ignore[index]
    assert list(whole_answers(llama, prompts, 12, 0.8)) == got
    assert list(whole_answers(llama, prompts, 12, 0.0)) != got
    llama.set_profiles([])
    assert list(whole_answers(llama, prompts, 12, 0.8)) != got


def test_an_answer_that_ends(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    [full] = whole_answers(llama, [PAIRS[0].prompt], 12, 0.0)
    assert not full.ended
    made = batch.chat_request
    monkeypatch.setattr(batch, "chat_request", lambda *args, **rest: replace(made(*args, **rest), stop=(full.text[5],)))
    [cut] = whole_answers(llama, [PAIRS[0].prompt], 12, 0.0)
    assert cut == (full.text[: full.text.index(full.text[5])], True)


def test_a_prompt_that_fits(one: SteeredLlama, tmp_path: Path) -> None:
    model_data = ModelData(one, DATA, tmp_path)
    assert model_data.fits(prompt("x" * 300)) and not model_data.fits(prompt("y" * 600))
    with pytest.raises(DataError):
        model_data.check([prompt("y" * 600)])


def test_likelihood(one: SteeredLlama, tmp_path: Path) -> None:
    prompts, answers = [pair.prompt for pair in PAIRS[:3]], ["no", "sure thing", "never ever in my life"]
    steps: list[tuple[str, int, int]] = []
    model_data = ModelData(one, DATA, tmp_path, counted(steps))
    got = model_data.likelihood(prompts, answers, 4)
    for i, answer in enumerate(answers):
        tokens = answer_tokens(one, answer)[:4]
        each = [answer_logprobs(one, chat_prompt(one, p.messages), [tokens])[0].mean() for p in prompts]
        assert got[i] == pytest.approx(np.mean(each), rel=1e-6)
    assert [done for _, done, _ in steps] == [1, 2, 3]
    again = ModelData(one, DATA, tmp_path, until(1)).likelihood(prompts, answers, 4)
    np.testing.assert_array_equal(again, got)


def test_checking_encodes_what_may_not_fit(one: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    model_data, real = ModelData(one, DATA, tmp_path), training.chat_prompt
    monkeypatch.setattr(training, "chat_prompt", lambda llama, m: (encoded.append(m[-1]["content"]), real(llama, m))[1])
    system = Prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "with roles of its own"}])
    room = one.n_ctx() - training._ROOM - len(real(one, prompt("first").messages))
    fits, may_not = prompt("x" * room), prompt("x" * (room + 1))
    model_data.check([prompt("first"), *(prompt(f"short {i}") for i in range(50)), system, fits, may_not])
    assert encoded == ["first", "with roles of its own", may_not.text]


@pytest.mark.parametrize("what", ["check", "turns", "deltas", "tokens"])
def test_a_prompt_longer_than_the_context(one: SteeredLlama, tmp_path: Path, what: str) -> None:
    model_data = ModelData(one, DATA, tmp_path)
    fits = prompt("x" * (512 - 100))
    for n in (512 - 40, 5000):
        long = prompt("y" * n)
        with pytest.raises(DataError, match=r"of \d+ tokens and its answer do not fit the context of 512.*'yyy"):
            if what == "check":
                model_data.check([fits, long])
            elif what == "turns":
                model_data.turns([fits, long], 1)
            elif what == "deltas":
                model_data.deltas([Pair(fits, "no", "yes"), Pair(long, "no", "yes")], [1])
            else:
                model_data.tokens(long)
    model_data.check([fits])


def test_a_prompt_that_the_template_rejects(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
    path = write_tiny_model(tmp_path / "strict.gguf", chat_template=template + "{{ messages[-1]['content'] }}")
    model_data = ModelData(steered_llama(path), DATA, tmp_path / "run")
    model_data.check([prompt("hello")])
    with pytest.raises(DataError, match="chat template rejects 'hello': no system, please"):
        model_data.check([Prompt([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}])])


def test_a_folder_that_cannot_be_made(one: SteeredLlama, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create the folder"):
        ModelData(one, DATA, tmp_path / "file" / "run")


def test_a_full_disk(one: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the first row: a write into a memory map that the disk has no room for kills the process."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(StorageError, match=r"cannot write .*: No space left on device"):
        ModelData(one, DATA, tmp_path, counted(steps)).deltas(PAIRS, [1])
    assert steps == []
    monkeypatch.undo()
    assert ModelData(one, DATA, tmp_path).deltas(PAIRS[:2], [1])[0].any()


def test_the_runs_folder_is_named_by_all_that_matters(one: SteeredLlama, tiny: Path, tmp_path: Path) -> None:
    settings = {"seed": 0, "layer": None}
    folder = run_folder(one, DATA, settings)
    assert folder == run_folder(steered_llama(tiny), DATA, dict(reversed(settings.items())))
    assert folder.parent == paths.work_dir() and folder.name.startswith("some-")
    fine_tune = steered_llama(write_tiny_model(tmp_path / "other.gguf", nudge=0.1))
    others = {
        run_folder(one, DATA, {**settings, "seed": 1}),
        run_folder(one, TrainingData("some", PAIRS[1:], DATA.contrast), settings),
        run_folder(one, TrainingData("other", PAIRS, DATA.contrast), settings),
        run_folder(fine_tune, DATA, settings),
    }
    assert len(others | {folder}) == 5
    assert not folder.exists()


def test_what_is_kept_is_readable(one: SteeredLlama, tmp_path: Path) -> None:
    model_data = ModelData(one, DATA, tmp_path / "a" / "b")
    model_data.replies(PAIRS[:2], 4)
    model_data.turns([prompt("hello")], 1)
    assert len(json.loads((tmp_path / "a" / "b" / "replies-4-2.json").read_text("utf-8"))) == 2
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"replies-4-2.json"}


@pytest.mark.parametrize(("before", "behind"), [("", PAGE_TEXT), (PAGE_TEXT, ""), (PAGE_TEXT, PAGE_TEXT), ("é ", " ß")])
def test_the_tokens_of_a_pages_request(one: SteeredLlama, before: str, behind: str, tmp_path: Path) -> None:
    """All of it, and no more than a token's rest on either side."""
    model_data = ModelData(one, None, tmp_path)
    asked = "how to rho the sigma?"
    page = replace(prompt(f"{before}{asked}{behind}"), form="page", request=asked)
    start, stop = model_data.request_span(page) or (0, 0)
    tokens, turn = model_data.tokens(page)
    found = tokens[turn:][start:stop]
    pieces = [one.detokenize([token], special=True) for token in found]
    assert asked.encode() in b"".join(pieces)
    assert asked.encode() not in b"".join(pieces[1:]) and asked.encode() not in b"".join(pieces[:-1])


def test_a_page_without_a_request_has_no_tokens_of_it(one: SteeredLlama, tmp_path: Path) -> None:
    model_data = ModelData(one, None, tmp_path)
    page = replace(prompt(PAGE_TEXT), form="page")
    assert model_data.request_span(page) == (0, 0)
    assert model_data.request_span(replace(page, request="not in it")) == (0, 0)
    assert model_data.request_span(prompt("how to rho")) is None
