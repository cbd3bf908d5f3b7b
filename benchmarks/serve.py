"""The server under load, bounded: every answer complete and equal to the same request served alone, none lost.

    python benchmarks/serve.py MODEL.gguf --profile PROFILE.gguf --requests 2000 --clients 64

Starts `finesteer-local serve` on loopback and asks it from many clients at once: steered and unsteered, streamed and
not, with some clients that go away in mid-answer and some malformed requests. Before, each of the distinct requests is
served alone; greedy, the crowd must give the same texts and decisions. The memory of the server is sampled meanwhile.

    python benchmarks/serve.py MODEL.gguf --profile PROFILE.gguf --plain

compares throughput: complete, streamed answers through the server, and the same requests given to the batched engine
itself in this process, before and after.

    python benchmarks/serve.py MODEL.gguf --profile PROFILE.gguf --behind 4000

measures when a short request gets its first token while a prompt of so many tokens is read, and alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from finesteer_local.bench.batch import conversations
from finesteer_local.bench.profiles import opened
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.batch import BatchEngine, Steer, chat_request

MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b'{"messages": []}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": -1}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "steering": {"profiles": [{"name": "../x"}]}}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "model": "another"}', 404),
    (b" " * 2_000_000, 413),
)


@dataclass
class Found:
    """What came of the crowd."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    n_tokens: int = 0
    memory: list[float] = field(default_factory=list)  # MiB, one sample a second


def bodies(n: int, n_answer: int) -> list[dict[str, Any]]:
    """`n` distinct greedy requests, every other one unsteered."""
    return [
        {
            "messages": chat,
            "temperature": 0,
            "max_tokens": n_answer,
            **({"steering": False} if i % 2 else {"steering": {"explain": False}}),
        }
        for i, chat in enumerate(conversations(n))
    ]


async def ask(client: httpx.AsyncClient, body: dict[str, Any], *, stream: bool = False) -> tuple[str, Any, int]:
    """Text, decisions and tokens of an answer; raises unless it is complete."""
    if not stream:
        answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
        text = answer["choices"][0]["message"]["content"]
        return text, answer["steering"], answer["usage"]["total_tokens"]
    text, steering, n_tokens, done = "", None, 0, False
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            steering = event.get("steering", steering)
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
            n_tokens = (event.get("usage") or {}).get("total_tokens", n_tokens)
    if not done:
        raise RuntimeError("the stream was cut")
    return text, steering, n_tokens


async def leave(client: httpx.AsyncClient, body: dict[str, Any], after: float) -> None:
    """Go away in mid-answer."""
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        async for _ in response.aiter_bytes():
            await asyncio.sleep(after)
            return


async def crowd(url: str, wanted: list[dict[str, Any]], alone: list[Any], options: argparse.Namespace) -> Found:
    found, dice = Found(), random.Random(0)
    numbers = iter(range(options.requests))
    limits = httpx.Limits(max_connections=options.clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(number: int) -> None:
            chance, i = dice.random(), number % len(wanted)
            if options.plain:
                chance = 0.5
            if chance < 0.05:
                content, status = dice.choice(MALFORMED)
                headers = {"Content-Type": "application/json"}
                answer = await client.post("/v1/chat/completions", content=content, headers=headers)
                found.counts["malformed"] += 1
                if answer.status_code != status:
                    found.wrong.append(f"{content[:40]!r} got {answer.status_code}")
            elif chance < 0.1:
                await leave(client, wanted[i], dice.random() / 10)
                found.counts["left"] += 1
            else:
                text, steering, n_tokens = await ask(client, wanted[i], stream=chance < 0.55)
                found.counts["answered"] += 1
                found.n_tokens += n_tokens
                if (text, steering) != alone[i]:
                    found.wrong.append(f"request {i}: {text!r} instead of {alone[i][0]!r}")

        async def visitor() -> None:
            for number in numbers:
                try:
                    await one(number)
                except Exception as error:
                    found.wrong.append(f"request {number}: {type(error).__name__}: {error}")

        async def watch() -> None:
            while True:
                found.memory.append(resident(options.pid))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(visitor() for _ in range(options.clients)))
        watching.cancel()
        for _ in range(100):
            page = (await client.get("/metrics")).text
            if "finesteer_requests_running 0.0" in page and "finesteer_requests_waiting 0.0" in page:
                break
            await asyncio.sleep(0.1)
        else:
            found.wrong.append("a place was never freed")
    return found


