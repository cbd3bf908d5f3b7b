"""How fast training reads prompts, against llama.cpp's own prompt processing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from finesteer_local.bench.profiles import DEPTH
from finesteer_local.bench.series import Series, Way, alternate
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.harvest import MICRO_BATCH, SEQUENCES, Harvester
from finesteer_local.runtime.packing import Plan, StatesRequest
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.runtime.timing import decoded, first_seconds, seconds_of
from finesteer_local.training.effort import EFFORTS
from finesteer_local.training.recipes import load_recipe

N_NATIVE = 512
NATIVE = "llama.cpp, 512 tokens"
ALONE = "prompts one by one"
PACKED = "prompts together"
COPIED = "together, from the float32 copy"


def recipe_requests(llama: SteeredLlama, recipe: str) -> list[StatesRequest]:
    """The recipe's prompts as training reads them, for their last tokens' states."""
    data = load_recipe(recipe).part(EFFORTS["standard"].prompts)
    prompts = [np.array(chat_prompt(llama, prompt.messages), np.int32) for prompt in (*data.positive, *data.contrast)]
    return [StatesRequest(tokens, len(tokens) - 1) for tokens in prompts]


class ReadingBench:
    """Reads a part of a recipe's prompts up to the layer in the middle.

    A part is every so manieth batch that the whole recipe makes, so that what its prompts share counts as it does in
    training.

    Args:
        part: batches of a part.
    """

    def __init__(self, llama: SteeredLlama, recipe: str, part: int) -> None:
        self.llama, self.layer = llama, min(max(round(DEPTH * llama.n_layer), 0), llama.n_layer - 2)
        self.requests = recipe_requests(llama, recipe)
        batches = list(Plan(self.requests, n_tokens=MICRO_BATCH, n_sequences=SEQUENCES).batches())
        n_parts = max(len(batches) // part, 1)
        self.parts = [
            [self.requests[read.request] for batch in batches[i::n_parts] for read in batch.reads]
            for i in range(n_parts)
        ]
        self.plain = Harvester(llama, [self.layer], expand_from=float("inf"))
        self.copied = Harvester(llama, [self.layer], expand_from=0)
        next(self.copied.harvest(self.requests[:1]))  # makes the copy, where one helps
        self._turn = 0

    def close(self) -> None:
        self.plain.close()
        self.copied.close()

    def part(self) -> list[StatesRequest]:
        """The next part, the same for all ways of a round that ask for it in turn."""
        return self.parts[self._turn % len(self.parts)]

    def next_round(self) -> None:
        self._turn += 1

    def ways(self) -> dict[str, Way]:
        """Prompt tokens a second, template included."""
        n_native = min(N_NATIVE, self.llama.n_ctx() - 1)
        tokens = np.random.default_rng(0).integers(3, self.llama.n_vocab(), n_native).tolist()
        found: dict[str, Way] = {
            NATIVE: lambda: n_native / first_seconds(decoded(self.llama, tokens)),
            ALONE: lambda: speed(self._alone, self.part()[:8]),
            PACKED: lambda: speed(self.plain.harvest, self.part()),
        }
        if self.copied.expands:
            found[COPIED] = lambda: speed(self.copied.harvest, self.part())
        return found

    def _alone(self, requests: Sequence[StatesRequest]) -> list[object]:
        return [self.plain.turn_states([int(token) for token in request.tokens], request.first) for request in requests]


def speed(read: Callable[[Sequence[StatesRequest]], object], requests: Sequence[StatesRequest]) -> float:
    """Tokens a second of reading all of `requests`."""
    return sum(len(request.tokens) for request in requests) / seconds_of(lambda: read(requests))


def reading_series(series: Series, bench: ReadingBench, rounds: int, advance: Callable[[], None]) -> None:
    """All ways to read the same part of the prompts in a round, and another part in the next."""
    ways = bench.ways()
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % len(ways) == 0:
            bench.next_round()
        advance()

    alternate(series, ways, rounds, count)
    series.against(NATIVE)
