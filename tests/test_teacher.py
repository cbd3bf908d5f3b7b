"""What a gate learnt on one model helps a gate of another, and nothing leaks into what is held out."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finesteer_local.errors import DataError
from finesteer_local.judges.statistics import auroc
from finesteer_local.runtime import open_model
from finesteer_local.training import gates
from finesteer_local.training.data import Pair, Prompt, TrainingData
from finesteer_local.training.gate_data import GateData
from finesteer_local.training.gates import fit_contrastive_gate, folds_of
from finesteer_local.training.known import gate_scores
from finesteer_local.training.model_data import ModelData, Turns
from finesteer_local.training.probes import FOLDS, HEADS
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.teach import teacher_of
from finesteer_local.training.teacher import LONGEST, PROMPTS, RANK, Taught, Teacher, _anchors, load_teachers, taught

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = 80
BAD = range(0, WORDS, 4)  # each is a subject of its own: who has not met it cannot know
TAIL = b"<end><assistant>\n"


class Reader:
    """A model of a kind: each word has a state, seen through the model's own matrix, and its own way to cut words."""

    def __init__(self, n_embd: int, seed: int, cut: str) -> None:
        meanings = np.random.default_rng(0).standard_normal((WORDS + 3, 48)) + 0.2
        meanings[list(BAD), 0] += 1.5
        rng = np.random.default_rng(seed)
        self._states = meanings @ rng.standard_normal((48, n_embd)) / 7
        self._cut, self._noise = re.compile(cut.encode() + rb"|<end>|<assistant>|\n"), rng

    def token_ends(self, prompt: Prompt) -> tuple[bytes, np.ndarray]:
        turn = prompt.text.encode() + TAIL
        return turn, np.array([found.end() for found in self._cut.finditer(turn)])

    def request_span(self, prompt: Prompt) -> None:
        return None

    def turns(self, prompts: list[Prompt]) -> Turns:
        states = []
        for prompt in prompts:
            turn, ends = self.token_ends(prompt)
            words = prompt.text.split()
            for end in ends:
                within = len(turn[:end].decode().split(" ")) - 1
                tail = list(ends).index(end) - len(ends) + 3
                word = WORDS + tail if tail >= 0 else int(words[within][1:])
                state = self._states[word]
                states.append(state + 0.02 * self._noise.standard_normal(len(state)))
        lengths = [len(self.token_ends(prompt)[1]) for prompt in prompts]
        return Turns(np.array(states, np.float16), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def theirs() -> Reader:
    return Reader(40, 1, r" ?w\d+")


def ours() -> Reader:
    """Other dimensions, and words cut in two, which end where the other's do."""
    return Reader(56, 2, r" ?w|\d+")


def prompts(n: int, seed: int, words: range = range(WORDS)) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of three words each, one of which is bad or none."""
    rng = np.random.default_rng(seed)
    bad, good = [w for w in words if w in BAD], [w for w in words if w not in BAD]
    found: tuple[dict[str, Prompt], dict[str, Prompt]] = {}, {}
    for needs, side in ((True, found[0]), (False, found[1])):
        while len(side) < n:
            drawn = [int(w) for w in rng.choice(good, 3)]
            if needs:
                drawn[int(rng.integers(3))] = int(rng.choice(bad))
            text, i = " ".join(f"w{w}" for w in drawn), len(side)
            family = f"family {i % 7}" if i % 5 == 0 else ""
            side.setdefault(text, Prompt([{"role": "user", "content": text}], family=family))
    return list(found[0].values()), list(found[1].values())


def data_of(positive: list[Prompt], contrast: list[Prompt]) -> TrainingData:
    return TrainingData("some", [Pair(p, "no", "yes") for p in positive], contrast)


def teacher_on(reader: Reader, positive: list[Prompt], contrast: list[Prompt], name: str = "theirs") -> Teacher:
    read = GateData(positive, contrast, reader.turns([*positive, *contrast]))
    return teacher_of(f"{name}, layer 1", reader, data_of(positive, contrast), read)  # type: ignore[arg-type]


def told(teachers: Teacher | list[Teacher], reader: Reader, of: list[Prompt]) -> Taught:
    found = taught(reader, teachers if isinstance(teachers, list) else [teachers], of)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def everything() -> tuple[list[Prompt], list[Prompt]]:
    return prompts(700, seed=3)


@pytest.fixture(scope="module")
def teacher(everything: tuple[list[Prompt], list[Prompt]], one_thread: None) -> Teacher:
    return teacher_on(theirs(), *everything)


def test_a_part_of_the_recipe_teaches_what_all_of_it_did(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]
) -> None:
    """Of what forty prompts of each side say too little, the teacher knows more."""
    reader = ours()
    few = [side[:40] for side in everything]
    turns = reader.turns(few[0]), reader.turns(few[1])
    unseen = [reader.turns(side) for side in prompts(200, seed=9)]
    found = []
    for taught_by in (None, told(teacher, reader, [*few[0], *few[1]])):
        gate, _ = fit_contrastive_gate(*turns, seed=0, taught=taught_by)
        found.append(auroc(*(gate_scores(gate, each) for each in unseen)) or 0)
    alone, with_it = found
    assert with_it > 0.85 and with_it > alone + 0.1, found


def test_what_it_says_of_its_own_model_is_its_own_gate(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]
) -> None:
    """Ridge regression from a model's own states to what its heads made of them gives these heads."""
    reader = theirs()
    both = [*everything[0], *everything[1]]
    turns, of = reader.turns(both), told(teacher, reader, both)
    flat = turns.states.astype(np.float32)
    mean, scale = flat.mean(axis=0), flat.std(axis=0)
    standardised = (flat - mean) / scale
    [lesson] = of.lessons
    rows = turns.offsets[lesson.anchors[:, 0]] + lesson.anchors[:, 1]
    start, explained = lesson.start(standardised[rows], standardised[turns.offsets[lesson.ends + 1] - 1])
    assert start.query.shape == start.value.shape == (40, FOLDS * HEADS) and start.bias.shape == (FOLDS,)
    heads = standardised[rows] @ torch.cat([start.query, start.value], dim=1).detach().numpy()
    wanted = lesson.heads @ lesson.basis
    centred = heads - heads.mean(axis=0) - (wanted - wanted.mean(axis=0))
    assert (centred**2).sum() < 0.05 * ((wanted - wanted.mean(axis=0)) ** 2).sum() and explained > 0.95


def test_nothing_that_is_held_out_was_told() -> None:
    """A teacher that learnt labels drawn by lot knows them by heart; who takes over its folds holds out chance."""
    rng = np.random.default_rng(5)
    sides = prompts(240, seed=6, words=range(1, WORDS))
    drawn = [*sides[0], *sides[1]]
    drawn = [replace(drawn[i], family="") for i in rng.permutation(len(drawn))]
    positive, contrast = drawn[:240], drawn[240:]
    teacher, reader = teacher_on(theirs(), positive, contrast), ours()
    of, turns = told(teacher, reader, drawn), (reader.turns(positive), reader.turns(contrast))
    honest = fit_contrastive_gate(*turns, seed=0, taught=of)[1].auroc
    leaking = fit_contrastive_gate(*turns, seed=0, taught=replace(of, folds=(of.folds + 1) % FOLDS))[1].auroc
    assert abs(honest - 0.5) < 0.06 and leaking > 0.6, (honest, leaking)


def test_a_model_with_nothing_in_common_learns_from_labels(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]
) -> None:
    """The folds stay the teacher's, and what it held of each prompt still counts."""
    reader, rng = ours(), np.random.default_rng(0)
    both = [*everything[0], *everything[1]]
    turns, of = reader.turns(both), told(teacher, reader, both)
    lengths = np.diff(turns.offsets)
    assert of.start(lambda rows: rng.standard_normal((len(rows), 56)).astype(np.float32), lengths) is None
    [lesson] = of.lessons
    shuffled = replace(of, lessons=[replace(lesson, heads=lesson.heads[rng.permutation(len(lesson.heads))])])
    _, fit = fit_contrastive_gate(*turns.parted(len(everything[0])), seed=0, taught=shuffled)
    assert fit.auroc > 0.9, fit


