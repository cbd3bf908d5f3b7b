"""What eight requests at once gain, and what steering each by its own decision costs, alternately in one run.

    python benchmarks/batch.py MODEL.gguf --profile PROFILE.gguf

Every round answers the same requests in every way once, in a new order; the table shows medians over the rounds of all
tokens (prompts and answers) a second. Gates are held open, so that every request is steered, by vectors that differ.
`bare` ways are plain llama.cpp without us: one `llama_decode` a token, and one for all sequences.

    python benchmarks/batch.py MODEL.gguf --profile PROFILE.gguf --equal

asks instead how often a request gets the same decision and the same greedy text in a batch as alone, with the gate as
it is and with the gate held open.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from decode import opened

from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.batch import BatchEngine, Request, Steer, chat_request
from finesteer_local.runtime.batch.context import Streams, Token

SUBJECTS = (
    "how a bicycle stays upright", "why bread rises in the oven", "what makes a good neighbour",
    "the history of the lighthouse", "how to plan a small garden", "why cats sleep so much",
    "the difference between weather and climate", "how a piano makes its sound", "what a census is for",
    "how to repair a wooden chair", "why the sea is salty", "how a library orders its books",
    "what happens during a lunar eclipse", "how to prepare for a job interview", "why onions make us cry",
    "how trains change tracks",
)  # fmt: skip
TASKS = (
    "Explain {}, in your own words.",
    "I have to give a talk tomorrow. Its subject is {}. Write its first paragraph.",
    "List three facts about this: {}.",
    "My grandmother asked me about {} and I did not know what to say. What should I tell her?",
    "Write a short poem. Its subject: {}.",
)


@dataclass(frozen=True)
class Run:
    seconds: float
    n_tokens: int  # prompts and answers
    texts: list[str]


def conversations(n: int) -> list[list[dict[str, str]]]:
    """The first `n` of all tasks for all subjects; they differ."""
    questions = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    return [[{"role": "user", "content": question}] for question in questions[:n]]


def one_after_the_other(llama: SteeredLlama, profiles: list[Profile], chats: list, n_answer: int) -> Run:
    llama.set_profiles(profiles)
    llama.forget()
    texts, n_tokens, started = [], 0, time.perf_counter()
    for chat in chats:
        answer = llama.create_chat_completion(chat, max_tokens=n_answer, temperature=0.0)
        texts.append(answer["choices"][0]["message"]["content"])
        n_tokens += answer["usage"]["total_tokens"]
    return Run(time.perf_counter() - started, n_tokens, texts)


def together(engine: BatchEngine, requests: list[Request]) -> Run:
    started = time.perf_counter()
    answers = [stream.result() for stream in [engine.submit(request) for request in requests]]
    seconds = time.perf_counter() - started
    n_tokens = sum(answer.finished.n_prompt + answer.finished.n_answer for answer in answers)
    return Run(seconds, n_tokens, [answer.text for answer in answers])


def bare(streams: Streams, requests: list[Request], n_answer: int, at_once: bool) -> Run:
    streams.forget()
    started = time.perf_counter()
    for group in [list(enumerate(requests))] if at_once else [[pair] for pair in enumerate(requests)]:
        tokens = {}
        for i, request in group:
            last = len(request.prompt) - 1
            streams.decode([Token(token, j, i, j == last) for j, token in enumerate(request.prompt)])
            tokens[i] = int(streams.logits(last).argmax())
        for step in range(n_answer - 1):
            streams.decode([Token(tokens[i], len(request.prompt) + step, i, True) for i, request in group])
            tokens = {i: int(streams.logits(row).argmax()) for row, (i, _) in enumerate(group)}
    n_tokens = sum(len(request.prompt) + n_answer for request in requests)
    return Run(time.perf_counter() - started, n_tokens, [])


def measure(llama: SteeredLlama, profile: Profile, arguments: argparse.Namespace) -> None:
    n, n_answer = arguments.requests, arguments.answer
    chats = conversations(n)
    options = {"max_tokens": n_answer, "temperature": 0.0}
    plain = [chat_request(llama, chat, **options) for chat in chats]
    steered = [chat_request(llama, chat, steer=[Steer(profile)], **options) for chat in chats]
    ways: dict[str, Callable[[], Run]]
    with BatchEngine(llama, n_parallel=n, n_ctx=arguments.context) as engine:
        streams = Streams(llama, n_sequences=n, n_ctx=arguments.context, n_ubatch=512, native_tap=True)
        ways = {
            "bare, one after the other": lambda: bare(streams, plain, n_answer, False),
            "bare, together": lambda: bare(streams, plain, n_answer, True),
            "steered, one after the other": lambda: one_after_the_other(llama, [profile], chats, n_answer),
            "steered, together": lambda: together(engine, steered),
            "unsteered, one after the other": lambda: one_after_the_other(llama, [], chats, n_answer),
            "unsteered, together": lambda: together(engine, plain),
        }
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        for round_number in range(arguments.rounds + 1):
            for name in random.sample(list(ways), len(ways)):
                run = ways[name]()
                if round_number:  # the first warms up
                    runs[name].append(run)
        streams.close()
    speeds = {name: [run.n_tokens / run.seconds for run in found] for name, found in runs.items()}
    median = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        f"{what}: together / one after the other": median[f"{what}, together"] / median[f"{what}, one after the other"]
        for what in ("steered", "unsteered", "bare")
    }
    ratios["together: steered / unsteered"] = median["steered, together"] / median["unsteered, together"]
    ratios["together: unsteered / bare"] = median["unsteered, together"] / median["bare, together"]
    same = runs["steered, together"][-1].texts, runs["steered, one after the other"][-1].texts
    n_same = sum(a == b for a, b in zip(*same, strict=True))
    if arguments.json:
        print(json.dumps({"tokens_per_second": speeds, "ratios": ratios, "same_text": [n_same, n]}, indent=2))
        return
    for name, values in speeds.items():
        print(f"{name:32} {median[name]:8.1f} tokens/s   ({min(values):.1f} to {max(values):.1f}, n = {len(values)})")
    for name, ratio in ratios.items():
        print(f"{name:48} {ratio:.3f}")
    print(f"same text in the batch as alone: {n_same} of {n}")


def compare(llama: SteeredLlama, profile: Profile, arguments: argparse.Namespace) -> None:
    """How often decision and greedy text are those of the request alone."""
    chats = conversations(arguments.requests * arguments.rounds)
    n_answer = arguments.answer
    requests = [
        chat_request(llama, chat, steer=[Steer(profile)], max_tokens=n_answer, temperature=0.0, repeat_penalty=1.0)
        for chat in chats
    ]
    with BatchEngine(llama, n_parallel=arguments.requests, n_ctx=arguments.context) as engine:
        batched = [stream.result() for stream in [engine.submit(request) for request in requests]]
    n_score = n_decision = n_text = 0
    llama.set_profiles([profile])
    for chat, answer in zip(chats, batched, strict=True):
        llama.forget()
        alone = llama.create_chat_completion(chat, max_tokens=n_answer, temperature=0.0, repeat_penalty=1.0)
        decision = llama.last_decisions[0]
        n_score += decision.score == answer.decisions[0].score
        n_decision += decision.open == answer.decisions[0].open
        n_text += alone["choices"][0]["message"]["content"] == answer.text
    n = len(chats)
    print(f"of {n} requests: the gate's score bit-equal {n_score}, same decision {n_decision}, same text {n_text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--answer", type=int, default=96, help="longest answer in tokens")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--equal", action="store_true", help="compare answers instead of measuring")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    llama = open_model(arguments.model, n_ctx=arguments.context, n_threads=arguments.threads)
    profile = Profile.load(arguments.profile)
    if arguments.equal:
        for name, gate in (("as it is", profile), ("open", opened(profile))):
            print(f"gate {name}: ", end="", flush=True)
            compare(llama, gate, arguments)
    else:
        measure(llama, opened(profile), arguments)


if __name__ == "__main__":
    main()
