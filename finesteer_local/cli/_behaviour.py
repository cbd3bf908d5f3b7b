"""`train --behaviour`: has the model write the training data, shows it for approval, and shows before and after."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local.cli import _progress
from finesteer_local.cli._view import one_line, printable
from finesteer_local.errors import DataError, PromptError

if TYPE_CHECKING:
    from finesteer_local.profile import Profile
    from finesteer_local.training.behaviour.material import Material
    from finesteer_local.training.behaviour.shown import Shown

_SHOWN = 20
_WIDTH = 110


def name_of(sentence: str) -> str:
    """The profile's name where none was given."""
    from finesteer_local.training.recipes import profile_name

    return profile_name(sentence)[:40].strip("-_")


def written_material(path: Path, sentence: str, name: str, seed: int, yes: bool, options: dict[str, Any]) -> Material:
    """What the model at `path` writes for the behaviour, or wrote before, once the user approves of it.

    Raises:
        DataError: the sentence says nothing, or the model writes too little.
        PromptError: the user does not approve, or there is nobody who could.
    """
    from finesteer_local.identity import read_model_identity
    from finesteer_local.runtime import open_model
    from finesteer_local.training.behaviour.material import Material, folder_of
    from finesteer_local.training.behaviour.sentence import read_sentence
    from finesteer_local.training.behaviour.write import write_material

    behaviour = read_sentence(sentence)
    folder = folder_of(name, read_model_identity(path).fingerprint, seed)
    _tell_rule(behaviour.what, behaviour.when, behaviour.exception)
    kept = Material.load(folder)
    if kept is not None and kept.behaviour != behaviour:
        raise DataError(
            f"{folder} holds what was written for {kept.behaviour.sentence!r}; choose another --name, or delete it"
        )
    if kept is None:
        with _progress.stages() as report, closing(open_model(path, **options)) as llama:
            kept = write_material(llama, behaviour, seed=seed, progress=report)
        kept.save(folder)
    else:
        click.echo(f"Taking what the model wrote before, from {folder}", err=True)
    _show(kept)
    again = f"Change or delete lines in {folder}, and give the same command again"
    if yes:
        return kept
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise PromptError(f"nobody can approve of what the model wrote: add --yes to train on it. {again}")
    if not click.confirm("Train on these?", default=True, err=True):
        raise PromptError(f"nothing was trained. {again}, or say the behaviour otherwise")
    return kept


def _tell_rule(what: str, when: str, exception: str) -> None:
    """How the sentence was understood: the user may have meant something else."""
    click.echo(f"  rule       {what}", err=True)
    if when:
        click.echo(f"  holds      {when}", err=True)
    if exception:
        click.echo(f"  exception  {exception}", err=True)
    if not (when or exception):
        click.echo(
            "  holds      always: the sentence says neither when nor an exception, so no gate is trained", err=True
        )


def _show(material: Material) -> None:
    n_near = min(_SHOWN // 2, len(material.near_misses))
    shown = material.pairs[: _SHOWN - n_near]
    click.echo(f"{len(material.pairs)} questions to answer by the rule, {len(shown)} of them:", err=True)
    for pair in shown:
        click.secho(f"  {one_line(pair.prompt.text, _WIDTH)}", err=True)
        click.secho(f"    by the rule: {one_line(pair.chosen, _WIDTH)}", dim=True, err=True)
        click.secho(f"    otherwise:   {one_line(pair.rejected, _WIDTH)}", dim=True, err=True)
    if n_near:
        click.echo(f"{len(material.near_misses)} that must stay as they are, {n_near} of them:", err=True)
        for prompt in material.near_misses[:n_near]:
            click.secho(f"  {one_line(prompt.text, _WIDTH)}", err=True)


def shown(path: Path, profile: Profile, material: Material, options: dict[str, Any]) -> tuple[Profile, Shown]:
    """The profile with what it does to what was held out in its provenance, and that."""
    from finesteer_local.runtime import open_model
    from finesteer_local.training.behaviour.shown import before_and_after

    with _progress.stages() as report, closing(open_model(path, **options)) as llama:
        found = before_and_after(llama, profile, material, progress=report)
    figures = {key: value for key, value in asdict(found).items() if key != "examples"}
    training = {**profile.training, "behaviour": material.behaviour.sentence, "held_out": figures}
    return replace(profile, training=training), found


def tell(found: Shown) -> None:
    """Before and after."""
    before, after = found.preferred
    click.echo(f"On {found.n_questions} questions that taught it nothing:")
    click.echo(
        f"  preferred  the answers by the rule have {before:.0%} of the probability of both, steered {after:.0%}"
    )
    near = (
        ""
        if found.opened_near is None
        else f", on {found.opened_near:.0%} of {found.n_near} that must stay as they are"
    )
    click.echo(f"  gate       opens on {found.opened:.0%}{near}")
    click.echo(f"  words      {found.words[0]:.0f} an answer, steered {found.words[1]:.0f}")
    for question, plain, steered in found.examples:
        click.echo(f"  {one_line(question, _WIDTH)}")
        click.echo(f"    before  {one_line(printable(plain), 2 * _WIDTH)}")
        click.echo(f"    after   {one_line(printable(steered), 2 * _WIDTH)}")
