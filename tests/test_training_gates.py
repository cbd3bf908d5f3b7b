"""Training the gates: a planted signal is found, thresholds are kept on held-out prompts, folding is exact."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from finesteer_local.steering import ContrastiveGate, Gate, spans
from finesteer_local.training import gates
from finesteer_local.training import probes as attention
from finesteer_local.training.gates import GateFit, fit_contrastive_gate, fit_subspace_gate
from finesteer_local.training.model_data import Turns
from finesteer_local.training.probes import FOLDS, HEADS, WINDOW, Probes

N_EMBD = 24
ROW = np.linalg.qr(np.random.default_rng(99).standard_normal((N_EMBD, N_EMBD)))[0].astype(np.float32)
SIGNAL = ROW[0]


pytestmark = pytest.mark.usefixtures("one_thread")


def turns(states: list[np.ndarray]) -> Turns:
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in states])]).astype(np.int64)
    return Turns(np.concatenate(states).astype(np.float16), offsets)


def noise(n: int, rng: np.random.Generator, longest: int = 16) -> list[np.ndarray]:
    """Turns of ordinary tokens, some dimensions a hundred times the others, as in a real residual stream."""
    scale = np.where(np.arange(N_EMBD) % 8 == 0, 100, 1)
    return [3 * scale + scale * rng.standard_normal((rng.integers(2, longest), N_EMBD)) for _ in range(n)]


def planted(n: int, rng: np.random.Generator, where: str) -> Turns:
    """The signal at one token of each turn: anywhere but the last, or the last."""
    states = noise(n, rng)
    for turn in states:
        turn[-1 if where == "last" else rng.integers(0, len(turn) - 1)] += 8 * SIGNAL
    return turns(states)


def data(seed: int = 0, n: int = 200, n_contrast: int = 300, where: str = "anywhere") -> tuple[Turns, Turns]:
    rng = np.random.default_rng(seed)
    return planted(n, rng, where), turns(noise(n_contrast, rng))


def scores(gate: Gate, of: Turns) -> np.ndarray:
    return np.array([gate.score(of[i][-1], gate.summary(of[i])) for i in range(len(of))])


def opened(gate: Gate, of: Turns) -> float:
    return float(np.mean([gate.value(score) > 0 for score in scores(gate, of)]))


Fitted = tuple[ContrastiveGate, GateFit, Probes, str]


@pytest.fixture(scope="module", params=["anywhere", "last"])
def fitted(request: pytest.FixtureRequest, one_thread: None) -> Fitted:
    """A contrastive gate, and the probes that it was folded from."""
    trained, train = [], gates._train

    def remember(*args: object) -> Probes:
        trained.append(train(*args))  # type: ignore[arg-type]
        return trained[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "_train", remember)
        gate, fit = fit_contrastive_gate(*data(where=request.param), seed=0)
    [probes] = trained
    return gate, fit, probes, request.param


def test_a_planted_signal_is_found(fitted: Fitted) -> None:
    gate, fit, _, where = fitted
    assert fit.auroc > 0.9
    assert fit.recall > 0.8
    positive, contrast = data(seed=1, where=where)  # not seen in training
    assert opened(gate, positive) > 0.8
    assert opened(gate, contrast) < gates.OPENINGS + 0.05


def test_openings_are_near_the_target(fitted: Fitted) -> None:
    gate, fit, _, _ = fitted
    assert fit.openings == pytest.approx(gates.OPENINGS, abs=2 / 300)  # to a prompt, ties aside
    assert gate.low < gate.high
    assert (gate.value(gate.low), gate.value(gate.high)) == (0, 1)


def test_the_folded_gate_is_the_probes_mean(fitted: Fitted) -> None:
    gate, _, probes, where = fitted
    for of in data(seed=2, n=60, n_contrast=60, where=where):
        got = scores(gate, of)
        wanted = []
        for i in range(len(of)):
            x = torch.from_numpy(np.clip((of[i] - gate.mean) / gate.scale, -gate.clip, gate.clip))
            with torch.no_grad():
                wanted.append(float(probes(x, [len(x)]).mean()))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert np.ptp(got) > 0.01


@pytest.mark.parametrize("window", [0, 5, 64])
def test_a_score_is_the_formulas(fitted: Fitted, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns of a batch do not see each other, nor do the stretches of a turn."""
    _, _, probes, where = fitted
    monkeypatch.setattr(probes, "window", window)
    positive, contrast = data(seed=2, n=20, n_contrast=20, where=where)
    batches = gates._Standardised([positive, contrast])
    got = gates._score(probes, batches)
    assert got.shape == (40, FOLDS)
    query, value, last, bias = (
        part.detach().double().numpy() for part in (probes.query, probes.value, probes.last, probes.bias)
    )
    for i in range(40):
        turn = positive[i] if i < 20 else contrast[i - 20]
        x = np.clip((turn - batches.mean) / batches.scale, -8, 8).astype(np.float64)
        best = np.full(FOLDS, -np.inf)
        for start, stop in spans(len(x), window):
            weights = np.exp(x[start:stop] @ query)
            pooled = (weights / weights.sum(0) * (x[start:stop] @ value)).sum(0)
            best = np.maximum(best, pooled.reshape(FOLDS, HEADS).sum(1))
        np.testing.assert_allclose(got[i], best + x[-1] @ last + bias, rtol=1e-4, atol=1e-4)


