"""References within a JSON schema: `$ref` and what it can point to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin

from finesteer_local.errors import PromptError

MAX_DEPTH = 100  # of JSON in JSON
_DATA = ("const", "enum", "default", "examples")  # hold no schemas


class At(NamedTuple):
    """A schema, the address that references in it are relative to, and the schemas that led here (dynamic scope)."""

    schema: Any
    base: str
    scope: tuple[str, ...] = ("",)

    def to(self, schema: Any) -> At:
        """A schema inside this one."""
        return self.entered(schema, _base(schema, self.base))

    def entered(self, schema: Any, base: str) -> At:
        return At(schema, base, self.scope if base in self.scope else (*self.scope, base))


class References:
    """The addresses of a schema's parts.

    Raises:
        PromptError: it is nested too deep.
    """

    def __init__(self, root: Any) -> None:
        base = _base(root, "")
        self.root = At(root, base, (base,))
        self._resources: dict[str, At] = {"": self.root, base: self.root}
        self._anchors: dict[tuple[str, str], At] = {}
        self._dynamic: dict[tuple[str, str], At] = {}
        self._find(root, "", 0)

    def _find(self, value: Any, base: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise PromptError(f"the JSON schema is nested deeper than {MAX_DEPTH}")
        if isinstance(value, list):
            for one in value:
                self._find(one, base, depth + 1)
        elif isinstance(value, Mapping):
            base = _base(value, base)
            if isinstance(value.get("$id"), str):
                self._resources.setdefault(base, At(value, base))
            for key, anchors in (("$anchor", self._anchors), ("$dynamicAnchor", self._dynamic)):
                if isinstance(value.get(key), str):
                    anchors.setdefault((base, value[key]), At(value, base))
            for key, one in value.items():
                if key not in _DATA:
                    self._find(one, base, depth + 1)

    def resolve(self, keyword: str, reference: Any, at: At) -> At:
        """What `reference`, a keyword's value at `at`, points to.

        Raises:
            PromptError: nothing in this schema.
        """
        if not isinstance(reference, str):
            raise PromptError(f"{keyword} in this JSON schema is not text")
        whole, _, fragment = _joined(at.base, reference).partition("#")
        fragment = unquote(fragment)
        resource, name = self._resources.get(whole), (whole, fragment)
        if fragment and not fragment.startswith("/"):
            found = self._anchors.get(name, self._dynamic.get(name))
            if keyword == "$dynamicRef" and name in self._dynamic:
                found = next(
                    self._dynamic[base, fragment] for base in (*at.scope, whole) if (base, fragment) in self._dynamic
                )
        else:
            found = None if resource is None else _pointed(resource, fragment)
        if found is None:
            raise PromptError(f"{keyword} {reference!r} in this JSON schema points to nothing in it")
        return at.entered(found.schema, found.base)


def _base(schema: Any, base: str) -> str:
    own = schema.get("$id") if isinstance(schema, Mapping) else None
    return _joined(base, own).partition("#")[0] if isinstance(own, str) else base


def _joined(base: str, reference: str) -> str:
    if reference.startswith("#") or not reference:
        return base + reference
    try:
        return urljoin(base, reference)
    except ValueError:
        return reference


def _pointed(resource: At, pointer: str) -> At | None:
    at = resource
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        value = at.schema
        if isinstance(value, Mapping) and part in value:
            at = at.to(value[part])
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            at = at.to(value[int(part)])
        else:
            return None
    return at
