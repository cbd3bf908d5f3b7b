"""`finesteer-local profiles watch` and `profiles kinds`: a part of a profile is learnt, and the rest stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from finesteer_local.cli._options import gpu_layers_option, new_profile_options, threads_option

if TYPE_CHECKING:
    from finesteer_local.profile import Profile

F = TypeVar("F", bound=Callable[..., Any])


def _common(function: F) -> F:
    """Add what both commands take."""
    for option in (
        gpu_layers_option,
        threads_option,
        new_profile_options,
        click.option("--recipe", metavar="NAME|DIR", help="Whose prompts are read.  [default: the profile's own]"),
        click.argument("model"),
        click.argument("profile"),
    ):
        function = option(function)
    return function


@click.command("watch")
@_common
@click.option("--answers", type=click.IntRange(1), help="From so many of the model's own answers.  [default: 1024]")
def watch(answers: int | None, **common: Any) -> None:
    """Teach a profile to read the answers, too: what its gate misses can show in the model's own words.

    PROFILE is a name or a file; MODEL answers prompts of the recipe by itself, and a gate learns which of its answers
    do what should not be done. No word of them is kept. Everything else of the profile stays as it is. An interrupted
    run goes on where it stopped. An experiment: docs/watch.md says what it gained.
    """

    def learnt(path: Path, profile: Profile, **options: Any) -> tuple[Profile, Any]:
        from finesteer_local.training.parts import ANSWERS, watch_profile

        return watch_profile(path, profile, n_answers=answers or ANSWERS, **options)

    fit = _changed(learnt, "reads answers", **common)
    from finesteer_local.cli._view import answer_gate_words

    click.echo(f"  watching  {answer_gate_words(asdict(fit))}")


@click.command("kinds")
@_common
def kinds(**common: Any) -> None:
    """Teach a profile the kinds of request that a recipe names, or teach it them anew.

    PROFILE is a name or a file. Gate and experts stay as they are, and so does every decision to steer; what a profile
    does about a kind (its words and actions, docs/kinds.md) is the recipe's. An interrupted run goes on where it
    stopped.
    """

    def learnt(path: Path, profile: Profile, **options: Any) -> tuple[Profile, Any]:
        from finesteer_local.training.parts import name_kinds

        return name_kinds(path, profile, **options)

    fit = _changed(learnt, "tells kinds", **common)
    from finesteer_local.cli._view import kinds_fit_words

    click.echo(f"  kinds     {kinds_fit_words(asdict(fit))}")


def _changed(
    learnt: Callable[..., tuple[Profile, Any]],
    done: str,
    *,
    profile: str,
    model: str,
    recipe: str | None,
    output: Path | None,
    force: bool,
    threads: int | None,
    gpu_layers: int,
) -> Any:
    """Let a part be learnt, keep the profile and say what it has `done`; gives how well the part does."""
    from finesteer_local import training
    from finesteer_local.cli import _progress
    from finesteer_local.cli._open import check_new_profile, fetch_model, find_profile, keep_profile, short_name
    from finesteer_local.identity import read_model_identity
    from finesteer_local.profile import Profile

    check_new_profile(output, force)
    training.require_extra()
    path = fetch_model(model)
    read = Profile.load(find_profile(profile, read_model_identity(path), model, path))
    with _progress.stages() as report:
        changed, fit = learnt(path, read, recipe=recipe, n_threads=threads, progress=report, n_gpu_layers=gpu_layers)
    kept = keep_profile(changed, output)
    click.echo(f"{changed.name} for {short_name(model)} {done} now.")
    click.echo(f"  profile   {kept}")
    return fit


def register(group: click.Group) -> None:
    """Add the commands to `profiles`."""
    group.add_command(watch)
    group.add_command(kinds)
