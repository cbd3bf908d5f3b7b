"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reference import steered_llama
from serving import Served, served
from tiny import CHATML


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny) as found:
        yield found


@pytest.mark.parametrize("text", ["the sun", "<|im_start|>user\nÄ 🙂<|im_end|>", ""])
def test_there_and_back(server: Served, tiny: Path, text: str) -> None:
    found = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    llama = steered_llama(tiny)
    assert found["tokens"] == llama.tokenize(text.encode(), add_bos=False, special=True)
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 1024
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": text}
    llama.close()


def test_tokens_are_those_of_a_completion(server: Served) -> None:
    found = server.post("/tokenize", {"model": "tiny", "prompt": "the sun"}).json()
    answer = server.post("/v1/completions", {"prompt": "the sun", "max_tokens": 1}).json()
    assert found["count"] == answer["usage"]["prompt_tokens"]


def test_the_template_and_the_special_tokens(server: Served) -> None:
    assert server.http.get("/tokenizer_info").json() == {
        "tokenizer_class": "gpt2",
        "chat_template": CHATML,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }


def test_what_cannot_be_used(server: Served) -> None:
    error = server.post("/detokenize", {"tokens": [1, 100_000]}).json()["error"]
    assert "vocabulary" in error["message"] and error["param"] == "tokens"
    assert server.post("/detokenize", {"tokens": [-1]}).status_code == 400
    assert server.post("/tokenize", {"prompt": "x", "model": "huge"}).status_code == 404
