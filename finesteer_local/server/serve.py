"""From settings to a running server: the socket, uvicorn, the end."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from finesteer_local.errors import FineSteerError
from finesteer_local.server.app import create_app
from finesteer_local.server.settings import Settings


def serve(
    settings: Settings,
    port: int,
    *,
    verbose: bool = False,
    on_listening: Callable[[str], None] = lambda url: None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted, and return.

    Args:
        port: 0 takes a free one.
        on_listening: called with the server's address once it listens; the model is still being loaded then.
        on_ready: called, from another thread, once the model is loaded.

    Raises:
        FineSteerError: the address cannot be used, or the model cannot be loaded.
    """
    with _listening(settings.host, port) as listener:
        app = create_app(settings)
        service = app.state.service
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="info" if verbose else "warning",
                access_log=verbose,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=int(settings.limits.seconds) + 1,
            )
        )

        def stop() -> None:
            server.should_exit = True

        def wanted(_: logging.LogRecord) -> bool:
            return not server.force_exit  # a second Ctrl-C cancels what runs, and nobody needs the traceback of that

        service.on_failure, service.on_ready = stop, on_ready
        logging.getLogger("uvicorn.error").addFilter(wanted)
        on_listening(address(settings.host, listener.getsockname()[1]))
        with _terminated():
            server.run(sockets=[listener])
        service.stop(drain=False)  # nothing, unless a second Ctrl-C would not wait
        if service.failure is not None:
            raise service.failure


def address(host: str, port: int) -> str:
    """The server's URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FineSteerError(f"cannot listen on {host}, port {port}: {reason}; choose another --port") from error
    with listener:
        yield listener


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the server, not the process: uvicorn raises it once more when all is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(*_: Any) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
