"""What llama-cpp-python offers goes on working under an open gate.

The reference is plain llama-cpp-python with the decision's vectors set from the first token on: everything that a
request returns must be the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama, LlamaGrammar, LogitsProcessorList, StoppingCriteriaList
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from reference import control, logits, plain_llama, read, steered_llama
from tiny import make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = "The inner user is on the other"
MESSAGES = [{"role": "user", "content": PROMPT}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y", "z", "u"]}}, "required": ["a"]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add",
            "parameters": SCHEMA,
        },
    }
]


def pair(path: Path, request: Any, **settings: Any) -> list[Any]:
    """What `request` gives with a steered model, and with the reference."""
    llama = steered_llama(path, profiles=[make_profile(path, strength=2.0)], **settings)
    plain = plain_llama(path, **settings)
    first = strip(request(llama))
    control(plain, llama.last_decision.vectors)
    assert llama.last_decision.open
    unsteered = strip(request(plain_llama(path, **settings)))
    assert first != unsteered, "steering should have changed this answer"
    wanted = strip(request(plain))
    # once more, with the next seed: steered tokens are never reused, so the reference forgets them
    plain.reset()
    return [[first, strip(request(llama))], [wanted, strip(request(plain))]]


def strip(result: Any) -> Any:
    """A result without its identifiers."""
    if isinstance(result, dict):
        return {k: strip(v) for k, v in result.items() if k not in ("id", "created")}
    return result if isinstance(result, str) or not hasattr(result, "__iter__") else [strip(item) for item in result]


REQUESTS = {
    "chat": lambda llama: llama.create_chat_completion(MESSAGES, max_tokens=8, temperature=0.0),
    "chat stream": lambda llama: llama.create_chat_completion(MESSAGES, max_tokens=8, stream=True),
    "completion": lambda llama: llama(PROMPT, max_tokens=8),
    "completion stream": lambda llama: llama(PROMPT, max_tokens=8, stream=True),
    "echo": lambda llama: llama(PROMPT, max_tokens=8, echo=True),
    "stop": lambda llama: llama(PROMPT, max_tokens=60, temperature=0.0, stop=[*"ABCDEFGHIJ"]),
    "stop stream": lambda llama: llama(PROMPT, max_tokens=60, temperature=0.0, stop=[*"ABCDEFGHIJ"], stream=True),
    "sampling": lambda llama: llama(PROMPT, max_tokens=12, seed=3, temperature=1.5, top_k=30, repeat_penalty=1.2),
    "mirostat": lambda llama: llama(PROMPT, max_tokens=12, seed=3, mirostat_mode=2),
    "grammar": lambda llama: llama(
        PROMPT, max_tokens=12, temperature=0.0, grammar=LlamaGrammar.from_string("root ::= [a-m]+", verbose=False)
    ),
    "json": lambda llama: llama.create_chat_completion(
        MESSAGES, max_tokens=20, temperature=0.0, response_format={"type": "json_object", "schema": SCHEMA}
    ),
    "tool": lambda llama: llama.create_chat_completion(
        MESSAGES, None, None, TOOLS, {"type": "function", "function": {"name": "add"}}, max_tokens=12, temperature=0.0
    ),
    "logit bias": lambda llama: llama(PROMPT, max_tokens=8, temperature=0.0, logit_bias={40: 3.0, 41: 2.5, 60: 3.0}),
    "logits processor": lambda llama: llama(
        PROMPT, max_tokens=8, temperature=0.0, logits_processor=LogitsProcessorList([lambda ids, scores: -scores])
    ),
    "stopping criteria": lambda llama: llama(
        PROMPT, max_tokens=20, temperature=0.0, stopping_criteria=StoppingCriteriaList([lambda ids, _: len(ids) > 24])
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(tiny: Path, name: str) -> None:
    got, wanted = pair(tiny, REQUESTS[name])
    assert got == wanted


def test_tools_given_by_position_belong_to_the_prompt(tmp_path: Path) -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    path = write_tiny_model(tmp_path / "tools.gguf", chat_template=template)
    llama = steered_llama(path, profiles=[make_profile(path, scope="turn")])
    seen = []
    for arguments, named in (((None, None, TOOLS), {}), ((), {"tools": TOOLS})):
        llama.create_chat_completion(MESSAGES, *arguments, max_tokens=1, temperature=0.0, **named)
        seen.append((llama._steered_from, logits(llama)))
    assert seen[0][0] == seen[1][0] > 100
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(tiny: Path, settings: dict, stream: bool) -> None:
    got, wanted = pair(
        tiny, lambda llama: llama(PROMPT, max_tokens=5, logprobs=3, stream=stream), logits_all=True, **settings
    )
    assert got == wanted
    got, wanted = pair(
        tiny,
        lambda llama: llama.create_chat_completion(MESSAGES, max_tokens=5, logprobs=True, top_logprobs=2),
        logits_all=True,
        **settings,
    )
    assert got == wanted


def test_the_scores_of_every_prompt_token(tiny: Path) -> None:
    tokens = list(range(40, 70))
    for settings in ({}, {"n_batch": 16, "n_ubatch": 8}):
        llama = steered_llama(tiny, profiles=[make_profile(tiny)], logits_all=True, **settings)
        llama.reset()
        llama.eval(tokens)
        plain = plain_llama(tiny, logits_all=True, **settings)
        read(plain, tokens, [(0, llama.last_decision.vectors)])
        np.testing.assert_array_equal(llama.scores[:30], plain.scores[:30])


def test_a_draft_model(tiny: Path) -> None:
    def request(llama: Llama) -> str:
        return llama("abcabcabcabcabc", max_tokens=30, temperature=0.0)["choices"][0]["text"]

    got, wanted = pair(tiny, request, draft_model=LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=4))
    assert got == wanted


@pytest.mark.parametrize("settings", [{"type_k": 0, "type_v": 0}, {"flash_attn": True}, {"n_threads": 2}], ids=str)
def test_settings_of_the_context(tiny: Path, settings: dict) -> None:
    got, wanted = pair(tiny, lambda llama: llama(PROMPT, max_tokens=3, temperature=0.0), **settings)
    assert got == wanted


@pytest.mark.parametrize("scope", ["prompt", "turn", "response"])
@pytest.mark.parametrize("settings", [{}, {"n_batch": 16, "n_ubatch": 8}], ids=["one batch", "micro-batches"])
def test_recurrent_memory_cannot_be_cut_but_is_read_again(tmp_path: Path, scope: str, settings: dict) -> None:
    path = write_tiny_model(tmp_path / "mamba.gguf", "mamba")
    tokens, turn = list(range(40, 80)), 19
    llama = steered_llama(path, profiles=[make_profile(path, scope=scope)], **settings)
    plain = plain_llama(path, **settings)
    for prompt in (tokens, tokens[:30], tokens):
        llama.expect(turn)
        next(llama.generate(prompt, temp=0.0))
        start = {"prompt": 0, "turn": turn, "response": len(prompt) - 1}[scope]
        wanted = read(plain, prompt, [(start, llama.last_decision.vectors)])
        np.testing.assert_allclose(logits(llama), wanted, atol=1e-4)
        assert np.abs(logits(llama) - read(plain, prompt)).max() > 1e-2
        if scope != "response":
            np.testing.assert_array_equal(logits(llama), wanted)
    llama.set_profiles([])
    next(llama.generate(tokens, temp=0.0))
    np.testing.assert_array_equal(logits(llama), read(plain, tokens))


def test_a_sliding_window_that_has_moved_on_is_read_again(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "gemma3.gguf", "gemma3", n_layer=7, sliding_window=8)
    settings = {"n_ctx": 1024, "n_batch": 64, "n_ubatch": 32, "swa_full": False}
    tokens = np.random.default_rng(3).integers(3, 250, 641).tolist()
    plain = plain_llama(path, **settings)
    for turn in (20, 400):
        llama = steered_llama(path, profiles=[make_profile(path, scope="turn", layers=(3,))], **settings)
        llama.expect(turn)
        next(llama.generate(tokens, temp=0.0))
        wanted = read(plain, tokens, [(turn, llama.last_decision.vectors)])
        np.testing.assert_allclose(logits(llama), wanted, atol=1e-3)
        llama.expect(turn)
        next(llama.generate(tokens[:500], temp=0.0))
        wanted = read(plain, tokens[:500], [(turn, llama.last_decision.vectors)])
        np.testing.assert_allclose(logits(llama), wanted, atol=1e-3)
