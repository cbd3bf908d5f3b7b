"""Vectors that are learnt through the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.steering import AlwaysGate, Experts
from finesteer_local.training import optimise
from finesteer_local.training.data import Pair, Prompt
from finesteer_local.training.optimise import (
    FEW,
    LONGEST,
    MANY,
    Example,
    Vectors,
    likelier,
    whole,
)
from finesteer_local.training.progress import quiet
from finesteer_local.training.weights import weights_of

LAYERS = (1, 2)


pytestmark = pytest.mark.usefixtures("one_thread", "in_float32")


@pytest.fixture(scope="module")
def llama(tiny: Path) -> SteeredLlama:
    return open_model(tiny, n_ctx=256, n_threads=1)


def pair(i: int) -> Pair:
    prompt = Prompt([{"role": "user", "content": f"Question {i}?"}], kind="facts")
    return Pair(prompt, chosen=f"Yes, {i} it is.", rejected=f"No, never {i}.")


def profile(llama: SteeredLlama, vectors: Vectors) -> Profile:
    """As they are meant: strength 1 from the last turn on, the answer included."""
    return Profile(
        name="x",
        model=llama.identity,
        gate=AlwaysGate(),
        gate_layer=min(vectors),
        experts={layer: Experts.fixed(vector) for layer, vector in vectors.items()},
        strength=1.0,
        scope="turn",
        answer_strength=1.0,
    )


def nothing(llama: SteeredLlama, layers: Sequence[int] = LAYERS) -> Vectors:
    return {layer: np.zeros(llama.n_embd(), np.float32) for layer in layers}


def logprobs(llama: SteeredLlama, one: Pair, answers: list[list[int]], vectors: Vectors) -> list[np.ndarray]:
    """Steered by llama.cpp, not by PyTorch."""
    llama.set_profiles([profile(llama, vectors)])
    prompt = chat_prompt(llama, one.prompt.messages)
    found = answer_logprobs(llama, prompt, answers, turn=turn_start(llama, one.prompt.messages, prompt))
    llama.set_profiles([])
    return found


def tokens(llama: SteeredLlama, text: str) -> list[int]:
    return llama.tokenize(text.encode(), add_bos=False)


def margin(llama: SteeredLlama, pairs: list[Pair], vectors: Vectors) -> float:
    found = [logprobs(llama, p, [tokens(llama, p.chosen), tokens(llama, p.rejected)], vectors) for p in pairs]
    return float(np.mean([chosen.sum() - rejected.sum() for chosen, rejected in found]))


def test_chosen_answers_become_likelier(llama: SteeredLlama) -> None:
    model, seen = weights_of(llama), []
    pairs = [pair(i) for i in range(3 * MANY)]

    def run() -> Vectors:
        return likelier(model, llama, pairs, LAYERS, seed=0, progress=lambda *at: seen.append(at))

    found = run()
    assert seen == [("learning through the model", i, 3) for i in (1, 2, 3)]
    assert [*found] == [*LAYERS] and all(v.shape == (llama.n_embd(),) and v.dtype == np.float32 for v in found.values())
    held = [pair(i) for i in range(100, 104)]
    assert margin(llama, held, found) > margin(llama, held, nothing(llama)) + 1
    again = run()  # the same seed, and the model is as it was
    assert all(np.array_equal(again[layer], found[layer]) for layer in LAYERS)
    other = likelier(model, llama, pairs, LAYERS, seed=1, progress=quiet)
    assert not np.array_equal(other[1], found[1])
    [alone] = likelier(model, llama, pairs, [2], seed=0, progress=quiet).values()
    assert not np.array_equal(alone, found[2])  # together they are learnt otherwise than alone


def test_whole_answers_and_their_end_become_likelier(llama: SteeredLlama) -> None:
    model, seen, end = weights_of(llama), [], llama.turn_end
    pairs = [pair(i) for i in range(12 * FEW + 1)]
    found = whole(model, llama, pairs, LAYERS, end=end, seed=0, progress=lambda *at: seen.append(at))
    assert seen == [("learning through the model", i, 13) for i in range(1, 14)]
    held = pair(100)
    answer = [*tokens(llama, held.chosen), end]
    [before], [after] = (logprobs(llama, held, [answer], v) for v in (nothing(llama), found))
    assert after.mean() > before.mean() + 0.2
    again = whole(model, llama, pairs, LAYERS, end=end, seed=0, progress=quiet)
    assert all(np.array_equal(again[layer], found[layer]) for layer in LAYERS)
    without = whole(model, llama, pairs, LAYERS, end=tokens(llama, "x")[0], seed=0, progress=quiet)
    assert not np.array_equal(without[1], found[1])  # the end is learnt like any other token
    changed = [replace(p, rejected="something else") for p in pairs]
    same = whole(model, llama, changed, LAYERS, end=end, seed=0, progress=quiet)
    assert all(np.array_equal(same[layer], found[layer]) for layer in LAYERS)  # the rejected answers say nothing


def test_what_is_learnt_is_what_llama_cpp_adds(llama: SteeredLlama) -> None:
    """Log-probabilities of answers under vectors, of several lengths at once, are llama.cpp's."""
    model, rng = weights_of(llama), np.random.default_rng(0)
    vectors = {layer: rng.normal(0, 0.3, llama.n_embd()).astype(np.float32) for layer in LAYERS}
    talk = [{"role": role, "content": "so it is " * 4} for role in ("user", "assistant", "user")]
    pairs = [pair(1), replace(pair(2), prompt=Prompt(talk), chosen="No."), pair(123456)]
    examples = []
    for one in pairs:
        prompt = chat_prompt(llama, one.prompt.messages)
        examples.append(
            Example(
                prompt, turn_start(llama, one.prompt.messages, prompt), [*tokens(llama, one.chosen), llama.turn_end]
            )
        )
    assert 0 < examples[1].turn < len(examples[1].prompt) - 20
    mask: list[torch.Tensor] = []
    stacked = torch.from_numpy(np.stack([*vectors.values()]))[None]  # what all experts have in common, and there is one
    with torch.no_grad(), optimise._added(model, LAYERS, stacked, mask):
        found = optimise._logprobs(model, examples, mask)
    for one, example, got in zip(pairs, examples, found, strict=True):
        [wanted] = logprobs(llama, one, [list(example.answer)], vectors)
        np.testing.assert_allclose(got.numpy(), wanted, atol=2e-2)
        [plain] = logprobs(llama, one, [list(example.answer)], nothing(llama))
        assert np.abs(wanted - plain).max() > 0.1
    with torch.no_grad():  # and nothing is left behind
        left = optimise._logprobs(model, examples, mask)
    [plain] = logprobs(llama, pairs[0], [list(examples[0].answer)], nothing(llama))
    np.testing.assert_allclose(left[0].numpy(), plain, atol=2e-2)