def test_folds_are_the_teachers(teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]) -> None:
    positive, contrast = everything
    labels = np.r_[np.ones(len(positive)), np.zeros(len(contrast))].astype(np.float32)
    own = folds_of(labels, np.array([p.family for p in [*positive, *contrast]]), 0)
    assert np.array_equal(teacher.folds_of([*positive, *contrast]), own)
    new = [Prompt([{"role": "user", "content": f"w1 w2 new {i}"}], family="family 3") for i in range(9)]
    of_family = {fold for fold, p in zip(own, [*positive, *contrast], strict=True) if p.family == "family 3"}
    assert set(teacher.folds_of([*positive, *new])[len(positive) :]) == of_family
    alone = [Prompt([{"role": "user", "content": f"w1 new {i}"}]) for i in range(400)]
    assert np.bincount(teacher.folds_of(alone), minlength=FOLDS).min() > 25


def test_what_is_new_has_no_score(teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]) -> None:
    new = Prompt([{"role": "user", "content": "w1 w2 w3 w5"}])
    of = told(teacher, ours(), [*everything[0][:30], new])
    assert np.isnan(of.scores[-1]) and not np.isnan(of.scores[:-1]).any()
    [lesson] = of.lessons
    assert not (lesson.anchors[:, 0] == 30).any() and lesson.model == "theirs, layer 1"
    turns = ours().turns([*everything[0][:30], new, *everything[1][:30]])
    both = told(teacher, ours(), [*everything[0][:30], new, *everything[1][:30]])
    _, fit = fit_contrastive_gate(*turns.parted(31), seed=0, taught=both)
    assert np.isfinite(fit.auroc)


