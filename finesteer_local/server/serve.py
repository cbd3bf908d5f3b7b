"""From settings to a running server: the socket, uvicorn, the end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from finesteer_local.errors import FineSteerError
from finesteer_local.server.app import create_app
from finesteer_local.server.settings import ServerSettings
from finesteer_local.signals import handled_by

END_SECONDS = 5.0
_SWITCH_SECONDS = 0.0005
"""After which a thread lets another one have the interpreter. With Python's 5 ms a token waits at each return from
llama.cpp that long for every thread that prepares a request: three made an answer take six times as long, now twice."""


def serve(
    settings: ServerSettings,
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

    A second signal does not wait: what has not ended `END_SECONDS` later is killed with the process, with code 1.

    Raises:
        FineSteerError: the address cannot be used, or the model cannot be loaded.
        EngineError: the engine has failed, or does not move (`StalledError`): its threads still run then.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    with _listening(settings.host, port) as listener:
        app = create_app(settings)
        service = app.state.service
        server = _Server(
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
        try:
            with _terminated():
                server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn passes Ctrl-C on once all is done
            if service.failure is None:
                raise
        finally:
            service.stop(drain=False)  # nothing, unless a second signal would not wait
            server.ended.set()
        if service.failure is not None:
            raise service.failure


class _Server(uvicorn.Server):
    """Does not wait after a second signal, whichever it is."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = threading.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and not self.force_exit:
            self.force_exit = True
            threading.Thread(target=self._kill, name="finesteer-end", daemon=True).start()
        super().handle_exit(sig, frame)

    def _kill(self) -> None:
        if not self.ended.wait(END_SECONDS):
            logging.getLogger("finesteer_local").error("the server is stuck, and was ended by force")
            os._exit(1)


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
    with handled_by(lambda *_: None, signal.SIGTERM):
        yield
