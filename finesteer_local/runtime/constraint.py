"""What an answer has to fit: a grammar or a JSON schema, as masks over the tokens, by llguidance.

llama.cpp's own grammar sampler can compute for ever on an ambiguous grammar, and nothing can interrupt it. llguidance
(https://github.com/guidance-ai/llguidance) has limits for everything that it does. A `Constraint` is compiled by
`compiled` in a thread of its own and with a limit on its time; each answer then follows it with a `Follower`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_cpp
from llama_cpp.llama_tokenizer import LlamaTokenizer
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from finesteer_local.errors import PromptError
from finesteer_local.runtime.gbnf import lark
from finesteer_local.runtime.schema import lowered
from finesteer_local.runtime.tokens import ends_answer, texts_of, vocab_of

COMPILE_SECONDS = 10.0
_STACK = 256 << 20  # bytes of the compiling thread's stack: llguidance follows rules by recursion
_PIECE = 1024  # bytes
_UNWRITABLE = "no token of this model's vocabulary"
_REMEMBERED = 32  # compiled constraints a model
_JSON_OPTIONS: Any = {"whitespace_pattern": r"\x20"}
"""Between the parts of JSON: nothing or a space. A model that may go on with white space for ever sometimes does."""

_STATES = 50_000  # of the automaton, 2 kB each
_LIMITS = {
    # An ambiguous grammar takes time with the square of its rows; schemas make none, but long ones of many properties.
    "grammar": LLParserLimits(max_items_in_row=500, max_lexer_states=_STATES, verbose_errors=False),
    "JSON schema": LLParserLimits(max_items_in_row=4000, max_lexer_states=_STATES, verbose_errors=False),
}
_SECONDS, _SECONDS_A_TOKEN = 2.0, 0.01
"""What an answer's masks may take of the engine's time; 0.0001 s a token is usual."""


@dataclass(frozen=True)
class Constraint:
    """A grammar in llguidance's own form, and what the client calls it in messages."""

    grammar: str
    name: str = "grammar"
    otherwise: str | None = None  # in its place, where that has `patternProperties` which overlap


def gbnf(text: str) -> Constraint:
    """What llama.cpp's grammar format (GBNF) allows, from the rule `root` on.

    Raises:
        PromptError: the grammar is too long, or no valid GBNF.
    """
    return Constraint(LLMatcher.grammar_from_lark(lark(text)))


def json_schema(schema: Mapping[str, Any] | bool) -> Constraint:
    """The JSON texts that fit a JSON schema (draft 2020-12).

    Raises:
        PromptError: the schema is too large, or uses a keyword in a way that cannot be had; the keyword is named.
    """
    ways = [lowered(schema), lowered(schema, joined_patterns=True)]
    try:
        grammars = [LLMatcher.grammar_from_json_schema(json.dumps(way), overrides=_JSON_OPTIONS) for way in ways]
    except ValueError as error:  # half of a pair of surrogates, or nested deeper than serde's limit
        raise PromptError(f"the JSON schema cannot be read: {_short(error)}") from None
    return Constraint(grammars[0], "JSON schema", grammars[1] if ways[0] != ways[1] else None)


ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of `response_format: {"type": "json_object"}`."""


@dataclass(frozen=True)
class Compiled:
    """A constraint for one model's vocabulary, at an answer's beginning."""

    constraint: Constraint
    tokens: LLTokenizer = field(compare=False)
    matcher: LLMatcher = field(compare=False)
    n_vocab: int = field(compare=False)

    def begin(self) -> Follower:
        """A `Follower` for one answer."""
        return Follower(self.matcher.deep_copy(), self.n_vocab, self.constraint.name)


class Follower:
    """Follows a constraint along one answer. Only one thread may use it."""

    def __init__(self, matcher: LLMatcher, n_vocab: int, name: str) -> None:
        self._matcher, self._n_vocab, self._name = matcher, n_vocab, name
        self._left = _SECONDS

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (n_vocab,); the tokens that end an answer are among them once it fits.

        Raises:
            PromptError: no token may come next, or the constraint is too complex here.
        """
        before = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise PromptError(_told(self._matcher.get_error(), self._name))
        self._spend(before)
        allowed = np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)
        if not allowed.any():
            raise PromptError(f"the {self._name} allows no token of this model's vocabulary here")
        return allowed

    def accept(self, token: int) -> None:
        """Go on after `token`, which was allowed."""
        before = time.thread_time()
        self._matcher.consume_token(token)
        self._left += _SECONDS_A_TOKEN
        self._spend(before)

    def _spend(self, before: float) -> None:
        self._left -= time.thread_time() - before
        if self._left < 0:
            raise PromptError(f"the {self._name} is too complex: what may come next takes too long to find")


def compiled(llama: Llama, constraint: Compiled | Constraint | str) -> Compiled:
    """`constraint`, or GBNF, for the vocabulary of `llama`; what was compiled lately is remembered.

    Raises:
        PromptError: it is not valid, allows nothing, or takes too long to compile.
    """
    with _lock:
        tokens = vars(llama).get("_constraint_tokens")
        if tokens is None:
            tokens = vars(llama)["_constraint_tokens"] = _tokens(llama)
        known: OrderedDict[Constraint, Compiled] = vars(llama).setdefault("_constraints", OrderedDict())
    if isinstance(constraint, Compiled):
        if constraint.tokens is tokens:
            return constraint
        constraint = constraint.constraint
    elif isinstance(constraint, str):
        constraint = gbnf(constraint)
    with _lock:
        found = known.get(constraint)
    if found is None:
        found = _bounded(constraint, tokens, llama.n_vocab())
        with _lock:
            known[constraint] = found
            if len(known) > _REMEMBERED:
                known.popitem(last=False)
    return found


