"""How long training will take, from a short probe of this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from finesteer_local.runtime.expand import open_fast
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import Request
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.training.data import QUALITIES, spread
from finesteer_local.training.harvest import generate
from finesteer_local.training.pairs import MAX_PAIRS, OWN_TOKENS, REPLY_TOKENS
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.run import LAYERS
from finesteer_local.training.search import SEARCHES
from finesteer_local.training.settings import Settings
from finesteer_local.training.trials import ANSWERS, CONTENDERS, OWN_ANSWERS, WHOLE_TOKENS

_PROBES = 16
_READS = 48
_FITTING = 40.0  # seconds that experts and gate take beside the model; they hardly depend on it
_TRIALS = CONTENDERS + len(SEARCHES["refusal"].scopes) - 1 + 3 + 2  # of the tuner; it walks on while that helps
_ANSWERED = 0.25  # of the longest answer that a trial allows: refusals are short


def estimate_seconds(model: str | Path, recipe: str = "safety", **options: Any) -> float:
    """Seconds that training `recipe` will take here: a few prompts are read and answered, and scaled up.

    Raises:
        ModelError, SteeringError: the model cannot be loaded or read.
    """
    data = load_recipe(recipe)
    for_gate = data.part(QUALITIES[Settings.quality])
    everything = [*for_gate.positive, *for_gate.contrast]
    with open_fast(model, **options) as llama:
        asked = spread(data.positive, _PROBES)
        list(generate(llama, asked[:1], 4))  # the first request also pays for setting up
        started = time.monotonic()
        list(generate(llama, asked, OWN_TOKENS))
        answer = (time.monotonic() - started) / len(asked)
        read = spread(everything, _READS)
        tokens = {i: chat_prompt(llama, prompt.messages) for i, prompt in enumerate(read)}
        read = [read[i] for i in tokens if len(tokens[i]) < llama.n_ctx()]  # pages that do not fit are left out
        requests = [Request(each, 0) for each in tokens.values() if len(each) < llama.n_ctx()]
        harvester = Harvester(llama, [max(round(LAYERS[data.judge][-1] * llama.n_layer), 1)])
        list(harvester.harvest(requests[:1]))  # pays for setting up, too
        started = time.monotonic()
        list(harvester.harvest(requests))
        reading = (time.monotonic() - started) / sum(len(prompt.text) for prompt in read)
        harvester.close()
    tried = ANSWERS * _TRIALS * WHOLE_TOKENS * _ANSWERED
    answers = OWN_ANSWERS + (MAX_PAIRS * REPLY_TOKENS + tried) / OWN_TOKENS
    return answer * answers + reading * sum(len(prompt.text) for prompt in everything) + _FITTING
