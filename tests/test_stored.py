"""Matrices that take a byte a weight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from finesteer_local.training import stored as module
from finesteer_local.training.stored import StoredEmbedding, StoredLinear, product, stored

ROWS = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(3, 7, 300, generator=torch.Generator().manual_seed(1))
WEIGHT, SCALE = stored(ROWS)
DENSE = WEIGHT.float() * SCALE.float()[:, None]


def test_every_weight_is_within_half_a_level_of_its_row() -> None:
    scale = SCALE.float()[:, None]
    assert WEIGHT.dtype == torch.int8 and SCALE.shape == (50,)
    assert ((DENSE - ROWS).abs() <= 0.501 * scale).all()
    assert WEIGHT.abs().amax(1).ge(125).all()  # none of the range is given away
    nothing, _ = stored(torch.zeros(2, 3))
    assert (nothing == 0).all()


@pytest.mark.parametrize("room", [1 << 24, 300 * 8, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_product_is_that_of_the_matrix(
    room: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of its rows are opened at a time. In bfloat16 sums of 300 numbers keep three digits."""
    monkeypatch.setattr(module, "_ROOM", room)
    found = product(INPUTS.to(dtype), WEIGHT, SCALE)
    wanted = INPUTS @ DENSE.T
    assert found.dtype == dtype and found.shape == (3, 7, 50)
    assert (found.float() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("room", [1 << 24, 300 * 8])
def test_its_derivative_is_that_of_the_matrix(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROOM", room)
    bias = torch.arange(50.0)
    found, wanted = (INPUTS.clone().requires_grad_() for _ in range(2))
    ours, theirs = StoredLinear(WEIGHT, SCALE, bias)(found), wanted @ DENSE.T + bias
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-4)


def test_threads_do_not_share_the_room() -> None:
    """Each multiplies by its own matrix while others open theirs."""
    matrices = [stored(torch.randn(200, 300, generator=torch.Generator().manual_seed(i))) for i in range(4)]
    alone = [product(INPUTS, *matrix) for matrix in matrices]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: product(INPUTS, *matrices[i % 4]), range(400)))
    assert all(torch.equal(found, alone[i % 4]) for i, found in enumerate(together))


def test_an_embedding_is_a_row() -> None:
    tokens = torch.tensor([[3, 4], [3, 0]])
    found = StoredEmbedding(WEIGHT, SCALE, torch.float32)(tokens)
    assert torch.equal(found, DENSE[tokens])
    assert StoredEmbedding(WEIGHT, SCALE, torch.bfloat16)(tokens).dtype == torch.bfloat16
