"""A GGUF model in PyTorch with a byte a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import optimise, stored_model, tensor_file, weights
from finesteer_local.training.data import Pair, Prompt
from finesteer_local.training.progress import quiet
from finesteer_local.training.stored import StoredEmbedding, StoredLinear
from finesteer_local.training.tensor_file import is_known
from finesteer_local.training.weights import logits_of, weights_of
from tiny import write_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["llama", "qwen2"])
def llama(request: pytest.FixtureRequest, tmp_path: Path) -> SteeredLlama:
    return open_model(write_tiny_model(tmp_path / "tiny.gguf", request.param), n_ctx=256, n_threads=1)


def both(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Its weights as they are, and in 8 bits."""
    monkeypatch.setattr(weights, "fast_dtype", lambda: torch.float32)
    found = [weights_of(llama)]
    monkeypatch.setattr(weights, "LARGEST", dict.fromkeys(weights.LARGEST, 0))
    return [*found, weights_of(llama)]


def logprobs(model: object, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=torch.tensor([tokens])).last_hidden_state[0]  # type: ignore[attr-defined]
        return torch.log_softmax(logits_of(model, hidden), -1)


def test_it_computes_what_the_whole_weights_do(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what 8 bits lose: a thousandth of every row's greatest weight, a product's numbers a hundredth."""
    whole, small = both(llama, monkeypatch)
    assert all(isinstance(each.mlp.down_proj, StoredLinear) for each in small.get_decoder().layers)
    assert isinstance(small.get_input_embeddings(), StoredEmbedding)
    assert isinstance(small.get_output_embeddings(), StoredLinear)
    tokens = np.random.default_rng(0).integers(5, 90, 60).tolist()
    wanted, found = logprobs(whole, tokens), logprobs(small, tokens)
    assert (found - wanted).abs().mean() < 0.03 * wanted.std(), "positions, heads or norms are others"
    wrong = wanted[torch.randperm(len(wanted))]
    assert (found - wrong).abs().mean() > 3 * (found - wanted).abs().mean()


def test_what_is_learnt_through_it_is_the_same(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair(Prompt([{"role": "user", "content": f"do {i}"}]), f"no {i}", "yes") for i in range(24)]
    vectors = [
        optimise.whole(model, llama, pairs, [1], end=2, seed=0, progress=quiet)[1] for model in both(llama, monkeypatch)
    ]
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert cosine > 0.95 and np.linalg.norm(vectors[0]) > 0.1


def test_only_some_rows_are_in_float32_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = open_model(tiny, n_ctx=256, n_threads=1)
    _, at_once = both(llama, monkeypatch)
    monkeypatch.setattr(stored_model, "_ROWS", 1)
    _, by_row = both(llama, monkeypatch)
    ours, theirs = at_once.state_dict(), by_row.state_dict()
    assert [*ours] == [*theirs] and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_not_known_is_left_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user asks for it; by itself, nothing is opened that would be read into float32 as a whole."""
    path = write_tiny_model(tmp_path / "tiny.gguf")
    llama = open_model(path, n_ctx=256, n_threads=1)
    monkeypatch.setattr(weights, "LARGEST", dict.fromkeys(weights.LARGEST, 0))
    assert is_known(path) and isinstance(weights_of(llama).get_output_embeddings(), StoredLinear)
    monkeypatch.setattr(tensor_file, "ARCHITECTURES", {})
    assert not is_known(path) and not isinstance(weights_of(llama).get_output_embeddings(), StoredLinear)
    monkeypatch.setattr(weights, "fast_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(weights, "MAX_PARAMETERS", 0)
    assert not weights.opens_by_itself(llama)


def test_more_are_opened_where_bfloat16_is_fast(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = open_model(tiny, n_ctx=256, n_threads=1)
    monkeypatch.setattr(weights, "MAX_PARAMETERS", llama.n_parameters - 1)
    for dtype, most, wanted in (
        (torch.bfloat16, llama.n_parameters, True),
        (torch.bfloat16, llama.n_parameters - 1, False),
        (torch.float32, llama.n_parameters, False),
    ):
        monkeypatch.setattr(weights, "fast_dtype", lambda dtype=dtype: dtype)
        monkeypatch.setattr(weights, "MAX_FAST_PARAMETERS", most)
        assert weights.opens_by_itself(llama) is wanted


def test_answers_are_those_of_llama_cpp(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real model: `weights_of` has compared a text, and these agree about an answer's tokens."""
    monkeypatch.setattr(weights, "LARGEST", dict.fromkeys(weights.LARGEST, 0))
    llama = open_model(smollm2)
    model = weights_of(llama)
    assert isinstance(model.get_output_embeddings(), StoredLinear)
    tokens = llama.tokenize(b"The sun rises in the east and sets in the west. Water freezes at zero degrees.")
    [wanted] = llama.answer_logprobs(tokens[:1], [tokens[1:]])
    found = logprobs(model, tokens)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
    assert np.abs(found - wanted).mean() < 0.2  # llama.cpp's own 8-bit activations move it by .1
    llama.close()
