"""The HTTP server: OpenAI's and Ollama's interfaces over the batched engine, steering per request, and a web page.

`finesteer-local serve` runs it. Everything here needs the extra `serve`; `require_extra` says so in one line.
"""

from __future__ import annotations

from importlib.util import find_spec

from finesteer_local.distribution import missing_extra

_PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")


def require_extra() -> None:
    """Raise `MissingExtraError`, with the command that installs it, where the `serve` extra is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise missing_extra("serve", f"the server needs {' and '.join(missing)}")
