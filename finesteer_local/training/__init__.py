"""Training profiles from a GGUF model. Nothing else imports torch or scikit-learn; names are imported when used."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesteer_local.distribution import missing_extra

if TYPE_CHECKING:
    from finesteer_local.profile import Profile
    from finesteer_local.training.data import TrainingData
    from finesteer_local.training.progress import Progress

DEFAULT_MINUTES = 10.0
"""That a training may take where nothing else is said."""


def require_extra() -> None:
    """Raise `MissingExtraError`, with the command that installs it, where the `train` extra is missing."""
    missing = [name for name in ("torch", "sklearn") if util.find_spec(name) is None]
    if missing:
        raise missing_extra("train", f"training needs {' and '.join(missing)}")


def train_profile(
    model: str | Path,
    *,
    recipe: str | None = None,
    data: str | Path | TrainingData | None = None,
    contrast: str | Path | None = None,
    name: str | None = None,
    gate: str = "contrastive",
    quality: str | None = None,
    minutes: float = DEFAULT_MINUTES,
    keep: bool = False,
    watch: bool = False,
    seed: int = 0,
    layer: int | None = None,
    strength: float | None = None,
    scope: str | None = None,
    optimise: bool | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
    backend: str = "llama.cpp",
    gguf: str | Path | None = None,
    **llama_options: Any,
) -> Profile:
    """Train a profile for the GGUF model at `model`.

    Args:
        recipe: a named recipe (`recipes.recipe_names`) or a folder with a `recipe.json`; or
        data: a JSONL file of pairs (`prompt`, `chosen`, `rejected`, or lists of `correct` and `wrong`), or pairs and
            contrast prompts that were read otherwise (`training.data.TrainingData`); with
        contrast: a JSONL file of prompts that must stay untouched; without it the `safety` recipe's ordinary prompts.
        name: the profile's name; without it the recipe's, or the data file's.
        gate: `contrastive`, `scs` (the paper's) or `always`.
        quality: how much is done, however long it takes (`effort.EFFORTS`): of a recipe's prompts the gate learns from
            4,000 (`quick`), 10,000 (`standard`), fewer where a model is large (`effort.LARGE`), or all (`full`).
            None: as much as fits into
        minutes: the time that training may take.
        keep: an interruption (`KeyboardInterrupt`) leaves the best profile so far, where there is one.
        watch: where the recipe is one of refusals, learn a second gate that reads the answers, from the model's own.
        seed: of everything that is drawn; the same seed on the same machine gives the same profile.
        layer, strength, scope: instead of the tuned ones.
        optimise: learn what steers through the model (`training.optimise`); None: where that is the better way.
        n_threads: for llama.cpp and torch.
        progress: called with (stage, done, total).
        backend: `llama.cpp`, or `transformers`: then `model` is a Hugging Face directory with safetensors.
        gguf: with `transformers`, the GGUF file that the profile is for; it must be of the same model. Without it the
            profile is for every GGUF file whose norm weights are the directory's.
        llama_options: as for `runtime.open_model`.

    Raises:
        MissingExtraError: torch, scikit-learn or transformers is not installed.
        DataError: the data cannot be used; the message names the line.
        ModelError, SteeringError: the model cannot be loaded or steered.
        ProfileError: the gate, quality, minutes, strength or scope that was asked for do not exist.
        StorageError: there is no room or no right to keep what an interrupted run goes on from.
    """
    require_extra()
    from finesteer_local.training import train
    from finesteer_local.training.data import TrainingData
    from finesteer_local.training.recipes import load_data
    from finesteer_local.training.settings import TrainingSettings

    if isinstance(data, TrainingData):
        loaded = data
    else:
        loaded = load_data(recipe=recipe, data=data, contrast=contrast, name=name, seed=seed)
    return train.train_profile(
        model,
        data=loaded,
        settings=TrainingSettings(
            gate=gate,
            seed=seed,
            layer=layer,
            strength=strength,
            scope=scope,
            optimise=optimise,
            quality=quality,
            minutes=minutes,
            keep=keep,
            watch=watch,
        ),
        n_threads=n_threads,
        backend=backend,
        gguf=gguf,
        **({"progress": progress} if progress else {}),
        **llama_options,
    )


def estimate_seconds(model: str | Path, recipe: str = "safety", **options: Any) -> float:
    """How long training will take here, from a measurement of this machine with the model (less than a minute).

    `options` are `quality` and `minutes`, as for `train_profile`, and those of `runtime.open_model`.
    """
    from finesteer_local.training import estimate

    return estimate.estimate_seconds(model, recipe, **options)
