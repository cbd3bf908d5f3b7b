"""Reads what training needs from the model: hidden states through the cache, and the model's own answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finesteer_local import __version__, paths
from finesteer_local.errors import DataError
from finesteer_local.runtime.cached_harvest import read_states
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.trainable import TrainableModel, WholeAnswer
from finesteer_local.training.data import PAGE, Pair, Prompt, TrainingData, spread
from finesteer_local.training.fast_reader import SAMPLE, fast_reader
from finesteer_local.training.progress import Progress, quiet

Array = NDArray[np.float32]

MAX_TURN = 4096  # tokens of a turn that are kept: a request can stand anywhere in a page
_FLUSH = 32  # answers at a time, and between two savings
_OLD = 30 * 86400.0  # seconds after which nobody goes on with a run
_ROOM = 32  # tokens of the context that are left for an answer


@dataclass(frozen=True)
class Turns:
    """Hidden states of many turns at one layer, end to end: `states[offsets[i]:offsets[i + 1]]` is turn i's."""

    states: NDArray[np.float16]  # (n_tokens, n_embd)
    offsets: NDArray[np.int64]  # (n + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Array:
        return self.states[self.offsets[i] : self.offsets[i + 1]].astype(np.float32)

    @classmethod
    def joined(cls, parts: Sequence[Turns], order: Sequence[int], folder: Path) -> Turns:
        """Turns of several readings, the i-th of which is number `order[i]` of all.

        They lie in a file of `folder` that has no name: it goes when they do, whatever ends the process.
        """
        if len(parts) == 1 and list(order) == list(range(len(parts[0]))):
            return parts[0]
        places = [(part, i) for part in parts for i in range(len(part))]
        lengths = [int(part.offsets[i + 1] - part.offsets[i]) for part, i in (places[at] for at in order)]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        shape = (int(offsets[-1]), parts[0].states.shape[1])
        with tempfile.TemporaryFile(dir=folder) as file:
            states = np.memmap(file, np.float16, "w+", shape=shape)
        for at, start, stop in zip(order, offsets, offsets[1:], strict=False):
            part, i = places[at]
            states[start:stop] = part.states[part.offsets[i] : part.offsets[i + 1]]
        return cls(states, offsets)

    def parted(self, n: int) -> tuple[Turns, Turns]:
        """The first `n` turns, and the others."""
        offsets = self.offsets[n:]
        return Turns(self.states, self.offsets[: n + 1]), Turns(self.states[offsets[0] :], offsets - offsets[0])

    @property
    def last(self) -> Array:
        """Hidden states of the prompts' last tokens, (n, n_embd)."""
        return self.states[self.offsets[1:] - 1].astype(np.float32)


