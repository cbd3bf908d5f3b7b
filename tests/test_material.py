"""What the other methods are trained on: states of prompts and answers, read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.errors import DataError
from finesteer_local.evaluation import material as module
from finesteer_local.evaluation.material import CONDITION, Material, harvest_material, layers_at
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.training.model_data import answer_tokens
from material import N_CONTRAST, N_PAIRS, prompt, small_data
from reference import steered_llama
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("material") / "tiny.gguf", n_layer=12)


@pytest.fixture(scope="module")
def harvested(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, Path]:
    folder = tmp_path_factory.mktemp("kept")
    return harvest_material(steered_llama(model), small_data(), folder, seed=0), folder


def test_layers_at_shares_of_the_depth() -> None:
    assert layers_at(30, (0.37, 0.4, 0.44, 0.48)) == [11, 12, 13, 14]
    assert layers_at(3, (0.0, 0.5, 1.0)) == [1]  # neither the first nor the last
    assert layers_at(12, (0.2, 0.21)) == [2, 3]


def test_states_are_those_of_the_model(harvested: tuple[Material, Path], model: Path) -> None:
    material, _ = harvested
    llama = steered_llama(model)
    assert material.positive.layers == layers_at(12, CONDITION) == material.contrast.layers
    for side, n in ((material.positive, N_PAIRS), (material.contrast, N_CONTRAST)):
        assert len(side.prompts) == n
        for i in (0, 5, 40):
            tokens = chat_prompt(llama, side.prompts[i].messages)
            turn = turn_start(llama, side.prompts[i].messages, tokens)
            states = Harvester(llama, side.layers).turn_states(tokens, turn)
            for at, layer in enumerate(side.layers):
                # llama.cpp rounds by the shape of a batch.
                for got, wanted in ((side.last, states[at, -1]), (side.mean, states[at].mean(axis=0))):
                    assert np.linalg.norm(got(layer)[i] - wanted) < 0.02 * np.linalg.norm(wanted)


def test_deltas_are_between_the_answers(harvested: tuple[Material, Path], model: Path) -> None:
    material, _ = harvested
    llama = steered_llama(model)
    pair, layer = material.pairs[7], 5
    prompt = chat_prompt(llama, pair.prompt.messages)
    harvester = Harvester(llama, [layer])
    chosen, rejected = (
        harvester.answer_states(prompt, answer_tokens(llama, text))[0].mean(axis=0)
        for text in (pair.chosen, pair.rejected)
    )
    state = harvester.prompt_state(prompt)[0]
    # llama.cpp rounds by the shape of a batch.
    for got, wanted in ((material.deltas[layer][7], chosen - rejected), (material.states[layer][7], state)):
        assert np.linalg.norm(got - wanted) < 0.02 * np.linalg.norm(wanted)
    assert material.learnt_deltas(layer).shape == (len(material.learn), 64)


def test_validation_prompts_are_never_learnt_from(harvested: tuple[Material, Path]) -> None:
    material, _ = harvested
    assert material.held and not set(material.learn) & set(material.held)
    kept_back = {material.originals[i].prompt.text for i in material.held}
    for side in (material.positive, material.contrast):
        assert side.held and sorted([*side.learn, *side.held]) == list(range(len(side.prompts)))
        assert not {side.prompts[i].text for i in side.learn} & kept_back


def test_what_was_read_is_kept(harvested: tuple[Material, Path], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material, folder = harvested
    monkeypatch.setattr(module, "closing", lambda *_: pytest.fail("read again"))  # around what reads prompts
    again = harvest_material(steered_llama(model), small_data(), folder, seed=0)
    assert again.key == material.key
    for layer in material.positive.layers:
        assert np.array_equal(again.positive.last(layer), material.positive.last(layer))
        assert np.array_equal(again.contrast.mean(layer), material.contrast.mean(layer))


def test_a_harvest_that_was_stopped_ends_alike(harvested: tuple[Material, Path], model: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "reading prompts" and done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest_material(steered_llama(model), small_data(), tmp_path, seed=0, progress=stop)
    again = harvest_material(steered_llama(model), small_data(), tmp_path, seed=0)
    assert np.array_equal(again.contrast.states, harvested[0].contrast.states)
    assert np.array_equal(again.positive.states, harvested[0].positive.states)


def test_other_data_is_another_harvest(harvested: tuple[Material, Path], model: Path, tmp_path: Path) -> None:
    material, _ = harvested
    other = harvest_material(steered_llama(model), small_data(), tmp_path, seed=1)
    assert other.key != material.key


def test_data_that_cannot_be_used(model: Path, tmp_path: Path) -> None:
    nothing: Any = small_data()
    object.__setattr__(nothing, "contrast", [])
    with pytest.raises(DataError, match="must stay untouched"):
        harvest_material(steered_llama(model), nothing, tmp_path, seed=0)
    long: Any = small_data()
    object.__setattr__(long, "contrast", [prompt("x" * 600)])
    with pytest.raises(DataError, match="do not fit the context"):
        harvest_material(steered_llama(model), long, tmp_path, seed=0)
