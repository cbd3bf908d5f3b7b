"""`finesteer-local profiles adapt`: a profile for a fine-tune or a merge of its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from finesteer_local import catalog
from finesteer_local.cli import _progress
from finesteer_local.cli._options import gpu_layers_option, new_profile_options, threads_option
from finesteer_local.errors import FineSteerError, ProfileError, ProfileMismatchError, StorageError, UnknownNameError

if TYPE_CHECKING:
    from finesteer_local.identity import ModelIdentity
    from finesteer_local.profile import Profile
    from finesteer_local.training.adapt import Adapted


@click.command("adapt")
@click.argument("profile", metavar="PROFILE|FILE")
@click.argument("model", metavar="MODEL")
@new_profile_options
@click.option("--recipe", metavar="NAME|DIR", help="What the profile was trained on, where it cannot tell.")
@click.option("--data", type=click.Path(path_type=Path), help="As --recipe: the pairs of `train --data`.")
@click.option("--contrast", type=click.Path(path_type=Path), help="With --data: the prompts of `train --contrast`.")
@threads_option
@gpu_layers_option
def command(
    profile: str,
    model: str,
    output: Path | None,
    force: bool,
    recipe: str | None,
    data: Path | None,
    contrast: Path | None,
    threads: int | None,
    gpu_layers: int,
) -> None:
    """Adapt PROFILE to MODEL, a fine-tune or a merge of the model that it was trained for.

    Measures there what the profile does, on prompts of its recipe and on whole answers, in minutes. Where it holds, a
    profile for this model is written, with threshold and strength fitted again if need be. Where it does not, the last
    line says why, nothing is written, and the profile has to be trained (exit code 1).
    """
    from finesteer_local import training

    training.require_extra()
    from finesteer_local.cli._open import check_new_profile, fetch_model, keep_profile

    check_new_profile(output, force)
    from finesteer_local.identity import read_model_identity
    from finesteer_local.runtime.expand import open_fast
    from finesteer_local.training import adapt as module
    from finesteer_local.training.known import data_of

    path = fetch_model(model)
    identity = read_model_identity(path)
    own = _profile_for(profile, identity)
    module.check_same_kind(own, identity)
    same = own.model.fingerprint == identity.fingerprint
    recipe_data = data_of(own, recipe=recipe, data=data, contrast=contrast)
    with (
        _progress.stages() as report,
        open_fast(path, n_threads=threads, n_gpu_layers=gpu_layers) as llama,
    ):
        found = module.adapt(llama, own, recipe_data, progress=report)
    _tell(own, identity, found)
    if found.profile is None:
        name = own.training.get("recipe") or own.name
        raise ProfileMismatchError(
            f"{own.name} does not hold for {identity.name}: {found.problem}; train it: "
            f"finesteer-local train {model} --recipe {name}"
        )
    if same and not found.changed and not output:
        click.echo("It holds as it is, and its norm weights are those of this model: nothing has to be written.")
        return
    if same and not output:
        # By name it would take the place of the profile for the model that it came from.
        raise StorageError(
            f"{identity.name} has the norm weights of {own.model.name}, so the two profiles would have one name; "
            "give -o FILE to write this one"
        )
    kept = keep_profile(found.profile, output)
    click.echo(f"Kept as {kept}")
    click.echo(f"Try it: finesteer-local chat {model} --profile {output or own.name}")


def _profile_for(name: str, identity: ModelIdentity) -> Profile:
    """The profile of this name or in this file; of several of one name, the one whose model the other can come from."""
    from finesteer_local.profile import Profile
    from finesteer_local.training.adapt import check_same_kind

    if Path(name).expanduser().is_file():
        return Profile.load(Path(name).expanduser())
    named = [ref for ref in catalog.available_profiles() if ref.name == name]
    if not named:
        catalog.resolve_profile(name, identity)  # says what there is
        raise UnknownNameError(f"unknown profile {name!r}; `finesteer-local profiles` lists them")
    profiles = [Profile.load(ref.path) for ref in named if not ref.problem]
    if not profiles:
        raise ProfileError(f"the profile {name!r} cannot be used: {named[0].problem}")
    fits = []
    for each in profiles:
        try:
            check_same_kind(each, identity)
            fits.append(each)
        except FineSteerError:
            if len(profiles) == 1:
                raise
    if not fits:
        models = ", ".join(sorted(each.model.name for each in profiles))
        raise ProfileMismatchError(
            f"{identity.name} is no fine-tune of a model that {name!r} was trained for ({models}); "
            f"train one with: finesteer-local train MODEL --recipe {name}"
        )
    same = [each for each in fits if each.model.fingerprint == identity.fingerprint]
    if len(same or fits) > 1:
        files = ", ".join(str(ref.path) for ref in named if not ref.problem)
        raise UnknownNameError(f"several profiles {name!r} could do; give one's file: {files}")
    return (same or fits)[0]


def _tell(own: Profile, identity: ModelIdentity, found: Adapted) -> None:
    from finesteer_local.cli._open import duration
    from finesteer_local.cli._view import one_line

    before = found.own
    click.echo(f"{own.name}, trained for {one_line(own.model.name, 60)}, on {one_line(identity.name, 60)}:")
    if found.gate:
        was, now = before.get("gate") or {}, found.gate
        note = "" if found.held_out else "; these prompts may have taught it, so it is a little worse than that"
        click.echo(
            f"  gate      opens on {now.recall:.1%} of prompts that need it, on {now.openings:.1%} of the others "
            f"({found.n_prompts:,} in all, AUROC {now.auroc:.3f}{note})"
        )
        if was:
            click.echo(
                f"  before    {was['recall']:.1%}, {was['openings']:.1%} (AUROC {was['auroc']:.3f}) on its own model"
            )
    answers = found.answers
    if answers.n_answers:
        was = (before.get("answers") or {}).get("score")
        on_its_own = f"; {was:.0%} on its own model" if was is not None else ""
        click.echo(
            f"  answers   {answers.score:.0%} of {answers.n_answers} as wanted to the end "
            f"({answers.wanted:.0%} as wanted, {answers.ended:.0%} end by themselves, "
            f"{answers.coherent:.0%} in good language{on_its_own})"
        )
    click.echo(f"  fitted    {', '.join(found.changed) or 'nothing'}")
    click.echo(f"  time      {duration(found.seconds)}")
