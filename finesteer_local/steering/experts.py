"""How to steer: the mixture of steering experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Experts:
    """Mixture of steering experts at one layer, MoSE (FineSteer, arXiv 2604.15488).

    `v(h) = C'alpha + U_res beta(h)` with `alpha = softmax((W_K C)'(W_Q h) / sqrt(d_k))`. After training `W_K C` and
    `W_Q` are constant, so the router is folded into `softmax(hA + a)`; `beta` is a small ReLU network.
    """

    prototypes: Array  # C, (K, n_embd): one row an expert
    router_weight: Array  # A, (n_embd, K)
    router_bias: Array  # a, (K,)
    residual_basis: Array  # U_res, (n_embd, r)
    hidden_weight: Array  # beta's first layer, (n_embd, m)
    hidden_bias: Array  # (m,)
    output_weight: Array  # beta's second layer, (m, r)
    output_bias: Array  # (r,)
    labels: tuple[str, ...] = ()  # what each expert mostly answers to, K names

    @classmethod
    def fixed(cls, vector: Array) -> Experts:
        """One expert that gives `vector`, (n_embd,), for every hidden state, bit for bit."""
        n_embd = len(vector)

        def zeros(*shape: int) -> Array:
            return np.zeros(shape, np.float32)

        return cls(
            prototypes=np.ascontiguousarray(vector[None], np.float32),
            router_weight=zeros(n_embd, 1),
            router_bias=zeros(1),
            residual_basis=zeros(n_embd, 0),
            hidden_weight=zeros(n_embd, 0),
            hidden_bias=zeros(0),
            output_weight=zeros(0, 0),
            output_bias=zeros(0),
        )

    def moved_to(self, mean: Array) -> Experts:
        """These experts, moved together so that what the router's bias makes of them is `mean`, (n_embd,)."""
        weights = np.exp(self.router_bias - self.router_bias.max())
        now = weights / weights.sum() @ self.prototypes
        return replace(self, prototypes=np.asarray(self.prototypes + (mean - now), np.float32))

    @property
    def distinguishes(self) -> bool:
        """Whether the router gives one prompt other weights than the next."""
        return bool(self.router_weight.any())

    def alpha(self, h: Array) -> Array:
        """Weights of the experts for one hidden state, shape (K,), sum 1."""
        logits = h @ self.router_weight + self.router_bias
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum(), np.float32)

    def beta(self, h: Array) -> Array:
        """Coefficients of the residual basis for one hidden state, shape (r,)."""
        hidden = np.maximum(h @ self.hidden_weight + self.hidden_bias, 0.0)
        return np.asarray(hidden @ self.output_weight + self.output_bias, np.float32)

    def mix(self, alpha: Array, beta: Array) -> Array:
        """`C'alpha + U_res beta`, shape (n_embd,)."""
        return np.asarray(alpha @ self.prototypes + self.residual_basis @ beta, np.float32)
