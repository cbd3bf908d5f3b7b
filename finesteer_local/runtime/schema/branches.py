"""The ways to fit a schema, and what of an object or array each of them has looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from finesteer_local.runtime.schema.plain import Lowered


@dataclass(frozen=True)
class Evaluated:
    """The parts of an object or array that a branch of the schema has evaluated (`unevaluatedProperties`, `-Items`)."""

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    all_names: bool = False
    n_items: int = 0
    all_items: bool = False

    def __or__(self, other: Evaluated) -> Evaluated:
        return Evaluated(
            self.names | other.names,
            self.patterns | other.patterns,
            self.all_names or other.all_names,
            max(self.n_items, other.n_items),
            self.all_items or other.all_items,
        )


class Branch(NamedTuple):
    """One way to fit: all of `parts`."""

    parts: tuple[Lowered, ...]
    evaluated: Evaluated = Evaluated()

    def __and__(self, other: Branch) -> Branch:
        return Branch((*self.parts, *other.parts), self.evaluated | other.evaluated)


def evaluated_by(schema: Mapping[str, Any]) -> Evaluated:
    """What the keywords of one schema look at, without those that apply others in place."""
    items = schema.get("items")
    prefix = items if isinstance(items, list) else schema.get("prefixItems") or []
    all_items = "additionalItems" in schema if isinstance(items, list) else "items" in schema
    return Evaluated(
        frozenset(schema.get("properties") or ()),
        frozenset(schema.get("patternProperties") or ()),
        "additionalProperties" in schema,
        len(prefix),
        all_items,
    )
