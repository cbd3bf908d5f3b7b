"""instructor, in each of its modes for servers that speak OpenAI's interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from clients import QUESTION, Weather, client_server
from serving import Served

instructor = pytest.importorskip("instructor", reason="instructor is not installed: see the Makefile")

CHAT: list[Any] = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("instructor")) as found:
        yield found


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_structured_answers(client: openai.OpenAI, mode: str) -> None:
    wrapped = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
    found = wrapped.create(model="tiny", messages=CHAT, response_model=Weather, temperature=0, max_retries=0)
    assert isinstance(found, Weather)


def test_a_plain_chat_and_a_stream(client: openai.OpenAI) -> None:
    wrapped = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    options: dict[str, Any] = {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 12}
    text = wrapped.create(response_model=None, **options).choices[0].message.content
    chunks = wrapped.create(response_model=None, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text != ""


def test_a_structured_answer_streams(client: openai.OpenAI) -> None:
    wrapped = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    *_, last = wrapped.create_partial(model="tiny", messages=CHAT, response_model=Weather, temperature=0)
    assert last.town in ("Ulm", "Bern")
