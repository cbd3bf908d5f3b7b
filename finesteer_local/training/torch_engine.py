"""A GGUF model that answers in PyTorch: many prompts at once, under the profiles that tuning tries.

Where PyTorch multiplies faster than llama.cpp's kernels for the file's quantisation (bfloat16 above all), trials take a
third of the time. The weights are those of the file, the prompts, decisions and sampling those of the runtime; only the
rounding of activations is another, as it is between two machines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.batch import Request, Sampling, chat_request
from finesteer_local.runtime.batch.text import AnswerText
from finesteer_local.runtime.prompt import Message, chat_prompt, token_text
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.runtime.steered_request import SteeredRequest, Steering
from finesteer_local.runtime.tokens import ends_answer, vocab_of
from finesteer_local.runtime.trainable import Asked, TrainableModel, WholeAnswer
from finesteer_local.small_cache import SmallCache
from finesteer_local.training.precision import choice_key
from finesteer_local.training.transformers_tap import BlockRows, Stop, steered_rows, whole_plan
from finesteer_local.training.weights import in_8_bits, logits_of, opens_by_itself

Array = NDArray[np.float32]

LEAST_PARAMETERS = 20_000_000
"""Smaller models answer at once by any means."""
AT_ONCE = 64
"""Answers that are written together: each step reads all weights, whose memory is slower than what multiplies."""
TOKENS, FEWER_TOKENS = 8192, 4096
"""Tokens of prompts, padding included, that are computed at once: what they need of memory stays below 1 GB, and below
half of that for larger models, whose weights are in 8 bits."""
TIMED = 16
"""Answers by which the two are compared."""
_TIMED_TOKENS = 12
_COMPARED = 4
"""Prompts after which the two must find an answer equally likely."""
_CLOSE = 0.5  # a token's log-probability, the mean; what bfloat16 and 8-bit activations move is a fifth of it
_SAMPLE = "The capital of France is Paris."
_SHRINK = 0.75  # of the answers that are computed; when fewer go on, the others are dropped


_choices = SmallCache("engines.json")
"""By model, machine and versions, whether PyTorch answers the same, and faster."""


def can_answer(llama: TrainableModel) -> bool:
    """Whether PyTorch may answer in the place of `llama`: it would say the same, and there is something to win."""
    return llama.plain_gguf and llama.n_parameters >= LEAST_PARAMETERS


def worth_opening(llama: TrainableModel) -> bool:
    """Whether weights should be opened for PyTorch to answer, though nothing is learnt through them."""
    return can_answer(llama) and opens_by_itself(llama) and _choices.get(_key(llama)) is not False


def faster_engine(llama: TrainableModel, weights: Any, prompts: Sequence[Sequence[Message]]) -> TrainableModel:
    """What answers faster: `llama` itself, or its weights in PyTorch.

    Both are timed once on some answers, and the choice is remembered: a run that goes on answers as it began.

    Args:
        weights: of `llama` (`weights.weights_of`); None where there are none.
        prompts: typical ones.
    """
    if weights is None or not can_answer(llama):
        return llama
    key = _key(llama)
    wins = _choices.get(key)
    engine = None if wins is False else _engine(llama, weights)
    if not isinstance(wins, bool):
        # 8 bits are of a known architecture, and where bfloat16 is fast PyTorch is far ahead with them; to find out
        # would take up to a minute, and the memory of both.
        wins = engine is not None and (
            (in_8_bits(weights) and weights.dtype == torch.bfloat16)
            or (_agree(engine, llama, prompts[:_COMPARED]) and _seconds(engine, prompts) < _seconds(llama, prompts))
        )
        _choices.keep(key, wins)
    return engine if engine is not None and wins else llama


def _engine(llama: TrainableModel, weights: Any) -> TrainableModel | None:
    """None where transformers builds the model otherwise than this module expects."""
    with suppress(AttributeError):
        return cast(TrainableModel, TorchEngine(cast(SteeredLlama, llama), weights))
    return None


def _agree(engine: TrainableModel, llama: TrainableModel, prompts: Sequence[Sequence[Message]]) -> bool:
    """Whether `engine` can answer, and finds an answer as likely as `llama` does.

    `weights_of` has compared one text alone; what an architecture makes of padding, or needs for a cache, shows here.
    """
    answer = llama.tokenize(_SAMPLE.encode(), add_bos=False, special=False)
    asked = [Asked(chat_prompt(llama, messages), [answer]) for messages in prompts]
    try:
        list(engine.greedy_answers(prompts, 2, at_most=len(prompts)))
        found = engine.many_logprobs(asked)
    except Exception:  # whatever another architecture raises: llama.cpp answers
        return False
    wanted = llama.many_logprobs(asked)
    differences = [np.abs(a - b).mean() for [a], [b] in zip(found, wanted, strict=True)]
    return all(difference < _CLOSE for difference in differences)  # NaN is not


def _key(llama: TrainableModel) -> str:
    return choice_key(llama, version("transformers"))


def _seconds(model: TrainableModel, prompts: Sequence[Sequence[Message]]) -> float:
    """That some answers take."""
    list(model.greedy_answers(prompts[:2], 2, at_most=len(prompts)))  # the first ones also pay for setting up
    started = time.monotonic()
    list(model.greedy_answers(prompts, _TIMED_TOKENS, at_most=len(prompts)))
    return time.monotonic() - started


class TorchEngine:
    """`llama`, answering through its weights in PyTorch; everything else is `llama`'s own.

    It is a `TrainableModel`. Gates that read answers (`AnswerGate`) are left out: training tries none.

    Args:
        weights: of `llama` as a causal language model of transformers (`weights.weights_of`).
    """

    def __init__(self, llama: SteeredLlama, weights: Any) -> None:
        self.llama, self._model = llama, weights
        self._blocks = weights.get_decoder().layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llama, name)

    # --- answers

    def greedy_answers(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, *, at_most: int
    ) -> Iterator[str]:
        """As of `TrainableModel`."""
        return (answer.text for answer in self.whole_answers(conversations, max_tokens, 0.0, seed=0, at_most=at_most))

    def whole_answers(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        temperature: float,
        *,
        seed: int = 0,
        at_most: int,
    ) -> Iterator[WholeAnswer]:
        """As of `TrainableModel`."""
        options: dict[str, Any] = {"steer": self.llama.steer, "max_tokens": max_tokens, "temperature": temperature}
        requests = [chat_request(self.llama, each, seed=i, **options) for i, each in enumerate(conversations, seed)]
        for request in requests:
            request.check(self.llama, self.llama.n_ctx())
        for rows in self._parts([len(request.prompt) for request in requests], AT_ONCE):
            yield from self._answered([requests[i] for i in rows])

    @torch.inference_mode()
    def _answered(self, requests: Sequence[Request]) -> list[WholeAnswer]:
        steered = self._decided([request.prompt for request in requests], [request.steering for request in requests])
        answering = _Answering(self, requests, steered)
        while answering.going_on:
            answering.step()
        return answering.answers

    def answer_logprobs(
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], *, turn: int = 0
    ) -> list[NDArray[np.float64]]:
        """As of `TrainableModel`."""
        return self.many_logprobs([Asked(prompt, answers, turn)])[0]

    @torch.inference_mode()
    def many_logprobs(self, asked: Sequence[Asked]) -> list[list[NDArray[np.float64]]]:
        """As of `TrainableModel`."""
        steerings = [Steering(self.llama.steer, turn) for _, _, turn in asked]
        decided: list[SteeredRequest] = []
        prompts = [prompt for prompt, _, _ in asked]
        for rows in self._parts(list(map(len, prompts)), len(prompts)):
            decided += self._decided([prompts[i] for i in rows], [steerings[i] for i in rows])
        rows_of = [(i, answer) for i, (_, answers, _) in enumerate(asked) for answer in answers]
        found: list[list[NDArray[np.float64]]] = [[] for _ in asked]
        for part in self._parts([len(prompts[i]) + len(answer) for i, answer in rows_of], len(rows_of)):
            some = [rows_of[at] for at in part]
            tokens = [[*prompts[i], *answer[:-1]] for i, answer in some]
            with self._adding([decided[i] for i, _ in some], [0] * len(some), max(map(len, tokens)), padded_left=False):
                inputs, mask = _padded(tokens)
                hidden = self._model.get_decoder()(
                    input_ids=inputs, attention_mask=mask, use_cache=False
                ).last_hidden_state
            starts = [len(prompts[i]) - 1 for i, _ in some]
            for (i, answer), row, start in zip(some, hidden, starts, strict=True):
                logits = logits_of(self._model, row[start : start + len(answer)])
                scores = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(list(answer))]
                found[i].append(np.asarray(scores.double().numpy(), np.float64))
        return found

    # --- one pass

    def _parts(self, lengths: Sequence[int], at_most: int) -> Iterator[range]:
        return _parts(lengths, at_most, FEWER_TOKENS if in_8_bits(self._model) else TOKENS)

    def _decided(self, prompts: Sequence[Sequence[int]], steerings: Sequence[Steering]) -> list[SteeredRequest]:
        """The requests of some prompts, decided by their profiles: one pass up to the highest gate's layer."""
        requests = [
            SteeredRequest(prompt, steering, self.llama.n_layer)
            for prompt, steering in zip(prompts, steerings, strict=True)
        ]
        for request in requests:
            request.begin(0, steers=False)
        handlers = [request.handlers for request in requests]
        reading = {i for i, each in enumerate(handlers) if each}
        if not reading:
            return requests
        tokens, mask = _padded(prompts)

        def look(layer: int, hidden: torch.Tensor) -> None:
            for i in [i for i in reading if layer in handlers[i]]:
                if not handlers[i][layer](layer, BlockRows(hidden[i, : requests[i].n_prompt])):
                    reading.remove(i)
            if not reading:
                raise Stop

        with self._hooked({layer: look for each in handlers for layer in each}), suppress(Stop):
            self._model.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False)
        for request in requests:
            request.decided()
        return requests

    @contextmanager
    def _adding(
        self, requests: Sequence[SteeredRequest], starts: Sequence[int], n_columns: int, *, padded_left: bool
    ) -> Iterator[None]:
        """Add to the rows of a pass what steers them.

        Args:
            starts: the token of each request that stands in its first row.
            n_columns: rows of each; shorter ones are padded.
        """
        dtype = next(self._model.parameters()).dtype
        added: dict[int, torch.Tensor] = {}
        for i, (request, start) in enumerate(zip(requests, starts, strict=True)):
            shift = n_columns - request.n_prompt if padded_left else 0
            for first, last, vectors in steered_rows(whole_plan(request), start, n_columns - shift):
                for layer, vector in vectors.items():
                    if layer not in added:
                        added[layer] = torch.zeros(len(requests), n_columns, len(vector), dtype=dtype)
                    rows = torch.from_numpy(np.ascontiguousarray(vector)).to(dtype)
                    added[layer][i, first + shift : last + shift] = rows

        def add(layer: int, hidden: torch.Tensor) -> None:
            hidden += added[layer]

        with self._hooked(dict.fromkeys(added, add)):
            yield

    @contextmanager
    def _hooked(self, hooks: Mapping[int, Any]) -> Iterator[None]:
        """While it lasts every hook, by its block, sees the block's output (n, n_tokens, n_embd)."""

        def hook(layer: int) -> Any:
            return lambda _, __, output: hooks[layer](layer, output[0] if isinstance(output, tuple) else output)

        handles = [self._blocks[layer].register_forward_hook(hook(layer)) for layer in hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Answering:
    """Some requests that are answered together, a token each at every step."""

    def __init__(self, engine: TorchEngine, requests: Sequence[Request], steered: Sequence[SteeredRequest]) -> None:
        from transformers import DynamicCache

        self.answers = [WholeAnswer("", False)] * len(requests)
        self._engine, self._requests, self._steered = engine, requests, steered
        self._vocab, self._text_of = vocab_of(engine.llama), token_text(engine.llama)
        self._texts, self._shown = [AnswerText(request.stop) for request in requests], [""] * len(requests)
        self._rows = list(range(len(requests)))  # that are computed
        self._done: set[int] = set()
        for i, request in enumerate(steered):
            if request.words is not None:
                self._shown[i] = request.words
                self._end(i, ended=True)
        self._generators = [torch.Generator().manual_seed(request.sampling.seed or 0) for request in requests]
        self._cache = DynamicCache()
        self._read, self._mask = _padded([request.prompt for request in requests], left=True)
        self._first = True

    @property
    def going_on(self) -> bool:
        return len(self._done) < len(self._requests)

    def step(self) -> None:
        """Choose the next token of every answer that goes on."""
        self._drop()
        engine, rows = self._engine, self._rows
        steered = [self._steered[i] for i in rows]
        starts = [0 if self._first else len(request.tokens) - 1 for request in steered]
        with engine._adding(steered, starts, self._read.shape[1], padded_left=self._first):
            hidden = engine._model.get_decoder()(
                input_ids=self._read,
                attention_mask=self._mask,
                position_ids=(self._mask.cumsum(1) - 1).clamp_(min=0)[:, -self._read.shape[1] :],
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        self._first = False
        logits = logits_of(engine._model, hidden[:, -1])
        chosen = [
            0 if i in self._done else _sampled(row, self._requests[i].sampling, self._generators[i])
            for row, i in zip(logits, rows, strict=True)
        ]
        for i, token in zip(rows, chosen, strict=True):
            if i not in self._done:
                self._take(i, token)
        self._read = torch.tensor(chosen)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(rows), 1)], 1)

    def _take(self, i: int, token: int) -> None:
        request, text = self._steered[i], self._texts[i]
        if ends_answer(self._vocab, token):
            self._end(i, ended=True)
            return
        request.answer(token, self._text_of)
        self._shown[i] += text.add(self._engine.llama.detokenize([token]))
        if text.stopped_by is not None:
            self._end(i, ended=True)
        elif request.n_answer >= self._longest(i):
            self._end(i, ended=False)

    def _longest(self, i: int) -> int:
        room, wanted = self._engine.llama.n_ctx() - len(self._requests[i].prompt), self._requests[i].max_tokens
        return room if wanted is None else min(wanted, room)

    def _end(self, i: int, *, ended: bool) -> None:
        self.answers[i] = WholeAnswer(self._shown[i] + self._texts[i].end(), ended)
        self._done.add(i)

    def _drop(self) -> None:
        """No longer compute what has ended, once that is worth moving the others' keys and values."""
        left = [at for at, i in enumerate(self._rows) if i not in self._done]
        if len(left) > _SHRINK * len(self._rows):
            return
        index = torch.tensor(left)
        if not self._first:
            self._cache.batch_select_indices(index)
        self._read, self._mask = self._read[index], self._mask[index]
        self._rows = [self._rows[at] for at in left]


