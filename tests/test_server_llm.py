"""The `llm` program with this server as an extra OpenAI model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from serving import served
from tiny import make_profile


def test_llm_asks_the_server(tiny: Path, tmp_path: Path) -> None:
    with served(tiny, profiles=(make_profile(tiny),)) as server:
        (tmp_path / "extra-openai-models.yaml").write_text(
            f'- model_id: steered\n  model_name: tiny\n  api_base: "{server.url}/v1"\n'
        )
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "llm", "-m", "steered", "-o", "temperature", "0", "-o", "max_tokens", "8"]
        expected = server.chat("Hello there").json()["choices"][0]["message"]["content"]
        for more in ([], ["--no-stream"]):
            done = subprocess.run(
                [*command, *more, "Hello there"], env=env, capture_output=True, text=True, cwd=tmp_path, timeout=120
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.rstrip("\n") == expected
