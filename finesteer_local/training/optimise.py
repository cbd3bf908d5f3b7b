"""Vectors learnt through the model: moved until the chosen answers are likelier.

Differences of hidden states show where two answers part, not what brings one about, and nothing of how an answer ends.
Here the frozen model is differentiated in PyTorch, and one vector for each layer is learnt from the answers'
log-probabilities, all layers together, starting at nothing (docs/experiments.md):

- `likelier` takes pairs: the chosen answer against the rejected one, as BiPO does (arXiv 2406.00045, without its second
  direction);
- `whole` takes chosen answers alone, to their end: the token that ends the turn is learnt like any other. A small model
  that is only pushed towards a refusal begins one and then cannot stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from finesteer_local.errors import DataError
from finesteer_local.runtime.packing import shared_length
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training.data import Pair
from finesteer_local.training.model_data import pair_tokens
from finesteer_local.training.progress import Progress
from finesteer_local.training.trials import ANSWER_TOKENS
from finesteer_local.training.weights import WITHOUT, in_8_bits, logits_of

MANY = 8  # pairs of a step
RATE = 0.05  # Adam's, for these; one pass over them
ANSWERS = 640  # whole answers that are learnt from
FEW = 2  # whole answers of a step
FAST = 0.1
"""Adam's rate for so few, which falls to nothing. Steps count, not answers: 160 of two reach further than 80 of eight
at half the rate (docs/experiments.md)."""
LONGEST = 320  # tokens of a prompt and its answer; longer ones cost most and teach no more
WORTH_SHARING = 8  # tokens
_SAME = {torch.float32: 1e-2, torch.bfloat16: 0.6}
"""A token's log-probability may differ by this where only the order of sums is another."""


class Example(NamedTuple):
    """Tokens of a prompt, the index at which its last user turn starts, an answer's tokens, and which expert learns."""

    prompt: Sequence[int]
    turn: int
    answer: Sequence[int]
    expert: int = 0


Vectors = dict[int, NDArray[np.float32]]
"""By layer, each (n_embd,), or (K, n_embd) where K experts are learnt."""


def likelier(
    model: Any, llama: TrainableModel, pairs: Sequence[Pair], layers: Sequence[int], *, seed: int, progress: Progress
) -> Vectors:
    """Vectors that make the pairs' chosen answers likelier than the rejected, for strength 1 from the last turn on.

    Args:
        model: a causal language model of transformers with the weights of `llama`, which says what the tokens are.
        layers: where a vector is learnt.
        seed: of the order of the pairs.
    """
    examples = []
    for pair in pairs:
        tokens = pair_tokens(llama, pair, ANSWER_TOKENS)
        examples.append([Example(tokens.prompt, tokens.turn, answer) for answer in tokens.answers])
    order = np.random.default_rng(seed).permutation(len(examples))
    batches = [order[i : i + MANY] for i in range(0, len(order), MANY)]

    def loss(chosen_and_rejected: Sequence[torch.Tensor]) -> torch.Tensor:
        totals = torch.stack([each.sum() for each in chosen_and_rejected])
        return -functional.logsigmoid(totals[0::2] - totals[1::2]).mean()

    return _learn(model, layers, [[e for i in batch for e in examples[i]] for batch in batches], loss, RATE, progress)


def whole(
    model: Any,
    llama: TrainableModel,
    pairs: Sequence[Pair],
    layers: Sequence[int],
    *,
    end: int,
    seed: int,
    progress: Progress,
    n_answers: int = ANSWERS,
    experts: Sequence[int] = (),
) -> Vectors:
    """Vectors that make the pairs' chosen answers likely, and that they end there; as `likelier` otherwise.

    Args:
        end: the token with which the model ends its turn.
        n_answers: of so many of the pairs at most.
        experts: for every pair the number of the expert that answers it, where there are several.

    Raises:
        DataError: no prompt and answer are short enough.
    """
    batches = whole_batches(llama, pairs, end=end, seed=seed, n_answers=n_answers, experts=experts)
    return learn_whole(model, layers, batches, progress, n_experts=len(set(experts)) or 1)


