"""Text of any shape becomes tokens, or one clear error: the process lives, and in seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from llama_cpp import Llama
from llama_cpp.llama_tokenizer import LlamaTokenizer

from finesteer_local.errors import PromptError
from finesteer_local.runtime import tokens as module
from reference import plain_llama, steered_llama
from tiny import SPECIAL, write_tiny_model

# Pre-tokenizers whose patterns llama.cpp leaves to std::regex, by what they match in one go.
PRES = ("gpt-4o", "deepseek-llm", "exaone-moe")
RUNS = ("a", "A", ".", " ", "\n", "中", "a b ", "=\n", "aé", "\u00a0")


@pytest.fixture(scope="module", params=PRES)
def pre(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose `tokenizer.ggml.pre` is another one."""
    return write_tiny_model(tmp_path_factory.mktemp("pre") / "model.gguf", pre=request.param)


@pytest.mark.parametrize("run", RUNS, ids=ascii)
def test_a_long_run_is_tokenised(pre: Path, run: str) -> None:
    llama = steered_llama(pre)
    short, text = run * 500, run * (32_000 // len(run))
    assert llama.tokenize(short.encode()) == plain_llama(pre).tokenize(short.encode())
    assert llama.detokenize(llama.tokenize(text.encode(), add_bos=False)).decode() == text
    assert llama.tokenizer().encode(text, add_bos=False) == llama.tokenize(text.encode(), add_bos=False)


def test_more_is_an_error_that_says_what_to_do(pre: Path) -> None:
    llama = steered_llama(pre)
    with pytest.raises(PromptError, match="300,000 letters without a break"):
        llama.tokenize(b"a" * 300_000)
    words = b"some words and a line end\n" * 6_000  # more than that, with breaks
    if "exaone" not in str(llama.metadata["tokenizer.ggml.pre"]):
        assert llama.detokenize(llama.tokenize(words, add_bos=False)) == words


def test_a_pattern_that_looks_ahead_at_every_digit_has_a_limit(tmp_path: Path) -> None:
    llama = steered_llama(write_tiny_model(tmp_path / "model.gguf", pre="superbpe"))
    assert len(llama.tokenize(b"1" * 2048, add_bos=False)) == 2048
    with pytest.raises(PromptError, match="2,048 digits without a break"):
        llama.tokenize(b"1" * 30_000)


def test_the_process_lives_where_llama_cpp_alone_would_end_it(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", pre="gpt-4o")
    code = (
        "import sys; from llama_cpp import Llama; from finesteer_local.runtime import SteeredLlama\n"
        "llama = {'ours': SteeredLlama, 'theirs': Llama}[sys.argv[1]](sys.argv[2], n_ctx=256, verbose=False)\n"
        "print(len(llama.tokenize(b'x' * 100_000, add_bos=False)))"
    )
    ran = [subprocess.run([sys.executable, "-c", code, who, path], capture_output=True) for who in ("ours", "theirs")]
    assert (ran[0].returncode, ran[0].stdout) == (0, b"100000\n")
    assert ran[1].returncode < 0  # once it does not crash, this file's subject has gone


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("between", ["", "x", "\n\n ", " the user"])
def test_many_special_tokens_are_found_in_pieces(tiny: Path, special: bool, between: str) -> None:
    text = "".join(f"{token}{between}" for token in SPECIAL * 500)
    plain = plain_llama(tiny).tokenize(text.encode(), special=special)
    assert steered_llama(tiny).tokenize(text.encode(), special=special) == plain


def test_no_number_of_special_tokens_takes_minutes(tiny: Path) -> None:
    llama, started = steered_llama(tiny), time.process_time()  # of this process: other work does not count
    assert llama.tokenize(b"<|im_end|>" * 100_000, add_bos=False, special=True) == [2] * 100_000
    assert time.process_time() - started < 20


def test_special_tokens_that_touch_each_other_are_not_cut(tmp_path: Path) -> None:
    llama = steered_llama(write_tiny_model(tmp_path / "model.gguf", user_defined=("ab", "ba", "\n\n")))
    text = b"ab" * 600 + b"\n\n" * 600
    plain = plain_llama(tmp_path / "model.gguf")
    assert llama.tokenize(text, special=True) == plain.tokenize(text, special=True)
    with pytest.raises(PromptError, match="special tokens next to each other"):
        llama.tokenize(b"ab" * 20_000)


def test_a_tokenizer_of_the_callers_own_is_left_alone(tiny: Path) -> None:
    class Own(LlamaTokenizer):
        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
            return [7]

    assert steered_llama(tiny, tokenizer=Own(plain_llama(tiny))).tokenize(b"x" * 200_000) == [7]


def test_an_error_inside_comes_through(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama: Llama = steered_llama(tiny)

    def fails(*_: object) -> list[int]:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        module.tokenise(llama, fails, b"x" * 10_000, True, False)


def test_the_text_of_a_long_token_is_not_lost(tmp_path: Path) -> None:
    long = ("=" * 33, "-" * 300)
    llama = steered_llama(write_tiny_model(tmp_path / "m.gguf", user_defined=long))
    text = f"a{long[0]}b{long[1]}{SPECIAL[1]}c".encode()
    tokens = llama.tokenize(text, add_bos=False, special=True)
    assert len(tokens) == 6
    assert llama.detokenize(tokens, special=True) == text == llama.tokenizer().detokenize(tokens, special=True)
    assert llama.detokenize(tokens) == text.replace(SPECIAL[1].encode(), b"")


def test_the_text_of_many_tokens_takes_no_minutes(tiny: Path) -> None:
    llama = steered_llama(tiny)
    assert llama.detokenize([1] * 500_000, special=True) == SPECIAL[1].encode() * 500_000
