"""MoSE checkpoints: the folded mixture gives what the authors' formula gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.converters.arrays import Hints
from finesteer_local.converters.recognise import read
from foreign import refused

torch = pytest.importorskip("torch")

N_EMBD, K, RANK, D = 64, 5, 3, 16


class Mixture(torch.nn.Module):
    """The state dict of `finesteer_moe.MoSE`, and the paper's equations 11 to 13 on it."""

    def __init__(self, *, value: bool, d: int = D) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("prototypes", torch.randn(K, N_EMBD))
        self.register_buffer("residual_basis", torch.linalg.qr(torch.randn(N_EMBD, RANK))[0])
        self.query, self.key = torch.nn.Linear(N_EMBD, d), torch.nn.Linear(N_EMBD, d)
        self.value = torch.nn.Linear(N_EMBD, N_EMBD) if value else torch.nn.Identity()
        self.beta = torch.nn.Sequential(torch.nn.Linear(N_EMBD, 8), torch.nn.ReLU(), torch.nn.Linear(8, RANK))

    @torch.no_grad()
    def forward(self, h: Any) -> Any:
        scores = self.query(h) @ self.key(self.prototypes).T / self.query.out_features**0.5
        return torch.softmax(scores, -1) @ self.value(self.prototypes) + self.beta(h) @ self.residual_basis.T


@pytest.mark.parametrize("value", [False, True], ids=["MoSE", "orthogonal_residual"])
@pytest.mark.parametrize("bare", [False, True])
def test_the_same_vectors(tmp_path: Path, value: bool, bare: bool) -> None:
    module = Mixture(value=value)
    state = module.state_dict()
    torch.save(state if bare else {"state_dict": state, "metadata": {"training": {"epochs_ran": 3}}}, tmp_path / "m.pt")
    foreign = read(tmp_path / "m.pt", Hints(4, layer=2))
    assert (foreign.format, foreign.reads, foreign.strength) == ("FineSteer MoSE checkpoint", 1, 2.5)
    [(layer, experts)] = foreign.experts.items()
    assert layer == 2
    for h in 3 * np.random.default_rng(0).standard_normal((20, N_EMBD)).astype(np.float32):
        expected = module(torch.from_numpy(h)).numpy()
        np.testing.assert_allclose(experts.mix(experts.alpha(h), experts.beta(h)), expected, rtol=1e-4, atol=1e-5)


def test_without_biases(tmp_path: Path) -> None:
    module = Mixture(value=False)
    for part in (module.query, module.key, module.beta[0], module.beta[2]):
        torch.nn.init.zeros_(part.bias)
    state = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("bias")}
    torch.save(state, tmp_path / "m.pt")
    experts = read(tmp_path / "m.pt", Hints(4, layer=1)).experts[1]
    h = np.ones(N_EMBD, np.float32)
    expected = module(torch.from_numpy(h)).numpy()
    np.testing.assert_allclose(experts.mix(experts.alpha(h), experts.beta(h)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["MoSE_layer3.pt", "layer-3.pt", "llama31.l3.pt", "gemma_L3_k10.pt"])
def test_the_layer_in_the_name(tmp_path: Path, name: str) -> None:
    torch.save(Mixture(value=False).state_dict(), tmp_path / name)
    assert list(read(tmp_path / name, Hints(4)).experts) == [3]
    assert list(read(tmp_path / name, Hints(4, layer=2)).experts) == [2]


def test_no_layer(tmp_path: Path) -> None:
    torch.save(Mixture(value=False).state_dict(), tmp_path / "MoSE.pt")
    refused(tmp_path / "MoSE.pt", "does not hold its layer; say it with --layer N")
    refused(tmp_path / "MoSE.pt", "layer 0 reads the embeddings", hints=Hints(4, layer=0))


def test_damaged_checkpoints(tmp_path: Path) -> None:
    good = Mixture(value=True).state_dict()

    def broken(**changes: Any) -> Path:
        state = {name: changes.get(name.replace(".", "_"), tensor) for name, tensor in good.items()}
        torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "layer2.pt")
        return tmp_path / "layer2.pt"

    refused(broken(query_weight=None), "has no query.weight")
    refused(broken(query_weight=torch.ones(3)), "query.weight has shape 3,")
    refused(broken(key_weight=torch.ones(D, 3)), "key.weight has shape 16 x 3")
    refused(broken(value_weight=torch.ones(3, 3)), "value.weight has shape")
    refused(broken(beta_2_weight=torch.ones(RANK + 1, 8)), "beta.2.weight has shape")
    refused(broken(prototypes=torch.ones(K)), "no table of vectors")
    refused(broken(prototypes=torch.full((K, N_EMBD), float("nan"))), "prototypes is not finite")
    refused(broken(prototypes=3), "prototypes is no tensor")
    refused(
        broken(query_weight=torch.full((D, N_EMBD), 1e30), key_weight=torch.full((D, N_EMBD), 1e30)), "a folded weight"
    )
    torch.save({**good, "gamma": torch.ones(1)}, tmp_path / "layer2.pt")
    refused(tmp_path / "layer2.pt", "it holds 'gamma': no MoSE")
