"""`finesteer-local import`: another program's steering vectors as a profile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local.cli import _progress
from finesteer_local.cli._open import check_new_profile, fetch_model, keep_profile, short_name
from finesteer_local.cli._options import MAX_STRENGTH, SCOPES, gpu_layers_option, new_profile_options, threads_option

if TYPE_CHECKING:
    from finesteer_local.profile import ModelIdentity
    from finesteer_local.steering import Gate


def _layers(ctx: click.Context, param: click.Parameter, value: str | None) -> frozenset[int] | None:
    """`10-18,20` as a set of layers."""
    if value is None:
        return None
    chosen: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r" *([0-9]{1,4})(?: *- *([0-9]{1,4}))? *", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise click.BadParameter(f"{part!r} is no layer or range of layers, like 12 or 10-18")
        chosen.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(chosen)


@click.command("import", short_help="Make a profile of another program's steering vectors.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="MODEL", help="The model that the vectors are for.")
@new_profile_options
@click.option("--name", metavar="NAME", help="The profile's name.  [default: the file's]")
@click.option(
    "--layers", callback=_layers, metavar="A-B,C", help="Only these layers, as llama.cpp counts.  [default: all]"
)
@click.option(
    "--strength",
    type=click.FloatRange(-MAX_STRENGTH, MAX_STRENGTH),
    help="Below 0 the vectors are turned round.  [default: 1; MoSE: 2.5]",
)
@click.option(
    "--scope", type=click.Choice(SCOPES), default="prompt", show_default=True, help="Which tokens are steered."
)
@click.option(
    "--layer", type=click.IntRange(0), help="The layer of a file that holds one vector or mixture, and not its layer."
)
@click.option(
    "--counting",
    type=click.Choice(["block", "hidden_states"]),
    help="How plain arrays count layers.  [default: told by their number]",
)
@click.option(
    "--gate-data", type=click.Path(path_type=Path), help="Train a gate: JSONL rows with `prompt` that need the vectors."
)
@click.option(
    "--contrast",
    type=click.Path(path_type=Path),
    help="With --gate-data: prompts that do not need them.  [default: the ordinary prompts of `safety`]",
)
@click.option(
    "--gate",
    type=click.Choice(["contrastive", "scs"]),
    default="contrastive",
    show_default=True,
    help="With --gate-data: its kind.",
)
@click.option("--condition", type=click.Path(path_type=Path), help="A CAST condition vector (.svec) as the gate.")
@click.option("--condition-layer", type=click.IntRange(0), help="With --condition: its layer, as CAST counts.")
@click.option("--threshold", type=click.FloatRange(-1, 1), help="With --condition: its threshold.")
@click.option(
    "--opens",
    type=click.Choice(["above", "below"]),
    help="With --condition: CAST's comparator 'smaller' is above, 'larger' below.",
)
@click.option(
    "--over",
    type=click.Choice(["mean", "last"]),
    default="mean",
    show_default=True,
    help="With --condition: the mean of the prompt's tokens, or its last.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@threads_option
@gpu_layers_option
def command(
    file: Path,
    model: str,
    output: Path | None,
    force: bool,
    name: str | None,
    layers: frozenset[int] | None,
    strength: float | None,
    scope: str,
    layer: int | None,
    counting: str | None,
    gate_data: Path | None,
    contrast: Path | None,
    gate: str,
    condition: Path | None,
    condition_layer: int | None,
    threshold: float | None,
    opens: str | None,
    over: str,
    seed: int,
    threads: int | None,
    gpu_layers: int,
) -> None:
    """Make a profile of another program's steering vectors.

    FILE, or the one file in a folder, is recognised by its content and never executed: llama.cpp control vectors (also
    from repeng, EasySteer and saklas), FineSteer MoSE checkpoints, CAST .svec files, vectors of the steering-vectors
    library, saklas profiles, and plain .npy, .npz, .pt or safetensors files with one vector a layer.

    A vector has no gate: without --gate-data or --condition the profile steers every prompt.
    """
    if condition and (gate_data or condition_layer is None or threshold is None or opens is None):
        raise click.UsageError("--condition needs --condition-layer, --threshold and --opens, and no --gate-data")
    if not condition and not (condition_layer is None and threshold is None and opens is None):
        raise click.UsageError("--condition-layer, --threshold and --opens go with --condition")
    if contrast and not gate_data:
        raise click.UsageError("--contrast goes with --gate-data")
    check_new_profile(output, force)
    from finesteer_local.cli._view import steering_words
    from finesteer_local.converters import assemble, cast, recognise
    from finesteer_local.converters.arrays import Hints
    from finesteer_local.identity import read_model_identity
    from finesteer_local.paths import sha256_of
    from finesteer_local.training.recipes import profile_name

    path = fetch_model(model)
    identity = read_model_identity(path)
    read = recognise.read(file, Hints(identity.n_layer, layer, counting))
    foreign = assemble.choose_layers(file, read, identity, layers)
    source: dict[str, Any] = {"file": file.name, "layers": sorted(foreign.experts)}
    if file.is_file():
        source["sha256"] = sha256_of(file)
    chosen: Gate | None = None
    gate_at, figures = None, None
    if condition and condition_layer is not None and threshold is not None:
        chosen, gate_at = cast.read_condition(
            condition,
            condition_layer,
            threshold,
            opens_above=opens == "above",
            mean=over == "mean",
            n_embd=identity.n_embd,
        )
        source["condition"] = {"file": condition.name, "layer": condition_layer, "sha256": sha256_of(condition)}
    elif gate_data:
        from finesteer_local import training

        training.require_extra()
        from finesteer_local.training.gate_only import train_gate

        gate_at = assemble.gate_layer(foreign)
        with _progress.stages() as report:
            chosen, figures = train_gate(
                path,
                gate_at,
                gate_data,
                contrast,
                kind=gate,
                seed=seed,
                n_threads=threads,
                progress=report,
                n_gpu_layers=gpu_layers,
            )
        source["gate"] = {
            "data": gate_data.name,
            "seed": seed,
            **{key: round(value, 4) for key, value in figures.items() if value is not None},
        }
    profile = assemble.to_profile(
        foreign,
        identity,
        name=name or profile_name(file.stem),
        source=source,
        gate=chosen,
        gate_at=gate_at,
        strength=strength,
        scope=scope,
    )
    kept = keep_profile(profile, output)
    click.echo(f"Imported {profile.name} for {short_name(model)}: {foreign.format}")
    click.echo(f"  profile   {kept}")
    click.echo(f"  steering  {steering_words(profile)}")
    click.echo(f"  gate      {_about_gate(profile.gate.kind, gate_at, figures)}")
    for note in (*_warnings(foreign.model_hint, identity, gate_at if figures else None), *foreign.notes):
        click.echo(f"Note: {note}", err=True)
    click.echo(f"Try it: finesteer-local chat {model} --profile {output or profile.name}")


def _about_gate(kind: str, layer: int | None, figures: dict[str, float] | None) -> str:
    if figures:
        return (
            f"{kind}, layer {layer}: opens on {figures['recall']:.1%} of held-out prompts that need it, "
            f"on {figures['openings']:.1%} of the others (AUROC {figures['auroc']:.3f})"
        )
    if kind == "cast":
        return f"the CAST condition, read at layer {layer}"
    return "always on: it steers every prompt. Give --gate-data prompts.jsonl to train one"


def _warnings(hint: str, model: ModelIdentity, gate_at: int | None) -> list[str]:
    from finesteer_local.cli._view import one_line

    notes = []
    plain = re.sub(r"[^a-z0-9]", "", hint.lower())
    if plain and plain != re.sub(r"[^a-z0-9]", "", model.architecture.lower()):
        notes.append(f"the file says it was made for {one_line(hint, 40)!r}, this model is {model.architecture!r}")
    if gate_at is not None and gate_at < 0.3 * model.n_layer:
        notes.append(
            f"the gate reads layer {gate_at}, the lowest steered one, where little is decided yet; "
            "with --layers it reads a higher one"
        )
    return notes
