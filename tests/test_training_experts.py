"""Training the experts: what is planted is found, and the folded ones are the trained ones."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from finesteer_local.steering import Experts
from finesteer_local.training import experts as training
from finesteer_local.training.experts import Mixture, cluster, name_experts, train_experts

N_EMBD = 32


pytestmark = pytest.mark.usefixtures("one_thread")


def directions(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((N_EMBD, N_EMBD)))[0][:n].astype(np.float32)


def planted(
    n: int, n_clusters: int, rng: np.random.Generator, noise: float = 0.1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states that show which of some directions the delta has: states, deltas, the direction of each."""
    which = np.arange(n) % n_clusters
    centres, signs = 4 * directions(n_clusters, rng), 3 * directions(n_clusters, rng)
    lengths = rng.uniform(0.5, 2, (n, 1))
    deltas = lengths * (centres[which] + noise * rng.standard_normal((n, N_EMBD)))
    states = 5 + signs[which] + 0.3 * rng.standard_normal((n, N_EMBD))
    return states.astype(np.float32), deltas.astype(np.float32), which


@pytest.mark.parametrize("n_clusters", [4, 6, 9])
def test_planted_clusters_are_found(n_clusters: int) -> None:
    _, deltas, which = planted(120, n_clusters, np.random.default_rng(n_clusters))
    found = cluster(deltas, seed=0)
    assert len(set(found)) == n_clusters
    for k in range(n_clusters):
        assert len(set(found[which == k])) == 1  # together, whatever their lengths