def test_the_folded_gate_pools_as_the_probes_do() -> None:
    """Bit for bit they differ, but not in what a stretch is: one probe's gate gives its scores on long turns."""
    torch.manual_seed(0)
    probes = Probes(N_EMBD, window=12)
    with torch.no_grad():
        probes.weight.normal_()
    of = turns(noise(12, np.random.default_rng(0), longest=90))
    batches = gates._Standardised([of])
    got = gates._score(probes, batches)
    for fold in range(FOLDS):
        heads = slice(fold * HEADS, (fold + 1) * HEADS)
        query, value = (gates._array(part[:, heads]) for part in (probes.query, probes.value))
        gate = ContrastiveGate(
            batches.mean, batches.scale, query, value, gates._array(probes.last[:, fold]), 0.0, 0.0, 1.0, window=12
        )
        np.testing.assert_allclose(got[:, fold], scores(gate, of), rtol=1e-4, atol=1e-3)
        assert (scores(gate, of) > scores(replace(gate, window=0), of) + 0.1).any()


def made_up(scale: float = 1.0) -> Probes:
    """Probes of a window of 12 tokens with random weights."""
    torch.manual_seed(0)
    probes = Probes(N_EMBD, window=12)
    with torch.no_grad():
        probes.weight.normal_()
        probes.query.mul_(scale)
    return probes


def test_pages_and_short_turns_in_one_batch_in_bfloat16() -> None:
    """Its digits are fewer: of scores that are some 10 apart a tenth is lost, and nothing by what stands beside."""
    probes, rng = made_up(), np.random.default_rng(0)
    of = turns([*noise(6, rng, longest=90), *noise(30, rng), *noise(6, rng, longest=90)])
    batches = gates._Standardised([of])
    examples = [gates.Example(row, None, 0.0, 0.0) for row in range(len(of))]
    exact = torch.from_numpy(gates._score(probes, batches))
    for dtype, tolerance in ((torch.bfloat16, 0.5), (torch.float32, 0.05)):
        x, lengths, _ = batches.kept(dtype).batch(examples)
        found = probes(x, lengths).detach()
        assert found.dtype == torch.float32 and exact.std() > 5
        torch.testing.assert_close(found, exact, rtol=0.01, atol=tolerance)


