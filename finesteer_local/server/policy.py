"""Which profiles steer a request: the server's defaults, what the request wants, and what it cannot weaken."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finesteer_local import catalog
from finesteer_local.errors import ProfileError, StorageError, UnknownNameError
from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import SCOPES, Profile
from finesteer_local.runtime.batch import Steer
from finesteer_local.runtime.steered_request import check_on_answer, check_policy, steers
from finesteer_local.server.errors import ApiError
from finesteer_local.server.schemas import ActiveProfile, Defaults, DefaultsNow, Steering, WantedProfile
from finesteer_local.steering import ACTIONS, OFF, ON_ANSWER


class Shelf:
    """The profiles that can be named: those that the server was started with, and the catalogue's for this model.

    A profile of the catalogue is read when it is first named, and again once its file changes; requests that run keep
    the one that they started with.
    """

    def __init__(self, identity: ModelIdentity, loaded: Sequence[Profile]) -> None:
        self._identity = identity
        self._loaded = {profile.name: profile for profile in loaded}
        self._read: dict[Path, tuple[tuple[int, int, int], Profile]] = {}

    def get(self, name: str) -> Profile:
        """The profile of this name.

        Raises:
            UnknownNameError: there is none for this model.
            ProfileError: its file is damaged.
        """
        if name in self._loaded:
            return self._loaded[name]
        for found, path in catalog.profile_paths(self._identity.fingerprint):
            if found == name:
                return self._load(path)
        raise UnknownNameError(f"there is no profile {name!r} for this model; GET /v1/steering/profiles lists them")

    def all(self) -> list[Profile]:
        """Every profile that can be named, by name; files that cannot be used are left out."""
        found = dict(self._loaded)
        for name, path in catalog.profile_paths(self._identity.fingerprint):
            if name not in found:
                try:
                    found[name] = self._load(path)
                except (ProfileError, StorageError, OSError):
                    continue
        return [found[name] for name in sorted(found)]

    def _load(self, path: Path) -> Profile:
        try:
            stat = os.stat(path)
        except OSError as error:
            raise ProfileError("the profile's file is gone") from error
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._read.get(path)
        if known is None or known[0] != version:
            profile = Profile.load(path)
            profile.check_model(self._identity)
            self._read[path] = known = (version, profile)
        return known[1]


class Policy:
    """The server's steering, for several threads.

    A required profile is part of every request, at the strength and scope that the server was started with, or more.
    """

    def __init__(
        self,
        shelf: Shelf,
        profiles: Sequence[Profile],
        required: frozenset[str],
        strength: float | None,
        scope: str | None,
        kinds: Mapping[str, str] | None = None,
        on_answer: str | None = None,
    ) -> None:
        """
        Args:
            kinds: what is done about each kind of request, by every profile that knows it.
            on_answer: what is done once an answer shows what its prompt hid, by every profile that reads answers.

        Raises:
            ProfileError: no profile knows one of the kinds, or reads answers.
        """
        self.shelf = shelf
        self._lock = threading.RLock()
        self._defaults = steers(profiles, strength, scope, kinds, on_answer)
        self._scope = scope
        self.skip_thinking = False
        self._required = {steer.profile.name: steer for steer in self._defaults if steer.profile.name in required}

    def steer(self, wanted: Steering | bool | None) -> tuple[Steer, ...]:
        """The profiles of one request; `wanted` is its `steering`.

        Raises:
            ApiError: it would weaken a required profile.
            UnknownNameError, ProfileError: it names a profile that does not exist or cannot be used.
        """
        with self._lock:  # the defaults and their scope belong together
            if wanted is None:
                return self._defaults
            if isinstance(wanted, bool):
                if self._required:
                    raise _required(f"steering by {self._required_names}", "steering")
                return ()
            scope = wanted.scope or self._scope
            if wanted.profiles is None:
                found = [replace(steer, scope=scope) for steer in self._defaults]
            else:
                found = [self._named(profile, scope, i) for i, profile in enumerate(wanted.profiles)]
            return self._with_required(found, scope)

    def skips_thinking(self, wanted: Steering | bool | None) -> bool:
        """Whether the thoughts in one request's answer are left unsteered; `wanted` is its `steering`.

        Raises:
            ApiError: that would weaken a required profile.
        """
        skips = wanted.skip_thinking if isinstance(wanted, Steering) else None
        if skips and self._required and not self.skip_thinking:
            raise _required(f"steering by {self._required_names}, of thoughts too", "steering.skip_thinking")
        return self.skip_thinking if skips is None else skips

    def as_served(self, name: str, param: str) -> Steer:
        """One profile, as the server steers with it where nobody says otherwise.

        Raises:
            ApiError: there is none of this name, or it cannot be used; `param` is the field that names it.
        """
        with self._lock:
            found = next((steer for steer in self._defaults if steer.profile.name == name), None)
        return found or Steer(self._profile(name, param))

    def _named(self, wanted: WantedProfile, scope: str | None, place: int) -> Steer:
        where = f"steering.profiles.{place}"
        found = next((steer for steer in self._defaults if steer.profile.name == wanted.name), None)
        found = found or Steer(self._profile(wanted.name, f"{where}.name"))
        strength = found.strength if wanted.strength is None else wanted.strength
        on_answer = found.on_answer if wanted.on_answer is None else wanted.on_answer
        policy = {**dict(found.policy), **(wanted.policy or {})}
        return _steer(found.profile, strength, scope, policy, on_answer, where)

    def _profile(self, name: str, param: str) -> Profile:
        """The profile that the field `param` of a request names."""
        try:
            return self.shelf.get(name)
        except (UnknownNameError, ProfileError, StorageError) as error:
            code = "unknown_profile" if isinstance(error, UnknownNameError) else None
            raise ApiError(400, str(error), param=param, code=code) from error

    def _with_required(self, found: list[Steer], scope: str | None) -> tuple[Steer, ...]:
        names = [steer.profile.name for steer in found]
        if len(set(names)) < len(names):
            raise ApiError(
                400, "the same profile is named twice; raise its strength instead", param="steering.profiles"
            )
        missing = [
            replace(steer, scope=scope)
            for steer in self._defaults
            if steer.profile.name in self._required and steer.profile.name not in names
        ]
        steers = (*missing, *found)
        for steer in steers:
            least = self._required.get(steer.profile.name)
            if least is None:
                continue
            name = steer.profile.name
            if effective_strength(steer) < effective_strength(least):
                raise _required(f"{name} at strength {effective_strength(least):g} or more", "steering.profiles")
            if SCOPES.index(steer.effective_scope) < SCOPES.index(least.effective_scope):
                raise _required(f"{name} with the scope {least.effective_scope} or a wider one", "steering.scope")
            _check_required_kinds(steer, least)
            if _strictness(steer) < _strictness(least):
                what = f"{name} to {least.effective_on_answer} an answer that shows what its prompt hid, or more"
                raise _required(what, "steering.profiles")
        return steers

    def replace(self, defaults: Defaults) -> None:
        """Swap the defaults; after an error they are what they were.

        Raises:
            ApiError: a profile does not exist, or the defaults are weaker than what is required.
        """
        with self._lock:
            found = []
            for i, wanted in enumerate(defaults.profiles):
                where = f"profiles.{i}"
                profile = self._profile(wanted.name, f"{where}.name")
                bound = self._required.get(wanted.name)
                on_answer = bound.on_answer if bound and wanted.on_answer is None else wanted.on_answer
                found.append(_steer(profile, wanted.strength, defaults.scope, wanted.policy, on_answer, where))
            for name in self._required:
                if name not in {steer.profile.name for steer in found}:
                    raise _required(name, "profiles")
            self._defaults, self._scope = self._with_required(found, defaults.scope), defaults.scope

    def now(self) -> DefaultsNow:
        """The defaults, with the strengths that they come to."""
        with self._lock:
            defaults, scope = self._defaults, self._scope
        return DefaultsNow(
            profiles=[
                ActiveProfile(
                    name=steer.profile.name,
                    strength=effective_strength(steer),
                    policy=dict(steer.policy),  # type: ignore[arg-type]
                    on_answer=steer.on_answer,  # type: ignore[arg-type]
                )
                for steer in defaults
            ],
            scope=scope,  # type: ignore[arg-type]
            required=list(self._required),
        )

    @property
    def _required_names(self) -> str:
        return ", ".join(sorted(self._required))

    def is_active(self, name: str) -> bool:
        return any(steer.profile.name == name for steer in self._defaults)

    def is_required(self, name: str) -> bool:
        return name in self._required


def _steer(
    profile: Profile,
    strength: float | None,
    scope: str | None,
    policy: Mapping[str, str],
    on_answer: str | None,
    where: str,
) -> Steer:
    """Steering as the object at `where` of a request asks for it."""
    try:
        check_policy(profile, tuple(policy.items()))
    except ProfileError as error:
        raise ApiError(400, str(error), param=f"{where}.policy", code="unknown_kind") from error
    try:
        check_on_answer(profile, on_answer)
    except ProfileError as error:
        raise ApiError(400, str(error), param=f"{where}.on_answer", code="unread_answers") from error
    return Steer(profile, strength, scope, tuple(policy.items()), on_answer)


def _required(what: str, param: str) -> ApiError:
    """The error for a request that would weaken what the server requires."""
    return ApiError(400, f"this server requires {what}", param=param, code="required")


def _check_required_kinds(steer: Steer, least: Steer) -> None:
    """Raise `ApiError` where less is done about a kind than what is required."""
    kinds = steer.profile.kinds
    if kinds is None:
        return
    required = kinds.actions(dict(least.policy))
    for kind, action in kinds.actions(dict(steer.policy)).items():
        needed = required[kind]
        if ACTIONS.index(action) < ACTIONS.index(needed):
            raise _required(
                f"{steer.profile.name} to {needed} requests of the kind {kind}, or more", "steering.profiles"
            )


def _strictness(steer: Steer) -> int:
    """How much is done about an answer that shows what its prompt hid."""
    return (OFF, *ON_ANSWER).index(steer.effective_on_answer)


def effective_strength(steer: Steer) -> float:
    """The strength that a request gets."""
    return steer.profile.strength if steer.strength is None else steer.strength