class ModelData:
    """Everything that training reads from the model.

    Hidden states are kept in the cache (runtime/cached_harvest.py), the rest in a folder of the run's own: a run that
    was interrupted goes on with both.
    """

    def __init__(
        self, llama: TrainableModel, data: TrainingData | None, folder: Path, progress: Progress = quiet
    ) -> None:
        self.llama, self.data, self.folder, self.progress = llama, data, folder, progress
        self.answering = llama
        """What answers and compares answers: the same model, by the faster of two means (torch_engine.py)."""
        self._known: dict[int, tuple[Prompt, NDArray[np.int32]]] = {}  # tokens, by the prompt's id
        self._readers: dict[int, Reader] = {}  # by layer, for thousands of prompts
        self._turn_starts: dict[int, int] = {}  # of those of which the last turn was asked for
        paths.ensure_dir(folder)

    def go_to(self, folder: Path) -> None:
        """Keep what is read or answered from now on in another folder."""
        self.folder = paths.ensure_dir(folder)

    def tokens(self, prompt: Prompt) -> tuple[list[int], int]:
        """Tokens of a prompt, and the index at which its last user turn starts.

        Raises:
            DataError: the prompt does not fit the context, or the model's template rejects it.
        """
        tokens = self._prompt(prompt)
        if id(prompt) not in self._turn_starts:
            self._turn_starts[id(prompt)] = turn_start(self.llama, prompt.messages, tokens)
        return tokens, self._turn_starts[id(prompt)]

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `DataError` for a prompt that `tokens` would reject: better now than after minutes of reading.

        A token takes a byte at least, so most prompts fit for certain where another with the same roles did, and need
        not be encoded for that.
        """
        taken: dict[tuple[str, ...], int] = {}  # tokens, by roles: those of the template, and of the first one's text
        for prompt in prompts:
            roles = tuple(message["role"] for message in prompt.messages)
            n_bytes = sum(len(message["content"].encode()) for message in prompt.messages)
            if roles not in taken:
                taken[roles] = len(self._prompt(prompt))
            elif taken[roles] + n_bytes + _ROOM > self.llama.n_ctx():
                self._prompt(prompt)

    def fits(self, prompt: Prompt) -> bool:
        """Whether `check` would let it pass."""
        try:
            self._prompt(prompt)
        except DataError:
            return False
        return True

    def _prompt(self, prompt: Prompt) -> list[int]:
        known = self._known.get(id(prompt))
        if known is not None:
            return list(map(int, known[1]))
        try:
            tokens = chat_prompt(self.llama, prompt.messages)
        except Exception as error:  # a template is a program that came with the model
            raise DataError(f"the model's chat template rejects {prompt.text[:60]!r}: {error}") from error
        if len(tokens) + _ROOM > self.llama.n_ctx():
            raise DataError(
                f"a training prompt of {len(tokens)} tokens and its answer do not fit the context of "
                f"{self.llama.n_ctx()}; shorten or drop it: {prompt.text[:60]!r}"
            )
        self._known[id(prompt)] = prompt, np.array(tokens, np.int32)
        return tokens

    def turns(self, prompts: Sequence[Prompt], layer: int, *, before: int = 0, total: int | None = None) -> Turns:
        """Hidden states of the prompts' last user turns at `layer`.

        Args:
            before, total: where these are a part of more, how many have been read, and how many there are.
        """
        of = before + len(prompts) if total is None else total
        read = read_states(
            self.llama,
            self.requests(prompts),
            [layer],
            progress=lambda done, _: self.progress("reading prompts", before + done, of),
            reader=lambda requests: self._reader(layer, requests),
        )
        return Turns(read.states[layer], read.offsets)

    def requests(self, prompts: Sequence[Prompt]) -> list[StatesRequest]:
        """What `turns` reads of the prompts."""
        return list(map(self._turn, prompts))

    def timed(self, prompts: Sequence[Prompt], layer: int) -> float:
        """Seconds that reading a token takes, beside those with which all prompts begin."""
        requests = self.requests(prompts)
        reader = self._reader(layer, requests)
        list(reader.harvest(requests[:8]))  # the first ones also pay for setting up
        started = time.monotonic()
        list(reader.harvest(requests))
        return (time.monotonic() - started) / sum(map(self.own_tokens, prompts))

    def own_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt's last turn: what stands before it is that of all, in most recipes, and read once."""
        tokens, turn = self.tokens(prompt)
        return len(tokens) - turn

    def _reader(self, layer: int, requests: Sequence[StatesRequest]) -> Reader:
        """What reads the prompts at `layer`: the same for all of the data, however few of them are missing."""
        if layer not in self._readers:
            prompts = [*self.data.positive, *self.data.contrast] if self.data else []
            # Always the same sample, so that a run that goes on reads the rest as the whole would have been read.
            sample = [self._turn(prompt) for prompt in spread(prompts, SAMPLE) if self.fits(prompt)] or requests
            n_tokens = sum(len(request.tokens) for request in sample) * max(len(prompts) / len(sample), 1)
            self._readers[layer] = fast_reader(self.llama, layer, sample, n_tokens)
        return self._readers[layer]

    def _turn(self, prompt: Prompt) -> StatesRequest:
        tokens, turn = self.tokens(prompt)
        return StatesRequest(np.array(tokens, np.int32), max(turn, len(tokens) - MAX_TURN))

    def request_span(self, prompt: Prompt) -> tuple[int, int] | None:
        """The tokens of a page's last turn that are its request, as (first, last + 1); (0, 0) where it has none.

        None for a prompt that is no page.
        """
        if prompt.form != PAGE:
            return None
        wanted = prompt.request.encode()
        if not wanted:
            return 0, 0
        turn, ends = self.token_ends(prompt)
        at = turn.find(wanted)
        if at < 0:  # written otherwise by the template
            return 0, 0
        return int(np.searchsorted(ends, at, side="right")), int(np.searchsorted(ends, at + len(wanted))) + 1

    def token_ends(self, prompt: Prompt) -> tuple[bytes, NDArray[np.intp]]:
        """A prompt's last turn as the model reads it, and the byte behind each of its tokens, (n_tokens,)."""
        read = self._turn(prompt)
        pieces = [self.llama.detokenize([int(token)], special=True) for token in read.tokens[read.first :]]
        return b"".join(pieces), np.cumsum([len(piece) for piece in pieces])

    def replies(self, pairs: Sequence[Pair], max_tokens: int) -> list[str]:
        """The model's own unsteered answers, greedy."""
        self.answering.set_profiles([])
        file = self.folder / f"replies-{max_tokens}-{len(pairs)}.json"
        known: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        while len(known) < len(pairs):
            # One call a block, so that a run that goes on here batches exactly as this one does.
            block = [pair.prompt for pair in pairs[len(known) : len(known) + _FLUSH]]
            for i, answer in enumerate(generate(self.answering, block, max_tokens)):
                known.append(answer)
                if i == len(block) - 1:
                    with paths.atomic_write(file) as temporary:
                        temporary.write_text(json.dumps(known), encoding="utf-8")
                self.progress("asking the model", len(known), len(pairs))
        return known[: len(pairs)]

    def likelihood(self, prompts: Sequence[Prompt], answers: Sequence[str], n_tokens: int) -> NDArray[np.float64]:
        """Mean log-probability a token of each answer's first `n_tokens` tokens, unsteered, over the prompts, (n,)."""
        self.answering.set_profiles([])
        file = self.folder / "likelihood.json"
        if file.exists():
            return np.array(json.loads(file.read_text(encoding="utf-8")))
        tokens = [answer_tokens(self.llama, answer)[:n_tokens] for answer in answers]
        total = np.zeros(len(answers))
        for i, prompt in enumerate(prompts):
            total += [scores.mean() for scores in self.answering.answer_logprobs(self.tokens(prompt)[0], tokens)]
            self.progress("comparing answers", i + 1, len(prompts))
        with paths.atomic_write(file) as temporary:
            temporary.write_text(json.dumps((total / len(prompts)).tolist()), encoding="utf-8")
        return np.asarray(total / len(prompts))

    def deltas(self, pairs: Sequence[Pair], layers: Sequence[int]) -> tuple[Array, Array]:
        """For every pair the prompt's last hidden state, and mean chosen minus mean rejected answer state.

        Returns:
            states (n, n_layers, n_embd) and deltas (n, n_layers, n_embd).
        """

        requests = []
        for pair in pairs:
            prompt = self._prompt(pair.prompt)
            requests.append(StatesRequest(prompt, len(prompt) - 1))
            for text in (pair.chosen, pair.rejected):
                requests.append(StatesRequest([*prompt, *answer_tokens(self.llama, text)], len(prompt)))
        read = read_states(
            self.llama,
            requests,
            layers,
            kind=np.float32,
            progress=lambda done, total: self.progress("reading answers", done, total),
        )
        lengths = np.diff(read.offsets)[:, None]
        sums = [np.add.reduceat(read.states[layer], read.offsets[:-1]) for layer in layers]
        means = np.stack([each / lengths for each in sums], axis=1).astype(np.float32)
        states, chosen, rejected = (means[i::3] for i in range(3))  # each (n, n_layers, n_embd)
        return states.copy(), chosen - rejected


