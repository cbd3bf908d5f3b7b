"""Models on other machines. That they are exact there, the tests with the fixture `device` show."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cli import call, command_line, error_of, good, spawn
from finesteer_local import paths
from finesteer_local.bench import Results, measure
from finesteer_local.bench import answers as answers_bench
from finesteer_local.errors import WorkerError
from finesteer_local.profile import Profile
from finesteer_local.runtime import machine, open_model, rpc
from finesteer_local.runtime.machine import watch_placement
from finesteer_local.runtime.rpc import hello, lost, use
from finesteer_local.steering import ContrastiveGate
from reference import answer, logits, plain_llama, steered_llama
from tiny import make_profile, write_tiny_model
from workers import free_port, lasting_worker, needs_rpc, on_worker, worker_process

PROMPT = list(range(40, 81))
SECONDS = 10.0  # in which whoever uses a worker must have told that it is gone


@pytest.fixture(scope="module")
def two_workers(worker: str) -> tuple[str, str]:
    return worker, lasting_worker()


# --- the same as here

_OTHERS_GO = """
import gc, sys
from pathlib import Path
from workers import lasting_worker, on_worker
from reference import plain_llama, steered_llama
path = Path(sys.argv[1])
with on_worker(lasting_worker(), lasting_worker()):
    opened = [plain_llama(path), steered_llama(path)]
    for llama in opened:
        others = {"closed": plain_llama(path), "collected": plain_llama(path)}
        others["collected"].itself = others["collected"]
        seen = []
        for go in (lambda: None, others["closed"].close, lambda: (others.clear(), gc.collect())):
            llama.reset()
            llama.eval([5])
            llama.eval([6])
            go()
            llama.eval([7])  # llama.cpp has no need to build another graph
            seen.append(llama.scores[2].tobytes())
        print(len(set(seen)), flush=True)
"""


@needs_rpc
def test_a_model_goes_on_when_another_goes(tiny: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _OTHERS_GO, str(tiny)], capture_output=True, cwd=Path(__file__).parent)
    assert (done.stdout.split(), done.returncode) == ([b"1", b"1"], 0), done.stderr.decode()
    assert not done.stderr


_OTHERS_GO_MEANWHILE = """
import sys
from pathlib import Path
from batching import request, tokens
from finesteer_local.runtime.batch import BatchEngine
from reference import steered_llama, tapped
from workers import lasting_worker, on_worker

path = Path(sys.argv[1])
with on_worker(lasting_worker()), BatchEngine(steered_llama(path), n_parallel=1) as engine:
    wanted = request(tokens(20), max_tokens=200)
    said = {engine.submit(wanted).result().text}
    for _ in range(3):
        stream = engine.submit(wanted)
        while not stream.ended:
            tapped(path, n_ctx=64).close()
        said.add(stream.result().text)
    print(len(said), flush=True)
"""


@needs_rpc
def test_a_model_goes_on_when_another_goes_in_another_thread(tiny: Path) -> None:
    """Else a token is computed with the other thread's graph, or the worker hangs up, or neither says any more."""
    command = [sys.executable, "-c", _OTHERS_GO_MEANWHILE, str(tiny)]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parent, timeout=300)
    assert (done.stdout.split(), done.returncode) == ([b"1"], 0), done.stderr.decode()


@pytest.mark.parametrize("number", [1, 2])
def test_logits_and_decisions_are_those_of_this_machine(
    tiny_model: Path, two_workers: tuple[str, str], number: int
) -> None:
    profiles = [make_profile(tiny_model, gate="partly", scope="turn"), make_profile(tiny_model, name="b", seed=1)]

    def run() -> list[object]:
        seen: list[object] = []
        for active in ([], profiles):
            llama = steered_llama(tiny_model, profiles=active)
            seen += [answer(llama, PROMPT), logits(llama).tobytes()]
            seen += [(d.g, d.score, [v.tobytes() for v in d.vectors.values()]) for d in llama.last_decisions]
        return seen

    here = run()
    with on_worker(*two_workers[:number]):
        with watch_placement() as placement:
            plain_llama(tiny_model, verbose=True)
        devices = [placement.layers[layer] for layer in range(4)]
        assert len(set(devices)) == number and all(device.startswith("RPC") for device in devices)
        there = run()
    assert there == here


