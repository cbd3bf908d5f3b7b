"""JSON schemas of clients as llama.cpp grammars."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from finesteer_local.errors import PromptError
from finesteer_local.runtime.batch.request import MAX_GRAMMAR

MAX_SCHEMA = 1 << 16  # bytes of JSON
MAX_DEPTH = 32
MAX_REPEATS = 1024  # llama-cpp-python writes a repetition out, copy by copy
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The GBNF grammar of the JSON texts that fit `schema`, by llama-cpp-python's `json_schema_to_gbnf`.

    Raises:
        PromptError: the schema is too large, refers to another place, or has no grammar.
    """
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise PromptError(f"the JSON schema is longer than {MAX_SCHEMA:,} bytes")
    for node in _nodes(schema):
        _check(node)
    try:
        grammar: str = json_schema_to_gbnf(text)
    except Exception as error:  # it asserts, and follows any key and reference
        raise PromptError(
            f"no grammar can be made of this JSON schema: {str(error) or type(error).__name__}"
        ) from error
    if len(grammar) > MAX_GRAMMAR:
        raise PromptError(f"the JSON schema's grammar is longer than {MAX_GRAMMAR:,} letters")
    return grammar


def _nodes(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    if depth > MAX_DEPTH:
        raise PromptError(f"the JSON schema is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        yield value
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in children:
        yield from _nodes(child, depth + 1)


def _check(node: Mapping[str, Any]) -> None:
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise PromptError("a JSON schema can refer to itself only: $ref must start with #")
    for name in _COUNTS:
        count = node.get(name)
        if isinstance(count, int) and not 0 <= count <= MAX_REPEATS:
            raise PromptError(f"{name} {count} is not in [0, {MAX_REPEATS}]")
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        counts = [max(int(n or 1) for n in found) for found in re.findall(r"\{(\d{0,9}),?(\d{0,9})\}", pattern)]
        if re.search(r"\d{10}", pattern) or math.prod(max(n, 1) for n in counts) > MAX_REPEATS:
            raise PromptError(f"a pattern repeats more than {MAX_REPEATS} times")
