"""Tuning on validation data: which layers, strength and scope, and how much of it answers and long prompts get.

Each is chosen in turn, with what was chosen before it. What is tried is in `search`, how it is judged in `trials`.
Nothing else is tried where nothing can be better by more than chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finesteer_local.profile import Profile
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.steering import Experts
from finesteer_local.training.data import Pair, Prompt
from finesteer_local.training.effort import NO_DEADLINE, Deadline
from finesteer_local.training.progress import Progress
from finesteer_local.training.search import LONG, Setting, Trial
from finesteer_local.training.trials import ANSWERS, BLOCK, Trials

_COHERENT = 0.9
"""Below such a share of answers that are language less strength may mend more than it takes."""


def tune(
    llama: TrainableModel,
    blank: Profile,
    experts: Mapping[int, Experts],
    pairs: Sequence[Pair],
    prompts: Sequence[Prompt],
    own: Sequence[str],
    *,
    judge: str,
    learnt: bool = False,
    folder: Path,
    progress: Progress,
    n_answers: int = ANSWERS,
    expert: Callable[[Prompt], str] = lambda prompt: "",
    keep: bool = False,
    deadline: Deadline = NO_DEADLINE,
    block: int = BLOCK,
) -> tuple[Trial, list[Trial]]:
    """Choose layers, strength, scope, answer strength and length decay with the gate held open.

    Args:
        blank: a profile whose gate is always open; its experts, strengths and scope are replaced.
        experts: by layer, each a candidate; what was learnt through the model is one candidate of all layers.
        pairs: validation pairs, whose answers are compared.
        prompts: validation prompts, which are answered: all that nothing was learnt from.
        own: the model's unsteered replies, by which coherence is calibrated.
        judge: `refusal` or `margin`.
        learnt: whether the experts were learnt through the model.
        folder: trials are kept there, so that an interrupted run goes on.
        n_answers: of a trial, at most.
        expert: the name of a prompt's expert, where these go by kind.
        keep: an interruption ends the tuning with the best so far, once anything was tried.
        deadline: nothing more is tried after it, once anything was.
        block: answers of a trial between two looks at whether it is behind.

    Returns:
        The chosen trial and all trials.
    """
    trials = Trials(llama, blank, experts, pairs, prompts, judge, learnt, folder, progress, n_answers, expert, block)
    contenders = trials.contenders()
    trials.calibrate(own)
    chosen: Trial | None = None
    try:
        chosen = _best_layers(trials, contenders, deadline)
        for better in (_best_scope, _best_strength, _best_answer_strength, _best_length_decay):
            if deadline.left > 0:
                chosen = better(trials, chosen)
    except KeyboardInterrupt:
        if not keep or chosen is None:
            raise
    return chosen, trials.made


def _best_layers(trials: Trials, contenders: Sequence[Setting], deadline: Deadline) -> Trial:
    tried: list[Trial] = []
    for setting in contenders:
        if tried and (deadline.left <= 0 or _unbeatable(tried[0], trials.search.tolerance)):
            break
        tried.append(trials.trial(setting, rivals=tried))
    return _first_of_the_best(tried, trials.search.tolerance)


def _best_scope(trials: Trials, best: Trial) -> Trial:
    """The narrowest scope that is as good as any; `best` has the first."""
    if _unbeatable(best, trials.search.tolerance):
        return best
    others = [trials.trial(best.but(scope=scope), rivals=[best]) for scope in trials.search.scopes[1:]]
    return _first_of_the_best([best, *others], trials.search.tolerance)


def _best_strength(trials: Trials, best: Trial) -> Trial:
    """Weaker and stronger, in either direction as long as nothing is lost; weaker also while answers fall apart.

    Judged by pairs, the weakest of the best is taken: pairs grow surer with every bit of strength, long after the
    answers have changed. Of what was learnt for a strength, that which is nearest to it: forty answers cannot tell
    where the edge is, and with half as much again the text begins to go.
    """
    tolerance = trials.search.tolerance
    learnt_for = trials.search.learnt_for
    if learnt_for is not None and _unbeatable(best, tolerance):
        return best
    compared = [best]
    for strengths in _outwards(trials.search.strengths, best.strength):
        for strength in strengths:
            this = trials.trial(best.but(strength=strength), rivals=compared)
            compared.append(this)
            mends = trials.judge == "margin" and strength < best.strength and this.coherent < _COHERENT
            worse = this.lost or this.score < max(trial.score for trial in compared) - tolerance
            if worse and not mends:
                break
    if trials.judge == "margin":
        return min(_good(compared, tolerance), key=lambda trial: trial.strength)
    if learnt_for is not None:
        return min(_good(compared, tolerance), key=lambda trial: abs(trial.strength - learnt_for))
    return _well_inside_the_best(compared, tolerance)


def _best_answer_strength(trials: Trials, best: Trial) -> Trial:
    """The prompt is read under all of it, so the answer needs less; more makes a small model repeat itself."""
    tolerance = trials.search.tolerance
    if _unbeatable(best, tolerance):
        return best
    others: list[Trial] = []
    for shares in _outwards(trials.search.answer_strengths, best.answer_strength):
        for share in shares:
            others.append(trials.trial(best.but(answer_strength=share), rivals=[best]))
            if others[-1].lost or others[-1].score < best.score - tolerance:
                break
    better = max((trial for trial in others if not trial.lost), key=lambda trial: trial.score, default=best)
    return better if better.score > best.score + tolerance else best


def _best_length_decay(trials: Trials, best: Trial) -> Trial:
    """The smallest under which long prompts are answered well; `best` with it, and the figures of short prompts."""
    tried: list[Trial] = []
    for decay in trials.search.length_decays if trials.asks_long_prompts else ():
        tried.append(trials.trial(best.but(length_decay=decay), LONG, rivals=tried))
        if tried[-1].lost or tried[-1].score < max(trial.score for trial in tried) - trials.long_tolerance:
            break
        if _unbeatable(tried[-1], trials.long_tolerance):
            break
    return replace(best, length_decay=_first_of_the_best(tried, trials.long_tolerance).length_decay) if tried else best


def _unbeatable(trial: Trial, tolerance: float) -> bool:
    """Whether no other can be better by more than chance."""
    return not trial.lost and trial.score + tolerance >= 1


def _outwards(values: Sequence[float], centre: float) -> tuple[list[float], list[float]]:
    """The values below the centre and those above it, the nearest first."""
    return sorted((v for v in values if v < centre), reverse=True), sorted(v for v in values if v > centre)


def _good(trials: Sequence[Trial], tolerance: float) -> list[Trial]:
    """Those that chance cannot tell from the best, in their order."""
    left = [trial for trial in trials if not trial.lost]
    top = max(trial.score for trial in left)
    return [trial for trial in left if trial.score >= top - tolerance]


def _first_of_the_best(trials: Sequence[Trial], tolerance: float) -> Trial:
    return _good(trials, tolerance)[0]


def _well_inside_the_best(trials: Sequence[Trial], tolerance: float) -> Trial:
    """A strength with room on either side, of the trials that chance cannot tell from the best.

    Of these trials the ones that steer most often count, and of their strengths the one at two thirds from the weakest
    is taken: prompts that were not tried may be harder, since those that are tried are short, and need more; answers
    that fall apart under too much are part of the score already.
    """
    good = _good(trials, tolerance)
    wanted = max(trial.wanted for trial in good)
    most = sorted((trial for trial in good if trial.wanted == wanted), key=lambda trial: trial.strength)
    return most[min(2 * len(most) // 3, len(most) - 1)]
