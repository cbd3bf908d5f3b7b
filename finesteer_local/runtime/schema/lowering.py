"""JSON schemas (draft 2020-12) in the keywords that llguidance has.

llguidance makes a grammar of a schema, but of some keywords only (its `docs/json_schema.md`). `lowered` writes the
others in terms of those: `not`, `if`, `dependentSchemas`, `oneOf`, `unevaluatedProperties` and the like become
alternatives and conjunctions. What it writes may allow less than the schema does, never more: an answer fits in any
case. References are resolved here, within the schema. What cannot be written is an error that names the keyword.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finesteer_local.errors import PromptError
from finesteer_local.runtime.schema.branches import Branch, evaluated_by
from finesteer_local.runtime.schema.negation import (
    CONSTRAINING,
    SIMPLE_NEGATIONS,
    UNEVALUATED,
    NoNegation,
    other_values,
    simple_negation,
)
from finesteer_local.runtime.schema.plain import (
    MAX_BRANCHES,
    MAX_COUNT,
    NO_LEAP_SECONDS,
    PLAIN,
    Lowered,
    all_of,
    any_of,
    as_count,
    as_list,
    as_object,
    cannot,
    counted_properties,
    plain,
    types_of,
    value_key,
    values_of,
)
from finesteer_local.runtime.schema.reference import At, References

MAX_NODES = 20_000
MAX_DEPTH = 64  # of references that are followed, and of schemas in schemas
MAX_LEAST = 64
MAX_UNIQUE = 6
PLACES = 4  # an item that `contains` asks for is among so many first
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "then", "else", "dependentSchemas", "dependencies")


def lowered(schema: Mapping[str, Any] | bool, *, joined_patterns: bool = False) -> dict[str, Any]:
    """The schema in llguidance's keywords.

    llguidance needs `patternProperties` of which no name fits two; with `joined_patterns` what fits one of them has to
    keep to what all of them ask for.

    Raises:
        PromptError: it is no schema, is too large, or uses a keyword in a way that cannot be had.
    """
    found = _Lowering(schema, joined_patterns).document()
    return {} if found is True else {"anyOf": []} if found is False else found


@dataclass
class _Lowering:
    root: Mapping[str, Any] | bool
    joined_patterns: bool = False
    names: dict[tuple[int, tuple[str, ...]], str] = field(default_factory=dict)  # of referenced schemas
    waiting: list[tuple[str, At]] = field(default_factory=list)
    n_nodes: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        self.references = References(self.root)

    def document(self) -> Lowered:
        root = self.lower(self.references.root)
        defined: dict[str, Any] = {}
        while self.waiting:
            name, at = self.waiting.pop()
            defined[name] = self.lower(at)
        return {**root, "$defs": defined} if defined and isinstance(root, dict) else root

    # --- one schema

    def lower(self, at: At) -> Lowered:
        schema = self._checked(at)
        if isinstance(schema, bool):
            return schema
        self.depth += 1
        try:
            if any(schema.get(key, True) is not True for key in UNEVALUATED):
                return any_of([all_of(branch.parts) for branch in self.branches(at)])
            return self._lower(schema, at)
        finally:
            self.depth -= 1

    def _checked(self, at: At) -> Mapping[str, Any] | bool:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise PromptError(f"the JSON schema is too large: written out it has more than {MAX_NODES:,} parts")
        if self.depth > MAX_DEPTH:
            raise PromptError(f"the JSON schema is nested deeper than {MAX_DEPTH}, or refers to itself without end")
        if not isinstance(at.schema, (bool, Mapping)):
            raise PromptError("a JSON schema, and each of its parts, is an object, true or false")
        return at.schema

    def _lower(self, schema: Mapping[str, Any], at: At) -> Lowered:
        own: dict[str, Any] = {}
        more: list[Lowered] = []
        for key, value in schema.items():
            if key in PLAIN:
                own.update(plain(key, value, schema))
                if key == "format" and value in NO_LEAP_SECONDS:
                    more.append({"pattern": NO_LEAP_SECONDS[value]})
            elif key in ("properties", "patternProperties"):
                own[key] = {name: self.lower(at.to(one)) for name, one in as_object(key, value).items()}
            elif key == "additionalProperties":
                own[key] = self.lower(at.to(value))
            elif key in ("prefixItems", "allOf", "anyOf"):
                own[key] = [self.lower(at.to(one)) for one in as_list(key, value)]
                if key == "anyOf" and not value:
                    raise cannot(key, "it is empty")
            elif key == "items" and isinstance(value, list):  # as before 2020-12
                own["prefixItems"] = [self.lower(at.to(one)) for one in value]
                if "additionalItems" in schema:
                    own["items"] = self.lower(at.to(schema["additionalItems"]))
            elif key == "items":
                own[key] = self.lower(at.to(value))
            elif key in ("$ref", "$dynamicRef"):
                own["$ref"] = self._reference(key, value, at)
                if isinstance(own["$ref"], bool):
                    more.append(own.pop("$ref"))
            elif key == "oneOf":
                more.append(self._one_of([at.to(one) for one in as_list(key, value)]))
            elif key == "not":
                more.append(self.negated(at.to(value), key))
            elif key == "if":
                more.append(any_of([all_of(branch.parts) for branch in self._conditions(schema, at)]))
            elif key in ("dependentRequired", "dependentSchemas", "dependencies"):
                more += [
                    any_of([all_of(b.parts) for b in self._dependent(name, one, at)])
                    for name, one in as_object(key, value).items()
                ]
            elif key == "propertyNames":
                more.append(self._names(at.to(value)))
            elif key == "contains":
                more.append(self._contains(schema, at))
            elif key == "uniqueItems" and value is not False:
                more.append(self._unique(schema, at))
        more += counted_properties(own)
        patterns: dict[str, Lowered] = own.get("patternProperties", {})
        if self.joined_patterns and len(patterns) > 1:
            own["patternProperties"] = {"|".join(f"(?:{one})" for one in patterns): all_of(list(patterns.values()))}
        return all_of([own, *more])

    def _reference(self, key: str, value: Any, at: At) -> Any:
        target = self.references.resolve(key, value, at)
        if isinstance(target.schema, bool):
            return target.schema
        known = (id(target.schema), target.scope)
        name = self.names.get(known)
        if name is None:
            name = self.names[known] = f"r{len(self.names)}"
            self.waiting.append((name, target))
        return f"#/$defs/{name}"

    # --- conditions

    def _conditions(self, schema: Mapping[str, Any], at: At) -> list[Branch]:
        condition = at.to(schema["if"])
        met = self._product(self.branches(condition), self.branches(at.to(schema.get("then", True))))
        other = self.branches(at.to(schema.get("else", True)))
        return met + self._product([Branch((self.negated(condition, "if"),))], other)

    def _dependent(self, name: str, value: Any, at: At) -> list[Branch]:
        absent = Branch(({"properties": {name: False}},))
        if isinstance(value, list):
            return [absent, Branch(({"required": [name, *value]},))]
        return [absent, *self._product([Branch(({"required": [name]},))], self.branches(at.to(value)))]

    def _one_of(self, options: list[At]) -> Lowered:
        if len(options) > MAX_BRANCHES:
            raise cannot("oneOf", f"it has more than {MAX_BRANCHES} alternatives")
        return any_of(
            [all_of([self.lower(option), *self._none_of_others(options, i)]) for i, option in enumerate(options)]
        )

    def _none_of_others(self, options: list[At], i: int) -> list[Lowered]:
        others = [other for j, other in enumerate(options) if j != i]
        return [self.negated(other, "oneOf") for other in others if not self.disjoint(options[i], other)]

    def disjoint(self, a: At, b: At, depth: int = 0) -> bool:
        """Whether it is certain that no value fits both."""
        a, b = self._followed(a), self._followed(b)
        if a.schema is False or b.schema is False:
            return True
        if depth > 4 or not isinstance(a.schema, Mapping) or not isinstance(b.schema, Mapping):
            return False
        for one, other in ((a, b), (b, a)):
            assert isinstance(one.schema, Mapping)
            if any(self.disjoint(one.to(part), other, depth + 1) for part in one.schema.get("allOf") or []):
                return True
            for key in ("anyOf", "oneOf"):
                options = one.schema.get(key)
                if options and all(self.disjoint(one.to(part), other, depth + 1) for part in options):
                    return True
        values = [values_of(schema) for schema in (a.schema, b.schema)]
        if values[0] is not None and values[1] is not None:
            return not {value_key(value) for value in values[0]} & {value_key(value) for value in values[1]}
        types = [types_of(schema) for schema in (a.schema, b.schema)]
        if not types[0] & types[1]:
            return True
        if types[0] & types[1] != {"object"}:
            return False
        properties = [schema.get("properties") or {} for schema in (a.schema, b.schema)]
        required = {*(a.schema.get("required") or ()), *(b.schema.get("required") or ())}
        return any(
            name in properties[0]
            and name in properties[1]
            and self.disjoint(a.to(properties[0][name]), b.to(properties[1][name]), depth + 1)
            for name in required
        )

    def _followed(self, at: At) -> At:
        for _ in range(MAX_DEPTH):
            if not isinstance(at.schema, Mapping) or "$ref" not in at.schema:
                break
            at = self.references.resolve("$ref", at.schema["$ref"], at)
        return at

    # --- branches: what was looked at is known for each of them

    def branches(self, at: At) -> list[Branch]:
        schema = self._checked(at)
        if isinstance(schema, bool):
            return [Branch((schema,))] if schema else []
        self.depth += 1
        try:
            return self._branches(schema, at)
        finally:
            self.depth -= 1

    def _branches(self, schema: Mapping[str, Any], at: At) -> list[Branch]:
        own = {key: value for key, value in schema.items() if key not in (*_IN_PLACE, *UNEVALUATED)}
        found = [Branch((self._lower(own, at),), evaluated_by(own))]
        for key in ("$ref", "$dynamicRef"):
            if key in schema:
                found = self._product(found, self.branches(self.references.resolve(key, schema[key], at)))
        for one in as_list("allOf", schema.get("allOf", [])):
            found = self._product(found, self.branches(at.to(one)))
        if "anyOf" in schema:
            options = as_list("anyOf", schema["anyOf"])
            found = self._product(found, [branch for one in options for branch in self.branches(at.to(one))])
        if "oneOf" in schema:
            ways = [at.to(one) for one in as_list("oneOf", schema["oneOf"])]
            ones = [
                branch
                for i, one in enumerate(ways)
                for branch in self._product(self.branches(one), [Branch(tuple(self._none_of_others(ways, i)))])
            ]
            found = self._product(found, ones)
        if "if" in schema:
            found = self._product(found, self._conditions(schema, at))
        for key in ("dependentSchemas", "dependencies"):
            for name, one in as_object(key, schema.get(key, {})).items():
                found = self._product(found, self._dependent(name, one, at))
        return [self._closed(branch, schema, at) for branch in found]

    def _closed(self, branch: Branch, schema: Mapping[str, Any], at: At) -> Branch:
        """With what `unevaluatedProperties` and `unevaluatedItems` say of all that the branch has not looked at."""
        parts, seen = list(branch.parts), branch.evaluated
        if "unevaluatedProperties" in schema:
            if not seen.all_names:
                rest = self.lower(at.to(schema["unevaluatedProperties"]))
                closing: dict[str, Any] = {"properties": dict.fromkeys(sorted(seen.names), True)}
                closing["patternProperties"] = dict.fromkeys(sorted(seen.patterns), True)
                parts.append({key: value for key, value in closing.items() if value} | {"additionalProperties": rest})
            seen = replace(seen, all_names=True)
        if "unevaluatedItems" in schema:
            if not seen.all_items:
                rest = self.lower(at.to(schema["unevaluatedItems"]))
                parts.append({**({"prefixItems": [True] * seen.n_items} if seen.n_items else {}), "items": rest})
            seen = replace(seen, all_items=True)
        return Branch(tuple(parts), seen)

    def _product(self, left: list[Branch], right: list[Branch]) -> list[Branch]:
        if len(left) * len(right) > MAX_BRANCHES:
            raise PromptError(
                f"the JSON schema has conditions or alternatives that make more than {MAX_BRANCHES} cases"
            )
        return [a & b for a in left for b in right]

    # --- objects and arrays

    def _names(self, at: At) -> Lowered:
        at = self._followed(at)
        schema = at.schema
        if schema is True:
            return True
        if not isinstance(schema, Mapping):
            return {"maxProperties": 0}
        used = {key for key in schema if key in PLAIN or key in (*_IN_PLACE, "not")} - {"type"}
        if types_of(schema).isdisjoint({"string"}):
            return {"maxProperties": 0}
        values = values_of(schema)
        if values is not None and used <= {"const", "enum"}:
            names = [value for value in values if isinstance(value, str)]
            return {"properties": dict.fromkeys(names, True), "additionalProperties": False}
        if used <= {"pattern"}:
            return {"patternProperties": {schema["pattern"]: True}, "additionalProperties": False} if used else True
        if used <= {"minLength", "maxLength"}:
            least, most = int(schema.get("minLength", 0)), schema.get("maxLength", "")
            pattern = f"^[\\s\\S]{{{least},{int(most) if most != '' else ''}}}$"
            return {"patternProperties": {pattern: True}, "additionalProperties": False}
        raise cannot("propertyNames", "it can be const, enum, pattern, or minLength and maxLength")

    def _contains(self, schema: Mapping[str, Any], at: At) -> Lowered:
        wanted = self.lower(at.to(schema["contains"]))
        least, most = (
            as_count(key, schema.get(key, default)) for key, default in (("minContains", 1), ("maxContains", MAX_COUNT))
        )
        if least > MAX_LEAST:
            raise cannot("minContains", f"it can be at most {MAX_LEAST}")
        if "maxContains" not in schema:
            if least == 0:
                return True
            ways = [{"prefixItems": [True] * i + [wanted] * least, "minItems": i + least} for i in range(PLACES)]
            return any_of(list[Lowered](ways))
        if most > MAX_UNIQUE:
            raise cannot("maxContains", f"it can be at most {MAX_UNIQUE}")
        other = self.negated(at.to(schema["contains"]), "maxContains")
        ways = [
            {"prefixItems": [other] * i + [wanted] * n, "minItems": i + n if n else 0, "items": other}
            for n in range(least, most + 1)
            for i in range(PLACES if n else 1)
        ]
        return any_of(list[Lowered](ways))

    def _unique(self, schema: Mapping[str, Any], at: At) -> Lowered:
        """Items that are all different: one of few values each."""
        prefix, rest = schema.get("prefixItems") or [], schema.get("items", True)
        places = [self._finite(at.to(one)) for one in prefix]
        most = schema.get("maxItems", len(prefix) if rest is False else None)
        if most is not None and most <= 1:
            return True
        if not prefix and (values := self._finite(at.to(rest))) is not None and len(values) <= MAX_UNIQUE:
            # In their order: a set has none.
            ways = [[value for i, value in enumerate(values) if chosen >> i & 1] for chosen in range(1 << len(values))]
        elif prefix and None not in places:
            ways = [[]]
            for i, values in enumerate(places):
                longest = [way for way in ways if len(way) == i]
                ways += [[*way, v] for way in longest for v in values or () if not _among(v, way)]
                if len(ways) > MAX_BRANCHES:
                    break
        else:
            ways = []
        if not 0 < len(ways) <= MAX_BRANCHES:
            raise cannot("uniqueItems", f"the items must be an enum of at most {MAX_UNIQUE} values")
        return any_of(
            [
                {"prefixItems": [{"const": value} for value in way], "minItems": len(way), "maxItems": len(way)}
                for way in ways
            ]
        )

    def _finite(self, at: At) -> list[Any] | None:
        """The only values that can fit, if they are few."""
        schema = self._followed(at).schema
        if not isinstance(schema, Mapping):
            return None
        values = values_of(schema)
        if values is None and types_of(schema) <= {"boolean", "null"}:
            some = {"boolean": (True, False), "null": (None,)}
            return [value for name in some if name in types_of(schema) for value in some[name]]
        return values

    # --- what does not fit

    def negated(self, at: At, keyword: str) -> Lowered:
        """A schema of which nothing fits the one at `at`; an error names `keyword`."""
        try:
            return self._negated(at)
        except NoNegation as error:
            raise cannot(keyword, f"llguidance has no way to say what does not fit {error}") from None

    def _negated(self, at: At) -> Lowered:
        schema = self._checked(at)
        if isinstance(schema, bool):
            return not schema
        self.depth += 1
        try:
            ways: list[Lowered] = []
            failed: list[str] = []
            for key, value in schema.items():
                try:
                    ways += self._negations(key, value, schema, at)
                except NoNegation as error:
                    failed.append(str(error))
            if failed and not ways:
                raise NoNegation(failed[0])
            return any_of(ways)
        finally:
            self.depth -= 1

    def _negations(self, key: str, value: Any, schema: Mapping[str, Any], at: At) -> Iterator[Lowered]:
        """Ways not to fit one keyword; fewer than there are, but never one that fits."""
        if key in ("const", "enum"):
            yield from other_values([value] if key == "const" else as_list(key, value))
        elif key in SIMPLE_NEGATIONS:
            yield from simple_negation(key, value)
        elif key == "required":
            for name in value:
                yield {"type": "object", "properties": {name: False}}
        elif key == "properties":
            for name, one in as_object(key, value).items():
                yield {"type": "object", "properties": {name: self._negated(at.to(one))}, "required": [name]}
        elif key == "items" and not isinstance(value, list):
            n = len(schema.get("prefixItems") or [])
            item = self._negated(at.to(value))
            yield {"type": "array", "prefixItems": [*[True] * n, item], "minItems": n + 1}
        elif key == "prefixItems":
            for i, one in enumerate(as_list(key, value)):
                yield {"type": "array", "prefixItems": [*[True] * i, self._negated(at.to(one))], "minItems": i + 1}
        elif key == "allOf":
            for one in as_list(key, value):
                yield self._negated(at.to(one))
        elif key in ("anyOf", "oneOf"):
            yield all_of([self._negated(at.to(one)) for one in as_list(key, value)])
        elif key == "not":
            yield self.lower(at.to(value))
        elif key in ("$ref", "$dynamicRef"):
            yield self._negated(self.references.resolve(key, value, at))
        elif key == "if":
            condition = at.to(value)
            yield all_of([self.lower(condition), self._negated(at.to(schema.get("then", True)))])
            yield all_of([self._negated(condition), self._negated(at.to(schema.get("else", True)))])
        elif key == "contains" and not {"minContains", "maxContains"} & set(schema):
            yield {"type": "array", "items": self._negated(at.to(value))}
        elif key == "dependentRequired":
            for name, others in as_object(key, value).items():
                for other in others:
                    yield {"type": "object", "required": [name], "properties": {other: False}}
        elif key in CONSTRAINING:
            raise NoNegation(key)


def _among(value: Any, values: Sequence[Any]) -> bool:
    return value_key(value) in {value_key(other) for other in values}
