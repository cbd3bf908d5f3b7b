"""`finesteer-local train`: a profile from the user's own GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local import training
from finesteer_local.cli import _progress
from finesteer_local.cli._open import check_new_profile, duration, fetch_model, keep_profile, short_name
from finesteer_local.cli._options import (
    MAX_STRENGTH,
    SCOPES,
    gpu_layers_option,
    model_argument,
    new_profile_options,
    rpc_option,
    threads_option,
)

if TYPE_CHECKING:
    from finesteer_local.profile import Profile


@click.command("train", short_help="Train a profile for a model.")
@model_argument
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    metavar="NAME|DIR",
    help="Named training data, or a folder with a recipe.json; repeatable, for a profile of each.  "
    "[default: safety, unless --data is given]",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Your own pairs: JSONL rows with `prompt`, `chosen`, `rejected`, or with lists of `correct` and `wrong`.",
)
@click.option(
    "--contrast",
    type=click.Path(path_type=Path),
    help="With --data: JSONL rows with `prompt` that must stay untouched.  [default: the ordinary prompts of `safety`]",
)
@click.option(
    "--behaviour",
    metavar="SENTENCE",
    help="What answers should be like, in a sentence: the model itself writes what the profile is trained on.",
)
@click.option("-y", "--yes", is_flag=True, help="With --behaviour: train on what the model wrote without asking.")
@click.option("--name", metavar="NAME", help="The profile's name.  [default: the recipe's, or the data file's]")
@new_profile_options
@click.option(
    "--gate",
    type=click.Choice(["contrastive", "scs", "always"]),
    default="contrastive",
    show_default=True,
    help="When to steer: trained against ordinary prompts; as the paper has it; on every prompt.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="How long training may take, all recipes together: it does what fits, and a longer run goes on from a shorter "
    "one.  "
    f"[default: {training.DEFAULT_MINUTES:g}]",
)
@click.option(
    "--quality",
    type=click.Choice(["quick", "standard", "full"]),
    help="Instead of a time: the gate learns from 4,000 or 10,000 prompts of a recipe (fewer above 2 billion "
    "parameters), or from all. Bundled profiles are full.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="With a recipe of refusals, learn a second gate that reads the answers: from those that the model gives by "
    "itself, of which no word is kept. An experiment (docs/watch.md).",
)
@click.option("--keep", is_flag=True, help="When interrupted (Ctrl-C), keep the best profile so far.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--layer", type=click.IntRange(1), help="Steer this layer instead of the tuned one.")
@click.option("--strength", type=click.FloatRange(0, MAX_STRENGTH), help="Instead of the tuned one.")
@click.option("--scope", type=click.Choice(SCOPES), help="Instead of the tuned one.")
@click.option(
    "--optimise/--no-optimise",
    default=None,
    help="Learn what steers through the model, in PyTorch: minutes more. Done by itself for refusals of small models; "
    "worth asking for with recipes of facts, like truthful. Needs transformers.",
)
@click.option(
    "--backend",
    type=click.Choice(["llama.cpp", "transformers"]),
    default="llama.cpp",
    show_default=True,
    help="With transformers, MODEL is a Hugging Face directory (safetensors) of the same model.",
)
@click.option(
    "--gguf",
    type=click.Path(path_type=Path),
    help="With --backend transformers: the GGUF file that the profile is for.  [default: told by the norm weights]",
)
@threads_option
@gpu_layers_option
@rpc_option
def command(
    model: str,
    recipes: tuple[str, ...],
    data: Path | None,
    contrast: Path | None,
    behaviour: str | None,
    yes: bool,
    output: Path | None,
    force: bool,
    minutes: float | None,
    quality: str | None,
    backend: str,
    gguf: Path | None,
    threads: int | None,
    gpu_layers: int,
    rpc: tuple[str, ...],
    **settings: Any,
) -> None:
    """Train a steering profile for MODEL, a name of the catalogue or a GGUF file.

    The model's own file is all that is needed. An interrupted run goes on where it stopped when the same command is
    given again.
    """
    if sum(map(bool, (recipes, data, behaviour is not None))) > 1:
        raise click.UsageError("--recipe, --data and --behaviour exclude each other")
    if behaviour is not None and backend == "transformers":
        raise click.UsageError("--behaviour goes with llama.cpp, not with --backend transformers")
    if yes and behaviour is None:
        raise click.UsageError("--yes goes with --behaviour")
    if contrast and not data:
        raise click.UsageError("--contrast goes with --data")
    if minutes and quality:
        raise click.UsageError("--minutes and --quality exclude each other")
    if gguf and backend != "transformers":
        raise click.UsageError("--gguf goes with --backend transformers")
    if rpc and backend == "transformers":
        raise click.UsageError("--rpc goes with llama.cpp, not with --backend transformers")
    if len(recipes) > 1 and (output or settings["name"]):
        raise click.UsageError("with several --recipe every profile is named by its own; leave --output and --name out")
    if minutes or len(recipes) > 1:
        settings["minutes"] = (minutes or training.DEFAULT_MINUTES) / max(len(recipes), 1)
    check_new_profile(output, force)
    training.require_extra()
    path = Path(model) if backend == "transformers" else fetch_model(model)
    material = None
    opened: dict[str, Any] = {"n_threads": threads, "n_gpu_layers": gpu_layers, "rpc": rpc}
    if behaviour is not None:
        from finesteer_local.cli import _behaviour

        settings["name"] = settings["name"] or _behaviour.name_of(behaviour)
        material = _behaviour.written_material(path, behaviour, settings["name"], settings["seed"], yes, opened)
        if not material.near_misses:
            settings["gate"] = "always"
    for recipe in recipes or (None if data or material else "safety",):
        with _progress.stages() as report:
            profile = training.train_profile(
                path,
                recipe=recipe,
                data=material.data(settings["name"]) if material else data,
                contrast=contrast,
                quality=quality,
                progress=report,
                backend=backend,
                gguf=gguf,
                **opened,
                **settings,
            )
        found = None
        if material:
            profile, found = _behaviour.shown(path, profile, material, opened)
        kept = keep_profile(profile, output)
        chat_with = str(gguf or "MODEL.gguf") if backend == "transformers" else model
        _tell(profile, kept, model, chat_with, str(output or profile.name))
        if found:
            _behaviour.tell(found)


_FORMS = {
    "plain": "requests as people type them",
    "wrapped": "requests in wrappers that the gate never saw",
    "foreign": "requests in other languages",
    "page": "requests in pages of ordinary text that it never saw",
}


def _tell(profile: Profile, kept: Path, model: str, chat_with: str, reference: str) -> None:
    from finesteer_local.cli._view import answer_gate_words, kinds_fit_words, steering_words

    figures = profile.training["figures"]
    answers = figures["answers"]
    click.echo(f"Trained {profile.name} for {short_name(model)} in {duration(profile.training['seconds'])}.")
    click.echo(f"  profile   {kept}")
    n_experts = len(profile.experts[profile.layers[0]].prototypes)
    mixture = f", {n_experts} experts" if n_experts > 1 else ""
    click.echo(f"  steering  {steering_words(profile)}{mixture}")
    click.echo(
        f"  answers   {answers['score']:.0%} of held-out prompts answered as wanted to the end "
        f"({answers['wanted']:.0%} as wanted, {answers['ended']:.0%} end by themselves, "
        f"{answers['coherent']:.0%} in good language)"
    )
    gate = figures["gate"]
    if gate:
        click.echo(
            f"  gate      opens on {gate['recall']:.1%} of held-out prompts that need it, "
            f"on {gate['openings']:.1%} of the others (AUROC {gate['auroc']:.3f})"
        )
        for form, shares in gate["forms"].items() if len(gate["forms"]) > 1 else ():
            of = {"recall": "", "openings": " of harmless ones"}
            told = ", ".join(f"on {shares[name]:.1%}{whose}" for name, whose in of.items() if name in shares)
            click.echo(f"  {form:9} opens {told}: {_FORMS[form]}")
    else:
        click.echo("  gate      always open")
    if (fit := figures.get("answer_gate")) and profile.answer_gate is not None:
        click.echo(f"  watching  {answer_gate_words(fit)}")
    elif fit:
        click.echo(f"  watching  no gate on the answers, which do not show enough: it {answer_gate_words(fit)}")
    elif profile.training.get("watched") == 0:
        longer = f"{3 * profile.training['minutes']:g}"
        click.echo(f"  watching  no gate on the answers: there was no time to ask for enough; try --minutes {longer}")
    elif profile.training.get("watched"):
        click.echo("  watching  no gate on the answers: too few of the model's own do what should not be done")
    if kinds := figures.get("kinds"):
        click.echo(f"  kinds     {kinds_fit_words(kinds)}")
    facts = profile.training
    n_read, n_prompts = facts.get("prompts_for_gate", 0), facts.get("pairs", 0) + facts.get("contrast_prompts", 0)
    if 0 < n_read < n_prompts:
        teacher = f", taught by {' and '.join(facts['teachers'])}" if facts.get("teachers") else ""
        more = f"; --minutes {3 * facts['minutes']:g} goes on from there" if facts.get("minutes") else ""
        click.echo(f"  prompts   the gate learnt from {n_read:,} of {n_prompts:,}{teacher}{more}")
    stages = sorted(profile.training["stages"].items(), key=lambda stage: -stage[1])
    click.echo("  time      " + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stages if seconds >= 1))
    click.echo(f"Try it: finesteer-local chat {chat_with} --profile {reference}")