def test_the_real_model_over_two_workers(smollm2: Path, two_workers: tuple[str, str]) -> None:
    profile = make_profile(smollm2, gate="partly", gate_layer=11, layers=(12, 20), strength=0.3, scope="prompt")

    def run() -> tuple[list[int], bytes, float]:
        llama = steered_llama(smollm2, profiles=[profile])
        return answer(llama, list(range(1000, 1060)), 6), logits(llama).tobytes(), llama.last_decision.score

    here = run()
    with on_worker(*two_workers):
        assert run() == here


def test_devices(tiny: Path, worker: str) -> None:
    assert not machine.has_accelerator() or machine.supports_gpu()
    before = machine.supports_gpu()
    with on_worker(worker):
        [device] = [device for device in machine.devices() if device.kind == "other machine"]
        assert device.description == worker and device.total > 1 << 28
        assert machine.has_accelerator() and machine.supports_gpu() is before
        assert plain_llama(tiny).model_params.n_gpu_layers != 0
        assert steered_llama(tiny).offloads
    assert not any(device.kind == "other machine" for device in machine.devices())
    assert not steered_llama(tiny, n_gpu_layers=-1).offloads or before


def test_a_worker_is_added_once(tiny: Path, worker: str) -> None:
    with on_worker(worker):
        n = len(machine.devices())
        llama = open_model(tiny, n_threads=1, rpc=[worker], n_gpu_layers=-1)
        assert llama.offloads and len(machine.devices()) == n
        rpc.check_workers()  # it is there


@needs_rpc
def test_llama_cpps_connection_notices_silence(worker: str) -> None:
    rpc.use_workers([worker])
    [connection] = lost.watched[worker]
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_bench_measures_this_machine_beside_the_workers(tiny: Path, worker: str) -> None:
    results = Results()
    with on_worker(worker):
        what = ["decode", "start"]
        measure(tiny, [], results, what=what, quick=True, rounds=1, n_threads=1, rpc=[worker])
    [series] = results.series
    assert {answers_bench.HERE, answers_bench.OPEN} < {*series.samples} and results.about["rpc"] == [worker]
    assert "one program at a time" in results.notes[0]


def test_training_and_evaluating(tiny: Path, worker: str, tmp_path: Path) -> None:
    """Both go through a worker to the same figures as here, to the last bit."""
    words = ["alpha", "beta", "gamma", "delta"]
    pairs = [{"prompt": f"! {words[i % 4]} {i}", "chosen": f"no {i % 5}", "rejected": f"{i} sure"} for i in range(36)]
    contrast = [{"prompt": f"what is {words[i % 4]} {i}?"} for i in range(30)]
    suite = [{"prompt": row["prompt"], "label": "harmful"} for row in pairs[:4]] + contrast[:4]
    files = {"pairs": pairs, "contrast": contrast, "suite": suite}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")

    def run(*options: str) -> tuple[Profile, list[dict[str, Any]]]:
        file, data = tmp_path / "out.gguf", [tmp_path / f"{name}.jsonl" for name in files]
        good("train", tiny, "--data", data[0], "--contrast", data[1], "-o", file, "--force", "--threads", 1, *options)
        shown = good(
            "eval", tiny, "-p", file, "--suite", data[2], "--json", "--max-tokens", 6, "--threads", 1, *options
        )
        return Profile.load(file), json.loads(shown.stdout)["totals"]

    with on_worker(worker):
        there, figures_there = run("--rpc", worker)
    here, figures_here = run()
    layer = here.layers[0]
    assert there.layers == here.layers and there.strength == here.strength
    assert np.array_equal(there.experts[layer].prototypes, here.experts[layer].prototypes)
    assert isinstance(here.gate, ContrastiveGate) and isinstance(there.gate, ContrastiveGate)
    assert np.array_equal(there.gate.query, here.gate.query) and there.gate.threshold == here.gate.threshold
    for row in (*figures_there, *figures_here):
        row.pop("seconds", None)  # those of sampled answers are not timed
    assert figures_there == figures_here