def test_a_batch_is_pooled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole turns: what they give is what they gave together, and so are the gradients."""
    probes, lengths = made_up(), [30, 3, 50, 1, 12, 40]
    x = torch.randn(150, N_EMBD)
    whole = probes(x, lengths)
    monkeypatch.setattr(attention, "_PIECE", 45)
    assert [lengths[rows] for rows in attention._pieces(lengths)] == [[30, 3], [50], [1, 12], [40]]
    parts = probes(x, lengths)
    torch.testing.assert_close(parts, whole)
    [one], [other] = (torch.autograd.grad(each.sum(), [probes.weight]) for each in (whole, parts))
    torch.testing.assert_close(one, other)


def test_logits_that_lie_far_apart() -> None:
    """A turn to which a head pays less than nothing beside another in the batch has its own softmax all the same."""
    probes = made_up(scale=60)
    of = turns(noise(12, np.random.default_rng(0), longest=90))
    batches = gates._Standardised([of])
    x, lengths = batches.batch(range(12))
    with pytest.raises(FloatingPointError):
        attention._Pooled.apply(x @ probes.weight, [(0, 2), (2, 4), (4, len(x))], torch.tensor([1]))
    together = probes(x, lengths)
    alone = torch.cat([probes(batches.batch([row])[0], [lengths[row]]) for row in range(12)])
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-2)
    assert torch.autograd.grad(together.sum(), [probes.weight])[0].isfinite().all()


def test_every_stretch_is_learnt_from() -> None:
    """Gradients are those of the formula, through the stretch that scores highest."""
    torch.manual_seed(1)
    probes, x = Probes(N_EMBD, window=4), torch.randn(17, N_EMBD)
    with torch.no_grad():
        probes.weight.normal_()

    def plain() -> torch.Tensor:
        found = []
        for start, stop in spans(17, 4):
            part = x[start:stop]
            pooled = ((part @ probes.query).softmax(0) * (part @ probes.value)).sum(0)
            found.append(pooled.reshape(FOLDS, HEADS).sum(1))
        return torch.stack(found).amax(0) + x[-1] @ probes.last + probes.bias

    gradients = []
    for score in (probes(x, [17])[0], plain()):
        gradients.append(torch.autograd.grad(score.sum(), [*probes.parameters()]))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_request_in_a_long_text_is_found() -> None:
    """Trained on short turns and long ones; the whole turn's softmax alone would drown it."""
    rng = np.random.default_rng(5)

    def made(signal: bool, n: int) -> Turns:
        states = noise(n, rng)
        for i, turn in enumerate(states):
            if signal:
                turn[rng.integers(0, len(turn) - 1)] += 8 * SIGNAL
            if i % 3 == 0:
                before, behind = noise(2, rng, longest=150)
                states[i] = np.concatenate([before, turn, behind])
        return turns(states)

    gate, fit = fit_contrastive_gate(made(True, 150), made(False, 200), seed=0)
    assert gate.window == WINDOW > 0
    assert fit.auroc > 0.9
    assert opened(gate, made(True, 60)) > 0.6 and opened(gate, made(False, 60)) < 0.15


def test_stretches_of_a_page_are_learnt_one_by_one() -> None:
    """Those that hold most of its request are as it is labelled, those that hold none of it open nothing."""
    lengths, labels = np.array([10, 200, 200, 200, 20]), np.array([1, 1, 0, 1, 0], np.float32)
    requests = [None, (100, 110), (100, 110), None, (3, 9)]
    found = gates._examples(lengths, labels, requests, seed=0)
    by_row = [[each for each in found if each.row == row] for row in range(5)]
    assert [len(by_row[row]) for row in (0, 3, 4)] == [1, 1, 1]  # turns as a whole, and one that is no longer than one
    assert {each.stretch for row in (0, 3, 4) for each in by_row[row]} == {None}
    balance = 2 / 3
    for row, label in ((1, 1.0), (2, 0.0)):
        holding = [e for e in by_row[row] if min(110, e.stretch[1]) - max(100, e.stretch[0]) >= 0.75 * 10]
        others = [e for e in by_row[row] if e.stretch[1] <= 100 or e.stretch[0] >= 110]
        assert holding and others and len(holding) + len(others) == len(by_row[row])  # none that holds a bit of it
        assert {e.label for e in holding} == {label} and {e.label for e in others} == {0.0}
        assert sum(e.weight for e in holding) == pytest.approx(balance if label else 1)
        assert sum(e.weight for e in others) == pytest.approx(1)
    bare = gates._examples(np.array([200]), np.zeros(1, np.float32), [(0, 0)], seed=0)
    assert {each.label for each in bare} == {0.0} and len(bare) == gates.STRETCHES


def test_a_request_in_a_page_is_found_by_its_stretch() -> None:
    """Where the label says which part of a long turn asks, and another part looks like a half of it."""
    rng = np.random.default_rng(6)

    def made(signal: bool, n: int) -> tuple[Turns, list[tuple[int, int]]]:
        states, where = [], []
        for _ in range(n):
            before, request, behind = noise(3, rng, longest=150)
            request = request[:10]
            if signal:
                request[0] += 8 * SIGNAL
            states.append(np.concatenate([before, request, behind]))
            where.append((len(before), len(before) + len(request)))
        return turns(states), where

    positive, contrast = made(True, 120), made(False, 160)
    gate, fit = fit_contrastive_gate(
        positive[0], contrast[0], forms=["page"] * 280, requests=[*positive[1], *contrast[1]], seed=0
    )
    assert fit.auroc > 0.9
    assert opened(gate, made(True, 60)[0]) > 0.6 and opened(gate, made(False, 60)[0]) < 0.2


