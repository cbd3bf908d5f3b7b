"""What a publisher uploads: the profile, its card, its hash, its signature, and its entry in the folder's index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finesteer_local.errors import StorageError, one_line
from finesteer_local.paths import atomic_write, ensure_dir, sha256_of
from finesteer_local.profile import Profile, layer_words
from finesteer_local.profile_index.entries import FILE_NAME, FORMAT_VERSION, parse_index
from finesteer_local.profile_index.signatures import sign

# In every card, beside what its publisher says.
NOT_FOR = (
    "as the only protection where a wrong answer harms somebody: a determined user gets past it, and it sometimes "
    "declines what is fine",
    "on any other model than the one named here, fine-tunes of it included; their fingerprints differ",
    "to decide about people: its scores were not made for that",
)
_FIGURES = {  # name in an index: (group, key) in the profile's training, and words
    "wanted": ("answers", "wanted", "held-out prompts answered as wanted"),
    "ended": ("answers", "ended", "answers that end by themselves"),
    "coherent": ("answers", "coherent", "answers in good language"),
    "auroc": ("gate", "auroc", "AUROC of the gate"),
    "recall": ("gate", "recall", "the gate opens on held-out prompts that need it"),
    "openings": ("gate", "openings", "the gate opens on others"),
}


@dataclass(frozen=True)
class Packed:
    """What was written. `key` is the public key of the signature, empty where there is none."""

    profile: Path
    card: Path
    index: Path
    sha256: str
    key: str


def pack_profile(
    path: Path,
    folder: Path,
    *,
    not_for: Sequence[str] = (),
    license: str = "",
    key_file: Path | None = None,
    password: str | None = None,
) -> Packed:
    """Write the profile at `path` into `folder` as it is published, and into the folder's index.

    The folder is itself an index: uploaded as it is, its address can be searched. Other profiles in it stay.

    Args:
        not_for: what it must not be used for, beside `NOT_FOR`.
        license: in place of the profile's own.
        key_file: a secret key of minisign's to sign with.
        password: of that key, None where it has none.

    Raises:
        ProfileError: it is damaged.
        StorageError: it cannot be written, has no license, or the folder's index is signed with another key.
        DownloadError: what is in the folder as `index.json` is no index.
        MissingExtraError: a key without py-minisign.
    """
    profile = Profile.load(path)
    if license:
        profile = replace(profile, license=license)
    if not profile.license:
        raise StorageError(
            f"the profile {profile.name!r} has no license, and nobody may use what has none; "
            "add --license NAME (an SPDX identifier, such as Apache-2.0)"
        )
    ensure_dir(folder)
    base = f"{profile.name}.{profile.model.fingerprint[:12]}"
    file, card, index = folder / f"{base}.gguf", folder / f"{base}.md", folder / FILE_NAME
    content = _read(index)
    if license:
        profile.save(file)
    elif path.resolve() != file.resolve():
        with atomic_write(file) as temporary:
            shutil.copyfile(path, temporary)
    digest = sha256_of(file)
    comment = one_line(f"{profile.name} for {profile.model.name}, SHA-256 {digest}")
    key = sign(file, key_file, password, "".join(c if " " <= c <= "~" else "?" for c in comment)) if key_file else ""
    if content.get("key") and content["key"] != key:
        raise StorageError(f"{index} is signed with another key ({content['key']}); sign with that one: --key FILE")
    with atomic_write(folder / f"{file.name}.sha256") as temporary:
        temporary.write_text(f"{digest}  {file.name}\n", encoding="utf-8")
    with atomic_write(card) as temporary:
        temporary.write_text(card_text(profile, file.name, file.stat().st_size, digest, not_for), encoding="utf-8")
    entry = {
        "name": profile.name,
        "description": one_line(profile.description),
        "license": profile.license,
        "model": {
            "fingerprint": profile.model.fingerprint,
            "name": profile.model.name,
            "architecture": profile.model.architecture,
        },
        "file": file.name,
        "size": file.stat().st_size,
        "sha256": digest,
        "card": card.name,
        "figures": _figures(profile.training),
        **({"signature": f"{file.name}.minisig"} if key else {}),
    }
    others = [each for each in content.get("profiles", []) if each.get("file") != file.name]
    if key and others and not content.get("key"):
        raise StorageError(f"{index} has profiles without a signature; sign these first, or use another folder")
    written = {
        **content,
        "finesteer_index": FORMAT_VERSION,
        **({"key": key} if key else {}),
        "profiles": [*others, entry],
    }
    with atomic_write(index) as temporary:
        temporary.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Packed(file, card, index, digest, key)


def card_text(profile: Profile, file: str, n_bytes: int, digest: str, not_for: Sequence[str]) -> str:
    """The card: what it does, on which model, as measured, from which data, and what it is not for."""
    training, model = profile.training, profile.model
    lines = [f"# {profile.name} for {one_line(model.name)}", "", one_line(profile.description), ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in _about(profile, file, n_bytes, digest)]
    lines += ["", "## Figures", ""]
    figures = _figures(training)
    if figures:
        lines += [
            "Measured in training on prompts that were held out, with the model in the quantisation named above.",
            "",
        ]
        lines += ["| | |", "| --- | --- |"]
        lines += [f"| {_FIGURES[name][2]} | {value:.3f} |" for name, value in figures.items()]
    else:
        lines += ["None were kept with the profile."]
    lines += ["", "## Data", "", *_data(training)]
    lines += ["", "## What it must not be used for", ""]
    lines += [f"- {one_line(text)}" for text in (*not_for, *NOT_FOR)]
    lines += ["", "## Use", "", "```", f"finesteer-local profiles add {file}"]
    lines += [f"finesteer-local chat MODEL --profile {profile.name}", "```", ""]
    return "\n".join(lines)


def _about(profile: Profile, file: str, n_bytes: int, digest: str) -> list[tuple[str, str]]:
    model = profile.model
    return [
        ("file", f"`{file}`, {n_bytes:,} bytes"),
        ("SHA-256", f"`{digest}`"),
        ("license", one_line(profile.license)),
        (
            "model",
            f"{one_line(model.name)} ({one_line(model.architecture)}, {model.n_layer} layers, {model.n_embd} wide)",
        ),
        ("fingerprint", f"`{model.fingerprint}`"),
        ("trained on the file", one_line(str(profile.training.get("model_file") or "not noted"))),
        ("steers", f"{layer_words(profile.layers)}, strength {profile.strength:g}, scope {profile.scope}"),
        ("gate", f"{profile.gate.kind}, layer {profile.gate_layer}"),
    ]


def _data(training: Mapping[str, Any]) -> list[str]:
    rows = [
        ("recipe", training.get("recipe")),
        ("SHA-256 of the data", training.get("data_hash")),
        ("pairs", training.get("pairs")),
        ("prompts that must stay as they are", training.get("contrast_prompts")),
        ("seed", training.get("seed")),
    ]
    known = [f"| {name} | {one_line(str(value))} |" for name, value in rows if value is not None]
    return ["| | |", "| --- | --- |", *known] if known else ["Not noted in the profile."]


def _figures(training: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, (group, key, _) in _FIGURES.items():
        values = training.get("figures")
        value = (
            values.get(group, {}).get(key) if isinstance(values, dict) and isinstance(values.get(group), dict) else None
        )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = round(float(value), 4)
    return found


def _read(index: Path) -> dict[str, Any]:
    """The folder's index as it is, empty where there is none; checked as a user's would be."""
    if not index.exists():
        return {}
    try:
        data = index.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {index}: {(error.strerror or str(error)).lower()}") from error
    parse_index(data, str(index))
    content: dict[str, Any] = json.loads(data)
    return content
