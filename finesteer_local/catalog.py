"""Names to files: models (the catalogue, and what the user put beside it) and profiles (the user's own, then bundled).

Everywhere a name is taken, the path of an existing file is taken too, and goes first.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from finesteer_local.errors import ModelError, ProfileError, ProfileMismatchError, StorageError, UnknownNameError
from finesteer_local.fetch import Part, Progress, downloads_dir, fetch
from finesteer_local.paths import atomic_write, models_dir, profiles_dir, sha256_of

if TYPE_CHECKING:
    from finesteer_local.profile import ModelIdentity, Profile

_NAME = "[a-z0-9][a-z0-9_-]{0,63}"
_N_DIGITS = 12
_PROFILE_FILE = re.compile(rf"({_NAME})\.([0-9a-f]{{{_N_DIGITS}}})\.gguf")


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be pulled by name. `size` is in bytes; `parts` are joined in their order."""

    name: str
    description: str
    license: str
    architecture: str
    filename: str
    size: int
    sha256: str
    parts: tuple[Part, ...]

    @property
    def path(self) -> Path:
        """Where the pulled file is, or would be."""
        return models_dir() / self.filename


@dataclass(frozen=True)
class InstalledModel:
    """A model file in `models_dir()`; `entry` is None for one that the user put there."""

    name: str
    path: Path
    size: int
    entry: ModelEntry | None


@dataclass(frozen=True)
class ProfileRef:
    """A profile that can be named. `problem` says why its file cannot be used; then only name and path are certain."""

    name: str
    path: Path
    fingerprint: str
    model_name: str
    bundled: bool
    description: str
    problem: str | None = None


class _ProfileFile(NamedTuple):
    name: str
    digits: str
    path: Path
    bundled: bool


def _bundle() -> Path:
    return Path(str(import_module("finesteer_local.models").__file__)).parent


# --- models ---


@cache
def load_catalog() -> Mapping[str, ModelEntry]:
    """The models that can be pulled, by name."""
    entries = json.loads((_bundle() / "catalog.json").read_text("utf-8"))["models"]
    return MappingProxyType(
        {raw["name"]: ModelEntry(**{**raw, "parts": tuple(Part(**part) for part in raw["parts"])}) for raw in entries}
    )


def pull_model(name: str, on_progress: Progress | None = None, on_choice: Callable[[str], None] | None = None) -> Path:
    """Fetch a model of the catalogue, unless its file is there already with the right SHA-256, or `hf:owner/repo`.

    Raises:
        UnknownNameError: no such name in the catalogue, or on the hub.
        DownloadError: the download failed, or is not the file it should be.
        StorageError: it cannot be written.
    """
    from finesteer_local import sources

    if sources.prefix_of(name) == "hf":
        return sources.resolve(name, on_progress, on_choice, fresh=True)
    entry = load_catalog().get(name)
    if entry is None:
        raise _unknown("model", name, load_catalog(), "or give hf:owner/repo")
    if _is_whole(entry) and sha256_of(entry.path) == entry.sha256:
        return entry.path
    return fetch(name, entry.parts, entry.size, entry.sha256, entry.path, on_progress)


def resolve_model(
    name_or_path: str | os.PathLike[str],
    on_progress: Progress | None = None,
    on_choice: Callable[[str], None] | None = None,
) -> Path:
    """Turn what names a model into a path.

    That is a path, a name of the catalogue (pulled where needed), the name of a file in `models_dir()`, or a name of
    `sources`: `hf:owner/repo` (fetched where needed), `ollama:NAME` and so on.

    Args:
        on_choice: called with one line where one of several quantisations was chosen.

    Raises:
        ModelError: it looks like a path, and there is no such file; or another program's model cannot be opened.
        UnknownNameError: it looks like a name, and nothing has it.
        DownloadError, StorageError: see `pull_model`.
        MissingExtraError: `hf:` without huggingface_hub.
    """
    from finesteer_local import sources

    given = os.fspath(name_or_path)
    path = os.path.expanduser(given)
    if os.path.isfile(path):
        return Path(path)
    if sources.prefix_of(given):
        return sources.resolve(given, on_progress, on_choice)
    if entry := load_catalog().get(given):
        # The hash was checked when the file was pulled; the size shows a copy that was cut short since.
        return entry.path if _is_whole(entry) else pull_model(given, on_progress)
    installed = installed_models()
    for model in installed:
        if given in (model.name, model.path.stem, model.path.name):
            return model.path
    if os.path.isdir(path):
        raise ModelError(f"{given!r} is a folder, not a model file")
    if _looks_like_path(given):
        raise ModelError(f"no such file: {given!r}")
    if elsewhere := sources.similar(given):
        raise UnknownNameError(f"unknown model {given!r}; did you mean {' or '.join(elsewhere[:3])}?")
    names = {*load_catalog(), *(model.name for model in installed)}
    raise _unknown("model", given, names, f"or give the path of a .gguf file, or {sources.FORMS}")


