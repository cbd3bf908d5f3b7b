"""What a trained gate says of its recipe's prompts as if it had not learnt from them, on any model.

A contrastive gate is the mean of the probes of several folds, each of which has not seen its fold's prompts (gates.py).
The folds follow from the recipe and the seed, or are its teacher's, and the heads of each probe stand in the gate one
after another: so the probe that has not seen a prompt can score it long after the training. Only the last token's
weights and the bias are averaged already: one weight a dimension, which learns little by heart where there are
`A_WEIGHT` prompts for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.steering import ContrastiveGate, Gate
from finesteer_local.training.behaviour.material import Material, folder_of
from finesteer_local.training.data import Prompt, TrainingData
from finesteer_local.training.gates import folds_of
from finesteer_local.training.model_data import ModelData, Turns
from finesteer_local.training.probes import FOLDS, HEADS
from finesteer_local.training.recipes import load_data, recipe_names
from finesteer_local.training.teacher import load_teachers

A_WEIGHT = 8
UNSEEN = -1
"""In the place of a fold: the gate has learnt nothing from the prompt."""


@dataclass(frozen=True)
class Sample:
    """Some of a recipe's prompts, of all forms, each with what the gate has seen of it.

    Attributes:
        needs: whether each needs intervention, (n,).
        folds: the fold of each, or `UNSEEN`, (n,).
        held_out: whether the scores of `held_out_scores` are those of prompts that taught nothing; if not, the data is
            not what the profile was trained on, or how it was is not known.
    """

    prompts: list[Prompt]
    needs: NDArray[np.bool_]
    folds: NDArray[np.intp]
    held_out: bool

    @property
    def forms(self) -> NDArray[np.str_]:
        """The form of each, one of `data.FORMS`, (n,)."""
        return np.array([prompt.form for prompt in self.prompts])


def data_of(profile: Profile, **given: object) -> TrainingData:
    """What a profile was trained on: its recipe, what the model wrote for its behaviour, or the files that are `given`.

    Args:
        given: `recipe`, or `data` and `contrast`, as for `recipes.load_data`; None counts as nothing.

    Raises:
        DataError: nobody knows.
        UnknownNameError: there is no such recipe.
    """
    facts = profile.training
    seed = int(facts.get("seed") or 0)
    files = {name: value for name, value in given.items() if value is not None}
    if files:
        return load_data(**files, name=profile.name, seed=seed)  # type: ignore[arg-type]
    if recipe := facts.get("recipe"):
        if recipe in recipe_names():
            return load_data(recipe=recipe, name=profile.name, seed=seed)
        raise DataError(
            f"profile {profile.name!r} was trained with a recipe of your own, {recipe!r}; give --recipe DIR"
        )
    behaviour = Material.load(folder_of(profile.name, profile.model.fingerprint, seed))
    if behaviour is not None:
        return behaviour.data(profile.name)
    raise DataError(
        f"profile {profile.name!r} was trained on files of your own; give them: --data FILE --contrast FILE"
    )


def sample(profile: Profile, data: TrainingData, n_positive: int, n_contrast: int, *, last: bool = True) -> Sample:
    """Prompts of the recipe, drawn by their texts: those that the gate has not learnt from, where there are any.

    Args:
        last: from the end of the order in which gates learn, where the prompts stand that a short training left out;
            otherwise from its beginning, where those stand whose states are kept.
    """
    order = data.ordered
    folds, held_out = _folds(profile, data)
    chosen: list[int] = []
    for wanted, n in ((True, n_positive), (False, n_contrast)):
        rows = [i for i, (needs, _) in enumerate(order) if needs is wanted]
        chosen += rows[-n:] if last else rows[:n]
    return Sample(
        prompts=[order[i][1] for i in chosen],
        needs=np.array([order[i][0] for i in chosen], bool),
        folds=folds[chosen],
        held_out=held_out,
    )


def _folds(profile: Profile, data: TrainingData) -> tuple[NDArray[np.intp], bool]:
    """The fold of each prompt of `data.ordered`, and whether that is known."""
    order, facts = data.ordered, profile.training
    folds = np.full(len(order), UNSEEN, np.intp)
    n = facts.get("prompts_for_gate")
    if facts.get("data_hash") != data.hash or not isinstance(n, int):
        return folds, False
    if not isinstance(profile.gate, ContrastiveGate) or profile.gate.query.shape[1] != FOLDS * HEADS:
        return folds, False
    if n < A_WEIGHT * profile.model.n_embd:
        return folds, False
    taken = order[:n]
    rows = [i for i, (needs, _) in enumerate(taken) if needs] + [i for i, (needs, _) in enumerate(taken) if not needs]
    prompts = [taken[i][1] for i in rows]
    if names := facts.get("teachers"):
        teachers = [teacher for teacher in load_teachers(data.teachers) if str(teacher.model) in names]
        if len(teachers) < len(names):
            return folds, False
        folds[rows] = teachers[0].folds_of(prompts)
    else:
        labels = np.array([taken[i][0] for i in rows], np.float32)
        folds[rows] = folds_of(labels, np.array([p.family for p in prompts]), int(facts.get("seed") or 0))
    return folds, True


def gate_scores(gate: Gate, turns: Turns, folds: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
    """Scores of turns, (n,), each by the probe of its fold alone; by the whole gate where it has no fold."""
    parts = {UNSEEN: gate}
    if folds is not None and isinstance(gate, ContrastiveGate):
        parts |= {fold: fold_of(gate, fold) for fold in range(FOLDS) if (folds == fold).any()}
    found = np.zeros(len(turns))
    for i in range(len(turns)):
        turn = turns[i]
        part = parts[UNSEEN if folds is None else int(folds[i])]
        found[i] = part.score(turn[-1], part.summary(turn))
    return found


def fold_of(gate: ContrastiveGate, fold: int) -> ContrastiveGate:
    """The probe that has not seen this fold."""
    heads = slice(fold * HEADS, (fold + 1) * HEADS)
    return replace(
        gate,
        query=np.ascontiguousarray(gate.query[:, heads]),
        value_weight=np.ascontiguousarray(gate.value_weight[:, heads] * FOLDS),
    )


def fitting(model_data: ModelData, found: Sample) -> Sample:
    """Without the prompts that do not fit the model's context."""
    keep = [i for i, prompt in enumerate(found.prompts) if model_data.fits(prompt)]
    prompts: Sequence[Prompt] = [found.prompts[i] for i in keep]
    return Sample(list(prompts), found.needs[keep], found.folds[keep], found.held_out)
