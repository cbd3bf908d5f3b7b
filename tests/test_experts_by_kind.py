"""Experts that go by the kinds of a request: weighed, kept in a file, dealt answers of their own, learnt, and tried."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finesteer_local.errors import DataError, ProfileError
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.steering import Experts, Kind
from finesteer_local.training.assemble import _told
from finesteer_local.training.data import KindOf, Pair, Prompt, TrainingData
from finesteer_local.training.learn import experts_of
from finesteer_local.training.optimise import _added, _logprobs, whole, whole_batches
from finesteer_local.training.pairs import LESSON, lesson
from finesteer_local.training.progress import quiet
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.weights import weights_of
from test_kinds import N_EMBD, profile, states
from test_profile_vectors import reference_reader

VECTORS = {"money": np.full(N_EMBD, 1, np.float32), "scorn": np.full(N_EMBD, 2, np.float32)}
SHARES = {"money": 0.75, "scorn": 0.25}


def by_kind() -> Profile:
    """Fraud and drugs are for one expert, hate for the other."""
    made = profile()
    assert made.kinds is not None
    named = {"fraud": "money", "drugs": "money", "hate": "scorn"}
    kinds = replace(made.kinds, kinds=tuple(replace(kind, expert=named[kind.name]) for kind in made.kinds.kinds))
    return replace(made, kinds=kinds, experts={layer: Experts.for_kinds(VECTORS, SHARES) for layer in made.layers})


def test_each_weighs_what_its_kinds_do() -> None:
    made = by_kind()
    weights = []
    for seed in range(8):
        decision = made.decide(states(seed=seed))
        if not decision.open:
            continue
        likely = dict(decision.kinds)
        total = sum(likely.values())
        for layer in made.layers:
            alpha = dict(zip(decision.labels[layer], decision.alpha[layer], strict=True))
            assert alpha["scorn"] == pytest.approx(likely["hate"] / total, rel=1e-5)
            assert alpha["money"] == pytest.approx((likely["fraud"] + likely["drugs"]) / total, rel=1e-5)
            wanted = decision.g * made.strength * (alpha["money"] + 2 * alpha["scorn"])
            np.testing.assert_allclose(decision.vectors[layer], np.full(N_EMBD, wanted), rtol=1e-5)
        weights.append(dict(decision.leading_experts())["scorn"])
    assert len(weights) > 1 and max(weights) > min(weights)


def test_without_kinds_all_get_the_mean() -> None:
    experts = Experts.for_kinds(VECTORS, SHARES)
    mean = np.full(N_EMBD, 0.75 + 2 * 0.25, np.float32)
    np.testing.assert_allclose(experts.mean, mean, rtol=1e-6)
    for shares in (None, {}, {"money": 0.0, "scorn": 0.0}, {"other": 1.0}):
        np.testing.assert_allclose(experts.mix(experts.alpha(mean, shares), experts.beta(mean)), mean, rtol=1e-6)
    assert experts.distinguishes and not experts.alone("money").distinguishes
    assert np.array_equal(experts.alone("scorn").prototypes[0], VECTORS["scorn"])
    np.testing.assert_allclose(experts.alone("nobody").prototypes[0], mean, rtol=1e-6)


def test_a_file_keeps_them_and_both_readers_agree(tmp_path: Path) -> None:
    by_kind().save(tmp_path / "p.gguf")
    ours, theirs = Profile.load(tmp_path / "p.gguf"), reference_reader.Profile(tmp_path / "p.gguf")
    assert ours.kinds is not None and [kind.expert for kind in ours.kinds.kinds] == ["money", "scorn", "money"]
    opened = 0
    for seed in range(8):
        decision, (_, _, vectors) = ours.decide(states(seed=seed)), theirs.decide(states(seed=seed))
        opened += decision.open
        assert {*vectors} == {*decision.vectors}
        for layer, vector in decision.vectors.items():
            np.testing.assert_allclose(vectors[layer], vector, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(vector, by_kind().decide(states(seed=seed)).vectors[layer])
    assert opened > 1


def test_they_need_kinds_that_name_them() -> None:
    made = by_kind()
    with pytest.raises(ProfileError, match="no kind names one of these experts"):
        replace(made, kinds=None)
    with pytest.raises(ProfileError, match="no kind names one of these experts"):
        replace(made, kinds=profile().kinds)
    layer = made.layers[0]
    assert _told(made.experts[layer], made.kinds) is made.experts[layer]
    assert np.array_equal(_told(made.experts[layer], None).prototypes[0], made.experts[layer].mean)


def test_a_recipe_deals_each_its_own_answers(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    own = {"positive": ["bad.jsonl"], "contrast": ["good.jsonl"], "chosen": "no.jsonl", "rejected": "yes.jsonl"}
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "x", "kinds": "kinds.jsonl", **own}), encoding="utf-8")
    write("bad.jsonl", [{"prompt": f"{kind} {i}", "kind": kind} for kind in ("a", "b", "c") for i in range(10)])
    write("good.jsonl", [{"prompt": f"good {i}"} for i in range(10)])
    write("yes.jsonl", [{"text": "Yes"}])
    write("no.jsonl", [{"text": "No."}, {"text": "No, warmly.", "expert": "warm"}, {"text": "No!", "expert": "warm"}])
    kinds = [{"name": "a", "of": ["a"], "expert": "warm"}, {"name": "b", "of": ["b"], "expert": "cold"}]
    write("kinds.jsonl", kinds)
    data = load_recipe(str(tmp_path))
    said = {kind: Counter(p.chosen for p in data.pairs if p.prompt.kind == kind) for kind in "abc"}
    assert said == {"a": {"No, warmly.": 5, "No!": 5}, "b": {"No.": 10}, "c": {"No.": 10}}
    assert [data.expert(Prompt([], kind)) for kind in "abc"] == ["warm", "cold", ""]
    write("no.jsonl", [{"text": "No.", "expert": "hot"}])
    with pytest.raises(DataError, match="no kind has the expert 'hot'"):
        load_recipe(str(tmp_path))
    write("no.jsonl", [{"text": "No.", "expert": "warm"}])
    with pytest.raises(DataError, match="some prompts have none"):
        load_recipe(str(tmp_path))


def two_experts(n: int, of: str = "ab") -> TrainingData:
    """`n` pairs of each kind; a recipe's kinds a and b have an expert each."""
    pairs = [
        Pair(Prompt([{"role": "user", "content": f"{kind} {i}?"}], kind), f"{kind.upper()}. {i % 3}", "yes")
        for kind in of
        for i in range(n)
    ]
    kinds = [KindOf(Kind(kind, expert=f"expert {kind}"), (kind,)) for kind in "ab"]
    return TrainingData("x", pairs, [Prompt([], "")], kinds=kinds, pooled=True)


