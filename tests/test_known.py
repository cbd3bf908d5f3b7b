"""A trained gate's scores of its own training prompts, as if it had not seen them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finesteer_local.errors import DataError, UnknownNameError
from finesteer_local.judges.statistics import auroc
from finesteer_local.profile import Profile
from finesteer_local.training import gates
from finesteer_local.training.behaviour.material import Material, folder_of
from finesteer_local.training.behaviour.sentence import read_sentence
from finesteer_local.training.data import Pair, Prompt, TrainingData
from finesteer_local.training.gates import fit_contrastive_gate
from finesteer_local.training.known import UNSEEN, data_of, gate_scores, sample
from finesteer_local.training.model_data import Turns
from finesteer_local.training.probes import FOLDS, HEADS
from tiny import make_profile

N_EMBD, N = 24, 240


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def turns(n: int, rng: np.random.Generator) -> Turns:
    lengths = rng.integers(2, 8, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Turns(rng.standard_normal((int(offsets[-1]), N_EMBD)).astype(np.float16), offsets)


def test_a_gate_that_learnt_noise_by_heart_knows_nothing_of_what_it_had_not_seen() -> None:
    """Scores by the folds are those of the cross-validation: chance. The whole gate tells its own prompts apart."""
    rng = np.random.default_rng(0)
    positive, contrast = turns(N, rng), turns(N, rng)
    gate, fit = fit_contrastive_gate(positive, contrast, seed=3)
    labels = np.r_[np.ones(N), np.zeros(N)].astype(np.float32)
    folds = gates.folds_of(labels, np.array([""] * 2 * N), 3)
    held = np.r_[gate_scores(gate, positive, folds[:N]), gate_scores(gate, contrast, folds[N:])]
    seen = np.r_[gate_scores(gate, positive), gate_scores(gate, contrast)]
    assert (auroc(seen[:N], seen[N:]) or 0) > fit.auroc + 0.2
    assert abs((auroc(held[:N], held[N:]) or 0) - fit.auroc) < 0.1, fit.auroc
    unseen = gate_scores(gate, positive, np.full(N, UNSEEN))
    assert np.array_equal(unseen, seen[:N])


def prompt(text: str, form: str = "plain") -> Prompt:
    return Prompt([{"role": "user", "content": text}], form=form)


DATA = TrainingData(
    "some",
    [Pair(prompt(f"! {i}"), f"no {i}", f"yes {i}") for i in range(350)],
    [prompt(f"what is {i}?", "foreign" if i % 2 else "plain") for i in range(350)],
)


@pytest.fixture
def profile(tiny: Path) -> Profile:
    rng = np.random.default_rng(0)
    fit = FOLDS * HEADS
    made = make_profile(tiny, gate="selective")
    gate = type(made.gate)(
        **{
            **vars(made.gate),
            "query": rng.standard_normal((64, fit)).astype(np.float32),
            "value_weight": rng.standard_normal((64, fit)).astype(np.float32),
        }
    )
    training = {"data_hash": DATA.hash, "prompts_for_gate": 700, "seed": 0, "recipe": "safety"}
    return make_profile(tiny, gate=gate, training=training)


def changed(profile: Profile, tiny: Path, **training: object) -> Profile:
    return make_profile(tiny, gate=profile.gate, training={**profile.training, **training})


def test_a_sample_knows_what_the_gate_has_seen(profile: Profile, tiny: Path) -> None:
    found = sample(profile, DATA, 1000, 1000)
    assert found.held_out and len(found.prompts) == 700 and found.needs.sum() == 350
    assert set(found.folds) == set(range(FOLDS))
    assert sorted(set(found.forms)) == ["foreign", "plain"]
    short = sample(changed(profile, tiny, prompts_for_gate=600), DATA, 10, 20)
    assert short.held_out and (short.folds == UNSEEN).all() and len(short.prompts) == 30
    first = sample(changed(profile, tiny, prompts_for_gate=600), DATA, 10, 20, last=False)
    assert (first.folds != UNSEEN).all()


@pytest.mark.parametrize("training", [{"data_hash": "other"}, {"prompts_for_gate": None}, {"prompts_for_gate": 300}])
def test_other_data_is_not_held_out(profile: Profile, tiny: Path, training: dict[str, object]) -> None:
    found = sample(changed(profile, tiny, **training), DATA, 10, 10)
    assert not found.held_out and (found.folds == UNSEEN).all()
    assert not sample(make_profile(tiny, gate="selective", training=profile.training), DATA, 10, 10).held_out


def test_the_data_of_a_profile(profile: Profile, tiny: Path) -> None:
    assert data_of(changed(profile, tiny, recipe="brief")).recipe == "brief"
    assert data_of(profile, recipe="brief").recipe == "brief"
    with pytest.raises(DataError, match="give --recipe DIR"):
        data_of(changed(profile, tiny, recipe="mine"))
    with pytest.raises(DataError, match="--data FILE"):
        data_of(changed(profile, tiny, recipe=""))
    with pytest.raises(UnknownNameError):
        data_of(profile, recipe="nothing-like-it")
    material = Material(read_sentence("rhymes"), DATA.pairs, DATA.contrast, [], [])
    material.save(folder_of(profile.name, profile.model.fingerprint, 0))
    found = data_of(changed(profile, tiny, recipe=""))
    assert (found.description, len(found.pairs), len(found.contrast)) == ("rhymes", 350, 350)
