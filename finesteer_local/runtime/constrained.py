"""`llama_cpp.Llama`'s own requests under llguidance: its `grammar`, `response_format` and called tools.

llama-cpp-python's chat handlers make GBNF of a JSON schema, with a converter that knows few keywords and ignores
others, and fall back to any JSON where it fails. Here they keep the schema itself (`SchemaGrammar`), for `constraint`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from llama_cpp import LogitsProcessorList, llama_grammar
from llama_cpp.llama_grammar import LlamaGrammar
from numpy.typing import NDArray

from finesteer_local.errors import PromptError
from finesteer_local.runtime.compat import OpenLlama, OwnGrammar, gbnf_of, use_grammars
from finesteer_local.runtime.constraint import ANY_OBJECT, Compiled, Constraint, Follower, compiled, gbnf, json_schema


class ConstrainedLlama(OpenLlama):
    """A `Llama` whose answers follow a grammar by masks of llguidance, not by llama.cpp's grammar sampler."""

    _follower: Follower | None = None
    _broken: PromptError | None = None

    def processors(self, grammar: Any, processors: Any) -> Any:
        """As `OpenLlama.processors`: the grammar's mask comes after the caller's own."""
        self._follower = None
        if grammar is None:
            return processors
        self._follower = compiled(self, constraint_of(grammar)).begin()
        for token in self.accepted:
            self._follower.accept(token)
        return LogitsProcessorList([*(processors or ()), self._mask])

    def _mask(self, _: Any, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._follower is not None
        try:
            return np.where(self._follower.allowed(), logits, np.float32(-np.inf))
        except PromptError as error:  # llama.cpp called this: nothing can be raised through it
            self._broken = error
            return logits

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As `Llama.sample`.

        Raises:
            PromptError: the grammar allows no token, or has become too complex.
        """
        self._broken = None
        token = int(super().sample(*args, **kwargs))
        if self._broken is not None:
            raise self._broken
        if self._follower is not None:
            self._follower.accept(token)
        return token


class SchemaGrammar(OwnGrammar):
    """A JSON schema in the place of a grammar; to anything but `constraint_of` it is the GBNF that llama_cpp makes."""

    def __init__(self, schema: str, text: str | None = None) -> None:
        super().__init__(lambda: llama_grammar.json_schema_to_gbnf(schema) if text is None else text)
        self.schema = schema


def constraint_of(grammar: Any) -> Constraint | Compiled:
    """What a caller of llama_cpp gives as a grammar.

    Raises:
        PromptError: it cannot be kept to.
    """
    if isinstance(grammar, SchemaGrammar):
        return json_schema(json.loads(grammar.schema))
    if isinstance(grammar, (Constraint, Compiled)):
        return grammar
    return gbnf(grammar if isinstance(grammar, str) else gbnf_of(grammar))


# --- in the chat handlers


class _SchemaText(str):
    """What the handlers take for GBNF."""


_ANY_JSON = _SchemaText(json.dumps(ANY_OBJECT))


class _Grammars(LlamaGrammar):
    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        if grammar is _ANY_JSON:
            return SchemaGrammar(grammar, llama_grammar.JSON_GBNF)
        return SchemaGrammar(grammar) if isinstance(grammar, _SchemaText) else LlamaGrammar.from_string(grammar)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        return SchemaGrammar(json_schema)


class _GrammarModule:
    """`llama_cpp.llama_grammar` as the chat handlers see it."""

    LlamaGrammar = _Grammars
    JSON_GBNF = _ANY_JSON
    json_schema_to_gbnf = staticmethod(lambda schema, prop_order=None: _SchemaText(schema))

    def __getattr__(self, name: str) -> Any:
        return getattr(llama_grammar, name)


use_grammars(_GrammarModule())
