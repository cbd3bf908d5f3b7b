"""The methods by name, each made ready for one model: trained and tuned, or taken from the profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from finesteer_local.errors import DataError
from finesteer_local.evaluation.baselines import alphasteer, cast, control_vector, finesteer, pca
from finesteer_local.evaluation.baselines.ablations import ABLATIONS
from finesteer_local.evaluation.baselines.vectors import Candidate
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.journal import Journal
from finesteer_local.evaluation.material import Material, harvest_material
from finesteer_local.evaluation.measure import NONE, Method
from finesteer_local.evaluation.method_tuner import Tuner
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.training.data import TrainingData
from finesteer_local.training.progress import Progress, quiet

OURS = "ours"
BASELINES = {
    "control-vector": control_vector.SOURCE,
    "pca": pca.SOURCE,
    "cast": cast.SOURCE,
    "alphasteer": alphasteer.SOURCE,
    "finesteer": finesteer.SOURCE,
}
NAMES = (NONE.name, *BASELINES, OURS, *ABLATIONS)
GROUPS = {"all": NAMES, "baselines": tuple(BASELINES), "ablations": tuple(ABLATIONS)}


def expand(names: Sequence[str]) -> list[str]:
    """Methods of `names`, groups taken apart, each once and in the order of NAMES; `none` is always among them."""
    wanted = {member for name in names for member in GROUPS.get(name, (name,))}
    return [name for name in NAMES if name in wanted or name == NONE.name]


def build_methods(
    llama: SteeredLlama,
    names: Sequence[str],
    profiles: Sequence[Profile],
    journal: Journal,
    folder: Path,
    *,
    load: Callable[[], TrainingData] | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> list[Method]:
    """Make the methods ready.

    Args:
        names: of NAMES.
        profiles: what `ours` is, with their own strengths and scopes.
        folder: where training states and trained methods are kept.
        load: the data that the other methods are trained and tuned on; called only where one needs it.
        seed: of everything that is drawn.

    Raises:
        DataError: there is no profile, or no data, that a method needs.
        MissingExtraError: `finesteer` needs the `train` extra.
    """
    trained = [name for name in names if name in BASELINES]
    if not profiles and any(name == OURS or name in ABLATIONS for name in names):
        raise DataError("name a profile with --profile: without one there is only what needs none")
    if "finesteer" in trained:
        from finesteer_local.training import require_extra

        require_extra()
    tuned: dict[str, Method] = {}
    if trained:
        if load is None:
            raise DataError("the other methods need training data; name its recipe with --recipe")
        material = harvest_material(llama, load(), folder, seed=seed, progress=progress)
        tuner = Tuner(llama, material, journal, progress)
        for name in trained:
            best, strength, notes = tuner.choose(name, _candidates(name, material, folder))
            tuned[name] = Method(name, best.at(strength), BASELINES[name], notes)
    methods = []
    for name in names:
        if name in tuned:
            methods.append(tuned[name])
        elif name in ABLATIONS:
            changed = tuple(ABLATIONS[name](profile) for profile in profiles)
            methods.append(Method(name, ProfileSteering(changed), "ablation of ours"))
        elif name == OURS:
            methods.append(Method(name, ProfileSteering(tuple(profiles)), "this profile"))
        else:
            methods.append(NONE)
    return methods


def _candidates(name: str, material: Material, folder: Path) -> list[Candidate]:
    makers: dict[str, Callable[[Material], list[Candidate]]] = {
        "control-vector": control_vector.candidates,
        "pca": pca.candidates,
        "cast": cast.candidates,
        "alphasteer": alphasteer.candidates,
        "finesteer": partial(finesteer.candidates, folder=folder),
    }
    return makers[name](material)
