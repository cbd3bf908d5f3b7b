"""Experts optimised through the model: what they have in common is moved until the chosen answers are likelier.

Differences of hidden states show where two answers part, not what brings one about. Here the whole model is
differentiated in PyTorch and frozen, and a vector at one layer is learnt from the answers' log-probabilities, as BiPO
does (arXiv 2406.00045, without its second direction). It becomes the mean of the experts, which keep their differences.
It starts at nothing, not at the mean delta (docs/method.md).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from finesteer_local.errors import MissingExtraError, ModelError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.steering import Experts
from finesteer_local.training.data import Pair
from finesteer_local.training.harvest import PairTokens, Progress, pair_tokens
from finesteer_local.training.transformers_model import INSTALL
from finesteer_local.training.tune import ANSWER_TOKENS

BATCH = 8  # pairs
RATE = 0.05  # Adam's; one pass over the pairs
_SAMPLE = "The capital of France is Paris. Water boils at a hundred degrees, and ice melts at zero."
_CLOSE = 0.5  # a token's log-probability: what 8-bit activations move is a tenth of it, other weights move whole units
_WITHOUT = "train without --optimise"


def weights_of(llama: Any) -> Any:
    """The weights of `llama`, a GGUF model, as a transformers model in float32; the `TransformersModel`'s own.

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        ModelError: transformers does not know the architecture or the quantisation, or computes something else.
    """
    if not isinstance(llama, SteeredLlama):
        return llama.model
    try:
        import accelerate  # noqa: F401 - transformers asks for it here
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtraError(f"--optimise needs transformers and accelerate; install with: {INSTALL}") from error
    path = Path(llama.model_path)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of its own
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, local_files_only=True
            )
    except Exception as error:  # whatever it makes of the file
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"transformers cannot read {path}: {reason}; {_WITHOUT}") from error
    _check_same(model.eval(), llama)
    return model


@torch.inference_mode()
def _check_same(model: Any, llama: SteeredLlama) -> None:
    """Raise `ModelError` where transformers computes something else than llama.cpp."""
    tokens = llama.tokenize(_SAMPLE.encode())
    [expected] = answer_logprobs(llama, tokens[:1], [tokens[1:]])
    logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1]
    found = -functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    if not np.abs(found.numpy() - expected).mean() < _CLOSE:
        raise ModelError(f"transformers does not compute what llama.cpp does with {llama.model_path}; {_WITHOUT}")


def optimise(
    model: Any,
    llama: SteeredLlama,
    pairs: Sequence[Pair],
    experts: Experts,
    shares: Sequence[float],
    layer: int,
    *,
    seed: int,
    progress: Progress,
) -> Experts:
    """Move the experts of `layer` together, so that they make the pairs' chosen answers likelier than the rejected.

    Args:
        model: a causal language model of transformers with the weights of `llama`, which says what the tokens are.
        shares: the experts' weights in their mean, (K,).
        seed: of the order of the pairs.

    Returns:
        The experts with all prototypes moved by one vector, (n_embd,), so that their mean is the one found for strength
        1 from the last turn on, the answer included.
    """
    model.requires_grad_(False)
    weights = np.asarray(shares, np.float32)
    mean = weights / weights.sum() @ experts.prototypes
    vector = torch.zeros(len(mean), device=model.device, requires_grad=True)
    added: list[torch.Tensor] = []
    steering = model.get_decoder().layers[layer].register_forward_hook(_adding(vector, added))
    order = np.random.default_rng(seed).permutation(len(pairs))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    optimizer = torch.optim.Adam([vector], lr=RATE)
    try:
        for done, batch in enumerate(batches, 1):
            totals = _logprobs(model, [pair_tokens(llama, pairs[i], ANSWER_TOKENS) for i in batch], added)
            loss = -functional.logsigmoid(totals[0::2] - totals[1::2]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            progress("optimising experts", done, len(batches))
    finally:
        steering.remove()
    moved: NDArray[np.float32] = vector.detach().cpu().numpy() - mean
    return replace(experts, prototypes=np.asarray(experts.prototypes + moved, np.float32))


def _adding(vector: torch.Tensor, added: list[torch.Tensor]) -> Any:
    """A hook that adds the vector to the rows that the mask in `added`, (n, n_tokens), has."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + (added[0][..., None] * vector).to(output[0]), *output[1:])
        return output + (added[0][..., None] * vector).to(output)

    return hook


def _logprobs(model: Any, pairs: Sequence[PairTokens], added: list[torch.Tensor]) -> torch.Tensor:
    """Total log-probability of each pair's chosen and rejected answer in turn, steered, (2 * n,)."""
    examples = [(pair.prompt, answer, pair.turn) for pair in pairs for answer in pair.answers]
    rows = [torch.tensor([*prompt, *answer], device=model.device) for prompt, answer, _ in examples]
    tokens = pad_sequence(rows, batch_first=True)  # (n, longest)
    index = torch.arange(tokens.shape[1], device=model.device)
    there = index < index.new_tensor([len(row) for row in rows])[:, None]
    # Nothing looks at what stands behind an answer, so it may be steered as well.
    added[:] = [(index >= index.new_tensor([turn for *_, turn in examples])[:, None]).float()]
    hidden = model.get_decoder()(input_ids=tokens, attention_mask=there.long(), use_cache=False).last_hidden_state
    totals = []
    for states, (prompt, answer, _) in zip(hidden, examples, strict=True):
        start = len(prompt) - 1
        logits = model.get_output_embeddings()(states[start : start + len(answer)])
        totals.append(-functional.cross_entropy(logits, index.new_tensor(answer), reduction="sum"))
    return torch.stack(totals)
