"""`finesteer-local export`: a profile in another program's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from finesteer_local import catalog, paths
from finesteer_local.cli._options import checked_text
from finesteer_local.errors import PromptError, UnknownNameError


@click.command("export", short_help="Write a profile in another program's format.")
@click.argument("profile")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["controlvector", "safetensors", "json"]),
    required=True,
    help="llama.cpp's own; or one vector a layer for whatever reads safetensors or JSON.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--model", metavar="MODEL", help="The profile's model: for --prompt, or where several have the profile.")
@click.option("--prompt", metavar="TEXT", help="Export the vector that this prompt gets, instead of the average one.")
def command(profile: str, kind: str, output: Path, model: str | None, prompt: str | None) -> None:
    """Write a profile in another program's format.

    PROFILE is a profile's file or name. What is exported has no gate: it steers every prompt, and with one vector for
    all of them. A control vector works with llama-cli and whatever else reads llama.cpp's format:

    \b
    llama-cli -m model.gguf --control-vector out.gguf
    """
    from finesteer_local.converters import controlvector, ours
    from finesteer_local.profile import Profile, layer_words

    if prompt is not None:
        checked_text(prompt)
        if model is None:
            raise click.UsageError("--prompt needs --model: the vector depends on the model's hidden state")
    paths.check_writable(output)
    path = _find(profile, model)
    loaded = Profile.load(path)
    if prompt is None or model is None:
        vectors = controlvector.average_vectors(loaded)
        what = "the average vector"
    else:
        vectors = _vectors_for(prompt, model, path)
        what = "this prompt's vector"
    if kind == "controlvector":
        controlvector.write(output, vectors, model_hint=loaded.model.architecture)
    else:
        (ours.write_safetensors if kind == "safetensors" else ours.write_json)(output, vectors, loaded)
    click.echo(
        f"{output}: {what} of {loaded.name} for {loaded.model.name}, {layer_words(sorted(vectors))}, strength included"
    )
    if kind == "controlvector":
        click.echo(f"Use it with: llama-cli -m MODEL --control-vector {output}", err=True)


def _find(profile: str, model: str | None) -> Path:
    path = Path(profile).expanduser()
    if path.is_file():
        return path
    if model is not None:
        from finesteer_local.cli._open import fetch_model
        from finesteer_local.identity import read_model_identity

        return catalog.resolve_profile(profile, read_model_identity(fetch_model(model)))
    named = [ref for ref in catalog.available_profiles() if ref.name == profile]
    if len(named) == 1:
        return named[0].path
    if named:
        models = ", ".join(ref.model_name for ref in named)
        raise UnknownNameError(f"profile {profile!r} exists for several models ({models}); say which with --model")
    raise UnknownNameError(f"unknown profile {profile!r}; give a file, or a name that `finesteer-local profiles` lists")


def _vectors_for(prompt: str, model: str, profile: Path) -> Mapping[int, Any]:
    from finesteer_local.cli._answers import engine_of, whole_answer
    from finesteer_local.cli._open import open_steered
    from finesteer_local.cli._options import ModelOptions, Sampling

    llama = open_steered(model, ModelOptions(profiles=(str(profile),)))
    with engine_of(llama) as engine:
        answer = whole_answer(engine, [{"role": "user", "content": prompt}], Sampling(max_tokens=1))
    decision = answer.readings[0][1]
    if not decision.open:
        raise PromptError(
            f"the gate is closed for this prompt (score {decision.score:.3g}, threshold {decision.threshold:.3g}): "
            "there is no vector to export"
        )
    return decision.vectors