def _padded(rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (n, longest), and which of them are there."""
    side = "left" if left else "right"
    tokens = pad_sequence([torch.tensor(list(row)) for row in rows], batch_first=True, padding_side=side)
    there = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return tokens, pad_sequence(there, batch_first=True, padding_side=side)


def _parts(lengths: Sequence[int], at_most: int, n_tokens: int) -> Iterator[range]:
    """Rows that are computed together, in order: at most so many tokens with what pads them, and so many rows."""
    start = longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i - start == at_most or (i - start + 1) * longest > n_tokens):
            yield range(start, i)
            start, longest = i, length
    if start < len(lengths):
        yield range(start, len(lengths))


def _sampled(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token chosen from its logits (n_vocab,) in the order of llama.cpp's samplers: top-k, top-p, min-p, temperature.

    With temperature 0 it is the likeliest.

    Raises:
        SteeringError: the logits are not finite.
    """
    if not logits.max().isfinite():
        raise SteeringError("the model's logits are not finite; a lower strength may help, or the model is damaged")
    if sampling.temperature <= 0:
        return int(logits.argmax())
    values, tokens = logits.topk(min(sampling.top_k, len(logits)) if sampling.top_k > 0 else len(logits))  # descending
    probabilities = torch.softmax(values, 0)
    before = probabilities.cumsum(0) - probabilities
    stays = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
    stays[0] = True  # whatever was asked for
    weights = torch.softmax(values[stays] / sampling.temperature, 0)
    return int(tokens[stays][torch.multinomial(weights, 1, generator=generator)])
