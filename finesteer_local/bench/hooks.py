"""The same work in Hugging Face transformers with hooks, which is how the paper's code and repeng steer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finesteer_local.bench.answers import OPEN, SHORT, Start, prompt_tokens
from finesteer_local.bench.reading import COPIED, PACKED, ReadingBench
from finesteer_local.bench.series import Series, alternate
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.timing import some_vector, token_seconds
from finesteer_local.training import require_extra

if TYPE_CHECKING:
    from finesteer_local.training.transformers_timing import HookProcess

HOOKS = "transformers with hooks"
STOPPED = "transformers, stopped after the layer"
_ANSWER = 24  # tokens: it takes its time
_PROMPTS = 64


def open_directory(folder: Path, gguf: Path) -> HookProcess:
    """The model in `folder`, which must be that of `gguf`, in a process of its own.

    Raises:
        MissingExtraError: torch or transformers is missing.
        ModelError: it is not, or cannot be loaded.
    """
    require_extra()
    from finesteer_local.training.transformers_timing import HookProcess

    return HookProcess(folder, gguf)


def decode_series(
    series: Series, model: HookProcess, steered: SteeredLlama, ours: Start, rounds: int, advance: Callable[[], None]
) -> None:
    """Tokens a second, steered."""
    prompt, vectors = prompt_tokens(steered, SHORT), some_vector(steered)
    ways = {
        OPEN: lambda: 1 / token_seconds([ours(prompt)], _ANSWER)[0],
        HOOKS: lambda: 1 / model.decode(prompt, _ANSWER, vectors),
    }
    alternate(series, ways, rounds, advance)
    series.pairs = [(f"{OPEN} / {HOOKS}", OPEN, HOOKS)]


def reading_series(
    series: Series, model: HookProcess, bench: ReadingBench, rounds: int, advance: Callable[[], None]
) -> int:
    """Prompt tokens a second; returns the batch size that suits transformers best."""
    ways = bench.ways()
    ours = COPIED if COPIED in ways else PACKED
    prompts = [[int(token) for token in request.tokens] for request in bench.part()][:_PROMPTS]
    n_tokens, n = sum(map(len, prompts)), model.best_batch(prompts, bench.layer)
    ways = {
        ours: ways[ours],
        HOOKS: lambda: n_tokens / model.read(prompts, bench.layer, n, stop=False),
        STOPPED: lambda: n_tokens / model.read(prompts, bench.layer, n, stop=True),
    }
    alternate(series, ways, rounds, advance)
    series.pairs = [(f"{ours} / {name}", ours, name) for name in (HOOKS, STOPPED)]
    return n