def installed_models() -> list[InstalledModel]:
    """The model files in `models_dir()`, by name."""
    entries = {entry.filename: entry for entry in load_catalog().values()}
    models = []
    for path in models_dir().glob("*.gguf"):
        if path.is_file():
            entry = entries.get(path.name)
            models.append(InstalledModel(entry.name if entry else path.stem, path, path.stat().st_size, entry))
    return sorted(models, key=lambda model: model.name)


def remove_model(name: str) -> Path:
    """Delete a model's file from `models_dir()`, with what an interrupted pull of it left, and return its path.

    Raises:
        UnknownNameError: no installed model has this name.
        StorageError: it cannot be deleted.
    """
    from finesteer_local import sources

    if sources.prefix_of(name):
        raise UnknownNameError(f"{name} is not in the models folder; remove it with the program that keeps it")
    installed = {model.name: model.path for model in installed_models()}
    leftover = downloads_dir(name) if name in load_catalog() else None
    if leftover and leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
        installed.setdefault(name, leftover)
    if name not in installed:
        if name in load_catalog():
            raise UnknownNameError(f"the model {name!r} is not installed")
        raise _unknown("model", name, installed)
    _unlink(installed[name])
    return installed[name]


def _is_whole(entry: ModelEntry) -> bool:
    return os.path.isfile(entry.path) and entry.path.stat().st_size == entry.size


# --- profiles ---


def available_profiles(fingerprint: str | None = None) -> list[ProfileRef]:
    """The profiles that can be named, for one model or for all, by name; a user's own hides the bundled one."""
    refs: dict[tuple[str, str], ProfileRef] = {}
    for file in _profile_files():
        if (fingerprint is None or fingerprint[:_N_DIGITS] == file.digits) and file[:2] not in refs:
            refs[file[:2]] = _read_ref(file)
    return [refs[key] for key in sorted(refs)]


def profile_paths(fingerprint: str) -> list[tuple[str, Path]]:
    """Names and files of the profiles for one model; a user's own hides the bundled one. The files are not read."""
    found: dict[str, Path] = {}
    for file in _profile_files():
        if file.digits == fingerprint[:_N_DIGITS]:
            found.setdefault(file.name, file.path)
    return sorted(found.items())


def profile_models() -> Iterator[tuple[str, int, int]]:
    """Architecture, width and layers of the models that there are profiles for: what else cannot fit any.

    Only the beginning of each file is read; a damaged one is left out.
    """
    from finesteer_local.gguf_file import DamagedGGUF, read_keys

    keys = ("architecture", "embedding_length", "block_count")
    for file in _profile_files():
        with suppress(DamagedGGUF, OSError, KeyError):
            values = read_keys(file.path).values
            architecture, n_embd, n_layer = (values[f"finesteer.model.{key}"] for key in keys)
            yield str(architecture), int(n_embd), int(n_layer)


def resolve_profile(name_or_path: str | os.PathLike[str], identity: ModelIdentity) -> Path:
    """Turn a path, or a name together with the model it is for, into a profile's path. The file itself is not read.

    Raises:
        ProfileError: it looks like a path, and there is no such file.
        ProfileMismatchError: the name exists, but only for other models.
        UnknownNameError: no profile has this name.
    """
    given = os.fspath(name_or_path)
    path = os.path.expanduser(given)
    if os.path.isfile(path):
        return Path(path)
    named = [file for file in _profile_files() if file.name == given]
    for file in named:
        if file.digits == identity.fingerprint[:_N_DIGITS]:
            return file.path
    if named:
        models = sorted({_read_ref(file).model_name or file.digits for file in named})
        raise ProfileMismatchError(
            f"profile {given!r} was trained for {', '.join(models)}, not for {identity.name}; "
            f"train one with: finesteer-local train MODEL --recipe {given}"
        )
    if _looks_like_path(given):
        raise ProfileError(f"no such file: {given!r}")
    raise _unknown("profile", given, {file.name for file in _profile_files()}, "or give the path of a profile file")


