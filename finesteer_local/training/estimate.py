"""How long training will take, from a short probe of this machine."""

from __future__ import annotations

import time
from pathlib import Path

from finesteer_local.runtime import open_model
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.training.harvest import generate
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.train import LAYERS, MAX_PAIRS, REPLY_TOKENS
from finesteer_local.training.tune import ANSWER_STRENGTHS, ANSWER_TOKENS, ANSWERS, SCOPES, STRENGTHS

_PROBES = 6
_FITTING = 40.0  # seconds that experts and gate take beside the model; they hardly depend on it


def estimate_seconds(model: str | Path, recipe: str = "safety") -> float:
    """Seconds that training `recipe` will take here: a few prompts are read and answered, and scaled up.

    Raises:
        ModelError, SteeringError: the model cannot be loaded or read.
    """
    data = load_recipe(recipe)
    everything = data.positive + list(data.contrast)
    sample = everything[:: len(everything) // _PROBES][:_PROBES]
    letters = sum(len(prompt.text) for prompt in everything) / max(sum(len(prompt.text) for prompt in sample), 1)
    llama = open_model(model)
    try:
        generate(llama, sample[0], 4)  # the first request also pays for setting up
        started = time.monotonic()
        for prompt in sample:
            generate(llama, prompt, REPLY_TOKENS)
        answer = (time.monotonic() - started) / len(sample)
        harvester = Harvester(llama, [max(round(LAYERS[-1] * llama.n_layer), 1)])
        started = time.monotonic()
        for prompt in sample:
            harvester.prompt_state(chat_prompt(llama, prompt.messages))
        reading = time.monotonic() - started
    finally:
        llama.close()
    trials = 2 * len(SCOPES) + len(STRENGTHS) / 2 + len(ANSWER_STRENGTHS)
    answers = MAX_PAIRS + ANSWERS * trials * ANSWER_TOKENS / REPLY_TOKENS
    per_read = reading / len(sample)
    return answer * answers + reading * letters + per_read * 2 * MAX_PAIRS + _FITTING
