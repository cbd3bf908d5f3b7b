"""How fast training reads prompts, against llama.cpp's own prompt processing, alternately in one run.

    python benchmarks/harvest.py MODEL.gguf --recipe safety --layer 13

`native` decodes 512 tokens in an empty context, as llama-bench's pp512 does. `alone` reads prompts one by one up to the
layer. `packed` reads every N-th of the batches that the whole recipe makes, so that what its prompts share counts as it
does in training, without the copy of expand.py; `expanded` with it. Tokens are prompt tokens, template included.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from llama_cpp import llama_cpp

from finesteer_local.runtime import open_model
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import Request
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.training.recipes import load_recipe

N_NATIVE = 512
N_ALONE = 12


def native(llama: SteeredLlama) -> float:
    """Tokens a second of plain prompt processing."""
    tokens = np.random.default_rng(0).integers(100, llama.n_vocab() - 100, N_NATIVE).tolist()
    llama.forget()
    started = time.perf_counter()
    llama.eval(tokens)
    return N_NATIVE / (time.perf_counter() - started)


def packed(harvester: Harvester, requests: list[Request], every: int, offset: int) -> float:
    """Prompt tokens a second over every `every`-th batch, what they share with other batches shared out evenly."""
    plan = harvester._plan(requests)
    batches = list(plan.batches())
    context = harvester._context_for(plan)
    harvester._start(context, plan)
    chosen = batches[offset % every :: every]
    started = time.perf_counter()
    for batch in chosen:
        harvester._decode(context, batch)
        llama_cpp.llama_memory_seq_rm(context.memory, -1, len(plan.root), -1)
    seconds = time.perf_counter() - started
    decoded = sum(len(batch.tokens) for batch in chosen)
    share = sum(len(request.tokens) for request in requests) / sum(len(batch.tokens) for batch in batches)
    return decoded * share / seconds


def alone(harvester: Harvester, requests: list[Request], offset: int) -> float:
    chosen = requests[offset :: len(requests) // N_ALONE][:N_ALONE]
    started = time.perf_counter()
    for request in chosen:
        harvester.turn_states(request.tokens, request.first)
    return sum(len(request.tokens) for request in chosen) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--recipe", default="safety")
    parser.add_argument("--layer", type=int, help="read up to this layer (default: 0.44 of the depth)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=50, help="read every so manieth batch")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    llama = open_model(arguments.model)
    layer = arguments.layer or round(0.44 * llama.n_layer)
    data = load_recipe(arguments.recipe)
    requests = []
    for prompt in (*data.positive, *data.contrast):
        tokens = chat_prompt(llama, prompt.messages)
        requests.append(Request(np.array(tokens, np.int32), len(tokens) - 1))
    plain = Harvester(llama, [layer], expand_from=float("inf"))
    copied = Harvester(llama, [layer], expand_from=0)
    next(copied.harvest(requests[:1]))  # makes the copy

    ways: dict[str, Callable[[int], float]] = {
        "native": lambda i: native(llama),
        "alone": lambda i: alone(plain, requests, i),
        "packed": lambda i: packed(plain, requests, arguments.every, i),
        "expanded": lambda i: packed(copied, requests, arguments.every, i),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(-1, arguments.rounds):
        for name in random.sample(list(ways), len(ways)):
            speed = ways[name](max(i, 0))
            if i >= 0:  # the first round warms up
                seen[name].append(speed)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    if arguments.json:
        print(json.dumps({name: {"tokens_per_second": seen[name], "median": medians[name]} for name in ways}, indent=1))
        return
    print(f"layer {layer} of {llama.n_layer}, {len(requests)} prompts, {arguments.rounds} rounds")
    print(f"{'':10}{'tokens/s':>10}{'min':>8}{'max':>8}{'ratio':>8}")
    for name, values in seen.items():
        ratio = medians[name] / medians["native"]
        print(f"{name:10}{medians[name]:10.0f}{min(values):8.0f}{max(values):8.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