def test_lessons_are_shared_out_among_them() -> None:
    data = two_experts(LESSON)
    found = lesson(data, 0)
    assert Counter(pair.prompt.kind for pair in found) == {"a": LESSON // 4, "b": LESSON // 4}
    assert all(pair.chosen.startswith(pair.prompt.kind.upper()) for pair in found)
    assert experts_of(data, found) == ["expert a", "expert b"]
    with_others = lesson(two_experts(LESSON, of="abc"), 0)  # nothing says which answers fit the third
    assert {pair.prompt.kind for pair in with_others} == {"a", "b"}
    assert experts_of(data, [pair for pair in found if pair.prompt.kind == "a"]) == []


def test_each_learns_its_own_answers(tiny: Path) -> None:
    llama = open_model(tiny, n_ctx=256, n_threads=1)
    data = two_experts(24)
    pairs = list(data.pairs)
    numbers = ["ab".index(pair.prompt.kind) for pair in pairs]
    options = {"end": llama.turn_end, "seed": 0, "progress": quiet}
    found = whole(weights_of(llama), llama, pairs, (1, 2), experts=numbers, **options)
    assert {layer: vectors.shape for layer, vectors in found.items()} == {
        1: (2, llama.n_embd()),
        2: (2, llama.n_embd()),
    }
    assert not np.allclose(found[1][0], found[1][1])
    [alone] = whole(weights_of(llama), llama, pairs, (1,), **options).values()
    assert alone.shape == (llama.n_embd(),)
    model = weights_of(llama)

    def likelihood(expert: int, other: int) -> float:
        """Of the answers of one expert, under the vectors of another."""
        batches = whole_batches(llama, pairs, end=llama.turn_end, seed=1, experts=numbers)
        examples = [e._replace(expert=0) for batch in batches for e in batch if e.expert == expert]
        vectors = torch.tensor(np.stack([found[layer][other] for layer in (1, 2)]))[None]
        mask: list[torch.Tensor] = []
        with torch.no_grad(), _added(model, (1, 2), vectors, mask):
            return float(np.mean([each.mean() for each in _logprobs(model, examples, mask)]))

    for expert in (0, 1):
        assert likelihood(expert, expert) > likelihood(expert, 1 - expert)
