"""The hidden states on which an evaluation trains its methods: one set for all of them, harvested once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.errors import DataError, StorageError
from finesteer_local.evaluation.journal import digest
from finesteer_local.evaluation.pairs import prepared, sampled
from finesteer_local.identity import ModelIdentity
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.training.data import Pair, Prompt, TrainingData
from finesteer_local.training.effort import EFFORTS
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.pairs import held_out
from finesteer_local.training.progress import Progress, quiet

Array = NDArray[np.float32]

SINGLE = (0.37, 0.40, 0.44, 0.48)
"""Shares of the depth at which one layer is steered: our own candidates."""
BAND = (0.30, 0.37, 0.44, 0.48, 0.55, 0.62)
"""Shares at which several layers are steered together."""
UPPER_BAND = (0.48, 0.55, 0.62, 0.70, 0.80)
"""The layers that repeng steers by default, as shares of Mistral's depth."""
CONDITION = (0.20, 0.25, 0.30, 0.37, 0.40, 0.44, 0.48, 0.55, 0.62)
"""Shares at which a gate may read prompts."""
_FLUSH = 32  # prompts between two savings
_HALF = float(np.finfo(np.float16).max)


def layers_at(n_layer: int, shares: Sequence[float]) -> list[int]:
    """Layers at shares of the depth; neither the first, which llama.cpp cannot steer, nor the last, which shows only
    the tokens that have logits."""
    return sorted({min(max(round(share * n_layer), 1), n_layer - 2) for share in shares})


@dataclass(frozen=True)
class PromptStates:
    """Hidden states of prompts, and which prompts are for training and for validation."""

    prompts: Sequence[Prompt]
    states: NDArray[np.float16]  # (n, 2, n_layers, n_embd): of the last token, and the mean over the last user turn
    layers: Sequence[int]
    learn: Sequence[int]
    held: Sequence[int]

    def last(self, layer: int) -> Array:
        """Hidden states of the prompts' last tokens, (n, n_embd)."""
        return np.asarray(self.states[:, 0, self.layers.index(layer)], np.float32)

    def mean(self, layer: int) -> Array:
        """Mean hidden states of the prompts' last user turns, (n, n_embd)."""
        return np.asarray(self.states[:, 1, self.layers.index(layer)], np.float32)


@dataclass(frozen=True)
class Material:
    """Training data as hidden states.

    Attributes:
        pairs: as the deltas were taken from them; `originals` are what the data holds.
        deltas: by layer the mean chosen minus the mean rejected answer state of each pair, (n_pairs, n_embd).
        states: by layer the last token's state of the pairs' prompts, (n_pairs, n_embd).
        learn, held: pairs for training and for validation.
        positive, contrast: prompts that need intervention, and that must stay untouched.
        key: of the data and the model, under which what is trained on it is kept.
    """

    model: ModelIdentity
    data: TrainingData
    pairs: Sequence[Pair]
    originals: Sequence[Pair]
    deltas: Mapping[int, Array]
    states: Mapping[int, Array]
    learn: Sequence[int]
    held: Sequence[int]
    positive: PromptStates
    contrast: PromptStates
    seed: int
    key: str

    def layers(self, shares: Sequence[float]) -> list[int]:
        """Layers at shares of the model's depth."""
        return layers_at(self.model.n_layer, shares)

    def learnt_deltas(self, layer: int) -> Array:
        """Deltas of the training pairs, (n, n_embd)."""
        return self.deltas[layer][list(self.learn)]