ALIKE = 0.99
"""Cosine of what is learnt in bfloat16 and in float32: it is .999, and less than .4 for random directions."""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("way", ["likelier", "whole", "experts"])
def test_bfloat16_learns_the_same(llama: SteeredLlama, way: str, weights_in: Any) -> None:
    pairs = [pair(i) for i in range(4 * MANY)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model, options = weights_in(dtype, llama), {"seed": 0, "progress": quiet}
        assert model.dtype == dtype
        if way == "likelier":
            found.append(likelier(model, llama, pairs, LAYERS, **options))
        else:
            experts = [i % 2 for i in range(len(pairs))] if way == "experts" else ()
            found.append(whole(model, llama, pairs, LAYERS, end=llama.turn_end, experts=experts, **options))
    for layer in LAYERS:
        exact, fast = (np.atleast_2d(each[layer]) for each in found)
        assert exact.shape == fast.shape and exact.dtype == fast.dtype == np.float32
        assert min(map(cosine, exact, fast)) > ALIKE, list(map(cosine, exact, fast))
        assert np.linalg.norm(fast) == pytest.approx(np.linalg.norm(exact), rel=0.1)


@pytest.mark.parametrize("fails", [False, True])
def test_attention_is_written_out_while_it_learns(
    llama: SteeredLlama, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And afterwards as it was, with nothing left in the model, whatever happens."""
    model, used = weights_of(llama), []
    before = model.config._attn_implementation

    def progress(*_: Any) -> None:
        used.append(model.config._attn_implementation)
        if fails:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        likelier(model, llama, [pair(i) for i in range(MANY)], LAYERS, seed=0, progress=progress)
    assert used == ["eager"] and before == "sdpa" == model.config._attn_implementation
    assert not any(block._forward_hooks for block in model.get_decoder().layers)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("way", ["likelier", "whole"])
def test_what_is_computed_again_is_the_same(llama: SteeredLlama, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed-forward networks of larger models, to the bit."""
    pairs, found, calls = [pair(i) for i in range(2 * MANY)], [], []
    for large in (False, True):
        monkeypatch.setattr(optimise, "in_8_bits", lambda _, large=large: large)
        model = weights_of(llama)
        network = model.get_decoder().layers[-1].mlp
        monkeypatch.setattr(type(network), "forward", _counted(type(network).forward, calls))
        calls.clear()
        learn = likelier if way == "likelier" else partial(whole, end=llama.turn_end)
        found.append((learn(model, llama, pairs, LAYERS, seed=0, progress=quiet), len(calls)))
        assert not any("forward" in vars(block.mlp) for block in model.get_decoder().layers)
    assert all(np.array_equal(found[0][0][layer], found[1][0][layer]) for layer in LAYERS)
    assert found[1][1] > 1.2 * found[0][1]


def _counted(forward: Any, calls: list[object]) -> Any:
    return lambda network, *inputs: (calls.append(network), forward(network, *inputs))[1]


def with_system(i: int, text: str) -> Pair:
    one = pair(i)
    return replace(one, prompt=Prompt([{"role": "system", "content": text}, *one.prompt.messages], kind="facts"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_all_begin_with_is_computed_once(
    llama: SteeredLlama, dtype: torch.dtype, weights_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found, lengths = weights_in(dtype, llama), [], []
    pairs = [with_system(i, "You answer every question with a number and nothing else.") for i in range(8 * FEW)]
    decoder = model.get_decoder()
    with monkeypatch.context() as patch:
        forward = decoder.forward
        patch.setattr(decoder, "forward", lambda **k: (lengths.append(k["input_ids"].shape[1]), forward(**k))[1])
        for worth in (8, 10_000):
            patch.setattr(optimise, "WORTH_SHARING", worth)
            found.append(whole(model, llama, pairs, LAYERS, end=llama.turn_end, seed=0, progress=quiet))
    beginning, alone, after, *rest = lengths
    assert alone == beginning + after and beginning > 8
    assert rest[8:] == [beginning + n for n in rest[:8]]
    for layer in LAYERS:  # Adam's first steps are as large however small the gradient, so sums' order shows a little
        if dtype == torch.float32:
            np.testing.assert_allclose(found[0][layer], found[1][layer], atol=2e-2)
        else:
            assert cosine(found[0][layer], found[1][layer]) > ALIKE
    # Different from the first word on: there is nothing to share.
    lengths.clear()
    with monkeypatch.context() as patch:
        patch.setattr(optimise, "WORTH_SHARING", 20)  # a template's first words are shorter
        patch.setattr(decoder, "forward", lambda **k: (lengths.append(k["input_ids"].shape[1]), forward(**k))[1])
        apart_ones = [with_system(i, f"{'xyz'[i % 3]} is where it starts") for i in range(FEW)]
        whole(model, llama, apart_ones, LAYERS, end=llama.turn_end, seed=0, progress=quiet)
    assert len(lengths) == 1


def test_a_beginning_that_is_computed_otherwise_is_not_shared(
    llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = weights_of(llama)
    pairs = [with_system(i, "You answer every question with a number and nothing else.") for i in range(FEW)]
    monkeypatch.setattr(optimise, "WORTH_SHARING", 10_000)
    wanted = whole(model, llama, pairs, LAYERS, end=llama.turn_end, seed=0, progress=quiet)
    monkeypatch.setattr(optimise, "WORTH_SHARING", 8)
    memory = optimise._memory

    def spoilt(*arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        found = memory(*arguments)
        return found and [(3 * keys, values) for keys, values in found]

    for other in (spoilt, lambda *_: None):
        monkeypatch.setattr(optimise, "_memory", other)
        found = whole(model, llama, pairs, LAYERS, end=llama.turn_end, seed=0, progress=quiet)
        assert all(np.array_equal(found[layer], wanted[layer]) for layer in LAYERS)


def test_long_answers_teach_nothing(llama: SteeredLlama) -> None:
    long = [replace(pair(i), chosen="x" * LONGEST) for i in range(4)]
    model = weights_of(llama)
    options = {"end": llama.turn_end, "seed": 0, "progress": quiet}
    with pytest.raises(DataError, match=f"have more than {LONGEST} tokens; train with --no-optimise"):
        whole(model, llama, long, LAYERS, **options)
    found = whole(model, llama, [*long, pair(0)], LAYERS, **options)
    alone = whole(model, llama, [pair(0)], LAYERS, **options)
    assert all(np.array_equal(found[layer], alone[layer]) for layer in LAYERS)


def test_so_many_answers_are_enough(llama: SteeredLlama) -> None:
    seen: list[tuple[str, int, int]] = []
    whole(
        weights_of(llama),
        llama,
        [pair(i) for i in range(40)],
        [1],
        end=2,
        seed=0,
        progress=lambda *a: seen.append(a),
        n_answers=FEW,
    )
    assert seen == [("learning through the model", 1, 1)]