def profile_target(profile: Profile) -> Path:
    """Where a profile is kept. It checked its own name and fingerprint: neither can be a part of a path."""
    return profiles_dir() / f"{profile.name}.{profile.model.fingerprint[:_N_DIGITS]}.gguf"


def add_profile(path: str | os.PathLike[str], replace: bool = False) -> Path:
    """Check a profile file and copy it into `profiles_dir()`, where its name finds it; return the copy's path.

    Raises:
        ProfileError: no such file, or a damaged one; the message names the field.
        StorageError: the user has this profile already and `replace` is false, a link is in its place, or it cannot
            be written.
    """
    from finesteer_local.profile import Profile

    source = Path(os.path.expanduser(os.fspath(path)))
    if not os.path.isfile(source):
        raise ProfileError(f"no such file: {os.fspath(path)!r}")
    profile = Profile.load(source)
    target = profile_target(profile)
    if target.is_symlink():
        # Writing would follow it, to wherever it leads.
        raise StorageError(f"{target} is a link; remove it first")
    if target.exists() and not replace:
        raise StorageError(
            f"you have a profile {profile.name!r} for {profile.model.name} already; replace or remove it first"
        )
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
        if profile_target(Profile.load(temporary)) != target:
            raise ProfileError(f"{source} changed while it was copied")
    return target


def remove_profile(name: str, fingerprint: str | None = None) -> Path:
    """Delete one of the user's own profiles and return its path; bundled profiles cannot be removed.

    Raises:
        UnknownNameError: the user has no profile of this name (for this model).
        ProfileMismatchError: the user has it for several models, and `fingerprint` does not say for which.
        StorageError: it cannot be deleted.
    """
    named = [file for file in _profile_files() if file.name == name]
    if fingerprint is not None:
        named = [file for file in named if file.digits == fingerprint[:_N_DIGITS]]
    own = [file for file in named if not file.bundled]
    if len(own) > 1:
        models = ", ".join(sorted(_read_ref(file).model_name or file.digits for file in own))
        raise ProfileMismatchError(f"you have a profile {name!r} for several models ({models}); say for which")
    if named and not own:
        raise UnknownNameError(f"the profile {name!r} came with the package; only your own can be removed")
    if not own:
        raise _unknown("profile", name, {file.name for file in _profile_files() if not file.bundled})
    _unlink(own[0].path)
    return own[0].path


def _profile_files() -> Iterator[_ProfileFile]:
    """The user's own go first: they trained or added them on purpose."""
    for folder, bundled in ((profiles_dir(), False), (_bundle() / "profiles", True)):
        for path in sorted(folder.glob("*.gguf")):
            match = _PROFILE_FILE.fullmatch(path.name)
            if match and path.is_file():
                yield _ProfileFile(match[1], match[2], path, bundled)


def _read_ref(file: _ProfileFile) -> ProfileRef:
    from finesteer_local.profile import Profile

    def broken(problem: str) -> ProfileRef:
        return ProfileRef(file.name, file.path, file.digits, "", file.bundled, "", problem)

    try:
        profile = Profile.load(file.path)
    except (ProfileError, StorageError, OSError) as error:
        return broken(str(error))
    model = profile.model
    if not model.fingerprint.startswith(file.digits):
        return broken(f"its file name says model {file.digits}, its content {model.fingerprint[:_N_DIGITS]}")
    return ProfileRef(file.name, file.path, model.fingerprint, model.name, file.bundled, profile.description)


# --- both ---


def _looks_like_path(given: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return any(s in given for s in separators) or given.startswith(("~", ".")) or given.lower().endswith(".gguf")


def _unknown(kind: str, name: str, names: Iterable[str], otherwise: str = "") -> UnknownNameError:
    known = sorted(names)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = "; ".join(filter(None, (f"there are: {', '.join(known)}" if known else "there are none", otherwise)))
    return UnknownNameError(f"unknown {kind} {name!r}; {hint}")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete {path}: {(error.strerror or str(error)).lower()}") from error