def test_doctor_lists_them(tiny: Path, worker: str) -> None:
    with on_worker(worker):
        found = json.loads(good("doctor", tiny, "--json", "--rpc", worker).stdout)["findings"]
    said = {finding["name"]: finding["says"] for finding in found}
    assert said["other machines (RPC)"] == "yes"
    assert any(
        name.startswith("device RPC") and says.startswith(f"other machine: {worker}") for name, says in said.items()
    )
    assert said["layers"].startswith("4 of 4 on RPC")
    assert said["tap and control vector"].endswith("alike bit for bit")


@needs_rpc
def test_doctor_says_what_is_wrong(home: Path) -> None:
    result = call("doctor", "--json", "--rpc", f"127.0.0.1:{free_port()}")
    [broken] = [f for f in json.loads(result.stdout)["findings"] if f["state"] == "broken"]
    assert result.exit_code == 1 and broken["name"] == "workers" and "cannot reach a worker" in broken["remedy"]


# --- what can be known before


@contextmanager
def listening(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """The endpoint of something that does this with every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    behave(connection)

        threading.Thread(target=run, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def answers(*data: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.recv(64)
        for piece in data:
            connection.sendall(piece)

    return behave


def version(major: int, minor: int = 0, size: int = 28) -> bytes:
    return struct.pack("<Q", size) + bytes([major, minor, 0]) + bytes(size - 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([version(200, 1)], r"speaks llama.cpp's RPC 200.1.0, this llama.cpp \d+\.\d+\.\d+; install the same version"),
        ([version(1, size=3)], "speaks llama.cpp's RPC 1.0.0"),
        ([], "no llama.cpp RPC worker, or one of another version"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "no llama.cpp RPC worker"),
        ([struct.pack("<Q", 28), b"\7"], "no llama.cpp RPC worker"),
    ],
    ids=["newer", "older", "closes", "another protocol", "stops half-way"],
)
@needs_rpc
def test_what_is_no_worker_for_us(data: list[bytes], said: str) -> None:
    with listening(answers(*data)) as endpoint, pytest.raises(WorkerError, match=said):
        rpc.use_workers([endpoint])
    assert endpoint not in lost.watched


def test_the_same_version_passes() -> None:
    ours = rpc.protocol()
    assert ours is not None
    with listening(answers(version(*ours[:2]))) as endpoint:
        host, port = endpoint.split(":")
        assert rpc.check_worker(endpoint) == (host, int(port))
    with listening(answers(version(ours[0], ours[1] + 1))) as endpoint, pytest.raises(WorkerError, match="speaks"):
        rpc.check_worker(endpoint)


def test_a_worker_that_serves_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello, "_ANSWER", 0.2)
    hold = threading.Event()
    with listening(lambda _: hold.wait(60) and None) as endpoint:
        with pytest.raises(WorkerError, match="serves another program"):
            rpc.check_worker(endpoint)
        hold.set()


@needs_rpc
def test_nobody_listens(tiny: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    line = error_of("run", tiny, "hello", "--rpc", endpoint)
    assert line.startswith(f"Error: cannot reach a worker at {endpoint}: connection refused; start it there with: ")
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    "endpoint", ["here", "here:0", "here:65536", "a b:1", ":1", "a:b", "::1", "[::1]:50052", "a:1,b:2"]
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(WorkerError, match="host:port"):
        rpc.split_endpoint(endpoint)


@pytest.mark.parametrize("command", ["chat", "run", "train", "eval", "bench", "serve", "doctor"])
@pytest.mark.parametrize("given", ["here", "127.0.0.1:50052,there", "a:0"])
def test_every_command_takes_it(command: str, given: str, tiny: Path) -> None:
    assert "is not host:port" in error_of(command, tiny, "--rpc", given, code=2)


def test_a_llama_cpp_without_rpc(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = use.function
    monkeypatch.setattr(use, "function", lambda name, *a: (lambda _: None) if "reg_by_name" in name else real(name, *a))
    assert rpc.INSTALL in error_of("run", tiny, "hello", "--rpc", "127.0.0.1:1")
    assert rpc.INSTALL in error_of("worker", "--port", "0")


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "procedure", lambda *_: None)
    with pytest.raises(WorkerError, match="15 workers at most"):
        rpc.use_workers([f"host{i}:1" for i in range(16)])


# --- workers that go away


def ended(process: subprocess.Popen[bytes], endpoint: str) -> None:
    """The program ends soon, with one line and code 1."""
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, stderr
    errors = [line for line in stderr.decode().splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and f"the worker at {endpoint} went away" in errors[0], stderr
    assert b"Traceback" not in stderr and b"ggml" not in stderr


def program(*args: str | Path, **options: object) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command_line(*args), **pipes)  # type: ignore[call-overload, no-any-return]


@needs_rpc
def test_killed_while_it_answers(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", context_length=1 << 16)
    with worker_process() as (worker, endpoint):
        arguments = ("run", model, "hello", "--rpc", endpoint, "--threads", "1", "--ctx", "60000")
        process = program(*arguments, "--max-tokens", "50000")
        assert process.stdout is not None and process.stdout.read(20)
        worker.kill()
        ended(process, endpoint)
    port = endpoint.split(":")[1]
    with worker_process(int(port)):  # started again, all is well
        done = spawn(*arguments, "--max-tokens", "5")
        assert done.returncode == 0 and len(done.stdout) == 6


@needs_rpc
def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", context_length=1 << 16)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "ab"))
    out.mkdir()
    with worker_process() as (worker, endpoint):
        options = ("--rpc", endpoint, "--ctx", "20000", "--threads", "1")
        process = program("run", model, "--jsonl", rows, "-o", out / "answers.jsonl", *options)
        end = time.monotonic() + 60
        while not list(out.iterdir()) and time.monotonic() < end:
            time.sleep(0.01)
        worker.kill()
        ended(process, endpoint)
    assert not list(out.iterdir())


@needs_rpc
def test_killed_between_two_questions(tiny: Path) -> None:
    with worker_process() as (worker, endpoint):
        process = program("chat", tiny, "--rpc", endpoint, "--threads", "1", "--max-tokens", "5")
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.read(5)
        worker.kill()
        worker.wait()
        process.stdin.write(b"and now?\n")
        ended(process, endpoint)


@needs_rpc
def test_a_server_ends(tiny: Path) -> None:
    with worker_process() as (worker, endpoint):
        process = program("serve", tiny, "--rpc", endpoint, "--port", "0", "--threads", "1", "--ctx", "256")
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].decode()
        assert b"Ready" in process.stdout.readline()
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        worker.kill()
        ended(process, endpoint)


def test_files_under_way_are_discarded(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    target.write_text("before")
    with paths.atomic_write(target) as temporary:
        assert temporary.exists()
        paths.discard_unfinished()
        assert not temporary.exists()
        temporary.write_text("after")
    assert target.read_text() == "after"
    assert not paths._unfinished


def test_a_vector_is_read_and_written_there(tiny: Path, worker: str) -> None:
    """Rows of a tensor that is not this process's memory, one by one."""
    with on_worker(worker):
        llama = steered_llama(tiny)
        seen = []

        def turn_round(_: int, rows: object) -> bool:
            state = rows.read(1, 3)  # type: ignore[attr-defined]
            rows.write(1, -state)  # type: ignore[attr-defined]
            seen.append((state, rows.read(0, 4)))  # type: ignore[attr-defined]
            return True

        llama.tap.arm({2: turn_round})
        llama.eval(PROMPT[:4])
        llama.tap.check()
    [(state, after)] = seen
    np.testing.assert_array_equal(after[1:3], -state)
    assert not np.array_equal(after[0], after[1])