def test_standardised_as_the_gate_will() -> None:
    positive, contrast = data(n=30, n_contrast=40)
    batches = gates._Standardised([positive, contrast])
    everything = np.concatenate([positive.states, contrast.states]).astype(np.float64)
    np.testing.assert_allclose(batches.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(batches.scale, everything.std(0), rtol=1e-4)
    stretch = 1, len(contrast[1]) - 1
    rows = [gates.Example(i, part, 1.0, 1.0) for i, part in ((5, None), (31, stretch), (69, None))]
    x, lengths, pooled_over = batches.kept(torch.float32).batch(rows)
    of = [positive[5], np.concatenate([contrast[1][slice(*stretch)], contrast[1][-1:]]), contrast[39]]
    assert lengths == [len(turn) for turn in of]
    assert pooled_over == [[(0, lengths[0])], [(0, lengths[1] - 1)], [(0, lengths[2])]]
    wanted = np.clip((np.concatenate(of) - batches.mean) / batches.scale, -8, 8)
    n = sum(lengths)
    assert len(x) == gates._ROWS > n and not x[n:].any()  # as many as other batches have
    np.testing.assert_allclose(x[:n].numpy(), wanted, rtol=1e-3, atol=1e-6)  # kept in float16
    half = batches.kept(torch.bfloat16).batch(rows)[0]
    assert half.dtype == torch.bfloat16
    np.testing.assert_allclose(half[:n].float().numpy(), wanted, rtol=4e-3, atol=1e-6)
    exact, lengths = batches.batch([5, 69])
    np.testing.assert_allclose(exact.numpy(), np.delete(wanted, slice(lengths[0], n - lengths[1]), 0), rtol=1e-5)


def test_turns_that_are_part_of_a_larger_array() -> None:
    """Training cuts one harvest into both kinds."""
    positive, contrast = data(n=30, n_contrast=40)
    both = np.concatenate([positive.states, contrast.states])
    whole = Turns(both, positive.offsets), contrast
    assert gates._score(Probes(N_EMBD), gates._Standardised(whole)).shape == (70, FOLDS)
    data_of_both = gates._Standardised(whole)
    assert [len(part) for part in data_of_both._turns] == [*np.diff(positive.offsets), *np.diff(contrast.offsets)]
    apart = gates._Standardised([positive, contrast])
    np.testing.assert_array_equal(data_of_both.mean, apart.mean)
    assert torch.equal(data_of_both.kept(torch.bfloat16).states, apart.kept(torch.bfloat16).states)


def test_a_probe_learns_nothing_from_its_own_fold() -> None:
    """Turns of fold 0 with other states give the same first probe, and other others."""
    positive, contrast = data(n=40, n_contrast=60)
    labels = np.r_[np.ones(40), np.zeros(60)].astype(np.float32)
    folds = gates.folds_of(labels, np.array([""] * 100), seed=0)
    other = contrast.states.copy()
    for i in np.flatnonzero(folds[40:] == 0):
        other[slice(*contrast.offsets[i : i + 2])] += 1
    first, second = (
        gates._Standardised([positive, contrast]),
        gates._Standardised([positive, Turns(other, contrast.offsets)]),
    )
    second.mean, second.scale = first.mean, first.scale  # these are taken from all turns
    examples = gates._examples(first.lengths, labels, [None] * 100, seed=0)
    trained = [gates._train(data, examples, folds, 0) for data in (first, second)]
    heads = [p.query.detach().unflatten(1, (FOLDS, HEADS)) for p in trained]
    assert torch.equal(heads[0][:, 0], heads[1][:, 0])
    for fold in range(1, FOLDS):
        assert not torch.equal(heads[0][:, fold], heads[1][:, fold])


def test_every_turn_is_scored_by_the_probe_that_has_not_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folds, score = [], gates._score
    train = gates._train
    monkeypatch.setattr(gates, "_train", lambda d, y, f, *rest: (folds.append(f), train(d, y, f, *rest))[1])
    monkeypatch.setattr(
        gates, "_score", lambda *args: np.where(np.arange(FOLDS) == folds[0][:, None], score(*args), 99)
    )
    steps = []
    gate, fit = fit_contrastive_gate(
        *data(n=50, n_contrast=70), seed=0, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(i + 1, gates.EPOCHS) for i in range(gates.EPOCHS)]
    assert gate.low < 99 and fit.recall > 0.5 and fit.openings < 0.1
    for fold in range(FOLDS):
        held = np.flatnonzero(folds[0] == fold)
        assert abs(np.mean(held < 50) - 50 / 120) < 0.05  # both kinds with their share


def test_a_graded_gate_opens_earlier_and_by_degrees() -> None:
    turns = data(n=60, n_contrast=100)
    sharp, sharp_fit = fit_contrastive_gate(*turns, seed=0)
    graded, graded_fit = fit_contrastive_gate(*turns, seed=0, graded=True)
    assert sharp.high == pytest.approx(sharp.low + gates.RAMP)
    assert graded.low < sharp.low and graded.high == pytest.approx(max(sharp.low, graded.low + gates.RAMP))
    assert graded_fit.openings == pytest.approx(2 * sharp_fit.openings, abs=1 / 100)
    assert graded_fit.recall >= sharp_fit.recall and graded_fit.auroc == sharp_fit.auroc
    assert 0.4 < graded.value((graded.low + graded.high) / 2) < 0.6


def test_a_wrapper_is_judged_by_a_probe_that_never_saw_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    n, n_contrast = 60, 90
    families = ["", "a", "b", "c", "d", "e"] * (n // 6) + ["", "", "a", "b", "c", "f"] * (n_contrast // 6)
    given, train = [], gates._train
    monkeypatch.setattr(gates, "_train", lambda d, y, f, *rest: (given.append(f), train(d, y, f, *rest))[1])
    _, fit = fit_contrastive_gate(*data(n=n, n_contrast=n_contrast), families, seed=0)
    [folds] = given
    for family in set(families) - {""}:
        assert len({int(fold) for fold, f in zip(folds, families, strict=True) if f == family}) == 1
    assert {int(fold) for fold, f in zip(folds, families, strict=True) if not f} == set(range(FOLDS))
    assert fit.recall > 0.5


def test_figures_by_the_form_of_a_prompt() -> None:
    """Of each form there is, and of each label that it has."""
    n, n_contrast = 60, 90
    forms = ["plain", "plain", "wrapped"] * (n // 3) + ["plain", "foreign", "wrapped"] * (n_contrast // 3)
    _, fit = fit_contrastive_gate(*data(n=n, n_contrast=n_contrast), forms=forms, seed=0)
    assert {form: set(shares) for form, shares in fit.forms.items()} == {
        "plain": {"recall", "openings"},
        "wrapped": {"recall", "openings"},
        "foreign": {"openings"},
    }
    recalls = [fit.forms["plain"]["recall"]] * 2 + [fit.forms["wrapped"]["recall"]]
    assert np.mean(recalls) == pytest.approx(fit.recall)
    openings = [fit.forms[form]["openings"] for form in ("plain", "foreign", "wrapped")]
    assert np.mean(openings) == pytest.approx(fit.openings)
    alone = fit_contrastive_gate(*data(n=n, n_contrast=n_contrast), seed=0)[1]
    assert alone.forms == {"plain": {"recall": alone.recall, "openings": alone.openings}}


def test_the_threshold_is_set_by_what_users_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and wrapped prompts, which are hard on purpose, neither raise it nor lower it."""
    n, n_contrast = 40, 160
    turns = data(n=n, n_contrast=n_contrast)
    forms = ["plain"] * n + ["plain", "foreign", "wrapped", "page"] * (n_contrast // 4)
    held_out = np.zeros((n + n_contrast, FOLDS), np.float32)
    held_out[:n] = 5
    of = np.array(forms[n:])
    sent = np.isin(of, ["plain", "foreign"])
    held_out[n:][sent] = np.linspace(0, 1, sent.sum())[:, None]
    held_out[n:][~sent] = 9
    monkeypatch.setattr(gates, "_score", lambda *_: held_out)
    gate, fit = fit_contrastive_gate(*turns, forms=forms, seed=0)
    assert gate.low == pytest.approx(1 - gates.OPENINGS, abs=1e-6)
    assert fit.forms["page"]["openings"] == fit.forms["wrapped"]["openings"] == 1.0
    assert fit.forms["plain"]["openings"] + fit.forms["foreign"]["openings"] == pytest.approx(
        2 * gates.OPENINGS, abs=0.03
    )
    only_hard = [form if form == "plain" and i < n else "page" for i, form in enumerate(forms)]
    assert fit_contrastive_gate(*turns, forms=only_hard, seed=0)[0].low > 1  # then they have to do


@pytest.mark.parametrize(("n", "n_contrast"), [(24, 1), (24, 20), (30, 34), (60, 60)])
def test_few_prompts(n: int, n_contrast: int) -> None:
    """Nothing of the schedule divides by zero, whatever the number of batches."""
    gate, fit = fit_contrastive_gate(*data(n=n, n_contrast=n_contrast), seed=0)
    assert np.isfinite(scores(gate, data(n=5)[0])).all()
    assert 0 <= fit.openings <= 1 and 0 <= fit.recall <= 1


def arrays(gate: Gate) -> list[np.ndarray]:
    return [np.asarray(getattr(gate, field.name)) for field in fields(gate)]  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_gate() -> None:
    first, again, other = (fit_contrastive_gate(*data(n=60, n_contrast=60), seed=seed)[0] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(again), strict=True))
    assert not np.array_equal(first.query, other.query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "fast_dtype", lambda: dtype)
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(fit_contrastive_gate(*data(n=60, n_contrast=60), seed=1)[0])
        assert torch.get_num_threads() == n
    torch.set_num_threads(1)
    np.testing.assert_allclose(found[0].query, found[1].query, rtol=1e-3, atol=1e-5)


def test_either_precision_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits differ by less than two seeds do."""
    fits, found = [], []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(gates, "fast_dtype", lambda dtype=dtype: dtype)
        gate, fit = fit_contrastive_gate(*data(), seed=0)
        fits.append(fit.auroc)
        found.append(np.concatenate([scores(gate, of) for of in data(seed=1)]))
    assert fits[0] == pytest.approx(fits[1], abs=0.01)
    assert np.corrcoef(found)[0, 1] > 0.98


def subspace(seed: int, n: int, inside: float = 5.0, rank: int = 4) -> np.ndarray:
    """States near a subspace of `rank` dimensions, off the origin."""
    rng = np.random.default_rng(seed)
    return (
        10 * ROW[-1] + inside * rng.standard_normal((n, rank)) @ ROW[:rank] + rng.standard_normal((n, N_EMBD))
    ).astype(np.float32)


@pytest.fixture
def small_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "SUBSPACE_RANK", 4)


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.2])
def test_scs_opens_in_full_on_all_but_eps(small_rank: None, eps: float) -> None:
    positive, held, contrast = subspace(0, 400), subspace(1, 400), subspace(2, 400, inside=0.5)
    gate, fit = fit_subspace_gate(positive, held, contrast, eps=eps)
    assert fit.auroc > 0.95
    g = np.array([gate.value(gate.score(h, held[:0])) for h in held])
    assert np.mean(g == 1) == pytest.approx(1 - eps, abs=2 / 400)
    assert 1 - eps - 2 / 400 <= fit.recall <= 1
    fresh = np.array([gate.value(gate.score(h, held[:0])) for h in subspace(3, 400)])
    assert np.mean(fresh == 1) == pytest.approx(1 - eps, abs=0.05)
    shares = [np.mean([gate.value(gate.score(h, of[:0])) > 0 for h in of]) for of in (held, contrast)]
    assert [fit.recall, fit.openings] == pytest.approx(shares, abs=1.5 / 400)  # one may lie just at the threshold
    assert fit.openings < fit.recall / 2