def test_another_recipe_has_no_teacher(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]], tmp_path: Path
) -> None:
    new = [Prompt([{"role": "user", "content": f"w1 w2 new {i}"}]) for i in range(8)]
    few = everything[0][:50]
    assert taught(ours(), [teacher], [*few, *new]) is None  # type: ignore[arg-type]
    assert taught(ours(), [teacher], [*few, *new[:4]]) is not None  # type: ignore[arg-type]
    assert taught(ours(), [], few) is None  # type: ignore[arg-type]


def test_of_two_teachers_the_one_that_is_most_alike_is_begun_with(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]
) -> None:
    """And what is learnt of each prompt is what both held of it."""
    second = teacher_on(Reader(48, 4, r" ?w\d+"), *everything, name="other")
    both = [*everything[0], *everything[1]]
    turns, of = ours().turns(both), told([teacher, second], ours(), both)
    single = [told(each, ours(), both) for each in (teacher, second)]
    assert [lesson.model for lesson in of.lessons] == ["theirs, layer 1", "other, layer 1"]
    assert np.allclose(of.scores, np.mean([each.scores for each in single], axis=0), atol=1e-5)
    assert np.array_equal(of.folds, single[0].folds) and np.array_equal(of.folds, single[1].folds)

    flat = turns.states.astype(np.float32)
    lengths = np.diff(turns.offsets)

    def states(rows: np.ndarray) -> np.ndarray:
        return flat[turns.offsets[rows[:, 0]] + rows[:, 1]]

    rng = np.random.default_rng(0)
    shuffled = [replace(each, heads=each.heads[rng.permutation(len(each.heads))]) for each in of.lessons]
    for i in (0, 1):  # only this one says something
        lessons = [lesson if k == i else shuffled[k] for k, lesson in enumerate(of.lessons)]
        begun = replace(of, lessons=lessons).start(states, lengths)
        wanted = single[i].start(states, lengths)
        assert begun is not None and wanted is not None and torch.equal(begun.weight, wanted.weight)
    assert replace(of, lessons=shuffled).start(states, lengths) is None


