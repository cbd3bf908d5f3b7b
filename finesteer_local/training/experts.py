"""Training the experts of one layer: prototypes by K-means, router and residual in PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score
from torch import nn
from torch.nn import functional

from finesteer_local.steering import Experts

Array = NDArray[np.float32]

CLUSTERS = range(4, 11)
RANK = 10
KEY_WIDTH = 64
HIDDEN_WIDTH = 64
MAX_EPOCHS = 300
PATIENCE = 20
MIN_GAIN = 0.05
"""Share of the held-out error that training must save. Below that router and residual follow chance, and far fewer
answers are language than under the experts' plain mean, with which training starts (docs/experiments.md)."""
L2 = 1e-3


@dataclass(frozen=True)
class Fit:
    """How well the experts reproduce held-out deltas."""

    explained: float  # 1 - MSE(v(h), delta) / MSE(mean delta, delta); the mean vector alone has 0
    cosine: float  # mean cosine of v(h) and delta
    epochs: int
    shares: tuple[float, ...]  # of the training pairs, by the expert whose cluster they are in


class Mixture(nn.Module):
    """`v(h) = C'alpha + U_res beta(h)` with `alpha = softmax((W_K C)'(W_Q h) / sqrt(d_k) + log shares)`.

    It is that of arXiv 2604.15488 with two changes. `h` is standardised first: a residual stream has a few huge
    dimensions that would drown the others. And a prototype starts with the weight of its cluster, so that the mixture
    starts at the mean of all deltas; with equal weights a few odd pairs would count as much as all others.
    """

    prototypes: torch.Tensor  # (K, n_embd)
    basis: torch.Tensor  # (n_embd, r)
    mean: torch.Tensor
    scale: torch.Tensor
    prior: torch.Tensor  # (K,)

    def __init__(self, prototypes: Array, shares: Array, basis: Array, mean: Array, scale: Array) -> None:
        super().__init__()
        n_embd = prototypes.shape[1]
        self.register_buffer("prototypes", torch.tensor(prototypes))
        self.register_buffer("prior", torch.tensor(np.log(shares)))
        self.register_buffer("basis", torch.tensor(basis))
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))
        self.query = nn.Linear(n_embd, KEY_WIDTH, bias=False)
        self.key = nn.Linear(n_embd, KEY_WIDTH, bias=False)
        self.hidden = nn.Linear(n_embd, HIDDEN_WIDTH)
        self.output = nn.Linear(HIDDEN_WIDTH, basis.shape[1])
        nn.init.zeros_(
            self.query.weight
        )  # the router begins with the same weights for every prompt, the residual with nothing
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """`v` for hidden states `h`, both (n, n_embd)."""
        x = (h - self.mean) / self.scale
        keys = self.key(functional.normalize(self.prototypes, dim=1))  # (K, d_k)
        alpha = torch.softmax(self.query(x) @ keys.T / KEY_WIDTH**0.5 + self.prior, dim=-1)  # (n, K)
        beta = self.output(functional.relu(self.hidden(x)))  # (n, r)
        return torch.addmm(alpha @ self.prototypes, beta, self.basis.T)

    @torch.no_grad()
    def fold(self, labels: Sequence[str]) -> Experts:
        """Multiply out what is constant after training; the standardisation goes into the weights."""
        keys = self.key(functional.normalize(self.prototypes, dim=1))
        router = (self.query.weight.T @ keys.T) / KEY_WIDTH**0.5 / self.scale[:, None]  # (n_embd, K)
        hidden = self.hidden.weight.T / self.scale[:, None]  # (n_embd, m)
        return Experts(
            prototypes=_array(self.prototypes),
            router_weight=_array(router),
            router_bias=_array(self.prior - self.mean @ router),
            residual_basis=_array(self.basis),
            hidden_weight=_array(hidden),
            hidden_bias=_array(self.hidden.bias - self.mean @ hidden),
            output_weight=_array(self.output.weight.T),
            output_bias=_array(self.output.bias),
            labels=tuple(labels),
        )


def _array(tensor: torch.Tensor) -> Array:
    # A copy: NumPy would see the tensor's own memory, which goes on being trained.
    return np.array(tensor.detach().numpy(), np.float32, order="C")


