"""`finesteer-local worker`: what it says, refuses, and how it ends. What it serves is in test_rpc.py."""

from __future__ import annotations

import signal

import pytest

from cli import call, error_of
from finesteer_local.runtime import machine
from finesteer_local.runtime import worker as worker_module
from workers import needs_rpc, worker_process

CPU = machine.Device("CPU", "Processor", "processor", 6 << 30, 8 << 30)


@needs_rpc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly(number: signal.Signals) -> None:
    with worker_process() as (process, endpoint):
        assert endpoint.startswith("127.0.0.1:")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 0 and stderr == b""


@needs_rpc
def test_a_port_that_is_in_use() -> None:
    with worker_process() as (_, endpoint):
        port = endpoint.split(":")[1]
        line = error_of("worker", "--port", port)
        assert line.startswith(
            f"Error: cannot listen on 127.0.0.1, port {port}: address already in use; choose another"
        )


@needs_rpc
def test_an_address_that_is_not_ours() -> None:
    assert "cannot listen on ::1" in error_of("worker", "--host", "::1", "--port", "0")
    assert "choose another --host" in error_of("worker", "--host", "192.0.2.1", "--port", "0")


@needs_rpc
def test_a_device_that_is_not_there() -> None:
    assert "no device 'CUDA7'; there are: CPU" in error_of("worker", "--device", "CUDA7", "--port", "0")


@pytest.mark.parametrize(("address", "warned"), [("127.0.0.1", False), ("192.168.1.20", True), ("0.0.0.0", True)])
def test_what_it_says(monkeypatch: pytest.MonkeyPatch, address: str, warned: bool) -> None:
    def work(host: str, port: int, *, on_listening: object, n_threads: int, devices: tuple[str, ...]) -> None:
        assert (host, devices, n_threads) == (address, ("CPU",), 3)
        on_listening(worker_module.Serving(host, port, "7.0.0", (CPU,)))  # type: ignore[operator]

    monkeypatch.setattr(worker_module, "work", work)
    done = call("worker", "--host", address, "--device", "CPU", "--threads", "3")
    assert done.exit_code == 0
    assert done.stdout == (
        f"CPU: Processor, 6.4 GB free\nllama.cpp RPC 7.0.0 · 3 threads · {address}:50052\nReady. Ctrl-C stops.\n"
    )
    assert ("no authentication" in done.stderr) is warned


def test_which_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    card = machine.Device("CUDA0", "Card", "GPU", 0, 0)
    other = machine.Device("BLAS", "BLAS", "accelerator", 0, 0)
    monkeypatch.setattr(worker_module, "function", lambda *_: lambda i: i)

    def names(*wanted: str) -> list[str]:
        return [device.name for _, device in worker_module._choose(wanted)]

    monkeypatch.setattr(machine, "devices", lambda: [card, other, CPU])
    assert names() == ["CUDA0"]
    assert names("CPU", "CUDA0", "CPU") == ["CPU", "CUDA0"]
    monkeypatch.setattr(machine, "devices", lambda: [other, CPU])
    assert names() == ["CPU"]
