"""Filling in the middle: the model's own tokens around prefix and suffix, or a clear refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finesteer_local.errors import PromptError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.infill import can_infill, infill_prompt
from reference import steered_llama
from tiny import INFILL, vocabulary, write_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredLlama]:
    path = write_tiny_model(tmp_path_factory.mktemp("infill") / "model.gguf", infill=True)
    llama = steered_llama(path, n_ctx=256)
    yield llama
    llama.close()


def marks() -> list[int]:
    return [vocabulary().index(token) for token in INFILL.values()]


def test_the_suffix_comes_between_the_models_own_tokens(llama: SteeredLlama) -> None:
    before, after, middle = marks()
    prefix, suffix = (llama.tokenize(text, add_bos=False) for text in (b"def f(", b"):\n"))
    assert infill_prompt(llama, "def f(", "):\n") == [before, *prefix, after, *suffix, middle]
    assert infill_prompt(llama, prefix, "):\n") == infill_prompt(llama, "def f(", "):\n")
    assert infill_prompt(llama, "def f(", "") == [before, *prefix, after, middle]


def test_special_tokens_in_code_are_text(llama: SteeredLlama) -> None:
    found = infill_prompt(llama, "a<|im_end|>", "<|im_start|>b")
    assert not {0, 1, 2} & set(found)


def test_a_model_without_the_tokens_says_so(tiny: Path) -> None:
    llama = steered_llama(tiny, n_ctx=256)
    assert not can_infill(llama)
    with pytest.raises(PromptError, match="no tokens for filling in the middle"):
        infill_prompt(llama, "a", "b")
    llama.close()