def cluster(deltas: Array, seed: int) -> NDArray[np.intp]:
    """K-means on the normalised deltas (n, n_embd), K by the Calinski-Harabasz index: each delta's cluster, (n,)."""
    unit = deltas / np.maximum(np.linalg.norm(deltas, axis=1, keepdims=True), 1e-12)
    best: tuple[float, NDArray[np.intp]] | None = None
    for k in CLUSTERS:
        if k >= len(unit):
            break
        found = KMeans(k, n_init=4, random_state=seed).fit_predict(unit)
        if len(set(found)) < 2:
            continue
        index = float(calinski_harabasz_score(unit, found))
        if best is None or index > best[0]:
            best = (index, found)
    return best[1] if best else np.zeros(len(unit), np.intp)


def name_experts(clusters: NDArray[np.intp], kinds: Sequence[str]) -> list[str]:
    """Name each expert by the kinds of prompt of which its cluster holds a larger share than the data does."""
    overall = Counter(kinds)
    names: list[str] = []
    for k in range(int(clusters.max()) + 1):
        members = Counter(kind for kind, c in zip(kinds, clusters, strict=True) if c == k)
        lift = {kind: n / (overall[kind] + 5) for kind, n in members.items() if kind}  # +5: rare kinds do not win
        top = sorted(lift, key=lambda kind: -lift[kind])[:2]
        names.append("/".join(top).replace("_", " ") or f"expert {k + 1}")
    return [name if names.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(names)]


def train_experts(
    states: Array,
    deltas: Array,
    kinds: Sequence[str],
    train: Sequence[int],
    held: Sequence[int],
    *,
    seed: int,
) -> tuple[Experts, Fit]:
    """Train the experts of one layer.

    Args:
        states: hidden states of the prompts' last tokens, (n, n_embd).
        deltas: mean chosen minus mean rejected hidden state at the steered layer, (n, n_embd).
        kinds: a label a pair, for the experts' names.
        train, held: indices for training and for early stopping.
        seed: of K-means, initialisation and order.
    """
    torch.manual_seed(seed)
    clusters = cluster(deltas[train], seed)
    prototypes = np.stack([deltas[train][clusters == k].mean(0) for k in range(int(clusters.max()) + 1)])
    shares = np.bincount(clusters) / len(clusters)
    centred = deltas[train] - deltas[train].mean(0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    basis = np.ascontiguousarray(components[: min(RANK, len(components))].T, np.float32)
    mean, scale = states[train].mean(0), states[train].std(0) + 1e-6
    model = Mixture(*(np.asarray(part, np.float32) for part in (prototypes, shares, basis, mean, scale)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    unit = float((centred**2).mean())  # losses in units of the deltas' variance
    h, d = torch.tensor(states[train]), torch.tensor(deltas[train])
    h_held, d_held = torch.tensor(states[held]), torch.tensor(deltas[held])
    names = name_experts(clusters, [kinds[i] for i in train])
    start = best = model.fold(names)
    start_loss = best_loss = float("inf")
    best_epoch = 0
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(MAX_EPOCHS):
        with torch.no_grad():
            held_loss = float(functional.mse_loss(model(h_held), d_held))
        if epoch == 0:
            start_loss = best_loss = held_loss
        elif held_loss < best_loss:
            best, best_loss, best_epoch = model.fold(names), held_loss, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
        for batch in torch.split(torch.randperm(len(train), generator=generator), 64):
            penalty = sum((p**2).sum() for p in model.parameters())
            loss = functional.mse_loss(model(h[batch]), d[batch]) / unit + L2 * penalty
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    if best_loss > (1 - MIN_GAIN) * start_loss:
        # The router tells no prompt from another: keep one vector, and no names of experts.
        best, best_loss, best_epoch = Experts.fixed(start.mix(start.alpha(mean), start.beta(mean))), start_loss, 0
    predicted = np.stack([best.mix(best.alpha(x), best.beta(x)) for x in states[held]])
    target = deltas[held]
    baseline = float(((deltas[train].mean(0) - target) ** 2).mean())
    cosine = (predicted * target).sum(1) / (np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1) + 1e-12)
    explained = 1 - best_loss / baseline if baseline else 0.0
    return best, Fit(explained, float(cosine.mean()), best_epoch, tuple(shares.round(4).tolist()))
