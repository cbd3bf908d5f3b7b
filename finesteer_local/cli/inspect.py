"""`finesteer-local inspect`: what a profile or a model file holds."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local import catalog
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.errors import UnknownNameError

if TYPE_CHECKING:
    from finesteer_local.identity import ModelIdentity
    from finesteer_local.profile import Profile
    from finesteer_local.steering import Gate


@click.command("inspect", short_help="Show what a profile or a model file holds.")
@click.argument("file")
@json_option
def command(file: str, as_json: bool) -> None:
    """Show what a profile or a model file holds.

    FILE is a path, or the name of a profile or an installed model.
    """
    path = _find(file)
    if _architecture(path) == "finesteer":
        from finesteer_local.profile import Profile

        show_profile(Profile.load(path), path, as_json)
    else:
        from finesteer_local.identity import read_model_identity

        show_model(read_model_identity(path), path, as_json)


def _find(file: str) -> Path:
    path = Path(file).expanduser()
    if path.is_file():
        return path
    named = [ref for ref in catalog.available_profiles() if ref.name == file]
    if len(named) > 1:
        models = ", ".join(ref.model_name for ref in named)
        raise UnknownNameError(f"{file!r} exists for several models ({models}); `profiles show {file}` shows them")
    if named:
        return named[0].path
    entry = catalog.load_catalog().get(file)
    if entry and not entry.path.is_file():
        raise UnknownNameError(f"the model {file!r} is not here yet; fetch it with: finesteer-local models pull {file}")
    from finesteer_local.cli._open import fetch_model

    return fetch_model(file)


def _architecture(path: Path) -> str:
    """`general.architecture` where it is the file's first key, as all writers have it; else an empty string.

    Reading the whole header of a model takes seconds.
    """
    try:
        with path.open("rb") as file:
            head = file.read(256)
        magic, key_length = head[:4], struct.unpack_from("<Q", head, 24)[0]
        key, kind, length = head[32 : 32 + key_length], *struct.unpack_from("<IQ", head, 32 + key_length)
        if (magic, key, kind) == (b"GGUF", b"general.architecture", 8) and length < 64:
            start = 32 + key_length + 12
            return head[start : start + length].decode("utf-8", "replace")
    except (OSError, struct.error, OverflowError):
        pass
    return ""


# --- a model ---


def show_model(identity: ModelIdentity, path: Path, as_json: bool) -> None:
    """Print a model's identity and the profiles that fit."""
    fitting = catalog.available_profiles(identity.fingerprint)
    if as_json:
        data = {"kind": "model", "path": str(path), "size": path.stat().st_size, **asdict(identity)}
        data["chat_template"] = bool(identity.template_hash)
        data["profiles"] = [{"name": ref.name, "path": str(ref.path), "problem": ref.problem} for ref in fitting]
        echo_json(data)
        return
    from finesteer_local.paths import size

    names = ", ".join(ref.name + (" (damaged)" if ref.problem else "") for ref in fitting)
    _print(
        {
            "model": identity.name,
            "file": f"{path} ({size(path.stat().st_size)})",
            "architecture": f"{identity.architecture}, {identity.n_layer} layers, {identity.n_embd} wide, "
            f"{identity.n_vocab:,} tokens",
            "fingerprint": identity.fingerprint,
            "chat template": "yes" if identity.template_hash else "none; chat uses a plain one",
            "profiles": names or f"none; train one with: finesteer-local train {path} --recipe safety",
        }.items()
    )


# --- a profile ---


def profile_json(profile: Profile, path: Path) -> dict[str, Any]:
    """A profile for programs."""
    experts = {}
    for layer in profile.layers:
        e = profile.experts[layer]
        norms = [round(float((row @ row) ** 0.5), 6) for row in e.prototypes]
        labels = list(e.labels) or [f"expert {i + 1}" for i in range(len(e.prototypes))]
        experts[str(layer)] = {"labels": labels, "norms": norms, "residual_rank": int(e.residual_basis.shape[1])}
    return {
        "kind": "profile",
        "path": str(path),
        "size": path.stat().st_size,
        "name": profile.name,
        "description": profile.description,
        "license": profile.license,
        "model": asdict(profile.model),
        "gate": {"kind": profile.gate.kind, "layer": profile.gate_layer, **_gate_parameters(profile.gate)},
        "layers": profile.layers,
        "strength": profile.strength,
        "answer_strength": profile.answer_strength,
        "length_decay": profile.length_decay,
        "scope": profile.scope,
        "experts": experts,
        "kinds": [asdict(kind) for kind in profile.kinds.kinds] if profile.kinds else [],
        "training": dict(profile.training),
    }


