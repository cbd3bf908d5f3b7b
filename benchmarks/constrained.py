"""What keeping to a JSON schema costs: time a token, alone and eight requests at once, as ratios to the same without.

    python benchmarks/constrained.py MODEL.gguf

An answer under the schema and a plain one of the same length are given in turns, so that a busy machine slows both. The
schema is a list of records with texts, numbers and choices, long enough never to end the answer early.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.batch import BatchEngine, Request, Sampling, chat_request
from finesteer_local.runtime.batch.sampler import Sampler
from finesteer_local.runtime.constraint import json_schema

SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 200,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 8},
            "kind": {"enum": ["person", "place", "thing"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "note": {"type": ["string", "null"]},
        },
        "required": ["name", "kind", "age", "note"],
        "additionalProperties": False,
    },
}
CHAT = [{"role": "user", "content": "List people, places and things as JSON."}]


def answers(llama: SteeredLlama, n: int, length: int, **options: Any) -> list[Request]:
    return [
        chat_request(
            llama, CHAT, temperature=1.0, seed=seed, max_tokens=length, logit_bias=llama_ends(llama), **options
        )
        for seed in range(n)
    ]


def llama_ends(llama: SteeredLlama) -> dict[int, float]:
    """A bias against the end, so that all answers have the same length."""
    return {llama.token_eos(): -100.0, llama.token_bos(): -100.0}


def seconds_a_token(engine: BatchEngine, requests: list[Request]) -> float:
    began = time.perf_counter()
    found = [stream.result().finished for stream in [engine.submit(request) for request in requests]]
    # The prompt was read in an earlier round; what is left of it is the same for both.
    return (time.perf_counter() - began) / max(finished.n_answer for finished in found)


def processor_seconds(llama: SteeredLlama, temperature: float, schema: dict[str, Any] | None, n: int = 400) -> float:
    """Processor time of one choice among random logits, which other processes do not change."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 3, (16, llama.n_vocab())).astype(np.float32)
    rows[:, list(llama_ends(llama))] = -50
    grammar = None if schema is None else json_schema(schema)
    sampler = Sampler(llama, Sampling(temperature=temperature, grammar=grammar), seed=1)
    began = time.thread_time()
    for i in range(n):
        sampler.sample(rows[i % len(rows)])
    return (time.thread_time() - began) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    llama = open_model(arguments.model, n_ctx=512)
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        plain, held = (1e3 * processor_seconds(llama, temperature, schema) for schema in (None, SCHEMA))
        print(f"{name}: a choice takes {plain:.3f} ms of processor time, {held:.3f} ms under the schema", flush=True)
    under = {"response_format": {"type": "json_object", "schema": SCHEMA}}
    with BatchEngine(llama, n_parallel=8, n_ctx=512) as engine:
        for n in (1, 8):
            pair = answers(llama, n, arguments.answer, **under), answers(llama, n, arguments.answer)
            for requests in pair:
                seconds_a_token(engine, requests)
            ratios, times = [], []
            for i in range(arguments.rounds):
                order = (0, 1) if i % 2 else (1, 0)
                taken = {which: seconds_a_token(engine, pair[which]) for which in order}
                ratios.append(taken[0] / taken[1])
                times.append(taken[1])
            print(
                f"{n} at once: {1000 * statistics.median(times):.1f} ms a step without a schema; under it / without: "
                f"median {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