def whole_batches(
    llama: TrainableModel,
    pairs: Sequence[Pair],
    *,
    end: int,
    seed: int,
    n_answers: int = ANSWERS,
    experts: Sequence[int] = (),
) -> list[list[Example]]:
    """The examples of `whole`, as they are learnt from; arguments and errors are those of `whole`."""
    examples = []
    for pair, expert in zip(pairs, experts or [0] * len(pairs), strict=True):
        tokens = pair_tokens(llama, pair)
        example = Example(tokens.prompt, tokens.turn, [*tokens.answers[0], end], expert)
        if len(example.prompt) + len(example.answer) <= LONGEST:
            examples.append(example)
    if not examples:
        raise DataError(f"every prompt and its answer have more than {LONGEST} tokens; {WITHOUT}")
    rng = np.random.default_rng(seed)
    examples = [examples[i] for i in rng.permutation(len(examples))[:n_answers]]
    # Of like length together: padding is computed, too.
    examples.sort(key=lambda example: len(example.prompt))
    batches = [examples[i : i + FEW] for i in range(0, len(examples), FEW)]
    return [batches[i] for i in rng.permutation(len(batches))]


def learn_whole(
    model: Any, layers: Sequence[int], batches: Sequence[Sequence[Example]], progress: Progress, n_experts: int = 1
) -> Vectors:
    """Vectors that make the answers of the examples likely, learnt in one pass over the batches.

    Several experts have what all need in common, and each what its own answers need beside it.
    """

    def loss(answers: Sequence[torch.Tensor]) -> torch.Tensor:
        return -torch.stack([each.mean() for each in answers]).mean()

    return _learn(model, layers, batches, loss, FAST, progress, falling=True, n_experts=n_experts)


def _learn(
    model: Any,
    layers: Sequence[int],
    batches: Sequence[Sequence[Example]],
    loss_of: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    rate: float,
    progress: Progress,
    *,
    falling: bool = False,
    n_experts: int = 1,
) -> Vectors:
    """One pass of Adam over the batches; `loss_of` takes the log-probabilities of every answer's tokens."""
    model.requires_grad_(False)
    width = int(model.config.hidden_size)
    # (1 + K, n_layers, n_embd): what is common, and each expert's own
    vectors = torch.zeros(n_experts + (n_experts > 1), len(layers), width, device=model.device, requires_grad=True)
    optimizer = torch.optim.Adam([vectors], lr=rate)
    last = 1 / len(batches) if falling else 1.0
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, total_iters=len(batches))
    mask: list[torch.Tensor] = []
    with _added(model, layers, vectors, mask), _plain_attention(model), _forgetful(model):
        beginning = _beginning(model, batches, mask)
        for done, batch in enumerate(batches, 1):
            loss = loss_of(_logprobs(model, batch, mask, beginning))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress("learning through the model", done, len(batches))
    found = vectors.detach().cpu().numpy().astype(np.float32)
    found = found[0] if n_experts == 1 else (found[0] + found[1:]).swapaxes(0, 1)
    return {layer: np.ascontiguousarray(found[i]) for i, layer in enumerate(layers)}