def show_profile(profile: Profile, path: Path, as_json: bool = False) -> None:
    """Print what a profile holds."""
    if as_json:
        echo_json(profile_json(profile, path))
        return
    from finesteer_local.cli._view import SCOPE_MEANING, gate_tokens, number, strength_words
    from finesteer_local.paths import size
    from finesteer_local.profile import layer_words

    model = profile.model
    gate = ", ".join(f"{name} {number(value)}" for name, value in _gate_parameters(profile.gate).items())
    data = profile_json(profile, path)
    _print(
        {
            "profile": profile.name,
            "": profile.description,
            "file": f"{path} ({size(path.stat().st_size)})",
            "license": profile.license,
            "model": f"{model.name} ({model.architecture}, {model.n_layer} layers, {model.n_embd} wide)",
            "fingerprint": model.fingerprint,
            "gate": f"{profile.gate.kind}, reads {gate_tokens(profile)} at layer {profile.gate_layer}"
            + (f"; {gate}" if gate else ""),
            "tells kinds": ", ".join(profile.kinds.names) if profile.kinds else "",
            "steers": layer_words(profile.layers),
            "strength": strength_words(profile.strength, profile.answer_strength)
            + (f", long prompts less (decay {number(profile.length_decay)})" if profile.length_decay else ""),
            "scope": f"{profile.scope}: {SCOPE_MEANING[profile.scope]}",
        }.items()
    )
    for layer, experts in data["experts"].items():
        rank = experts["residual_rank"]
        _heading(f"experts at layer {layer}" + (f", residual of rank {rank}" if rank else ""))
        shares = _shares(profile, layer, len(experts["labels"]))
        columns = zip(experts["labels"], experts["norms"], shares, strict=True)
        _print(
            [
                (
                    label,
                    f"length {number(norm)}" + (f", {part:.0%} of the training pairs" if part is not None else ""),
                )
                for label, norm, part in columns
            ]
        )
    if profile.training:
        _heading("training")
        _print((str(key), _value(value)) for key, value in profile.training.items() if key != "expert_shares")


def _shares(profile: Profile, layer: str, n: int) -> list[float | None]:
    from finesteer_local.converters.controlvector import expert_shares

    shares = expert_shares(profile, int(layer))
    return [None] * n if shares is None else [float(part) for part in shares]


def _gate_parameters(gate: Gate) -> dict[str, float]:
    numbers = {name: value for name, value in vars(gate).items() if isinstance(value, (int, float))}
    if gate.kind == "scs":
        numbers |= {"rank": float(vars(gate)["basis"].shape[1]), "threshold": gate.threshold}
    if gate.kind == "contrastive":
        numbers["heads"] = float(vars(gate)["query"].shape[1])
    return numbers


def _value(value: Any) -> str:
    """A JSON value on one line or, where it has parts, in a few."""
    from finesteer_local.cli._view import number

    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_flat(part)}" for key, part in value.items())
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return f"{len(value)} (--json shows them)"
    if isinstance(value, list):
        return ", ".join(_flat(part) for part in value)
    if isinstance(value, float):
        return number(value)
    return str(value)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = (
            (name, f"({_flat(part)})" if isinstance(part, Mapping) else _flat(part)) for name, part in value.items()
        )
        return ", ".join(f"{name} {part}" for name, part in parts)
    return _value(value)


def _heading(text: str) -> None:
    from rich.text import Text

    from finesteer_local.cli._view import output_console

    output_console().print(Text(f"\n{text}", style="bold"))


def _print(rows: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from finesteer_local.cli._view import one_line, output_console, printable

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", min_width=13)
    table.add_column(overflow="fold")
    for key, value in rows:
        if value:
            table.add_row(Text(one_line(key, 40)), Text(printable(value)))
    output_console().print(table)
