"""What it costs to read an answer while it is written, as long as nothing shows.

    python benchmarks/watch.py MODEL [--profile PROFILE] [--every 1 2 4] [--answer 96] [--rounds 7] [--threads 1]

One answer: llama-cpp-python alone, and with a profile that reads every `--every`-th token. Then `--requests` of them at
once, unread and read. All ways take turns in every round; a ratio is that of one round, and the median is told. Without
a profile that reads answers, one with random weights stands in: it means nothing, and costs the same. On a busy machine
`--cpu` counts the processor's seconds, of one thread, in place of the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from finesteer_local import catalog
from finesteer_local.bench.batch import conversations
from finesteer_local.bench.profiles import closed, stand_in
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.amx import PlainLlama
from finesteer_local.runtime.batch import BatchEngine, Request, Steer, chat_request
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.runtime.threads import release_workers
from finesteer_local.steering import AnswerGate

SHUT = 1e9
clock: Callable[[], float] = time.perf_counter


def reading(profile: Profile, every: int) -> Profile:
    """The profile with its prompt's gate shut, and one on the answer that never opens and reads every k-th token."""
    model, gate = profile.model, profile.answer_gate
    if gate is None:
        weight = np.random.default_rng(0).standard_normal(model.n_embd).astype(np.float32)
        gate = AnswerGate(profile.layers[-1], weight, bias=0.0, decay=0.9, threshold=SHUT, first=8)
    return replace(closed(profile), answer_gate=replace(gate, every=every, threshold=SHUT))


def decode(llama: PlainLlama, prompt: list[int], n_answer: int) -> float:
    """Seconds a token of a greedy answer, its first one aside."""
    llama.reset()  # type: ignore[no-untyped-call]
    stream = llama.generate(prompt, temp=0.0)
    next(stream)
    begun = clock()
    for _ in range(n_answer):
        next(stream)
    return (clock() - begun) / n_answer


def together(llama: SteeredLlama, requests: list[Request], n_ctx: int) -> float:
    """Seconds for all answers, from the moment when the last prompt is read."""
    with BatchEngine(llama, n_parallel=len(requests), n_ctx=n_ctx) as engine:
        streams = [engine.submit(request) for request in requests]
        iterators = [iter(stream) for stream in streams]
        for events in iterators:
            next(events)
        begun = clock()
        for events in iterators:
            for _ in events:
                pass
        return clock() - begun


def alternate(ways: dict[str, Callable[[], float]], rounds: int, base: str) -> None:
    found: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        names = list(ways) if i % 2 else list(ways)[::-1]
        for name in names:
            found[name].append(ways[name]())
            release_workers()
    for name, seconds in found.items():
        ratios = [a / b for a, b in zip(found[base], seconds, strict=True)]
        low, high = min(ratios), max(ratios)
        print(f"{name}: {np.median(ratios):.3f} of {base} ({low:.3f} to {high:.3f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--profile", help="a profile; without it, a random one stands in")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--answer", type=int, default=96, help="tokens of every answer")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--what", choices=("one", "many"), nargs="+", default=["one", "many"])
    parser.add_argument("--cpu", action="store_true", help="count the processor's time")
    arguments = parser.parse_args()
    if arguments.cpu:
        global clock
        clock, arguments.threads = time.process_time, 1
    path = catalog.resolve_model(arguments.model)
    n_ctx = 256 + arguments.answer
    llama = open_model(path, n_threads=arguments.threads, n_ctx=n_ctx)
    profile = stand_in(llama.identity)
    if arguments.profile:
        profile = Profile.load(catalog.resolve_profile(arguments.profile, llama.identity))
    profiles = {every: reading(profile, every) for every in arguments.every}
    chats = conversations(arguments.requests)
    ends = {token: -1e9 for token in range(llama.n_vocab()) if token in (llama.token_eos(), llama.turn_end)}
    if "one" in arguments.what:
        threads = llama.n_threads
        plain = PlainLlama(str(path), n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False)
        prompt = chat_prompt(llama, chats[0])

        def read(every: int) -> float:
            llama.set_profiles([profiles[every]])
            return decode(llama, prompt, arguments.answer)

        ways: dict[str, Callable[[], float]] = {"llama-cpp-python": lambda: decode(plain, prompt, arguments.answer)}
        ways |= {f"every {every}": partial(read, every) for every in profiles}
        alternate(ways, arguments.rounds, "llama-cpp-python")
        plain.close()
    if "many" in arguments.what:
        options = {"max_tokens": arguments.answer, "temperature": 0.0, "logit_bias": ends}
        requests = [chat_request(llama, chat, **options) for chat in chats]
        name = f"{len(requests)} unread"
        asked = {name: requests}
        for every, each in profiles.items():
            steer = (Steer(each),)
            asked[f"{len(requests)} read, every {every}"] = [replace(request, steer=steer) for request in requests]
        unread = (Steer(replace(closed(profile), answer_gate=None)),)
        asked[name] = [replace(request, steer=unread) for request in requests]
        many: dict[str, Callable[[], float]] = {each: partial(together, llama, asked[each], n_ctx) for each in asked}
        alternate(many, arguments.rounds, name)


if __name__ == "__main__":
    main()