@contextmanager
def _added(model: Any, layers: Sequence[int], vectors: torch.Tensor, mask: list[torch.Tensor]) -> Iterator[None]:
    """While it lasts every layer's vector is added to the rows that the mask, (n, n_tokens), has.

    Behind the mask stand the experts of its rows, (n,).
    """

    def hook(i: int) -> Any:
        def add(_: Any, __: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            rows = vectors[0, i] if len(vectors) == 1 else (vectors[0, i] + vectors[1:, i][mask[1]])[:, None]
            hidden = hidden + (mask[0][..., None] * rows).to(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    blocks = model.get_decoder().layers
    handles = [blocks[layer].register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """While it lasts attention is computed as it is written: differentiating the fused kernel takes three times as long
    for sequences as short as these."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _forgetful(model: Any) -> Iterator[None]:
    """While it lasts what a larger model's feed-forward networks compute is computed again to be differentiated: to
    keep it would take three quarters of the memory that learning takes beside the weights."""
    networks = [block.mlp for block in model.get_decoder().layers] if in_8_bits(model) else []
    for network in networks:
        network.forward = partial(checkpoint, network.forward, use_reentrant=False)
    try:
        yield
    finally:
        for network in networks:
            del network.forward  # its class's own


class _Beginning(NamedTuple):
    """What every prompt begins with, and its keys and values by layer, each (1, n_heads, n_tokens, n)."""

    tokens: Sequence[int]
    memory: Sequence[tuple[torch.Tensor, torch.Tensor]]


_NOTHING = _Beginning([], [])


def _beginning(model: Any, batches: Sequence[Sequence[Example]], mask: list[torch.Tensor]) -> _Beginning:
    """What all prompts have in common before their last turns: nothing steers it, so it is computed once.

    A template's system prompt is often longer than the request. Nothing is shared where the model keeps anything but
    keys and values of all tokens (a sliding window, a recurrent state), or computes something else from them.
    """
    examples = [example for batch in batches for example in batch]
    first = np.asarray(examples[0].prompt)
    shared = min(min(shared_length(first, np.asarray(e.prompt)), e.turn) for e in examples)
    if shared < WORTH_SHARING:
        return _NOTHING
    from transformers import DynamicCache

    tokens = list(examples[0].prompt[:shared])
    asked, cache = batches[0][:1], DynamicCache()
    with torch.no_grad():
        mask[:] = [torch.zeros(1, shared, device=model.device), torch.zeros(1, dtype=torch.long, device=model.device)]
        model.get_decoder()(
            input_ids=torch.tensor([tokens], device=model.device), past_key_values=cache, use_cache=True
        )
        memory = _memory(cache, len(model.get_decoder().layers), shared)
        if memory is None:
            return _NOTHING
        found = _Beginning(tokens, memory)
        [alone], [after] = _logprobs(model, asked, mask), _logprobs(model, asked, mask, found)
    return found if bool((alone - after).abs().max() < _SAME.get(model.dtype, 0.0)) else _NOTHING


def _memory(cache: Any, n_layers: int, n_tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Keys and values of every layer, where the cache has them of all tokens."""
    kept = getattr(cache, "layers", [])
    if len(kept) != n_layers or any(type(each).__name__ != "DynamicLayer" for each in kept):
        return None
    memory = [(each.keys, each.values) for each in kept]
    return memory if all(keys.shape[2] == n_tokens for keys, _ in memory) else None


def _logprobs(
    model: Any, examples: Sequence[Example], mask: list[torch.Tensor], beginning: _Beginning = _NOTHING
) -> list[torch.Tensor]:
    """Log-probabilities of each answer's tokens, (n_answer,), steered from the last turn on."""
    known = len(beginning.tokens)
    rows = [torch.tensor([*example.prompt, *example.answer][known:], device=model.device) for example in examples]
    tokens = pad_sequence(rows, batch_first=True)  # (n, longest)
    index = torch.arange(tokens.shape[1], device=model.device)
    there = index < index.new_tensor([len(row) for row in rows])[:, None]
    # Nothing looks at what stands behind an answer, so it may be steered as well.
    mask[:] = [
        (index >= index.new_tensor([example.turn - known for example in examples])[:, None]).float(),
        index.new_tensor([example.expert for example in examples]),
    ]
    remembered: dict[str, Any] = {"use_cache": False}
    if known:
        remembered = {"past_key_values": _cache(beginning, len(examples)), "use_cache": True}
        there = torch.cat([there.new_ones(len(examples), known), there], 1)
    hidden = model.get_decoder()(
        input_ids=tokens, attention_mask=there.long(), position_ids=(index + known)[None], **remembered
    ).last_hidden_state
    # Of all answers at once: the matrix of the vocabulary is read once.
    starts = [len(example.prompt) - known - 1 for example in examples]
    answers = [index.new_tensor(list(example.answer)) for example in examples]
    ends = [start + len(answer) for start, answer in zip(starts, answers, strict=True)]
    states = torch.cat([row[start:end] for row, start, end in zip(hidden, starts, ends, strict=True)])
    found = -functional.cross_entropy(logits_of(model, states), torch.cat(answers), reduction="none")
    return list(torch.split(found, [len(answer) for answer in answers]))


def _cache(beginning: _Beginning, n: int) -> Any:
    """The beginning's keys and values as transformers takes them, for `n` prompts."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for i, (keys, values) in enumerate(beginning.memory):
        cache.update(keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1), i)
    return cache
