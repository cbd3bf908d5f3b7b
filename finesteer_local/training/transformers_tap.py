"""The residual stream of a transformers model: its blocks' outputs, shown and steered as llama.cpp's are by its tap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesteer_local.errors import PromptError, SteeringError
from finesteer_local.runtime.control import Vectors
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.runtime.prompt_pass import Segment
from finesteer_local.runtime.steered_request import SteeredRequest
from finesteer_local.runtime.tap import Addition, Handler, Rows

if TYPE_CHECKING:
    from finesteer_local.training.transformers_model import TransformersModel

Array = NDArray[np.float32]


def whole_plan(request: SteeredRequest) -> list[Segment]:
    """Where the steering of a request changes, its answer included."""
    return [*request.plan, Segment(request.n_prompt, request.vectors)]


def steered_rows(plan: Sequence[Segment], start: int, n_rows: int) -> Iterator[tuple[int, int, Vectors]]:
    """Of the rows `start` to `start + n_rows` of a sequence those that `plan` steers, counted from `start`: the first,
    the one behind the last, and the vectors by layer."""
    stops = [segment.start for segment in plan[1:]] + [start + n_rows]
    for segment, stop in zip(plan, stops, strict=False):  # no plan, no segment
        first, last = max(segment.start - start, 0), min(stop - start, n_rows)
        if first < last:
            yield first, last, segment.vectors


class Stop(Exception):
    """The rest of the pass is not needed."""


class BlockRows(Rows):
    """A block's output, (n_rows, n_embd), as the tap shows it."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._hidden, self.n_rows = hidden, len(hidden)

    def read(self, start: int, stop: int) -> Array:
        return np.asarray(self._hidden[start:stop].float().cpu().numpy(), np.float32)

    def write(self, start: int, rows: Array) -> None:
        self._hidden[start : start + len(rows)] = torch.from_numpy(rows).to(self._hidden)


class BlockTap:
    """Hooks in a model's blocks, as `runtime.tap.Tap`: `arm` it with handlers, or `add` vectors, until `disarm`."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.disarm()
        for layer, block in enumerate(blocks):
            block.register_forward_hook(self._hook(layer))

    def arm(self, handlers: Mapping[int, Handler]) -> None:
        """Show the layers to their handlers; one that returns False ends the pass with `Stop`."""
        self._handlers: Mapping[int, Handler] = handlers

    def add(self, additions: Sequence[Addition]) -> None:
        """Make these additions in every pass."""
        self._additions: Sequence[Addition] = additions

    def disarm(self) -> None:
        self._handlers, self._additions = {}, ()

    def check(self) -> None:
        """Errors of handlers pass through PyTorch by themselves."""

    def _hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output)[0]  # (n_rows, n_embd)
            handler = self._handlers.get(layer)
            if handler and not handler(layer, BlockRows(hidden)):
                raise Stop
            for at, start, stop, vector in self._additions:
                if at == layer:
                    hidden[start:stop] += torch.from_numpy(np.ascontiguousarray(vector)).to(hidden)

        return hook


class BlockReader(Reader):
    """Reads hidden states, prompt by prompt."""

    def __init__(self, model: TransformersModel, layers: Sequence[int]) -> None:
        self.model, self.layers = model, sorted(set(layers))

    def harvest(
        self, requests: Sequence[StatesRequest], known: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, Array]]:
        """Read the requests one after the other; see `Reader`."""
        for i, (tokens, first) in enumerate(requests):
            if known(i):
                continue
            if not 0 <= first < len(tokens):
                raise PromptError("an empty prompt or answer has no hidden states")
            states: dict[int, Array] = {}

            def look(layer: int, rows: Rows, states: dict[int, Array] = states, first: int = first) -> bool:
                states[layer] = rows.read(first, rows.n_rows)
                return layer != self.layers[-1]

            self.model.tap.arm(dict.fromkeys(self.layers, look))
            try:
                self.model.decode_rows([int(token) for token in tokens], 0)
            finally:
                self.model.tap.disarm()
            found = np.stack([states[layer] for layer in self.layers])
            if not np.isfinite(found).all():
                raise SteeringError("the model's hidden state is not finite; this model cannot be steered")
            yield i, found

    def close(self) -> None:
        """Nothing is held."""
