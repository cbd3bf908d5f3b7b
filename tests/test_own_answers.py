"""The model's own answers: which prompts it is asked, what is kept of its answers, what goes on after Ctrl-C."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.runtime import open_model
from finesteer_local.training import own_answers as module
from finesteer_local.training.data import FOREIGN, PLAIN, WRAPPED, Pair, Prompt, TrainingData
from finesteer_local.training.effort import Deadline
from finesteer_local.training.model_data import ModelData, answer_tokens, whole_answers
from finesteer_local.training.own_answers import own_answers, prompts_to_answer

LAYER = 1


def prompt(text: str, kind: str = "", **more: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}], kind, **more)


def made(n: int = 60) -> TrainingData:
    forms = [{"form": PLAIN}, {"form": PLAIN}, {"form": FOREIGN}]
    wanted = [prompt(f"! {i}", f"kind_{i % 3}", **forms[i % 3]) for i in range(n)]
    wanted += [prompt(f"?! {i}", f"kind_{i % 3}", family=f"family_{i % 5}", form=WRAPPED) for i in range(n)]
    near = [prompt(f"near {i}", f"kind_{i % 3}") for i in range(n)]
    ordinary = [prompt(f"what is {i}?", "ordinary") for i in range(n)]
    return TrainingData("some", [Pair(each, "no", "sure") for each in wanted], [*near, *ordinary], judge="refusal")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS", 6)
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "MIN_WATCHED", 8)


@pytest.fixture
def model_data(tiny: Path, tmp_path: Path) -> ModelData:
    return ModelData(open_model(tiny, n_threads=1), made(), tmp_path / "run")


def ask(model_data: ModelData, n: int = 12, **options: Any) -> module.OwnAnswers:
    options = {"every": 1, "deadline": Deadline(None), **options}
    return own_answers(model_data, prompts_to_answer(made(), n), LAYER, **options)


def test_prompts_of_every_form_and_kind_are_asked() -> None:
    data = made()
    asked = prompts_to_answer(data, 80)
    wanted = [each.prompt for each in asked if each.needs]
    other = [each.prompt for each in asked if not each.needs]
    assert len(wanted) == len(other) == 40
    forms = Counter(each.form for each in wanted)
    assert forms[WRAPPED] >= 12 and forms[FOREIGN] >= 7 and forms[PLAIN] >= 14
    assert len({each.family for each in wanted if each.form == WRAPPED}) == 5
    assert set(Counter(each.kind for each in other).values()) >= {20}  # half of them ordinary
    assert prompts_to_answer(data, 20) == asked[:20]
    assert len(prompts_to_answer(data, 10_000)) == 240
    assert len({each.prompt.text for each in prompts_to_answer(data, 240)}) == 240


def test_long_prompts_are_left_out() -> None:
    data = made()
    long = replace(data, contrast=[*data.contrast, prompt("x" * (module.LONGEST + 1))])
    assert all(len(each.prompt.text) <= module.LONGEST for each in prompts_to_answer(long, 10_000))


def test_states_are_those_of_the_answers(model_data: ModelData) -> None:
    found = ask(model_data)
    prompts = [each.prompt for each in found.asked[:4]]
    texts = [each.text for each in whole_answers(model_data.llama, prompts, 6, module.TEMPERATURE, seed=4)]
    reader = model_data.llama.reader([LAYER])
    for i, text in enumerate(texts):
        wanted = reader.answer_states(model_data.tokens(prompts[i])[0], answer_tokens(model_data.llama, text))[0]
        assert found.states[i].shape == wanted.shape
        assert np.allclose(found.states[i], wanted, rtol=0.05, atol=0.05)
    assert found.needs.tolist() == [True, False] * 6 and not found.declined.any()
    assert np.array_equal(found.complies, found.needs)


def test_only_tokens_that_are_read_are_kept(model_data: ModelData) -> None:
    every, third = ask(model_data), ask(model_data, every=3)
    for i in range(len(every.asked)):
        assert np.array_equal(third.states[i], every.states[i][2::3])


def test_no_word_of_an_answer_is_kept(model_data: ModelData) -> None:
    ask(model_data)
    files = sorted(model_data.folder.iterdir())
    assert len(files) == 3
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            assert {name: stored[name].dtype.kind for name in stored} == {
                "states": "f",
                "lengths": "i",
                "declined": "b",
            }


def test_what_was_answered_is_not_asked_again(model_data: ModelData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(model_data, 16)
    for file in sorted(model_data.folder.iterdir())[2:]:
        file.unlink()
    told: list[tuple[str, int, int]] = []
    model_data.progress = lambda *step: told.append(step)
    asked: list[int] = []
    answer = module.whole_answers
    monkeypatch.setattr(module, "whole_answers", lambda *args, **kw: asked.append(len(args[1])) or answer(*args, **kw))
    again = ask(model_data, 16)
    assert asked == [4, 4] and told == [("watching answers", n, 16) for n in (4, 8, 12, 16)]
    assert np.array_equal(again.states.states, whole.states.states)
    assert np.array_equal(again.declined, whole.declined)


def test_as_many_as_there_is_time_for(model_data: ModelData) -> None:
    assert len(ask(model_data, 16, deadline=Deadline(-1.0)).asked) == 8  # so few are answered all the same


@pytest.mark.parametrize(("keep", "after", "n"), [(True, 8, 8), (True, 4, None), (False, 8, None)])
def test_an_interruption(model_data: ModelData, keep: bool, after: int, n: int | None) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    model_data.progress = stop
    if n is None:
        with pytest.raises(KeyboardInterrupt):
            ask(model_data, 16, keep=keep)
    else:
        assert len(ask(model_data, 16, keep=keep).asked) == n