def test_it_goes_as_far_from_the_teacher_as_does_best(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, few = ours(), [side[:120] for side in everything]
    turns, of = (reader.turns(few[0]), reader.turns(few[1])), told(teacher, reader, [*few[0], *few[1]])
    found: dict[tuple[float, ...], float] = {}
    for ways in ((0.0,), (1.0,), gates.WAYS):
        monkeypatch.setattr(gates, "WAYS", ways)
        gate, fit = fit_contrastive_gate(*turns, seed=0, taught=of)
        found[ways] = fit.auroc
        if ways == (0.0,):
            data = gates._Standardised(turns)
            start = of.start(data.tokens, data.lengths)
            assert start is not None and np.array_equal(gate.query, start.query.detach().numpy())
    at_first, learnt, between = found.values()
    assert between >= max(at_first, learnt) and at_first != learnt, found


def test_what_one_teacher_does_not_know_the_other_may(
    teacher: Teacher, everything: tuple[list[Prompt], list[Prompt]]
) -> None:
    short = replace(teacher, places=teacher.places[:-1], folds=teacher.folds[:-1], scores=teacher.scores[:-1])
    both = [*everything[0], *everything[1]]
    of = told([short, teacher], ours(), both)
    assert not np.isnan(of.scores).any()
    assert np.isnan(told(short, ours(), both).scores).sum() == 1


def test_teachers_part_the_prompts_alike(teacher: Teacher, tmp_path: Path) -> None:
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    teacher.save(files[0])
    replace(teacher, folds=(teacher.folds + 1) % FOLDS).save(files[1])
    assert len(load_teachers([files[0], files[0]])) == 2
    with pytest.raises(DataError, match=r"two.npz: made of another recipe than one.npz"):
        load_teachers(files)


def test_the_file_is_what_was_saved(teacher: Teacher, tmp_path: Path) -> None:
    file = tmp_path / "teacher.npz"
    teacher.save(file)
    again = Teacher.load(file)
    for field in fields(Teacher):
        assert np.array_equal(getattr(again, field.name), getattr(teacher, field.name)), field.name
    assert teacher.heads.dtype == np.int8 and teacher.heads.shape[1] == RANK and int(teacher.counts.max()) <= 9


@pytest.mark.parametrize("damage", ["no archive", "cut", "a part", "a shape", "objects", "nothing"])
def test_a_damaged_file_is_said(teacher: Teacher, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "teacher.npz"
    arrays = {field.name: getattr(teacher, field.name) for field in fields(Teacher)}
    teacher.save(file)
    if damage == "no archive":
        file.write_bytes(b"GGUF" * 100)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "a part":
        np.savez(file, **{name: each for name, each in arrays.items() if name != "steps"})
    elif damage == "a shape":
        np.savez(file, **{**arrays, "basis": arrays["basis"][:, 1:]})
    elif damage == "objects":
        np.savez(file, **{**arrays, "model": np.array([{}], object)})
    else:
        file.unlink()
    with pytest.raises(DataError, match=re.escape(str(file))) as error:
        Teacher.load(file)
    assert "\n" not in str(error.value)


def test_anchors_stand_where_tokens_end_in_both_vocabularies() -> None:
    prompt = Prompt([{"role": "user", "content": "w12 w7"}])
    offsets, tokens = _anchors(theirs(), prompt)  # type: ignore[arg-type]
    assert offsets.tolist() == [3, 6, -3, -2, -1] and tokens.tolist() == [0, 1, 2, 3, 4]
    offsets, tokens = _anchors(ours(), prompt)  # type: ignore[arg-type]
    assert offsets.tolist() == [1, 3, 5, 6, -3, -2, -1] and tokens.tolist() == list(range(7))
    page = Prompt([{"role": "user", "content": " ".join(["w1"] * 200)}])
    offsets, tokens = _anchors(theirs(), page, LONGEST)  # type: ignore[arg-type]
    assert len(offsets) == LONGEST + 3 and tokens[-1] == 202 and offsets[LONGEST - 1] == 3 * LONGEST - 1


def test_anchors_of_a_real_vocabulary(smollm2_data: ModelData) -> None:
    prompt = Prompt([{"role": "user", "content": "How do I sharpen a kitchen knife?"}])
    turn, ends = smollm2_data.token_ends(prompt)
    offsets, tokens = _anchors(smollm2_data, prompt)
    start = turn.find(prompt.text.encode())
    words = [prompt.text.encode()[:offset] for offset in offsets if offset > 0]
    assert words[0] == b"How" and words[-1] == prompt.text.encode() and len(turn) == ends[-1]
    assert [int(ends[token]) - start for token in tokens[:-3]] == offsets[:-3].tolist()
    assert tokens[-1] == len(ends) - 1


@pytest.fixture(scope="module")
def smollm2_data(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    llama = open_model(smollm2)
    yield ModelData(llama, None, tmp_path_factory.mktemp("data"))
    llama.close()


def test_the_teachers_of_safety_know_their_recipe() -> None:
    data = load_recipe("safety")
    order = data.ordered[:PROMPTS]
    prompts_of, needs = [prompt for _, prompt in order], np.array([needs for needs, _ in order])
    teachers = load_teachers(data.teachers)
    assert [str(each.model).split("-")[0].lower() for each in teachers] == ["qwen2.5", "smollm2"]
    for teacher in teachers:
        scores = teacher.scores_of(prompts_of)
        known = ~np.isnan(scores)
        assert known.mean() > 0.99
        assert (auroc(scores[known & needs], scores[known & ~needs]) or 0) > 0.93
        assert (np.bincount(teacher.folds) > 0.1 * len(order)).all()
        folds: dict[str, set[int]] = {}
        for fold, prompt in zip(teacher.folds_of(prompts_of), prompts_of, strict=True):
            folds.setdefault(prompt.family, set()).add(int(fold))
        assert all(len(each) == 1 for family, each in folds.items() if family)


def test_without_a_teacher_nothing_is_told() -> None:
    data = data_of(*prompts(40, seed=1))
    assert not data.teachers and not load_recipe("truthful").teachers
