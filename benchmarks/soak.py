"""Hostile requests among plain ones, on a real `finesteer-local serve`: every plain answer its own, and none late.

    python benchmarks/soak.py                       # a tiny model of random weights
    python benchmarks/soak.py --threads 1 --busy 1  # beside a process that keeps a core busy
    python benchmarks/soak.py MODEL.gguf --profile PROFILE.gguf

Each plain request is answered alone first. Then the plain clients send theirs by themselves, and once more among the
hostile clients (`tests/hostile.py` makes what these send). An answer is late by what it took longer than the same
request in the middle of those that were sent among plain ones only. The exit code is 1 where an answer was not that
of the request alone, one was later than `--late`, a status was no answer of an API, or the server did not live.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from serve import resident

import hostile
from tiny import make_profile, write_tiny_model

_BUSY = "while True: pass"


@dataclass
class Found:
    """What came of the requests."""

    seconds: list[tuple[int, float]] = field(default_factory=list)  # the plain ones' number, and how long it took
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)  # of the hostile ones
    slowest: list[tuple[float, int]] = field(default_factory=list)  # hostile ones
    health: list[float] = field(default_factory=list)  # seconds until /health answered
    memory: list[float] = field(default_factory=list)  # MiB


class Soak:
    """The requests to one server."""

    def __init__(self, url: str, pid: int, name: str, options: argparse.Namespace) -> None:
        self._url, self._pid, self._name, self._options = url, pid, name, options
        with hostile.client(url) as http:
            first = [hostile.ask(http, number, name) for number in range(hostile.N_PLAIN)]
        self.alone = [answer for answer, _ in first]

    def run(self, n_hostile: int) -> Found:
        """As many plain requests as wanted, and more while hostile ones are still sent."""
        found, over = Found(), threading.Event()
        options = self._options
        sent = iter(range(1 << 60))
        lock = threading.Lock()

        def attacks(worker: int) -> None:
            with hostile.client(self._url) as http:
                for number in range(worker, n_hostile, options.attackers):
                    start = time.monotonic()
                    try:
                        status = hostile.attack(http, number, self._name)
                    except httpx.HTTPError as error:
                        found.wrong.append(f"hostile request {number}: {type(error).__name__}: {error}")
                        continue
                    found.statuses[status] += 1
                    found.slowest.append((time.monotonic() - start, number))

        def plain(done: threading.Event) -> None:
            with hostile.client(self._url) as http:
                while True:
                    with lock:
                        number = next(sent)
                    if number >= options.requests and done.is_set():
                        return
                    answer, seconds = hostile.ask(http, number, self._name)
                    found.seconds.append((number % hostile.N_PLAIN, seconds))
                    if answer != self.alone[number % hostile.N_PLAIN]:
                        found.wrong.append(f"plain request {number}: {answer[:300]}")

        def watch() -> None:
            with hostile.client(self._url) as http:
                while not over.wait(0.2):
                    start = time.monotonic()
                    said = http.get("/health")
                    found.health.append(time.monotonic() - start)
                    found.memory.append(resident(self._pid))
                    if said.json() != {"status": "ok"}:
                        found.wrong.append(f"/health: {said.text}")

        attacked = threading.Event()
        with ThreadPoolExecutor(options.attackers + options.clients + 1) as pool:
            watching = pool.submit(watch)
            hostile_ones = [pool.submit(attacks, worker) for worker in range(options.attackers)] if n_hostile else []
            plain_ones = [pool.submit(plain, attacked) for _ in range(options.clients)]
            try:
                for one in hostile_ones:
                    one.result()
                attacked.set()
                for one in plain_ones:
                    one.result()
            finally:
                attacked.set()
                over.set()
            watching.result()
        return found


def distribution(seconds: list[float]) -> str:
    """The median and what is above it, in seconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"median {cuts[49]:.2f}, 90 % {cuts[89]:.2f}, 99 % {cuts[98]:.2f}, greatest {max(seconds):.2f}"


def report(before: Found, found: Found, late: float) -> bool:
    """Print what came of it; whether all is well but for the server's end."""
    usual = [statistics.median([s for n, s in before.seconds if n == number]) for number in range(hostile.N_PLAIN)]
    lateness = [s - usual[number] for number, s in found.seconds]
    print(f"plain requests alone: {len(before.seconds)}, seconds: {distribution([s for _, s in before.seconds])}")
    print(f"among hostile ones: {len(found.seconds)}, seconds: {distribution([s for _, s in found.seconds])}")
    print(f"lateness, seconds: {distribution(lateness)}; {sum(one > late for one in lateness)} over {late:g}")
    print(f"hostile: {sum(found.statuses.values())}, by status {dict(sorted(found.statuses.items()))}")
    print("slowest of them:", ", ".join(f"{number}: {s:.1f} s" for s, number in sorted(found.slowest)[:-6:-1]))
    print(f"/health: {len(found.health)} times, seconds: {distribution(found.health)}")
    quarter = max(len(found.memory) // 4, 1)
    first, last = max(found.memory[:quarter]), max(found.memory[-quarter:])
    print(
        f"memory, MiB: {before.memory[-1]:.0f} before, {first:.0f} at most in the first quarter, {last:.0f} in the last"
    )
    wrong = [*before.wrong, *found.wrong]
    print(f"wrong, lost or unwell: {len(wrong)}")
    for line in wrong[:10]:
        print(" ", line)
    return not wrong and max(lateness) <= late and not found.statuses.keys() - hostile.STATUSES


def main(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, profile = options.model, options.profile
        if model is None:
            model = write_tiny_model(folder / "tiny.gguf")
            profile = folder / "firm.gguf"
            make_profile(model, name="firm", gate="selective").save(profile)
        command = [sys.executable, "-m", "finesteer_local", "serve", str(model), "--port", "0", "--max-tokens", "64"]
        command += ["--threads", str(options.threads), *(["--profile", str(profile)] if profile else [])]
        for _ in range(options.busy):
            stack.callback(subprocess.Popen([sys.executable, "-c", _BUSY]).kill)
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(server.kill)
        assert server.stdout is not None
        name, _, url = server.stdout.readline().rpartition(" · ")
        server.stdout.readline()  # ready
        soak = Soak(url.strip(), server.pid, name.split(" · ")[0], options)
        before = soak.run(0)
        began = time.monotonic()
        found = soak.run(options.hostile)
        print(f"{' '.join(command[2:])}, {options.busy} busy processes, {time.monotonic() - began:.0f} s")
        well = report(before, found, options.late)
        server.terminate()
        code = server.wait()
        print(f"the server's exit code: {code}")
    return 0 if well and not code else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file; a tiny one with random weights unless given")
    parser.add_argument("--profile", help="steers the plain requests")
    parser.add_argument("--requests", type=int, default=1000, help="plain ones, at least")
    parser.add_argument("--hostile", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=2, help="that send plain requests")
    parser.add_argument("--attackers", type=int, default=3, help="clients that send hostile ones")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--busy", type=int, default=0, help="processes beside it that keep a core busy each")
    parser.add_argument("--late", type=float, default=2.0, help="seconds that an answer may be late")
    sys.exit(main(parser.parse_args()))
