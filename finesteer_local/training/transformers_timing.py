"""How long Hugging Face transformers takes with hooks in its blocks, as the paper's code and repeng steer.

`HookProcess` runs it in a process of its own: PyTorch's threads would take the processor from llama.cpp's.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesteer_local.runtime.control import Vectors
from finesteer_local.runtime.prompt_pass import Segment
from finesteer_local.runtime.timing import token_seconds
from finesteer_local.training.transformers_model import TransformersModel
from finesteer_local.training.transformers_tap import Stop

BATCHES = (1, 4, 16, 32)
Prompts = Sequence[Sequence[int]]


@torch.inference_mode()
def read_batches(
    model: TransformersModel, prompts: Prompts, layer: int, n: int, *, stop: bool = False
) -> NDArray[np.float32]:
    """Last tokens' states at `layer`, `n` prompts at a time: sorted by length, padded.

    Args:
        stop: end the pass after the layer. No library that steers through hooks does.

    Returns:
        (n_prompts, n_embd), float32, in the prompts' order.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    states = np.empty((len(prompts), model.n_embd()), np.float32)
    seen: list[torch.Tensor] = []

    def look(_: Any, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        if stop:
            raise Stop

    hook = model.model.get_decoder().layers[layer].register_forward_hook(look, prepend=True)
    try:
        for start in range(0, len(order), n):
            chosen = order[start : start + n]
            lengths = torch.tensor([len(prompts[i]) for i in chosen])
            longest = int(lengths.max())
            tokens = torch.zeros((len(chosen), longest), dtype=torch.long)
            for row, i in enumerate(chosen):
                tokens[row, : len(prompts[i])] = torch.tensor([int(token) for token in prompts[i]])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            seen.clear()
            with suppress(Stop):
                # Logits of one row are the fewest that transformers gives.
                model.model(
                    input_ids=tokens.to(model.device),
                    attention_mask=mask.to(model.device),
                    use_cache=False,
                    logits_to_keep=1,
                )
            last = seen[0][torch.arange(len(chosen)), lengths.to(model.device) - 1]  # (n, n_embd)
            states[chosen] = last.float().cpu().numpy()
    finally:
        hook.remove()
    return states


class HookProcess:
    """A Hugging Face directory in a process of its own; `close` ends it.

    Raises:
        MissingExtraError, ModelError, SteeringError: as for `TransformersModel`.
    """

    def __init__(self, folder: Path, gguf: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_ignore_ctrl_c)
        try:
            self._pool.submit(_open, folder, gguf).result()
        except BaseException:
            self.close()
            raise

    def decode(self, prompt: Sequence[int], n_answer: int, vectors: Vectors) -> float:
        """Seconds a token of an answer, all of it steered by hooks that add `vectors`."""
        return self._pool.submit(_decode, list(prompt), n_answer, dict(vectors)).result()

    def read(self, prompts: Prompts, layer: int, n: int, *, stop: bool) -> float:
        """Seconds of `read_batches`."""
        return self._pool.submit(_read, list(prompts), layer, n, stop).result()

    def best_batch(self, prompts: Prompts, layer: int) -> int:
        """The number of prompts at a time at which they are read fastest."""
        return min(BATCHES, key=lambda n: self.read(prompts, layer, n, stop=False))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_model: TransformersModel | None = None  # the process's own


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the parent, which ends this process


def _open(folder: Path, gguf: Path) -> None:
    global _model
    _model = TransformersModel(folder, gguf=gguf)


def _decode(prompt: Sequence[int], n_answer: int, vectors: Vectors) -> float:
    assert _model is not None
    return token_seconds([_model.generate(prompt, [Segment(0, vectors)])], n_answer)[0]


def _read(prompts: Prompts, layer: int, n: int, stop: bool) -> float:
    assert _model is not None
    started = time.perf_counter()
    read_batches(_model, prompts, layer, n, stop=stop)
    return time.perf_counter() - started