def harvest_material(
    llama: SteeredLlama,
    data: TrainingData,
    folder: Path,
    *,
    seed: int,
    progress: Progress = quiet,
) -> Material:
    """Read everything that the methods are trained on; what an earlier run read is taken from `folder`.

    Raises:
        DataError: the data cannot be used with this model.
    """
    if not data.contrast:
        raise DataError("there are no prompts that must stay untouched; the other methods cannot be trained or tuned")
    data = data.part(EFFORTS["standard"].prompts)
    n_layer = llama.n_layer
    everywhere = layers_at(n_layer, (*SINGLE, *BAND, *UPPER_BAND))
    conditions = layers_at(n_layer, CONDITION)
    key = digest(data.hash, data.judge, data.own_replies, seed, everywhere, conditions, llama.identity.fingerprint)
    folder = paths.ensure_dir(folder / f"{data.name}-{key[:12]}")
    model_data = ModelData(llama, data, folder, progress)
    model_data.check([*(pair.prompt for pair in data.pairs), *data.contrast])
    originals, learn, held = sampled(data, seed)
    pairs = prepared(model_data, data, originals)
    states, deltas = model_data.deltas(pairs, everywhere)  # (n_pairs, n_layers, n_embd)
    validation = {pair.prompt.text for pair in (originals[i] for i in held)}
    prompts = data.positive
    read = _read(model_data, [*prompts, *data.contrast], conditions, progress)
    positive = _divided(prompts, read[: len(prompts)], conditions, seed, validation)
    contrast = _divided(list(data.contrast), read[len(prompts) :], conditions, seed, set())
    return Material(
        model=llama.identity,
        data=data,
        pairs=pairs,
        originals=originals,
        deltas=_by_layer(deltas, everywhere),
        states=_by_layer(states, everywhere),
        learn=learn,
        held=held,
        positive=positive,
        contrast=contrast,
        seed=seed,
        key=key,
    )


def _by_layer(states: Array, layers: Sequence[int]) -> dict[int, Array]:
    return {layer: np.ascontiguousarray(states[:, i], np.float32) for i, layer in enumerate(layers)}


def _read(
    model_data: ModelData, prompts: Sequence[Prompt], layers: Sequence[int], progress: Progress
) -> NDArray[np.float16]:
    """Last and mean states of the prompts, (n, 2, n_layers, n_embd), kept in a file block by block."""
    shape = (len(prompts), 2, len(layers), model_data.llama.n_embd())
    model_data.llama.set_profiles([])
    try:
        states = _kept(model_data.folder / "prompts.npy", shape, np.float16)
        known = _kept(model_data.folder / "prompts.read.npy", (len(prompts),), np.bool_)
    except OSError as error:
        raise StorageError(f"cannot write to {model_data.folder}: {error.strerror or error}") from error
    if not known.all():
        requests = [StatesRequest(np.array(tokens, np.int32), turn) for tokens, turn in map(model_data.tokens, prompts)]
        done, unsaved = int(known.sum()), set[int]()
        with closing(model_data.llama.reader(layers)) as reader:
            for i, found in reader.harvest(requests, lambda i: bool(known[i])):  # (n_layers, n_turn, n_embd)
                states[i] = np.clip([found[:, -1], found.mean(axis=1)], -_HALF, _HALF)
                if not known[i]:
                    unsaved.add(i)
                if len(unsaved) == _FLUSH or done + len(unsaved) == len(prompts):
                    states.flush()
                    known[list(unsaved)] = True
                    known.flush()
                    done, unsaved = done + len(unsaved), set()
                progress("reading prompts", done + len(unsaved), len(prompts))
    return states


def _kept(file: Path, shape: tuple[int, ...], kind: Any) -> np.memmap[Any, Any]:
    """The array in `file`, made there where it is not; what an interrupted run made is found again."""
    if file.exists():
        found = np.lib.format.open_memmap(file, mode="r+")
        if found.shape == shape and found.dtype == kind:
            return found
    return np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape)


def _divided(
    prompts: Sequence[Prompt],
    states: NDArray[np.float16],
    layers: Sequence[int],
    seed: int,
    validation: set[str],
) -> PromptStates:
    learn, held = held_out(prompts, seed)
    moved = [i for i in learn if prompts[i].text in validation]
    return PromptStates(prompts, states, layers, sorted(set(learn) - set(moved)), sorted({*held, *moved}))
