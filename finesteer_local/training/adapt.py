"""Adapts a profile to a fine-tune or a merge of its model: measures whether gate and experts still hold there.

The gate is measured on prompts of the recipe as if it had not learnt from them (known.py), the experts on whole answers
to prompts that taught them nothing, as in tuning (trials.py). Threshold, standardisation and strength are all that is
fitted again. What is worse than on the model that the profile was trained for, by more than chance explains, is not
adapted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import DataError, ProfileMismatchError
from finesteer_local.identity import ModelIdentity
from finesteer_local.judges.statistics import auroc
from finesteer_local.profile import Profile
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.steering import AlwaysGate, ContrastiveGate, Kinds
from finesteer_local.training.assemble import blank, rounded
from finesteer_local.training.data import Pair, Prompt, TrainingData, in_drawn_order, spread
from finesteer_local.training.gates import OPENINGS, SENT, GateFit, gate_fit
from finesteer_local.training.known import Sample, fitting, gate_scores, sample
from finesteer_local.training.model_data import ModelData, Turns
from finesteer_local.training.pairs import OWN_TOKENS, held_out, lesson
from finesteer_local.training.pairs import sample as sampled_pairs
from finesteer_local.training.progress import Progress, Stopwatch, quiet
from finesteer_local.training.search import SEARCHES, Setting, Trial, search_name
from finesteer_local.training.trials import OWN_ANSWERS, Trials

Floats = NDArray[np.float64]

POSITIVE, CONTRAST = 600, 900
"""Prompts that are read: those that must be left alone decide the threshold."""
ANSWERS = 24
AUROC_LOSS = 0.015
"""A gate may tell prompts apart by so much less than on its own model; three times what drawing other prompts does."""
RECALL_LOSS = 0.05
SCORE_LOSS = 0.05  # of the answers: one of `ANSWERS`
KINDS_LOSS = 0.05
_BY_CHANCE = 2.0  # standard errors: a threshold that opens on so many more or fewer than it should stays
_STEPS = 2  # strengths that are tried on either side of the profile's own


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        profile: for the other model; None where `problem` says why it has to be trained.
        problem: "" where the profile holds.
        gate: what the gate does there, None for one that is always open; `own` figures are the profile's from before.
        answers: of the setting that is kept, or of the best.
        changed: what had to be fitted again, for people; () where the profile holds as it is.
        held_out: whether the gate's figures are those of prompts that taught it nothing.
    """

    profile: Profile | None
    problem: str
    gate: GateFit | None
    answers: Trial
    own: Mapping[str, Any]
    changed: tuple[str, ...]
    held_out: bool
    n_prompts: int
    seconds: float


def check_same_kind(profile: Profile, model: ModelIdentity) -> None:
    """Raise `ProfileMismatchError` unless the model can be a fine-tune of the profile's: same architecture, layers,
    width and vocabulary."""
    mine = profile.model
    for what, own, other in (
        ("architecture", mine.architecture, model.architecture),
        ("number of layers", mine.n_layer, model.n_layer),
        ("width", mine.n_embd, model.n_embd),
        ("number of tokens", mine.n_vocab, model.n_vocab),
    ):
        if own != other:
            raise ProfileMismatchError(
                f"{model.name!r} is no fine-tune of {mine.name!r}, for which profile {profile.name!r} was trained: "
                f"the {what} is {other}, not {own}; train one with: finesteer-local train MODEL "
                f"--recipe {profile.training.get('recipe') or profile.name}"
            )


def adapt(llama: TrainableModel, profile: Profile, data: TrainingData, *, progress: Progress = quiet) -> Adapted:
    """Measure `profile` on the loaded model, fit again what may be, and say whether it holds.

    Args:
        data: what the profile was trained on (`known.data_of`).

    Raises:
        ProfileMismatchError: the model is no fine-tune of the profile's.
        DataError: a gate of this kind cannot be adapted, or the data does not do.
        SteeringError: llama.cpp cannot steer the model.
    """
    check_same_kind(profile, llama.identity)
    if not isinstance(profile.gate, (ContrastiveGate, AlwaysGate)):
        raise DataError(f"a gate of the kind {profile.gate.kind!r} cannot be adapted; train the profile for this model")
    llama.check_steerable(sorted(profile.used_layers - {0}))
    watch = Stopwatch(progress)
    with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        model_data = ModelData(llama, data, Path(folder), watch)
        found = adapted_gate(model_data, profile, data) if isinstance(profile.gate, ContrastiveGate) else None
        problem = "" if found is None else _gate_problem(profile, found.fit)
        setting = _setting(profile, profile.strength)
        answers = Trial.of(setting, "", {"wanted": 0.0, "ended": 0.0, "coherent": 0.0, "score": 0.0, "n_answers": 0})
        if not problem:
            answers = _answers(model_data, profile, data, Path(folder), watch)
            problem = _answers_problem(profile, answers)
    changed = list(found.changed) if found else []
    if answers.strength != profile.strength:
        changed.append(f"strength {profile.strength:g} -> {answers.strength:g}")
    kinds, kinds_first = (None, None) if found is None or problem else _kinds(profile, data, found)
    if profile.kinds is not None and kinds is None and not problem:
        if any(experts.by_kind for experts in profile.experts.values()):
            problem = "its experts go by the kind of request, and the kinds are not told here"
        changed.append("the kinds of request do not hold and are left out")
    if profile.answer_gate is not None and not problem:
        changed.append("the gate that reads the answer is left out: `profiles watch` trains it")
    result = Adapted(
        profile=None,
        problem=problem,
        gate=found.fit if found else None,
        answers=answers,
        own=profile.training.get("figures") or {},
        changed=tuple(changed),
        held_out=found.sample.held_out if found else True,
        n_prompts=len(found.sample.prompts) if found else 0,
        seconds=watch.seconds,
    )
    if problem:
        return result
    adapted = replace(
        profile,
        model=llama.identity,
        gate=found.gate if found else profile.gate,
        strength=answers.strength,
        kinds=kinds,
        answer_gate=None,
        training=_provenance(profile, llama, result, kinds_first),
    )
    return replace(result, profile=adapted)