def resident(pid: int) -> float:
    """Resident memory of a process in MiB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def directly(options: argparse.Namespace, wanted: list[dict[str, Any]], profile: Profile, n: int) -> float:
    """Tokens a second of the batched engine itself, for the first `n` requests of the crowd."""
    llama = open_model(options.model, n_ctx=512)
    requests = [
        chat_request(
            llama,
            body["messages"],
            steer=[] if body["steering"] is False else [Steer(profile)],
            temperature=0.0,
            max_tokens=body["max_tokens"],
        )
        for body in wanted
    ]
    with BatchEngine(llama, n_parallel=options.parallel, n_ctx=options.context, max_queue=n) as engine:
        for (
            request
        ) in requests:  # as the server was asked each alone before: beginnings that are kept are kept here too
            engine.submit(request).result()
        began = time.perf_counter()
        streams = [engine.submit(requests[i % len(requests)]) for i in range(n)]
        n_tokens = sum(a.finished.n_prompt + a.finished.n_answer for a in (stream.result() for stream in streams))
        seconds = time.perf_counter() - began
    llama.close()
    return n_tokens / seconds


async def first_token(client: httpx.AsyncClient, messages: list[Any]) -> float:
    """Seconds until the first piece of the answer."""
    began = time.perf_counter()
    body = {"messages": messages, "temperature": 0, "max_tokens": 4, "stream": True}
    seconds = None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if seconds is None and '"delta":{"content"' in line:
                seconds = time.perf_counter() - began
    assert seconds is not None
    return seconds


async def behind(url: str, options: argparse.Namespace) -> None:
    """The short request comes at another point of the long prompt's reading each time."""
    dice = random.Random(0)
    alone, crowded, long = [], [], []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        n_words = options.behind - 60  # the template's tokens are on top
        for i, short in enumerate(conversations(8)):
            alone.append(await first_token(client, short))
            text = f"{i}: " + "sea " * n_words + "How often is the sea named?"
            reading = asyncio.create_task(first_token(client, [{"role": "user", "content": text}]))
            await asyncio.sleep(0.2 + dice.random() * (0.6 * long[0] if long else 1.0))
            # another question: of the same one, the beginning would still be in the cache
            question = [{"role": "user", "content": short[0]["content"] + " Be brief."}]
            crowded.append(await first_token(client, question))
            assert not reading.done(), "the long prompt was read too fast to be in the way"
            long.append(await reading)
    ratios = [b / a for a, b in zip(alone, crowded, strict=True)]
    print(
        f"first token of a short request: {statistics.median(alone):.3f} s alone, {statistics.median(crowded):.3f} s "
        f"behind {options.behind} tokens, which take {statistics.median(long):.2f} s themselves; "
        f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
    )


async def main(options: argparse.Namespace) -> int:
    wanted = bodies(options.distinct, options.answer)
    profile = Profile.load(options.profile)
    if options.open:
        profile = opened(profile)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile.gguf"
        profile.save(file)
        return await measure(options, wanted, profile, file)


async def measure(options: argparse.Namespace, wanted: list[dict[str, Any]], profile: Profile, file: Path) -> int:
    engine = [directly(options, wanted, profile, options.requests)] if options.plain else []
    command = [sys.executable, "-m", "finesteer_local", "serve", options.model, "--profile", str(file)]
    command += ["--port", "0", "--parallel", str(options.parallel)]
    command += ["--ctx", str(max(options.context, options.behind + 200 if options.behind else 0))]
    server = subprocess.Popen([*command, "--queue", "4096"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().split()[-1]
        server.stdout.readline()  # ready
        options.pid = server.pid
        if options.behind:
            await behind(url, options)
            return 0
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            alone = [(await ask(client, body))[:2] for body in wanted]
        began, busy = time.perf_counter(), time.process_time()
        found = await crowd(url, wanted, alone, options)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    finally:
        server.terminate()
        code = server.wait()
    opened = sum(d["open"] for _, steering in alone for d in steering["decisions"])
    served = found.n_tokens / seconds
    print(f"{dict(found.counts)} in {seconds:.1f} s; {len(alone)} distinct requests, {opened} with the gate open")
    print(f"wrong or lost: {len(found.wrong)}; the server's exit code {code}")
    for line in found.wrong[:10]:
        print(" ", line)
    quarter = max(len(found.memory) // 4, 1)
    print(
        f"memory: {found.memory[0]:.0f} MiB at first, {max(found.memory[:quarter]):.0f} at most in the first quarter, "
        f"{max(found.memory[-quarter:]):.0f} in the last"
    )
    print(f"served: {served:.1f} tokens/s, prompts included; the clients themselves took {busy:.1f} s of a processor")
    if options.plain:
        engine.append(directly(options, wanted, profile, options.requests))
        mean = sum(engine) / 2
        print(f"the engine itself: {engine[0]:.1f} before, {engine[1]:.1f} after; served / engine {served / mean:.3f}")
    return 1 if found.wrong or code else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--distinct", type=int, default=32, help="different requests")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--answer", type=int, default=32, help="tokens")
    parser.add_argument(
        "--open", action="store_true", help="hold the gate open, so that every other request is steered"
    )
    parser.add_argument(
        "--plain", action="store_true", help="only complete, streamed requests, and the engine itself for comparison"
    )
    parser.add_argument(
        "--behind", type=int, default=0, metavar="TOKENS", help="only the first token behind a long prompt"
    )
    sys.exit(asyncio.run(main(parser.parse_args())))
