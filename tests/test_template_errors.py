"""A model whose chat template has an error: one line that says so in a chat, and text can be continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli import call, error_of, good
from finesteer_local.doctor import examine_model
from finesteer_local.runtime.batch import chat_request
from finesteer_local.runtime.template import BrokenTemplateError
from reference import steered_llama
from serving import served
from tiny import CHATML, write_tiny_model

CHAT: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(
    params=["{% for m in messages %}{{ m.content }", "{{ a | nonsense }}", "{% " + "(" * 5000], ids=range(3)
)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "broken.gguf", chat_template=request.param)


def test_the_model(broken: Path) -> None:
    llama = steered_llama(broken)
    assert llama.create_completion("Hello", max_tokens=2)["choices"]
    with pytest.raises(BrokenTemplateError, match="chat template has an error"):
        llama.create_chat_completion(CHAT)
    with pytest.raises(BrokenTemplateError, match="--raw") as failed:
        chat_request(llama, CHAT)
    assert "\n" not in str(failed.value)


def test_the_commands(broken: Path) -> None:
    model = str(broken)
    assert "chat template has an error" in error_of("run", model, "Hello")
    assert good("run", model, "--raw", "--max-tokens", "2", "Hello").stdout.strip()
    told = call("doctor", model)
    assert told.exit_code == 1 and "chat template: cannot be used" in told.stdout


def test_the_server(broken: Path) -> None:
    with served(broken) as server:
        refused = server.chat()
        assert refused.status_code == 400 and "chat template has an error" in refused.json()["error"]["message"]
        assert server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 2}).status_code == 200


def test_doctor_says_where_special_tokens_cannot_be_told_apart(tmp_path: Path) -> None:
    template = CHATML.replace("message['content']", "message['content'] | length ~ message['content']")
    path = write_tiny_model(tmp_path / "model.gguf", chat_template=template)
    found = {one.name: one.says for one in examine_model(path)}
    assert "special tokens in them are read as the template's own" in found["chat template"]