# --- the gate


@dataclass(frozen=True)
class AdaptedGate:
    """A gate with what had to be fitted again, what it does on the model, and by which prompts that is told."""

    gate: ContrastiveGate
    fit: GateFit
    changed: tuple[str, ...]
    sample: Sample
    turns: Turns


def adapted_gate(model_data: ModelData, profile: Profile, data: TrainingData) -> AdaptedGate:
    """The gate with what had to be fitted again, and what it does on this model."""
    old = profile.gate
    assert isinstance(old, ContrastiveGate)
    found = fitting(model_data, sample(profile, data, POSITIVE, CONTRAST))
    if found.needs.all() or not found.needs.any():
        raise DataError("the data has no prompts of both kinds, by which a gate could be measured")
    turns = model_data.turns(found.prompts, profile.gate_layer)
    changed: list[str] = []
    gate, scores = old, gate_scores(old, turns, found.folds)
    if _gate_problem(profile, gate_fit(old, scores, found.needs, found.forms)):
        moved = _standardised_anew(old, turns)
        anew = gate_scores(moved, turns, found.folds)
        if _auroc(anew, found.needs) > _auroc(scores, found.needs):
            gate, scores = moved, anew
            changed.append("standardisation of the states")
    sent = scores[~found.needs & np.isin(found.forms, SENT)]
    sent = sent if len(sent) else scores[~found.needs]
    low = _threshold(gate, sent, graded=data.judge == "margin", held_out=found.held_out)
    if low is not None:
        changed.append(f"threshold {gate.low:.2f} -> {low[0]:.2f}")
        gate = replace(gate, low=low[0], high=low[1])
    return AdaptedGate(gate, gate_fit(gate, scores, found.needs, found.forms), tuple(changed), found, turns)


def _threshold(gate: ContrastiveGate, sent: Floats, *, graded: bool, held_out: bool) -> tuple[float, float] | None:
    """Where the gate should open and be wide open, by scores of prompts that it must leave alone; None where it may
    stay as it is.

    Args:
        held_out: whether these prompts taught the gate nothing; on those that did it opens too seldom, which says
            nothing against its threshold.
    """
    share = (2 if graded else 1) * OPENINGS
    error = np.sqrt(share * (1 - share) / len(sent))
    beyond = float((sent > gate.low).mean()) - share
    if (abs(beyond) if held_out else beyond) <= _BY_CHANCE * error:
        return None
    low, wide = (float(q) for q in np.quantile(sent, [1 - share, 1 - OPENINGS]))
    return low, max(wide, low + (gate.high - gate.low if not graded else 0.0), low + 1e-6)


def _standardised_anew(gate: ContrastiveGate, turns: Turns) -> ContrastiveGate:
    """The gate with mean and scale of this model's states."""
    states = turns.states[: turns.offsets[-1]].astype(np.float32)
    scale = states.std(axis=0, dtype=np.float64) + 1e-6
    mean = states.mean(axis=0, dtype=np.float64)
    return replace(gate, mean=mean.astype(np.float32), scale=scale.astype(np.float32))


def _auroc(scores: Floats, needs: NDArray[np.bool_]) -> float:
    return auroc(scores[needs], scores[~needs]) or 0.0


def _gate_problem(profile: Profile, fit: GateFit) -> str:
    """Why the gate does not hold, "" where it does."""
    own = (profile.training.get("figures") or {}).get("gate") or {}
    for name, loss, words in (("auroc", AUROC_LOSS, "AUROC"), ("recall", RECALL_LOSS, "recall")):
        before, now = own.get(name), getattr(fit, name)
        if before is None:
            return "the profile has no figures to compare with"
        if now < before - loss:
            return f"its gate has an {words} of {now:.3f} here, of {before:.3f} on its own model"
    return ""


