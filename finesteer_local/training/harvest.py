"""Hidden states of the training data, harvested through the tap; an interrupted harvest goes on where it stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local import __version__, paths
from finesteer_local.errors import DataError, StorageError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt, greedy_answer, turn_start
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.training.data import Pair, Prompt, TrainingData

Array = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

MAX_TURN = 256  # tokens of a turn that are kept: its end, where a long prompt's request mostly is
_FLUSH = 32  # rows between two savings
_ROOM = 32  # tokens of the context that are left for an answer
_HALF = float(np.finfo(np.float16).max)  # what float16 holds; the first token of a text can have larger activations


def quiet(stage: str, done: int, total: int) -> None:
    """The progress of nobody."""


@dataclass(frozen=True)
class Turns:
    """Hidden states of many turns at one layer, end to end: `states[offsets[i]:offsets[i + 1]]` is turn i's."""

    states: NDArray[np.float16]  # (n_tokens, n_embd)
    offsets: NDArray[np.int64]  # (n + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Array:
        return self.states[self.offsets[i] : self.offsets[i + 1]].astype(np.float32)

    @property
    def last(self) -> Array:
        """Hidden states of the prompts' last tokens, (n, n_embd)."""
        return self.states[self.offsets[1:] - 1].astype(np.float32)


class TrainingHarvest:
    """Everything that training reads from the model, kept in a folder of the run's own until the profile is written."""

    def __init__(
        self, llama: SteeredLlama, data: TrainingData | None, folder: Path, progress: Progress = quiet
    ) -> None:
        self.llama, self.data, self.folder, self.progress = llama, data, folder, progress
        paths.ensure_dir(folder)

    def tokens(self, prompt: Prompt) -> tuple[list[int], int]:
        """Tokens of a prompt, and the index at which its last user turn starts.

        Raises:
            DataError: the prompt does not fit the context, or the model's template rejects it.
        """
        tokens = self._prompt(prompt)
        return tokens, turn_start(self.llama, prompt.messages, tokens)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `DataError` for a prompt that `tokens` would reject: better now than after minutes of reading."""
        for prompt in prompts:
            self._prompt(prompt)

    def _prompt(self, prompt: Prompt) -> list[int]:
        try:
            tokens = chat_prompt(self.llama, prompt.messages)
        except Exception as error:  # a template is a program that came with the model
            raise DataError(f"the model's chat template rejects {prompt.text[:60]!r}: {error}") from error
        if len(tokens) + _ROOM > self.llama.n_ctx():
            raise DataError(
                f"a training prompt of {len(tokens)} tokens and its answer do not fit the context of "
                f"{self.llama.n_ctx()}; shorten or drop it: {prompt.text[:60]!r}"
            )
        return tokens

    def turns(self, prompts: Sequence[Prompt], layer: int) -> Turns:
        """Hidden states of the prompts' last user turns at `layer`."""
        tokens = [self.tokens(prompt) for prompt in prompts]
        starts = [max(turn, len(ids) - MAX_TURN) for ids, turn in tokens]
        lengths = [len(ids) - start for (ids, _), start in zip(tokens, starts, strict=True)]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

        def one(harvester: Harvester, i: int) -> NDArray[np.float16]:
            states = harvester.turn_states(tokens[i][0], starts[i])[0]  # (n_turn, n_embd)
            return np.asarray(np.clip(states, -_HALF, _HALF), np.float16)

        shape = (int(offsets[-1]), self.llama.n_embd())
        states = self._fill(f"turns-{layer}", "reading prompts", [layer], shape, np.float16, offsets, one)
        return Turns(states, offsets)

    def replies(self, pairs: Sequence[Pair], max_tokens: int) -> list[str]:
        """The model's own unsteered answers, greedy."""
        self.llama.set_profiles([])
        file = self.folder / "replies.json"
        known: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        for i in range(len(known), len(pairs)):
            if i % _FLUSH == 0:
                self.llama.forget()  # so that a run that goes on here reads exactly what this one does
            known.append(generate(self.llama, pairs[i].prompt, max_tokens))
            if len(known) % _FLUSH == 0 or len(known) == len(pairs):
                with paths.atomic_write(file) as temporary:
                    temporary.write_text(json.dumps(known), encoding="utf-8")
            self.progress("asking the model", i + 1, len(pairs))
        return known[: len(pairs)]

    def likelihood(self, prompts: Sequence[Prompt], answers: Sequence[str], n_tokens: int) -> NDArray[np.float64]:
        """Mean log-probability a token of each answer's first `n_tokens` tokens, unsteered, over the prompts, (n,)."""
        self.llama.set_profiles([])
        file = self.folder / "likelihood.json"
        if file.exists():
            return np.array(json.loads(file.read_text(encoding="utf-8")))
        tokens = [answer_tokens(self.llama, answer)[:n_tokens] for answer in answers]
        total = np.zeros(len(answers))
        for i, prompt in enumerate(prompts):
            total += [scores.mean() for scores in answer_logprobs(self.llama, self.tokens(prompt)[0], tokens)]
            self.progress("comparing answers", i + 1, len(prompts))
        with paths.atomic_write(file) as temporary:
            temporary.write_text(json.dumps((total / len(prompts)).tolist()), encoding="utf-8")
        return np.asarray(total / len(prompts))

    def deltas(self, pairs: Sequence[Pair], layers: Sequence[int]) -> tuple[Array, Array]:
        """For every pair the prompt's last hidden state, and mean chosen minus mean rejected answer state.

        Returns:
            states (n, n_layers, n_embd) and deltas (n, n_layers, n_embd).
        """

        def one(harvester: Harvester, i: int) -> Array:
            pair = pairs[i]
            prompt, _ = self.tokens(pair.prompt)
            state = harvester.prompt_state(prompt)
            chosen, rejected = (
                harvester.answer_states(prompt, answer_tokens(self.llama, text)).mean(axis=1)
                for text in (pair.chosen, pair.rejected)
            )
            return np.stack([state, chosen - rejected])[None]  # (1, 2, n_layers, n_embd)

        shape = (len(pairs), 2, len(layers), self.llama.n_embd())
        both = self._fill("deltas", "reading answers", layers, shape, np.float32, np.arange(len(pairs) + 1), one)
        return np.array(both[:, 0]), np.array(both[:, 1])

    def _fill(
        self,
        name: str,
        stage: str,
        layers: Sequence[int],
        shape: tuple[int, ...],
        dtype: Any,
        offsets: NDArray[np.int64],
        one: Callable[[Harvester, int], NDArray[Any]],
    ) -> NDArray[Any]:
        """Fill a memory-mapped array, row block by row block; what an earlier run has done is kept.

        Every block starts with an empty cache: llama.cpp may round a token's state differently when what comes before
        it is cached, and a run that goes on must end with the very same numbers.
        """
        n = len(offsets) - 1
        file, mark = self.folder / f"{name}.npy", self.folder / f"{name}.done"
        done = int(mark.read_text()) if mark.exists() and file.exists() else 0
        try:
            if not done:
                _reserve(file, dtype, shape)
            array = np.lib.format.open_memmap(file, mode="r+")
        except OSError as error:
            raise StorageError(f"cannot write {file}: {error.strerror or error}") from error
        if array.shape != shape:
            raise DataError(f"{self.folder} holds another run's data; remove it and train again")
        for i in range(done, n):
            if i == done or i % _FLUSH == 0:
                harvester = Harvester(self.llama, layers)
            array[offsets[i] : offsets[i + 1]] = one(harvester, i)
            if (i + 1) % _FLUSH == 0 or i + 1 == n:
                array.flush()
                with paths.atomic_write(mark) as temporary:
                    temporary.write_text(str(i + 1))
            self.progress(stage, i + 1, n)
        return array


def _reserve(file: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """Create the file in full: a memory map into a hole of a full disk would kill the process."""
    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not every file system can
                raise


def answer_tokens(llama: SteeredLlama, text: str) -> list[int]:
    """Tokens of an answer as it would follow the prompt."""
    return llama.tokenize(text.encode(), add_bos=False, special=False)


def generate(llama: SteeredLlama, prompt: Prompt, max_tokens: int) -> str:
    """The model's greedy answer under its active profiles."""
    return greedy_answer(llama, prompt.messages, max_tokens)


def run_folder(llama: SteeredLlama, data: TrainingData, settings: dict[str, Any]) -> Path:
    """Where a run of this version with this model file, data and settings keeps its state."""
    size = Path(llama.model_path).stat().st_size
    parts = [__version__, llama.identity.fingerprint, size, llama.chat_format, data.hash, settings]
    key = json.dumps(parts, sort_keys=True)
    return paths.work_dir() / f"{data.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
