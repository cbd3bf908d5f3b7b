"""How long starting takes, and how much memory a profile needs beyond llama.cpp's own.

Every sample is a process of its own: memory that one has had once is not given back, and imports are done once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from finesteer_local.bench.series import Series, alternate
from finesteer_local.errors import FineSteerError
from finesteer_local.runtime import amx

LOADED, READY, PEAK = "loaded", "ready", "peak"
NATIVE, OURS = "llama-cpp-python", "with one profile"
BEYOND = "beyond llama.cpp's own"
HELP = "finesteer-local --help"

# Both open the model, read the same chat, and answer some tokens.
_NATIVE = """
import json, runpy, sys, time
path, options, profile = json.loads(sys.argv[1])
Llama = runpy.run_path(sys.argv[2])["PlainLlama"]
started = time.perf_counter()
llama = Llama(path, **options)
loaded = ready = time.perf_counter() - started
"""
_OURS = """
import json, sys, time
from finesteer_local.runtime import SteeredLlama
path, options, profile = json.loads(sys.argv[1])
started = time.perf_counter()
llama = SteeredLlama(path, **options)
loaded = time.perf_counter() - started
llama.set_profiles([profile])
ready = time.perf_counter() - started
"""
_END = """
llama.create_chat_completion([{"role": "user", "content": "What is a black hole?"}], max_tokens=8, temperature=0.0)
peak = None
try:  # Linux; its getrusage would count what the parent process had, too
    with open("/proc/self/status") as status:
        peak = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except (OSError, StopIteration):
    if sys.platform == "darwin":
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"loaded": loaded, "ready": ready, "peak": peak}))
"""


def start_series(
    rest: Sequence[Series], path: Path, profile: Path, options: dict[str, Any], rounds: int, advance: Callable[[], None]
) -> None:
    """Fill three series: seconds of `--help`, seconds from a loaded model to one that is ready, and peak memory in MB.

    Raises:
        FineSteerError: a process failed.
    """
    help_, ready, memory = rest
    alternate(help_, {HELP: lambda: _seconds_of_help()}, rounds, advance)
    told = {NATIVE: dict[str, Any](), OURS: dict[str, Any]()}
    scripts = {NATIVE: _NATIVE + _END, OURS: _OURS + _END}

    def run(name: str) -> float:
        told[name] = _run(scripts[name], json.dumps([str(path), options, str(profile)]))
        advance()
        return float(told[name][PEAK] or 0) / 1e6

    for i in range(-1, rounds):
        values = {name: run(name) for name in (scripts if i % 2 else reversed(scripts))}
        if i < 0:
            continue
        ready.samples.setdefault(OURS, []).append(told[OURS][READY] - told[OURS][LOADED])
        if all(values.values()):
            values[BEYOND] = values[OURS] - values[NATIVE]
            for name in (NATIVE, OURS, BEYOND):
                memory.samples.setdefault(name, []).append(values[name])


def _seconds_of_help() -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "finesteer_local", "--help"], capture_output=True)
    _check(done)
    return time.perf_counter() - started


def _run(script: str, argument: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", script, argument, amx.__file__], capture_output=True)
    _check(done)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _check(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines() or ["no message"]
        raise FineSteerError(
            f"a measured process ended with code {done.returncode}: {lines[-1]}; leave out --what start"
        )
