"""`finesteer-local profiles refit`: takes corrections into a profile's gate."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finesteer_local import catalog, corrections
from finesteer_local.cli import _progress
from finesteer_local.cli._options import threads_option
from finesteer_local.errors import DataError, ModelError

if TYPE_CHECKING:
    from finesteer_local.corrections import Correction
    from finesteer_local.profile import Profile
    from finesteer_local.training.refit import Refitted

_SHOWN = 5  # changed decisions


@click.command("refit")
@click.argument("name")
@click.option("--model", metavar="MODEL", help="The model's file or name.  [default: the one that was corrected]")
@click.option("--recipe", metavar="NAME|DIR", help="What the profile was trained on, where it cannot tell.")
@click.option("--data", type=click.Path(path_type=Path), help="As --recipe: the pairs of `train --data`.")
@click.option("--contrast", type=click.Path(path_type=Path), help="With --data: the prompts of `train --contrast`.")
@threads_option
def command(
    name: str, model: str | None, recipe: str | None, data: Path | None, contrast: Path | None, threads: int | None
) -> None:
    """Take all corrections of the profile NAME into its gate.

    The gate changes as little as it can while it decides the corrected prompts as you said. What else changes is
    counted on prompts of the recipe; corrections that would change more than one in a hundred of these are left out.
    Begins with the profile as it was trained: what you deleted is forgotten.
    """
    from finesteer_local import training

    training.require_extra()
    from finesteer_local.cli._open import keep_profile
    from finesteer_local.identity import read_model_identity
    from finesteer_local.profile import Profile
    from finesteer_local.runtime import open_model
    from finesteer_local.training import refit as module
    from finesteer_local.training.known import data_of

    started = time.monotonic()
    path = _model_of(name, model)
    identity = read_model_identity(path)
    profile = Profile.load(catalog.resolve_profile(name, identity))
    profile.check_model(identity)
    taken = profile.training.get("corrections")
    original = module.original_of(profile)
    found = corrections.kept(profile.name, identity.fingerprint)
    if not found:
        if not taken:
            raise DataError(f"there are no corrections of {name!r} for {identity.name}; /wrong in a chat keeps one")
        click.echo(f"{keep_profile(original)}: no corrections are left, so {name} is what it was trained to be")
        return
    with _progress.stages() as report:
        known = module.reference(
            path,
            original,
            lambda: data_of(original, recipe=recipe, data=data, contrast=contrast),
            cost=_tell_cost,
            progress=report,
            n_threads=threads,
        )
    with _progress.waiting("taking the corrections in"), closing(open_model(path, n_threads=threads)) as llama:
        refitted = module.refit(llama, original, found, known)
    if not taken:
        module.keep_original(original)
    kept = keep_profile(refitted.profile)
    _tell(refitted, found, profile)
    click.echo(f"Kept as {kept}, in {time.monotonic() - started:.0f} s.")


def _model_of(name: str, model: str | None) -> Path:
    """The file of the model that was corrected."""
    if model:
        from finesteer_local.cli._open import fetch_model

        return fetch_model(model)
    files = {each.model_path: None for each in reversed(corrections.kept(name)) if each.model_path}
    for file in files:
        if Path(file).is_file():
            return Path(file)
    if files:
        raise ModelError(f"the model {next(iter(files))} is not there any more; say where it is with --model")
    raise DataError(f"there are no corrections of {name!r}; /wrong in a chat keeps one (or give --model)")


def _tell_cost(n: int) -> None:
    click.echo(
        f"The states that the gate learnt from are not kept: {n:,} prompts are read once, which takes some minutes.",
        err=True,
    )


def _tell(refitted: Refitted, found: list[Correction], before: Profile) -> None:
    from finesteer_local.cli._view import number, one_line

    corrected, gate = refitted.corrected, before.gate
    out = set(range(len(found))) - set(corrected.taken)
    for i, each in enumerate(found):
        was, now = number(corrected.before[i]), number(corrected.after[i])
        state = "left out: it would change too much else" if i in out else f"score {was} -> {now}"
        click.echo(f"  {each.id}  {each.should:<5}  {state}  {one_line(each.text, 60)}")
    share = len(refitted.flipped) / max(refitted.n_counted, 1)
    click.echo(
        f"{len(corrected.taken)} of {len(found)} corrections taken in (threshold {number(gate.threshold)}). "
        f"Of {refitted.n_counted:,} other prompts {len(refitted.flipped)} are decided otherwise now ({share:.1%})"
        + (":" if refitted.flipped else ".")
    )
    for text, needs, opens in refitted.flipped[:_SHOWN]:
        right = "rightly" if needs == opens else "wrongly"
        click.echo(f"  now {'steered' if opens else 'left alone'}, {right}: {one_line(text, 70)}")
