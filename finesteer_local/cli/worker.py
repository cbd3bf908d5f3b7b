"""`finesteer-local worker`: the other end of `--rpc`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from finesteer_local.runtime.worker import Serving


@click.command("worker", short_help="Lend this machine's devices to a model on another one.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen (IPv4).")
@click.option(
    "--port", default=50052, show_default=True, metavar="N", type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("--threads", metavar="N", type=click.IntRange(1), help="Threads.  [default: this machine's cores]")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="Lend this device, as `doctor` names it; repeatable.  [default: every GPU, else the processor]",
)
def command(host: str, port: int, threads: int | None, devices: tuple[str, ...]) -> None:
    """Lend this machine's devices to a model that is opened on another one with --rpc.

    It needs no model file: weights come over the network. One program is served at a time.

    There is no authentication and no encryption: whoever reaches the port can use it, and may be able to take over this
    account. Listen on another address than 127.0.0.1 in a trusted network only.

    \b
    finesteer-local worker --host 192.168.1.20
    """
    from finesteer_local.runtime.cores import default_threads
    from finesteer_local.runtime.worker import work

    n_threads = threads or default_threads()

    def listening(serving: Serving) -> None:
        from finesteer_local.paths import size

        if not serving.address.startswith("127."):
            click.secho(
                f"Warning: whoever reaches {serving.address}:{serving.port} can use this machine: llama.cpp's RPC has "
                "no authentication. Trusted networks only.",
                err=True,
                fg="yellow",
            )
        for device in serving.devices:
            memory = f", {size(device.free)} free" if device.total else ""
            click.echo(f"{device.name}: {device.description}{memory}")
        click.echo(f"llama.cpp RPC {serving.version} · {n_threads} threads · {serving.address}:{serving.port}")
        click.echo("Ready. Ctrl-C stops.")

    work(host, port, devices=devices, n_threads=n_threads, on_listening=listening)
