"""Vercel's AI SDK, in Node: over responses, which is its default, over chats, and as a compatible server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import QUESTION, Weather, client_server
from serving import Served

FOLDER = Path(__file__).parent / "ai_sdk"


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("the AI SDK runs in Node, which is not installed")
    if not (FOLDER / "node_modules" / "ai").is_dir():
        pytest.skip("the AI SDK is not installed: npm ci --prefix tests/ai_sdk (make does it where there is npm)")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("ai_sdk")) as found:
        yield found


@pytest.mark.parametrize("kind", ["responses", "chat", "compatible"])
def test_its_default_calls(node: str, server: Served, kind: str) -> None:
    command = [node, "client.mjs", f"{server.url}/v1", kind]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}
    plain = server.chat(QUESTION, max_tokens=12).json()["choices"][0]["message"]["content"]
    assert found["text"] == found["stream"] == plain
    [[name, arguments]] = found["calls"]
    assert name in ("weather", "paint") and arguments
    [[name, arguments]] = found["streamed calls"]
    assert name == "weather" and Weather.model_validate(arguments)
    assert found["steps"] == [[1, False], [0, True]]
    assert Weather.model_validate(found["object"]) == Weather.model_validate(found["streamed object"])
