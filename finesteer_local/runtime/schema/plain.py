"""The keywords that llguidance has: what their values may be, and how they are put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import combinations, islice
from typing import Any

from finesteer_local.errors import PromptError

MAX_BRANCHES = 64
MAX_COUNT = 1 << 20  # more items or letters no answer has
MAX_MULTIPLE = 10_000  # llguidance's automaton has a state a remainder

TYPES = ("null", "boolean", "number", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
NO_LEAP_SECONDS = {"time": "^..:..:[0-5]", "date-time": "^.{16}:[0-5]"}
"""llguidance takes a second 60 at any time; Python, JavaScript and pydantic take none."""
_ALIASES = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri"}
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
PLAIN = ("type", "const", "enum", "pattern", "format", "multipleOf", "required", *BOUNDS, *COUNTS)

Lowered = bool | dict[str, Any]


def cannot(keyword: str, why: str) -> PromptError:
    """The error for a keyword that cannot be kept to."""
    return PromptError(f"{keyword} in this JSON schema cannot be kept to: {why}")


def all_of(parts: Sequence[Lowered]) -> Lowered:
    """The conjunction, written as short as it goes."""
    if any(part is False for part in parts):
        return False
    rest = [part for part in parts if part is not True and part != {}]
    return True if not rest else rest[0] if len(rest) == 1 else {"allOf": rest}


def any_of(parts: Sequence[Lowered]) -> Lowered:
    """The alternatives, written as short as it goes."""
    if any(part is True or part == {} for part in parts):
        return True
    rest = [part for part in parts if part is not False]
    return False if not rest else rest[0] if len(rest) == 1 else {"anyOf": rest}


def plain(key: str, value: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A keyword that llguidance has, checked."""
    if key == "type":
        types_of(schema)
    elif key in ("const", "enum"):
        for one in [value] if key == "const" else as_list(key, value):
            check_exact(key, one)
        if key == "enum" and not value:
            raise cannot(key, "it is empty")
    elif key == "format":
        if not isinstance(value, str):
            raise cannot(key, "it is not text")
        name = _ALIASES.get(value, value)
        return {"format": name} if name in FORMATS else {}  # to a validator, too, others are mere notes
    elif key == "pattern" and not isinstance(value, str):
        raise cannot(key, "it is not text")
    elif key == "required":
        if not all(isinstance(name, str) for name in as_list(key, value)):
            raise cannot(key, "it is not a list of names")
    elif key in COUNTS:
        count = as_count(key, value)
        return {} if key.startswith("max") and count > MAX_COUNT else {key: count}
    elif key in BOUNDS or key == "multipleOf":
        if isinstance(value, bool) and key.startswith("exclusive"):  # as in draft 4
            return {key: value}
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise cannot(key, "it is not a number")
        if key == "multipleOf":
            _check_multiple(value)
        else:
            check_exact(key, value)
    return {key: value}


def _check_multiple(value: float) -> None:
    digits = Decimal(str(value)).normalize().as_tuple()
    exponent = int(digits.exponent)
    whole = int("".join(map(str, digits.digits))) * 10 ** max(exponent, 0) if abs(exponent) < 30 else 0
    if digits.sign or not 0 < whole <= MAX_MULTIPLE:
        raise cannot("multipleOf", f"it must be above 0 and have at most the digits of {MAX_MULTIPLE:,}")


def as_count(key: str, value: Any) -> int:
    """A whole number that no answer exceeds by far."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or value < 0:
        raise cannot(key, "it is not a whole number from 0 on")
    if key.startswith("min") and value > MAX_COUNT:
        raise cannot(key, f"no answer has more than {MAX_COUNT:,}")
    return int(value)


def check_exact(key: str, value: Any) -> None:
    """Numbers are floats to llguidance."""
    if isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            check_exact(key, one)
    elif isinstance(value, int) and abs(value) > 1 << 53:
        raise cannot(key, f"{value} is too large to be exact")


def as_object(key: str, value: Any) -> Mapping[str, Any]:
    """`value`, which has to be an object."""
    if not isinstance(value, Mapping):
        raise cannot(key, "it is not an object")
    return value


def as_list(key: str, value: Any) -> list[Any]:
    """`value`, which has to be a list."""
    if not isinstance(value, list):
        raise cannot(key, "it is not a list")
    return value


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that the keyword `type` leaves; integers are numbers."""
    given = schema.get("type", list(TYPES))
    names = given if isinstance(given, list) else [given]
    for name in names:
        if name not in (*TYPES, "integer"):
            raise cannot("type", f"{name!r} is no type")
    return {"number" if name == "integer" else name for name in names}


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The only values that can fit, if `const` or `enum` says so."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def value_key(value: Any) -> str:
    """A text that is the same for values which JSON schemas take for equal."""
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value, sort_keys=True)


def counted_properties(own: dict[str, Any]) -> list[Lowered]:
    """`minProperties` and `maxProperties` where some of the named properties are optional, and names could come twice.

    llguidance does not see that a name comes twice, so only named properties count towards `minProperties` above 1.
    """
    required, named = set(own.get("required", ())), own.get("properties", {})
    optional = [name for name in named if name not in required and named[name] is not False]
    found: list[Lowered] = []
    if own.get("minProperties", 0) <= len(required):
        own.pop("minProperties", None)
    elif optional or own["minProperties"] > 1 + len(required):
        lacking = own.pop("minProperties") - len(required)
        if lacking > len(optional):
            raise cannot("minProperties", "so many of the properties must be named in `properties`")
        found.append(any_of([{"required": chosen} for chosen in chosen(optional, lacking, "minProperties")]))
    if optional and "maxProperties" in own:
        room = max(own["maxProperties"] - len(required), 0)
        if own["maxProperties"] < len(required):
            return [{"type": [name for name in TYPES if name != "object"]}]
        del own["maxProperties"]
        closed = {"additionalProperties": False, "properties": dict.fromkeys(named, True)}
        if room < len(optional):
            ways = [
                {**closed, "properties": {name: name in chosen or name not in optional for name in named}}
                for chosen in chosen(optional, room, "maxProperties")
            ]
            found.append(any_of(list[Lowered](ways)))
        elif own.get("additionalProperties", True) is not False or own.get("patternProperties"):
            found.append(closed)
    return found


def chosen(names: list[str], n: int, keyword: str) -> list[list[str]]:
    """All choices of `n` of the names."""
    found = [list(chosen) for chosen in islice(combinations(names, n), MAX_BRANCHES + 1)]
    if len(found) > MAX_BRANCHES:
        raise cannot(keyword, f"the optional properties can be chosen in more than {MAX_BRANCHES} ways")
    return found
