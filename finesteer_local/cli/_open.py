"""Opens the model that the user named: resolves names, finds or trains profiles, shows progress."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finesteer_local import catalog, paths
from finesteer_local.cli import _progress
from finesteer_local.cli._options import ModelOptions, WatchOptions
from finesteer_local.errors import ProfileMismatchError, StorageError, UnknownNameError
from finesteer_local.identity import ModelIdentity, read_model_identity

if TYPE_CHECKING:
    from finesteer_local.cli._profile_index import FromIndex
    from finesteer_local.profile import Profile
    from finesteer_local.runtime import SteeredLlama

Offer = Callable[[str, str, Path], Path]
"""Called with a recipe's name, the model as the user named it and its path, where no such profile exists yet."""


def fetch_model(name_or_path: str) -> Path:
    """The model's file, fetched with a progress bar where it is of the catalogue or the hub and not there yet."""
    with _progress.download(f"fetching {name_or_path}") as report:
        return catalog.resolve_model(name_or_path, report, note_choice)


def note_choice(line: str) -> None:
    """Say quietly which of several files was chosen."""
    from finesteer_local.errors import one_line

    click.secho(one_line(line), dim=True, err=True)


def find_profile(
    name: str,
    identity: ModelIdentity,
    model: str,
    path: Path,
    offer: Offer | None = None,
    from_index: FromIndex | None = None,
) -> Path:
    """The file of a profile for this model; where there is none, of an index's, or of one that is trained now.

    Raises:
        UnknownNameError: there is none; for the name of a recipe the message holds the command that trains it.
        ProfileError, ProfileMismatchError: see `catalog.resolve_profile`.
    """
    try:
        return catalog.resolve_profile(name, identity)
    except (ProfileMismatchError, UnknownNameError):
        if from_index and (found := from_index(name, identity)):
            return found
        from finesteer_local.training.recipes import recipe_names

        if name not in recipe_names():
            raise
    if offer:
        return offer(name, model, path)
    raise UnknownNameError(
        f"there is no profile {name!r} for {short_name(model)} yet; train it with: {train_line(model, name)}"
    )


def short_name(model: str) -> str:
    """What to call a model: the name that the user gave it, or its file's."""
    return Path(model).name


def train_line(model: str, recipe: str) -> str:
    """The command that trains a profile."""
    return f"finesteer-local train {shlex.quote(model)} --recipe {recipe}"


def open_steered(
    model: str,
    options: ModelOptions,
    offer: Offer | None = None,
    policy: Mapping[str, str] | None = None,
    from_index: FromIndex | None = None,
    watch: WatchOptions | None = None,
) -> SteeredLlama:
    """Open MODEL as the command line asks for it.

    Raises:
        FineSteerError: whatever is wrong with the names, the files, or the model.
    """
    path = fetch_model(model)
    with _progress.waiting(f"opening {path.name}"):
        identity = read_model_identity(path)
    profiles = [find_profile(name, identity, model, path, offer, from_index) for name in options.profiles]
    with _progress.waiting(f"opening {path.name}"):
        from finesteer_local.runtime import open_model

        found = {**options.arguments(), **(asdict(watch) if watch else {})}
        return open_model(path, profiles=profiles, policy=policy, identity=identity, **found)


def check_new_profile(output: Path | None, force: bool) -> None:
    """Fail before the work where `keep_profile` would fail after it.

    Raises:
        StorageError: it cannot be written, or would replace a file without `force`.
    """
    if output and output.exists() and not force:
        raise StorageError(f"{output} exists; choose another name or add --force")
    paths.check_writable(output or paths.profiles_dir() / "new.gguf")


def keep_profile(profile: Profile, output: Path | None = None) -> Path:
    """Write a new profile to `output`, or where its name finds it, in place of an earlier one; gives its path.

    Raises:
        StorageError: it cannot be written.
    """
    if output:
        profile.save(output)
        return output
    with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        file = Path(folder) / f"{profile.name}.gguf"
        profile.save(file)
        return catalog.add_profile(file, replace=True)


def offer_training(yes: bool, options: ModelOptions) -> Offer:
    """What `chat` does for a profile that is not trained yet: say how long it takes, ask, train.

    With `yes` it does not ask. Without it and without a terminal there is nobody to ask: an error.
    """

    def offer(recipe: str, model: str, path: Path) -> Path:
        name = short_name(model)
        if not yes and not _somebody_can_answer():
            raise UnknownNameError(
                f"there is no profile {recipe!r} for {name} yet; add --yes to train it now, "
                f"or train it with: {train_line(model, recipe)}"
            )
        from finesteer_local import training

        training.require_extra()
        with _progress.waiting("measuring how long training takes on this machine"):
            seconds = training.estimate_seconds(
                path, recipe, n_threads=options.threads, n_gpu_layers=options.gpu_layers, rpc=options.rpc
            )
        click.echo(f"{name} has no profile {recipe!r} yet. Training takes {duration(seconds)}, once.", err=True)
        if not yes and not click.confirm("Train it now?", default=True, err=True):
            raise UnknownNameError(f"no profile {recipe!r}; leave out --profile to go on without steering")
        with _progress.stages() as report:
            profile = training.train_profile(
                path,
                recipe=recipe,
                progress=report,
                n_threads=options.threads,
                n_gpu_layers=options.gpu_layers,
                rpc=options.rpc,
            )
        kept = keep_profile(profile)
        click.echo(f"Trained. The profile is kept as {kept}", err=True)
        return kept

    return offer


def _somebody_can_answer() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def duration(seconds: float) -> str:
    """`about 6 minutes`."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * length:
            return f"about {round(seconds / length)} {unit}s"
    return "about a minute" if seconds >= 45 else f"about {max(round(seconds / 5) * 5, 5)} seconds"