def test_clusters_are_numbered_without_gaps() -> None:
    """Three directions cannot be four clusters: none may be left without members."""
    deltas = np.repeat(directions(3, np.random.default_rng(0)), 10, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cluster(deltas, seed=0)
    assert sorted(set(found)) == list(range(len(set(found))))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_few_deltas_are_still_clustered(n: int) -> None:
    deltas = np.random.default_rng(0).standard_normal((n, N_EMBD)).astype(np.float32)
    found = cluster(deltas, seed=0)
    assert found.shape == (n,)
    assert set(found) == ({0} if n < 5 else set(range(4)))


def test_deltas_of_no_length() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isfinite(cluster(np.zeros((20, N_EMBD), np.float32), seed=0)).all()


def mixture(
    rng: np.random.Generator, *, n_experts: int = 6, rank: int = 4, mean: float = 0.0, spread: float = 1.0
) -> Mixture:
    """As after training: every weight is something."""
    torch.manual_seed(int(rng.integers(2**31)))
    model = Mixture(
        rng.standard_normal((n_experts, N_EMBD)).astype(np.float32),
        rng.dirichlet(np.ones(n_experts)).astype(np.float32),
        directions(rank, rng).T,
        (mean * rng.standard_normal(N_EMBD)).astype(np.float32),
        (spread * rng.uniform(0.5, 2, N_EMBD)).astype(np.float32),
    )
    with torch.no_grad():
        model.query.weight.normal_(0, 0.3)
        model.key.weight *= 3
        model.output.weight.normal_(0, 0.3)
        model.output.bias.normal_()
    return model


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float((np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def vectors(experts: Experts, states: np.ndarray) -> np.ndarray:
    return np.stack([experts.mix(experts.alpha(h), experts.beta(h)) for h in states])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (3, 1), (200, 30), (0, 0.01)])
def test_folded_experts_are_the_trained_ones(seed: int, mean: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    model = mixture(rng, mean=mean, spread=spread)
    folded = model.fold("abcdef")
    states = model.mean.numpy() + spread * rng.standard_normal((400, N_EMBD)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(states)).numpy()
    assert relative(vectors(folded, states), wanted) < 1e-4
    assert folded.labels == tuple("abcdef")
    alphas = np.stack([folded.alpha(h) for h in states])
    assert alphas.max() > 0.5 and alphas.argmax(1).max() > 0  # neither flat nor always the same


def test_folded_experts_stay_as_they_were() -> None:
    """Training goes on after the best state was taken."""
    model = mixture(np.random.default_rng(0))
    folded, states = model.fold("abcdef"), np.random.default_rng(1).standard_normal((20, N_EMBD)).astype(np.float32)
    before = vectors(folded, states)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    np.testing.assert_array_equal(vectors(folded, states), before)


def test_the_mixture_is_the_papers() -> None:
    """v(h) = C'alpha + U_res beta(h), alpha = softmax((W_K C)'(W_Q h) / sqrt(d_k) + log shares), in float64."""
    model = mixture(np.random.default_rng(0))
    weights = {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}
    for h in np.random.default_rng(1).standard_normal((20, N_EMBD)):
        x = (h - weights["mean"]) / weights["scale"]
        unit = weights["prototypes"] / np.linalg.norm(weights["prototypes"], axis=1, keepdims=True)
        logits = (unit @ weights["key.weight"].T) @ (weights["query.weight"] @ x) / np.sqrt(training.KEY_WIDTH)
        alpha = np.exp(logits + weights["prior"]) / np.exp(logits + weights["prior"]).sum()
        hidden = np.maximum(weights["hidden.weight"] @ x + weights["hidden.bias"], 0)
        beta = weights["output.weight"] @ hidden + weights["output.bias"]
        with torch.no_grad():
            got = model(torch.tensor(h[None], dtype=torch.float32)).numpy()[0]
        np.testing.assert_allclose(got, weights["prototypes"].T @ alpha + weights["basis"] @ beta, rtol=1e-4, atol=1e-4)


def trained(seed: int = 0, n: int = 100, **options) -> tuple[Experts, training.Fit, np.ndarray, np.ndarray]:
    states, deltas, which = planted(n, 4, np.random.default_rng(7), **options)
    held = list(range(0, n, 5))
    kinds = [("weapons", "fraud", "hate", "drug_deals")[k] for k in which]
    fold, fit = train_experts(states, deltas, kinds, [i for i in range(n) if i % 5], held, seed=seed)
    return fold, fit, states, deltas


def test_what_the_state_tells_is_learnt() -> None:
    experts, fit, states, deltas = trained()
    assert fit.explained > 0.5
    assert fit.cosine > 0.9
    assert fit.epochs > 0 and experts.distinguishes
    held = slice(0, None, 5)
    got = vectors(experts, states[held])
    rest = np.delete(deltas, np.arange(0, 100, 5), axis=0)
    mean = ((rest.mean(0) - deltas[held]) ** 2).mean()
    assert fit.explained == pytest.approx(1 - ((got - deltas[held]) ** 2).mean() / mean, abs=1e-3)
    assert sum(fit.shares) == pytest.approx(1, abs=1e-3) and len(fit.shares) == len(experts.prototypes)


def test_what_the_state_does_not_tell_is_not_made_up() -> None:
    """All prompts get the mean of all pairs; a small cluster weighs no more than its pairs do."""
    states, deltas, which = planted(200, 4, np.random.default_rng(7))
    deltas = deltas[(which == 0) | (np.arange(200) < 67)][:100]
    states = np.random.default_rng(1).permutation(states)[:100]
    held = list(range(0, 100, 5))
    rest = [i for i in range(100) if i % 5]
    experts, fit = train_experts(states, deltas, list("abcd" * 25), rest, held, seed=0)
    assert fit.epochs == 0 and max(fit.shares) > 0.4
    assert len(experts.prototypes) == 1 and not experts.distinguishes and experts.labels == ()
    assert len(fit.shares) > 1 and sum(fit.shares) == pytest.approx(1, abs=1e-3)  # the clusters that there were
    assert fit.explained == pytest.approx(0, abs=1e-4)
    got = vectors(experts, states)
    assert relative(got, np.broadcast_to(deltas[rest].mean(0), got.shape)) < 1e-4


def test_prototypes_are_the_clusters_means() -> None:
    experts, _, _, deltas = trained()
    rest = np.delete(deltas, np.arange(0, 100, 5), axis=0)
    found = cluster(rest, seed=0)
    for k in range(4):
        np.testing.assert_allclose(experts.prototypes[k], rest[found == k].mean(0), rtol=1e-4, atol=1e-4)
    basis = experts.residual_basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)


def test_experts_are_named_after_what_they_answer_to() -> None:
    experts, _, _, deltas = trained()
    assert sorted(experts.labels) == ["drug deals", "fraud", "hate", "weapons"]
    of = dict(zip(experts.labels, experts.prototypes, strict=True))
    for k, name in enumerate(("weapons", "fraud", "hate", "drug deals")):
        mean = deltas[k::4].mean(0)
        assert of[name] @ mean / np.linalg.norm(of[name]) / np.linalg.norm(mean) > 0.99


def test_the_same_seed_gives_the_same_experts() -> None:
    first, again, other = trained(seed=3)[0], trained(seed=3)[0], trained(seed=4)[0]
    for name in ("prototypes", "router_weight", "router_bias", "hidden_weight", "output_weight", "output_bias"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.router_weight, other.router_weight)


def test_few_pairs() -> None:
    """As few as training takes: everything stays finite, and folds."""
    experts, fit, states, _ = trained(n=24, noise=0.5)
    assert np.isfinite(vectors(experts, states)).all()
    assert np.isfinite([fit.explained, fit.cosine]).all()
    assert 1 <= len(experts.prototypes) <= 10
    assert experts.residual_basis.shape[1] <= training.RANK


def test_names() -> None:
    clusters = np.array([0] * 10 + [1] * 10 + [2] * 10)
    kinds = ["weapons"] * 9 + ["fraud"] + ["fraud"] * 7 + ["self_harm"] * 3 + [""] * 10
    assert name_experts(clusters, kinds) == ["weapons/fraud", "fraud/self harm", "expert 3"]


def test_equal_names_are_numbered() -> None:
    assert name_experts(np.array([0, 1, 0, 1, 2]), ["fraud"] * 4 + ["hate"]) == ["fraud 1", "fraud 2", "hate"]
    assert name_experts(np.zeros(4, np.intp), [""] * 4) == ["expert 1"]


def test_a_kind_that_is_everywhere_names_nothing_else() -> None:
    """What a cluster holds more of than the data does, not what there is most of."""
    clusters = np.array([0] * 60 + [1] * 40)
    kinds = ["other"] * 60 + ["other"] * 20 + ["weapons"] * 20
    assert name_experts(clusters, kinds) == ["other", "weapons/other"]