_lock = threading.Lock()


def _bounded(constraint: Constraint, tokens: LLTokenizer, n_vocab: int) -> Compiled:
    """Compile in a thread that has a large stack, and that is left alone where it takes too long."""
    found: list[Compiled | BaseException] = []

    def work() -> None:
        try:
            matcher = LLMatcher(tokens, constraint.grammar, log_level=0, limits=_LIMITS[constraint.name])
            if constraint.otherwise and _OVERLAP in matcher.get_error():
                matcher = LLMatcher(tokens, constraint.otherwise, log_level=0, limits=_LIMITS[constraint.name])
            if matcher.is_error():
                raise PromptError(_told(matcher.get_error(), constraint.name))
            result = Compiled(constraint, tokens, matcher, n_vocab)
            result.begin().allowed()  # what allows nothing at all is found here
            found.append(result)
        except BaseException as error:
            found.append(error)

    with _lock:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=work, name="finesteer-constraint", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join(COMPILE_SECONDS)
    if not found:
        raise PromptError(f"the {constraint.name} takes longer than {COMPILE_SECONDS:g} s to compile; make it simpler")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


# --- the vocabulary


class _Vocabulary:
    """What llguidance's `TokenizerWrapper` asks of a tokenizer."""

    def __init__(self, llama: Llama) -> None:
        vocab, n_vocab = vocab_of(llama), llama.n_vocab()
        ends = [token for token in range(n_vocab) if ends_answer(vocab, token)]
        if not ends:
            raise PromptError("this model has no token that ends an answer, so a grammar or schema cannot be kept to")
        self.ends, ended = ends, set(ends)
        self.eos_token_id, self.bos_token_id = ends[0], None
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        self.special_token_ids = [
            token
            for token in range(n_vocab)
            if token in ended or llama_cpp.llama_vocab_get_attr(vocab, token) & special
        ]
        special_ids = set(self.special_token_ids)
        # What an answer shows of a token is what counts: nothing of a control token, the name of a user-defined one.
        self.tokens = list(texts_of(vocab, range(n_vocab), special=True))

        self._tokenizer = LlamaTokenizer(llama)  # the model's own, whatever the caller has put in its place
        self._by_text = {text: token for token, text in enumerate(self.tokens) if text and token not in special_ids}
        self._by_byte = [self._by_text.get(bytes([byte])) for byte in range(256)]
        self._longest = max(map(len, self._by_text), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text that must come next: the model's own, where they spell just this text."""
        data = text.encode() if isinstance(text, str) else text
        # llguidance asks again after each token, and llama.cpp's pre-tokenizers follow long runs by recursion.
        piece, rest = data[:_PIECE], data[_PIECE:]
        tokens = self._tokenizer.tokenize(piece, add_bos=False, special=False)
        if b"".join(self.tokens[token] for token in tokens) != piece:
            tokens = self._greedy(piece)
        single = [self._by_byte[byte] for byte in rest]
        return [*tokens, *(self._greedy(rest) if None in single else single)]

    def _greedy(self, data: bytes) -> list[int]:
        tokens, start = [], 0
        while start < len(data):
            for stop in range(min(start + self._longest, len(data)), start, -1):
                if (token := self._by_text.get(data[start:stop])) is not None:
                    break
            else:
                raise ValueError(_UNWRITABLE)
            tokens.append(token)
            start = stop
        return tokens


def _tokens(llama: Llama) -> LLTokenizer:
    vocabulary = _Vocabulary(llama)
    return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=llama.n_vocab(), eos_token=vocabulary.ends)


# --- messages


def _short(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"


_OVERLAP = "patternProperty regexes"
_KEYWORDS = (  # what llguidance says, and of which keyword
    (_OVERLAP, "patternProperties"),
    ("regex", "pattern"),
    ("range", "minimum or maximum"),
    ("circular references", "$ref"),
    ("min/maxProperties", "minProperties or maxProperties"),
    ("MultipleOf", "multipleOf"),
)
_TOO_COMPLEX = re.compile(r"too (big|many|complex|large)|limit|fuel|exceeded|max is", re.IGNORECASE)


def _told(message: str, name: str) -> str:
    if "NoExtensionBias" in message or "Unsatisfiable" in message:
        return f"nothing fits the {name}: {_short(message)}" if "Unsat" in message else f"nothing fits the {name}"
    if _UNWRITABLE in message:
        return f"the {name} asks for text that this model's tokens cannot write"
    for pattern, keyword in _KEYWORDS:
        if name != "grammar" and pattern in message:
            return f"{keyword} in this JSON schema cannot be kept to: {_short(message)}"
    what = "too complex" if name != "grammar" or _TOO_COMPLEX.search(message) else "not valid"
    return f"the {name} is {what}: {_short(message)}"