def _kinds(profile: Profile, data: TrainingData, found: AdaptedGate) -> tuple[Kinds | None, float | None]:
    """The profile's kinds, told how likely a prompt needs intervention here; None where they do not hold, or there are
    none. And how often the likeliest kind is right, of prompts that taught the kinds."""
    kinds = profile.kinds
    own = ((profile.training.get("figures") or {}).get("kinds") or {}).get("first")
    if kinds is None:
        return None, None
    kinds = replace(kinds, slope=found.fit.slope, offset=found.fit.offset)
    hits = []
    for i in np.flatnonzero(found.sample.needs).tolist():
        prompt, turn = found.sample.prompts[i], found.turns[i]
        belongs = {each.kind.name for each in data.kinds if prompt.kind in each.of} & set(kinds.names)
        if not belongs:
            continue
        summary = found.gate.summary(turn)
        told = kinds.probabilities(found.gate, summary, kinds.summary(found.gate, turn), 0.0)
        hits.append(told[0][0] in belongs)
    if not hits or own is None:
        return kinds, None
    first = float(np.mean(hits))
    return (kinds if first >= own - KINDS_LOSS else None), first


# --- the answers


def _setting(profile: Profile, strength: float) -> Setting:
    return Setting(tuple(profile.layers), strength, profile.scope, profile.answer_strength, profile.length_decay)


def _answers(model_data: ModelData, profile: Profile, data: TrainingData, folder: Path, progress: Progress) -> Trial:
    """What whole answers are like at the profile's strength, or at the nearest that is good."""
    llama, learnt = model_data.llama, bool(profile.training.get("optimised"))
    prompts, pairs = _untaught(model_data, profile, data)
    trials = Trials(
        llama,
        blank(profile.name, llama, profile.layers[0]),
        profile.experts,
        pairs,
        prompts,
        data.judge,
        learnt,
        folder,
        progress,
        ANSWERS,
        expert=data.expert,
    )
    own = model_data.replies(spread(pairs, min(OWN_ANSWERS, 2 * ANSWERS)), OWN_TOKENS)
    trials.calibrate(own)
    tried = [trials.trial(_setting(profile, profile.strength))]
    for strength in _near(SEARCHES[search_name(data.judge, learnt)].strengths, profile.strength):
        if not _answers_problem(profile, tried[-1]):
            break
        tried.append(trials.trial(_setting(profile, strength), rivals=tried))
    llama.set_profiles([])
    return max(tried, key=lambda trial: (not _answers_problem(profile, trial), trial.score))


def _near(strengths: Sequence[float], own: float) -> list[float]:
    """A few strengths on either side, the nearest first."""
    weaker = sorted((s for s in strengths if s < own * 0.99), reverse=True)[:_STEPS]
    stronger = sorted(s for s in strengths if s > own * 1.01)[:_STEPS]
    return sorted([*weaker, *stronger], key=lambda strength: abs(np.log(strength / max(own, 1e-6))))


def _answers_problem(profile: Profile, trial: Trial) -> str:
    """Why the experts do not hold, "" where they do."""
    own = (profile.training.get("figures") or {}).get("answers") or {}
    before = own.get("score")
    if before is None:
        return "the profile has no figures to compare with"
    if trial.lost or trial.score < before - SCORE_LOSS:
        return f"{trial.score:.0%} of its answers are good here, {before:.0%} on its own model"
    return ""


def _untaught(model_data: ModelData, profile: Profile, data: TrainingData) -> tuple[list[Prompt], list[Pair]]:
    """Prompts and pairs from which the experts learnt nothing, as far as there are any."""
    seed = int(profile.training.get("seed") or 0)
    by_answers = bool(profile.training.get("optimised")) and data.judge == "refusal"
    pairs = lesson(data, seed) if by_answers else sampled_pairs(data, seed)
    learn, held = held_out([pair.prompt for pair in pairs], seed)
    taught = {pairs[i].prompt.text for i in learn}
    kept = [prompt for prompt in data.positive if prompt.text not in taught and model_data.fits(prompt)]
    prompts = in_drawn_order(kept, "adapt")[: 40 * ANSWERS] or list(data.positive)
    return prompts, [pairs[i] for i in held] or list(pairs)


# --- what is written down


def _provenance(profile: Profile, llama: TrainableModel, found: Adapted, kinds: float | None) -> dict[str, Any]:
    """Both: the training's, with the figures of this model, and that of which model was adapted how."""
    before = dict(profile.training)
    own = dict(before.get("figures") or {})
    answers = {key: value for key, value in asdict(found.answers).items() if key != "prompts"}
    figures = {**own, "gate": rounded(asdict(found.gate)) if found.gate else None, "answers": rounded(answers)}
    if kinds is not None and "kinds" in own:
        figures["kinds"] = {**own["kinds"], "first": round(kinds, 4)}
    earlier = before.pop("adapted", None)
    return {
        **before,
        "figures": figures,
        "model_file": Path(llama.model_path).name,
        "adapted": {
            "from": {
                "model": profile.model.name,
                "fingerprint": profile.model.fingerprint,
                "model_file": before.get("model_file", ""),
                "figures": {name: own.get(name) for name in ("gate", "answers")},
                **({"adapted": earlier} if earlier else {}),
            },
            "changed": list(found.changed),
            "prompts": found.n_prompts,
            "held_out": found.held_out,
            "answers": found.answers.n_answers,
            "seconds": round(found.seconds, 1),
        },
    }
