"""llama.cpp's grammar format means here what it means to llama.cpp."""

from __future__ import annotations

import ctypes
import random
import time

import numpy as np
import pytest
from llama_cpp import Llama, llama_cpp, llama_grammar

from finesteer_local.errors import PromptError
from finesteer_local.runtime.constraint import compiled
from reference import plain_llama
from tiny import write_tiny_model
from walks import Walker

GRAMMARS = {
    "letters": 'root ::= [0-9] [0-9] [0-9] "."',
    "brackets over lines": 'root ::= (\n "a"\n | b\n)\nb ::= "x" "y" # a comment\n',
    "names": 'root ::= start A a foo-bar\nstart ::= "s"\nA ::= "1"\na ::= "2"\nfoo-bar ::= "3"',
    "start": 'root ::= start\nstart ::= "s" root | "t"',
    "escapes": r'root ::= "a\"b\\c\n\t\r\x41\u00e9\U0001F600" [\x41-\x43] [\]\\^-] [^"\\\n\r] [\u00e9-\u00eb]',
    "none of": r'root ::= [^a-z/] "/" [/] [^\x00-\x1f]',
    "slashes": 'root ::= "/" [/a] "//" "a/b"',
    "repeats": 'root ::= "a"{3} [b-c]{2,4} "d"{1,} ("e" "f"){0,2} "g"? "h"*',
    "no repeat": 'root ::= "a"{0,0} "b"',
    "repeats of repeats": 'root ::= ("a"{2}){2} (("b")?)* "a"*? "c"',
    "nothing": 'root ::= "a" ("b" | ) "c" ""',
    "any": 'root ::= . "x" .?',
    "dashes": r"root ::= [a-] [-a] [+\-*/]",
    "beyond ASCII": 'root ::= "é漢😀" [α-ω] [^é]',
    "marks": 'root ::= "{}" "(" ")" [.*+?|$()] "^"',
    "a choice": 'root ::= "a"* "a" "b" | ab "end"\nab ::= [ab]+',
    "the last of two": 'root ::= "a"\nroot ::= "b"',
    "recursion": 'root ::= "(" root ")" | "[" root "]" | ""',
    "JSON": llama_grammar.JSON_GBNF,
    "arithmetic": 'root ::= (expr "=" ws term "\\n")+\n' + llama_grammar.ARITHMETIC_GBNF.split("\n", 2)[2],
    "of a schema": llama_grammar.json_schema_to_gbnf('{"properties": {"a": {"type": "integer"}}, "type": "object"}'),
}


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    return Walker(plain_llama(write_tiny_model(tmp_path_factory.mktemp("gbnf") / "tiny.gguf")))


@pytest.mark.parametrize("what", GRAMMARS)
def test_llama_cpp_takes_every_answer(walker: Walker, what: str) -> None:
    found = compiled(walker.llama, GRAMMARS[what])
    n_whole = 0
    for seed in range(8):
        tokens = walk(walker, found, seed)
        if tokens is not None:
            n_whole += 1
            assert llama_cpp_takes(walker.llama, GRAMMARS[what], tokens), [walker.texts[token] for token in tokens]
    assert n_whole or what == "arithmetic"


def walk(walker: Walker, found: object, seed: int) -> list[int] | None:
    rng, follower, tokens = random.Random(seed), found.begin(), list[int]()  # type: ignore[attr-defined]
    for _ in range(60):
        allowed = follower.allowed()
        ends = np.flatnonzero(allowed & walker._ends)
        rest = np.flatnonzero(allowed & ~walker._ends)
        if len(ends) and (not len(rest) or rng.random() < 0.4):
            return [*tokens, int(ends[-1])]
        tokens.append(int(rng.choice(rest)))
        follower.accept(tokens[-1])
    return None


