"""Schemas of which nothing fits a keyword's value."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from finesteer_local.runtime.schema.plain import BOUNDS, COUNTS, TYPES, Lowered, as_count, check_exact, plain, types_of

UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
SIMPLE_NEGATIONS = ("type", *BOUNDS, *COUNTS)
CONSTRAINING = (
    *("pattern", "multipleOf", "additionalProperties", "patternProperties", "propertyNames", "uniqueItems", "contains"),
    *("items", "dependentSchemas", "dependencies", *UNEVALUATED),
)
"""Keywords whose negation cannot be written here."""


class NoNegation(Exception):
    """A schema whose negation we cannot write; the message names the keyword."""


def simple_negation(key: str, value: Any) -> list[Lowered]:
    """Ways not to fit one of `SIMPLE_NEGATIONS`."""
    if key == "type":
        others = [name for name in TYPES if name not in types_of({"type": value})]
        return [{"type": others}] if others else []
    if key in BOUNDS:
        opposite = {
            "minimum": "exclusiveMaximum",
            "maximum": "exclusiveMinimum",
            "exclusiveMinimum": "maximum",
            "exclusiveMaximum": "minimum",
        }
        return [{"type": "number", **plain(opposite[key], value, {})}]
    what = {"Length": "string", "Items": "array", "Properties": "object"}[key[3:]]
    count = as_count(key, value)
    if key.startswith("min"):
        return [{"type": what, "max" + key[3:]: count - 1}] if count else []
    return [{"type": what, **plain("min" + key[3:], count + 1, {})}]


def other_values(values: list[Any]) -> list[Lowered]:
    """All but these values; of arrays and objects none where one of them is one."""
    for value in values:
        check_exact("enum", value)
    kinds = {type(value) for value in values}
    ways: list[Lowered] = []
    free = {"array": list, "object": dict, "null": type(None)}
    names = [name for name, kind in free.items() if kind not in kinds]
    if names:
        ways.append({"type": names})
    ways += [{"const": flag} for flag in (True, False) if not any(value is flag for value in values)]
    numbers = sorted({float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)})
    borders = [None, *numbers, None]
    for low, high in pairwise(borders):
        bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        ways.append({"type": "number", **{key: bound for key, bound in bounds.items() if bound is not None}})
    texts = [value for value in values if isinstance(value, str)]
    ways.append({"type": "string", **({"pattern": f"^({_not_among(texts)})$"} if texts else {})})
    return ways


def _not_among(texts: list[str]) -> str:
    """A regular expression, without lookahead, for the texts that are none of these."""
    first: dict[str, list[str]] = {}
    for text in texts:
        if text:
            first.setdefault(text[0], []).append(text[1:])
    if sum(map(len, texts)) > 2000:
        raise NoNegation("long texts")
    ways = [] if "" in texts else [""]
    ways.append(f"[^{''.join(map(_escaped, first))}][\\s\\S]*" if first else "[\\s\\S]+")
    ways += [f"{_escaped(letter)}({_not_among(rest)})" for letter, rest in first.items()]
    return "|".join(ways)


def _escaped(letter: str) -> str:
    return f"\\u{{{ord(letter):x}}}"
