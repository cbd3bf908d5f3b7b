"""Answers fit their JSON schema, or the request is refused with the keyword's name.

`schemas/draft2020.json` holds schemas of our own for the keywords of draft 2020-12, models as clients send them among
them. The answers are walks over the masks, in which each token that may come next has about the same chance: worse than
any model at any temperature.
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import validator_for

from finesteer_local.errors import PromptError
from finesteer_local.runtime.constraint import compiled, json_schema
from finesteer_local.runtime.schema import lowered
from reference import plain_llama
from tiny import write_tiny_model
from walks import Walker

SCHEMAS: dict[str, list[Any]] = json.loads((Path(__file__).parent / "schemas" / "draft2020.json").read_text())
SEEDS = (0, 1, 2)
REFUSED = {"uniqueItems": 2, "minProperties": 1, "not": 1, "$ref": 1}  # schemas; in all of them the keyword is named


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    return Walker(plain_llama(write_tiny_model(tmp_path_factory.mktemp("walks") / "tiny.gguf")))


def answers(walker: Walker, schema: Any, seeds: Any = SEEDS) -> list[Any]:
    """Whole answers, read as JSON."""
    found = compiled(walker.llama, json_schema(schema))
    texts = [walker.walk(found, seed) for seed in seeds]
    return [json.loads(text) for text in texts if text is not None]


def misfits(schema: Any, answer: Any) -> list[str]:
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    return [error.message for error in kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(answer)]


def test_the_schemas_are_many() -> None:
    assert sum(map(len, SCHEMAS.values())) >= 300 and len(SCHEMAS) >= 40
    refused = sum(REFUSED.values())
    assert 1 - refused / sum(map(len, SCHEMAS.values())) >= 0.90


@pytest.mark.parametrize("keyword", SCHEMAS)
def test_every_answer_fits(walker: Walker, keyword: str) -> None:
    refused = 0
    for schema in SCHEMAS[keyword]:
        try:
            found = answers(walker, schema)
        except PromptError as error:
            assert str(error).startswith(keyword), f"{schema}: {error}"
            refused += 1
            continue
        for answer in found:
            assert not misfits(schema, answer), f"{schema}: {answer}"
    assert refused == REFUSED.get(keyword, 0)


REFUSALS: dict[str, Any] = {
    "uniqueItems": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "minProperties": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    "not": {"type": "string", "not": {"pattern": "^a"}},
    "pattern": {"type": "string", "pattern": "^(?!a)b"},
    "$ref": {"$ref": "https://example.org/schema.json"},
    "$dynamicRef": {"$dynamicRef": "other.json#node"},
}


@pytest.mark.parametrize("keyword", REFUSALS)
@pytest.mark.parametrize("where", ["top", "property", "item"])
def test_what_cannot_be_had_is_refused_by_its_name(walker: Walker, keyword: str, where: str) -> None:
    schema = REFUSALS[keyword]
    if where == "property":
        schema = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    elif where == "item":
        schema = {"type": "array", "items": schema, "minItems": 1}
    with pytest.raises(PromptError) as error:
        answers(walker, schema)
    assert str(error.value).startswith(f"{keyword} "), error.value


FITTING = {
    "not": ({"type": "string", "not": {"enum": ["a", "ab"]}}, ["", "b", "abc", "aa"], ["a", "ab"]),
    "if": (
        {
            "properties": {"a": {"type": "integer"}},
            "if": {"required": ["a"]},
            "then": {"required": ["b"]},
            "type": "object",
        },
        [{}, {"a": 1, "b": 2}, {"b": 1}],
        [{"a": 1}],
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, [1, "x"], [3, 1.5]),
    "contains": ({"type": "array", "contains": {"const": 1}}, [[1], [2, 1], ["x", 1, 2]], [[], [2]]),
    "uniqueItems": ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [[], [1], [1, 2]], [[1, 1]]),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^a"}}, [{}, {"ab": 1}], [{"b": 1}]),
    "unevaluatedProperties": (
        {"type": "object", "allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False},
        [{}, {"a": 1}],
        [{"b": 1}],
    ),
    "multipleOf": ({"type": "integer", "multipleOf": 3, "minimum": 4}, [6, 300], [3, 7]),
    "const": ({"const": 'a\n"\\😀'}, ['a\n"\\😀'], ["a"]),
    "recursion": (
        {"type": "object", "properties": {"n": {"$ref": "#"}}, "additionalProperties": False},
        [{}, {"n": {"n": {}}}],
        [{"n": 1}],
    ),
}


@pytest.mark.parametrize("what", FITTING)
def test_what_fits_can_be_said_and_what_does_not_cannot(walker: Walker, what: str) -> None:
    schema, good, bad = FITTING[what]
    for value, wanted in [(value, True) for value in good] + [(value, False) for value in bad]:
        assert says(walker, schema, json.dumps(value, ensure_ascii=False)) is wanted, value


def says(walker: Walker, schema: Any, text: str) -> bool:
    """Whether `text`, byte by byte, is a whole answer."""
    follower = compiled(walker.llama, json_schema(schema)).begin()
    by_text = {text: token for token, text in enumerate(walker.texts)}
    for byte in text.encode():
        token = by_text[bytes([byte])]
        matcher = follower._matcher
        if not matcher.validate_tokens([token]):
            return False
        matcher.consume_token(token)
    return bool(follower._matcher.is_accepting())


def test_times_are_times(walker: Walker) -> None:
    for answer in answers(walker, {"type": "string", "format": "date-time"}, range(40)):
        datetime.datetime.fromisoformat(answer.upper().replace("Z", "+00:00"))


NESTED: dict[str, Any] = {}
for _ in range(90):
    NESTED = {"items": NESTED}
CHAIN = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(600)}
HOSTILE: dict[str, Any] = {
    "ambiguous pattern": {"type": "string", "pattern": "^(a?b?){0,200}c$"},
    "nested repeats": {"type": "string", "pattern": "^((a{1,999}){1,999}){1,999}$"},
    "long look back": {"type": "string", "pattern": "^(.*a.{200}|.*b.{200}|.*c.{300})$"},
    "brackets": {"type": "string", "pattern": "(" * 5000 + ")" * 5000},
    "lookahead": {"type": "string", "pattern": "^(?=a)b"},
    "options": {"type": "string", "pattern": "a?" * 2000 + "a" * 2000},
    "many words": {"enum": [f"v{i}" for i in range(5000)]},
    "many items": {"type": "array", "maxItems": 10**9, "items": {"type": "integer"}},
    "least items": {"type": "array", "minItems": 10**9},
    "long text": {"type": "string", "maxLength": 5 * 10**9},
    "many properties": {"type": "object", "properties": {f"p{i}": {"format": "date-time"} for i in range(300)}},
    "product": {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(4)]} for i in range(12)]},
    "fine multiple": {"type": "integer", "multipleOf": 999_999},
    "huge number": {"const": 10**30},
    "itself": {"$ref": "#"},
    "all of itself": {"allOf": [{"$ref": "#"}]},
    "not itself": {"not": {"$ref": "#"}},
    "conditions on itself": {"if": {"$ref": "#"}, "then": {"type": "string"}},
    "nested": NESTED,
    "chain": {"$ref": "#/$defs/a0", "$defs": {**CHAIN, "a600": {"type": "null"}}},
    "dependencies": {"dependentRequired": {f"a{i}": [f"b{i}"] for i in range(200)}},
    "one of many": {"oneOf": [{"minimum": i, "type": "integer"} for i in range(500)]},
    "contains many": {"contains": {"type": "string"}, "minContains": 10**6},
    "long constant": {"const": "a" * 3_000},
    "options of the library": {"type": "string", "minLength": 3, "x-guidance": {"whitespace_pattern": "("}},
    "elsewhere": {"$ref": "https://example.org/s"},
    "no type": {"type": "nonsense"},
    "no schema": {"properties": {"a": 3}},
    "no list": {"enum": "abc"},
    "no name": {"required": [1]},
    "no object": {"properties": []},
    "no count": {"minLength": -1},
    "no number": {"minimum": "3"},
    "no text": {"pattern": 3},
    "no reference": {"$ref": 3},
    "nothing": False,
    "surrogate": {"enum": ["\ud800"]},
    "nul": {"properties": {"\x00": {"const": "\x00"}}, "required": ["\x00"], "type": "object"},
}


TOO_MUCH_FOR_PYTHON = ("ambiguous pattern", "nested repeats", "long look back", "chain")


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_schema_ends_soon(walker: Walker, what: str) -> None:
    """As a request's error, or an answer that fits; in seconds even on a machine that does ten other things."""
    began = time.thread_time()
    try:
        for answer in answers(walker, HOSTILE[what], range(1)):
            assert what in TOO_MUCH_FOR_PYTHON or not misfits(HOSTILE[what], answer)
    except PromptError as error:  # one line for the client
        assert 0 < len(str(error)) < 400 and "\n" not in str(error)
    assert time.thread_time() - began < 5


def test_references_are_written_out_once() -> None:
    node = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert len(lowered(node)["$defs"]) == 1