def llama_cpp_takes(llama: Llama, text: str, tokens: list[int]) -> bool:
    sampler = llama_cpp.llama_sampler_init_grammar(llama._model.vocab, text.encode(), b"root")
    assert sampler
    try:
        for token in tokens:
            data = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 0.0, 0.0))
            array = llama_cpp.llama_token_data_array(data, 1, -1, False)
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
            if data[0].logit == -np.inf:
                return False
            llama_cpp.llama_sampler_accept(sampler, token)
    finally:
        llama_cpp.llama_sampler_free(sampler)
    return True


INVALID = {
    "open": "root ::= (",
    "closed": 'root ::= "a")',
    "text": 'root ::= "abc',
    "letters": "root ::= [abc",
    "no letters": "root ::= []",
    "escape": 'root ::= "\\',
    "surrogate": r'root ::= "\ud800"',
    "beyond": r'root ::= "\Uffffffff"',
    "range": "root ::= [z-a]",
    "no root": 'a ::= "b"',
    "no rule": "root ::= foo",
    "nothing": "",
    "words": "please answer in JSON",
    "repeats nothing": "root ::= *",
    "backwards": 'root ::= "a"{3,2}',
    "itself": "root ::= root",
    "token": 'root ::= <think> "a"',
    "lark": 'start: "a"',
    "blob": "root ::= \x00\xff",
    "long": "root ::= " + '"a" ' * 50_000,
    "brackets": "root ::= " + "(" * 1000 + '"a"' + ")" * 1000,
    "many": "root ::= a0\n" + "\n".join(f'a{i} ::= "x"' for i in range(3000)),
    "repeats": 'root ::= "a"{1000000000}',
    "doubling": "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(40)) + '\na40 ::= "x"',
}


@pytest.mark.parametrize("what", INVALID)
def test_what_is_no_grammar_is_said_in_a_line(walker: Walker, what: str) -> None:
    with pytest.raises(PromptError) as error:
        compiled(walker.llama, INVALID[what])
    assert "\n" not in str(error.value) and "grammar" in str(error.value)


HOSTILE = {
    "ambiguous repeats": 'root ::= ("a"? "b"? ){0,200} "c"',
    "repeats in repeats": 'root ::= ((("a"? "b"?){0,1000}){0,1000}){0,1000} "c"',
    "twice itself": 'root ::= root root | "a" | ""',
    "ten ways": 'root ::= a a a a a a a a a a\na ::= "x" a "x" | "x" | a a | ""',
    "pairs": 'root ::= "a" x\nx ::= "b" x | x "b" | x x | "b"',
    "quadruples": 'root ::= x\nx ::= x x x x | "a"{0,50} "b"{0,50} | "ab" | ""',
    "chain": "root ::= a0\n" + "\n".join(f'a{i} ::= a{i + 1} "b"' for i in range(1900)) + '\na1900 ::= "x"',
    "ladder": "root ::= a0\n"
    + "\n".join(f'a{i} ::= "y" a{i + 1} | a{i + 1}' for i in range(900))
    + '\na900 ::= root | "q"',
    "options": "root ::= " + '"a"? ' * 4000,
    "far back": "root ::= (.{0,16384} [ab] .{1000}){0,16384}",
    "letters": "root ::= " + "[a-z0-9]{0,16384} " * 300,
    "a long word": 'root ::= "' + "a" * 20_000 + '"',
    "palindromes": 'root ::= "a" root "a" | "b" root "b" | "a" | "b" | ""',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_grammar_ends_soon(walker: Walker, what: str) -> None:
    """llama.cpp's own sampler never comes back from some of these."""
    began = time.thread_time()
    try:
        follower, rng = compiled(walker.llama, HOSTILE[what]).begin(), random.Random(0)
        for _ in range(200):
            rest = np.flatnonzero(follower.allowed() & ~walker._ends)
            if not len(rest):
                break
            follower.accept(int(rng.choice(rest)))
    except PromptError as error:
        assert "too complex" in str(error) and "\n" not in str(error)
    assert time.thread_time() - began < 6
