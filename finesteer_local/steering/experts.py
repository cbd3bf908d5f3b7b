"""How to steer: the mixture of steering experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Experts:
    """Mixture of steering experts at one layer, MoSE (FineSteer, arXiv 2604.15488).

    `v(h) = C'alpha + U_res beta(h)` with `alpha = softmax((W_K C)'(W_Q h) / sqrt(d_k))`. After training `W_K C` and
    `W_Q` are constant, so the router is folded into `softmax(hA + a)`; `beta` is a small ReLU network.

    Experts that go `by_kind` are weighted by the probabilities of the kinds of request that each of them answers
    (`Kind.expert`) instead, where a profile tells kinds; where none does, all prompts get the mean that `a` makes.
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
    by_kind: bool = False

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

    @classmethod
    def for_kinds(cls, vectors: Mapping[str, Array], shares: Mapping[str, float]) -> Experts:
        """One expert a group of kinds, by its name: its vector, (n_embd,), and its share in the mean of all."""
        first, names = next(iter(vectors.values())), tuple(vectors)
        return replace(
            cls.fixed(first),
            prototypes=np.ascontiguousarray(np.stack([vectors[name] for name in names]), np.float32),
            router_weight=np.zeros((len(first), len(names)), np.float32),
            router_bias=np.log(np.array([shares[name] for name in names], np.float32)),
            labels=names,
            by_kind=True,
        )

    @property
    def mean(self) -> Array:
        """What the router's bias makes of the experts, (n_embd,)."""
        weights = np.exp(self.router_bias - self.router_bias.max())
        return np.asarray(weights / weights.sum() @ self.prototypes, np.float32)

    def alone(self, label: str) -> Experts:
        """The expert of this name for every hidden state; their mean, where none has it."""
        return Experts.fixed(self.prototypes[self.labels.index(label)] if label in self.labels else self.mean)

    def moved_to(self, mean: Array) -> Experts:
        """These experts, moved together so that what the router's bias makes of them is `mean`, (n_embd,)."""
        return replace(self, prototypes=np.asarray(self.prototypes + (mean - self.mean), np.float32))

    @property
    def distinguishes(self) -> bool:
        """Whether the router gives one prompt other weights than the next."""
        return self.by_kind or bool(self.router_weight.any())

    def alpha(self, h: Array, shares: Mapping[str, float] | None = None) -> Array:
        """Weights of the experts for one hidden state, shape (K,), sum 1.

        Args:
            shares: how likely each of them is the one that is needed, by label, for experts that go by kind.
        """
        if self.by_kind and shares and (total := sum(likely := [shares.get(label, 0.0) for label in self.labels])) > 0:
            return np.array([each / total for each in likely], np.float32)
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
