"""How long training will take, from a short probe of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finesteer_local.errors import ModelError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.expand import open_fast
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import Request
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.training.data import QUALITIES, Prompt, TrainingData, spread
from finesteer_local.training.harvest import generate
from finesteer_local.training.optimise import Example, learn_whole, learns_by_itself, weights_of, whole_batches
from finesteer_local.training.pairs import MAX_PAIRS, OWN_TOKENS, REPLY_TOKENS, held_out, lesson
from finesteer_local.training.progress import quiet
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.run import candidate_layers
from finesteer_local.training.search import SEARCHES, Search
from finesteer_local.training.settings import Settings
from finesteer_local.training.trials import ANSWERS, CONTENDERS, OWN_ANSWERS, WHOLE_TOKENS

_PROBES = 16
_READS = 48
_FITTING = 40.0  # seconds that experts and gate take beside the model; they hardly depend on it
_WALKED = 3 + 2  # trials in which the tuner changes strengths; it walks on while that helps
_ANSWERED = 0.25  # of the longest answer that a trial allows: refusals are short


def estimate_seconds(model: str | Path, recipe: str = "safety", **options: Any) -> float:
    """Seconds that training `recipe` will take here, from a few prompts read and answered, and one batch learnt from.

    Raises:
        DataError: this model can learn nothing from the recipe's answers.
        ModelError, SteeringError: the model cannot be loaded or read.
    """
    data = load_recipe(recipe)
    if n_threads := options.get("n_threads"):
        torch.set_num_threads(n_threads)
    with open_fast(model, **options) as llama:
        learning = _learning(llama, data) if learns_by_itself(llama, data.judge) else None
        return (
            _answering(llama, data, learnt=learning is not None) + (learning or 0.0) + _reading(llama, data) + _FITTING
        )


def _answering(llama: SteeredLlama, data: TrainingData, *, learnt: bool) -> float:
    """Seconds in which the model answers: by itself, and while settings are tried."""
    asked = spread(data.positive, _PROBES)
    list(generate(llama, asked[:1], 4))  # the first request also pays for setting up
    started = time.monotonic()
    list(generate(llama, asked, OWN_TOKENS))
    answer = (time.monotonic() - started) / len(asked)
    trials = _n_trials(SEARCHES["refusal, learnt"], 1) if learnt else _n_trials(SEARCHES["refusal"], CONTENDERS)
    replies = 0 if learnt else MAX_PAIRS * REPLY_TOKENS
    return answer * (OWN_ANSWERS + (replies + ANSWERS * trials * WHOLE_TOKENS * _ANSWERED) / OWN_TOKENS)


def _n_trials(search: Search, contenders: int) -> int:
    return contenders + len(search.scopes) - 1 + _WALKED


def _reading(llama: SteeredLlama, data: TrainingData) -> float:
    """Seconds in which the gate's prompts are read."""
    for_gate = data.part(QUALITIES[Settings.quality])
    everything = [*for_gate.positive, *for_gate.contrast]
    tokens = [(prompt, chat_prompt(llama, prompt.messages)) for prompt in spread(everything, _READS)]
    read = [(prompt, each) for prompt, each in tokens if len(each) < llama.n_ctx()]  # other pages are left out
    requests = [Request(each, 0) for _, each in read]
    harvester = Harvester(llama, candidate_layers(llama.n_layer, data.judge, learns=False)[-1:])
    try:
        list(harvester.harvest(requests[:1]))  # pays for setting up, too
        started = time.monotonic()
        list(harvester.harvest(requests))
        seconds = time.monotonic() - started
    finally:
        harvester.close()
    return seconds / _letters([prompt for prompt, _ in read]) * _letters(everything)


def _letters(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt.text) for prompt in prompts)


def _learning(llama: SteeredLlama, data: TrainingData) -> float | None:
    """Seconds in which vectors are learnt through the model; None where it will not be."""
    started = time.monotonic()
    try:
        weights = weights_of(llama)
    except ModelError:
        return None
    opening = time.monotonic() - started
    pairs = lesson(data, Settings.seed)
    learn, _ = held_out([pair.prompt for pair in pairs], Settings.seed)
    batches = whole_batches(llama, [pairs[i] for i in learn], end=llama.turn_end, seed=Settings.seed)
    batch = sorted(batches, key=_n_computed)[len(batches) // 2]
    layers = candidate_layers(llama.n_layer, data.judge, learns=True)
    started = time.monotonic()
    learn_whole(weights, layers, [batch], quiet)
    return opening + (time.monotonic() - started) * sum(map(_n_computed, batches)) / _n_computed(batch)


def _n_computed(batch: Sequence[Example]) -> int:
    """Tokens that a batch costs: padding is computed, too."""
    return len(batch) * max(len(example.prompt) + len(example.answer) for example in batch)