def test_scs_is_a_pca_of_the_prompts_that_need_intervention(small_rank: None) -> None:
    positive = subspace(0, 400)
    gate, _ = fit_subspace_gate(positive, subspace(1, 50), subspace(2, 50))
    np.testing.assert_allclose(gate.basis.T @ gate.basis, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(gate.mean, positive.mean(0), rtol=1e-5)
    centred = (positive - positive.mean(0)).astype(np.float64)
    values = np.linalg.eigvalsh(centred.T @ centred)
    kept = np.linalg.norm(centred @ gate.basis) ** 2
    assert kept == pytest.approx(values[-4:].sum(), rel=1e-5)
    assert (np.diff(gate.calibration) >= 0).all() and len(gate.calibration) == 50
    assert gate.basis.flags.c_contiguous and gate.basis.dtype == np.float32


def test_scs_needs_no_more_prompts_than_there_are() -> None:
    gate, fit = fit_subspace_gate(subspace(0, 10), subspace(1, 5), subspace(2, 8))
    assert gate.basis.shape == (N_EMBD, 10)
    assert 0 <= fit.openings <= 1


def test_scs_is_the_same_twice() -> None:
    first, again = (fit_subspace_gate(subspace(0, 100), subspace(1, 50), subspace(2, 50))[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(again), strict=True))