def answer_tokens(llama: TrainableModel, text: str) -> list[int]:
    """Tokens of an answer as it would follow the prompt."""
    return llama.tokenize(text.encode(), add_bos=False, special=False)


class PairTokens(NamedTuple):
    """A pair's tokens: its prompt, the index at which the last user turn starts, its chosen and its rejected answer."""

    prompt: list[int]
    turn: int
    answers: tuple[list[int], list[int]]


def pair_tokens(llama: TrainableModel, pair: Pair, n_tokens: int | None = None) -> PairTokens:
    """The tokens of a pair, of each answer at most the first `n_tokens`; all without."""
    prompt = chat_prompt(llama, pair.prompt.messages)
    chosen, rejected = (answer_tokens(llama, text)[:n_tokens] for text in (pair.chosen, pair.rejected))
    return PairTokens(prompt, turn_start(llama, pair.prompt.messages, prompt), (chosen, rejected))


def generate(llama: TrainableModel, prompts: Sequence[Prompt], max_tokens: int) -> Iterator[str]:
    """The model's greedy answers under its active profiles, in order."""
    return llama.greedy_answers([prompt.messages for prompt in prompts], max_tokens, at_most=_FLUSH)


def whole_answers(
    llama: TrainableModel, prompts: Sequence[Prompt], max_tokens: int, temperature: float, *, seed: int = 0
) -> Iterator[WholeAnswer]:
    """Answers under the active profiles, in order, sampled as `chat` samples them.

    The first prompt's seed is `seed`, the next one's the next. PyTorch's model answers greedily.
    """
    conversations = [prompt.messages for prompt in prompts]
    return llama.whole_answers(conversations, max_tokens, temperature, seed=seed, at_most=_FLUSH)


def run_folder(llama: TrainableModel, data: TrainingData, settings: dict[str, Any]) -> Path:
    """Where runs of this version with this model file, data and settings keep their state.

    What has not been used for long is cleared away.
    """
    for other in paths.work_dir().glob("*"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > _OLD:
                shutil.rmtree(other, ignore_errors=True)
    size = Path(llama.model_path).stat().st_size
    parts = [__version__, llama.identity.fingerprint, size, llama.chat_format, data.hash, settings]
    key = json.dumps(parts, sort_keys=True)
    return paths.work_dir() / f"{data.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
