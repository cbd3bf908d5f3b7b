"""Training end to end on tiny models: what comes out, what goes on after Ctrl-C, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import finesteer_local
from finesteer_local import paths, training
from finesteer_local.errors import (
    DataError,
    MissingExtraError,
    ModelError,
    ProfileError,
    StorageError,
    UnknownNameError,
)
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.training import answer_gate, effort, gate_data, learn, torch_engine
from finesteer_local.training import pairs as preparing
from finesteer_local.training import run as beginning
from finesteer_local.training import train as module
from finesteer_local.training.data import MIN_PAIRS, PAGE, Pair, Prompt, TrainingData, split
from finesteer_local.training.effort import EFFORTS
from finesteer_local.training.learn import Learnt
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.settings import TrainingSettings
from finesteer_local.training.torch_engine import TorchEngine
from finesteer_local.training.train import train
from finesteer_local.training.trials import FEWEST_ANSWERS
from tiny import write_tiny_model

N, N_CONTRAST = 36, 30
WORDS = ["alpha", "beta", "gamma", "delta", "rho", "tau", "sigma"]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def pair_rows(n: int = N, **more: str) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"! {WORDS[i % 7]} {i}",
            "chosen": f"no {WORDS[i % 5]}, {i}",
            "rejected": f"{i} sure {WORDS[i % 6]}",
            "kind": f"kind_{'ab'[i % 2]}",
            **more,
        }
        for i in range(n)
    ]


pytestmark = pytest.mark.usefixtures("one_thread", "short_answers")


def write_files(folder: Path) -> tuple[Path, Path]:
    contrast = [{"prompt": f"what is {WORDS[i % 7]} {i}?"} for i in range(N_CONTRAST)]
    return write(folder / "My pairs.jsonl", pair_rows()), write(folder / "contrast.jsonl", contrast)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_files(tmp_path)[0]


@pytest.fixture
def contrast(tmp_path: Path) -> Path:
    return write_files(tmp_path)[1]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINESTEER_HOME", str(folder))
        return run(tiny, *write_files(folder))


def run(model: Path, data: Path, contrast: Path, **options: Any) -> Profile:
    return training.train_profile(model, data=data, contrast=contrast, n_threads=1, **options)


def stop_at_tuning(stage: str, done: int, total: int) -> None:
    if stage == "tuning":
        raise KeyboardInterrupt


def same(a: Profile, b: Profile) -> None:
    """Equal to the last bit, but for the clock."""

    def told(profile: Profile) -> dict[str, Any]:
        return {**profile.training, "seconds": None, "stages": None}

    assert told(a) == told(b)
    for name in ("name", "model", "gate_layer", "strength", "scope", "description", "license", "layers"):
        assert getattr(a, name) == getattr(b, name), name
    for left, right in [(a.gate, b.gate), *((a.experts[layer], b.experts[layer]) for layer in a.layers)]:
        assert vars(left).keys() == vars(right).keys()
        for name, value in vars(left).items():
            assert np.array_equal(value, vars(right)[name]), name


def states_of(model: Path, layer: int, *texts: str) -> list[np.ndarray]:
    llama = open_model(model, n_threads=1)
    harvester = Harvester(llama, [layer])
    states = []
    for text in texts:
        messages = [{"role": "user", "content": text}]
        tokens = chat_prompt(llama, messages)
        states.append(harvester.turn_states(tokens, turn_start(llama, messages, tokens))[0])
    return states


def test_from_a_file_of_pairs_to_a_profile(tiny_model: Path, data: Path, contrast: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    profile = run(tiny_model, data, contrast, progress=lambda *step: steps.append(step))
    assert profile.name == "my-pairs"
    assert profile.model == read_model_identity(tiny_model)
    assert profile.gate.kind == "contrastive"
    assert profile.layers == [profile.gate_layer] and 1 <= profile.gate_layer <= 2
    stages = list(dict.fromkeys(stage for stage, _, _ in steps))
    assert stages == [
        "measuring this machine",
        "asking the model",
        "reading answers",
        "training experts",
        "tuning",
        "reading prompts",
        "training the gate",
    ]
    assert {(done, total) for stage, done, total in steps if stage == "reading prompts"} == {
        (i, N + N_CONTRAST) for i in range(1, N + N_CONTRAST + 1)
    }

    told = profile.training
    assert (told["recipe"], told["pairs"], told["contrast_prompts"], told["seed"]) == ("", N, N_CONTRAST, 0)
    assert list(told["stages"]) == stages
    assert 0 < sum(told["stages"].values()) <= told["seconds"] + 0.1 * len(stages)  # each is rounded
    assert told["model_file"] == tiny_model.name
    assert set(told["versions"]) == {"finesteer-local", "llama-cpp-python", "torch"}
    assert told["versions"]["finesteer-local"] == finesteer_local.__version__
    assert 0 <= told["figures"]["gate"]["openings"] <= 1
    assert told["figures"]["answers"] in told["trials"]
    assert told["figures"]["answers"]["layers"] == profile.layers
    assert not told["optimised"] and told["figures"]["gate"]["forms"].keys() == {"plain"}
    distinguishes = profile.experts[profile.gate_layer].distinguishes
    assert (str(profile.gate_layer) in told["expert_shares"]) == distinguishes

    file = tmp_path / "profile.gguf"
    profile.save(file)
    read = Profile.load(file)
    same(profile, read)
    assert read.training == profile.training
    for states in states_of(tiny_model, profile.gate_layer, "! alpha 3", "what is beta?", "something else"):
        before, after = profile.decide(states), read.decide(states)
        assert (before.g, before.score, before.threshold) == (after.g, after.score, after.threshold)
        assert before.vectors.keys() == after.vectors.keys()
        for layer, vector in before.vectors.items():
            np.testing.assert_array_equal(after.vectors[layer], vector)
    llama = open_model(tiny_model, profiles=[file], n_threads=1)
    llama.create_chat_completion([{"role": "user", "content": "! alpha 3"}], max_tokens=4, temperature=0.0)
    assert llama.last_decision is not None and llama.last_decision.profile == "my-pairs"


def test_the_gate_opens_for_the_pairs_and_not_for_the_others(tiny: Path, whole: Profile) -> None:
    def opened(texts: list[str]) -> float:
        return float(np.mean([whole.decide(s).open for s in states_of(tiny, whole.gate_layer, *texts)]))

    assert opened([f"! {word} {i}" for i, word in enumerate(WORDS)]) > 0.7
    assert opened([f"what is {word} {i}?" for i, word in enumerate(WORDS)]) < 0.3


STAGES = [
    ("asking the model", 33),
    ("asking the model", N),
    ("reading answers", 10),
    ("reading answers", 34),
    ("training experts", 1),
    ("tuning", 1),
    ("tuning", 5),
    ("reading prompts", 40),
    ("training the gate", 2),
]


@pytest.mark.parametrize(("stage", "n"), STAGES)
def test_an_interrupted_run_goes_on(tiny: Path, data: Path, contrast: Path, whole: Profile, stage: str, n: int) -> None:
    """It ends equal to one that was never interrupted, and asks and reads nothing twice."""

    def interrupt(at: str, done: int, total: int) -> None:
        if (at, done) == (stage, n):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, data, contrast, progress=interrupt)
    [folder] = paths.work_dir().iterdir()
    assert folder.name.startswith("my-pairs-")
    steps: list[tuple[str, int]] = []
    resumed = run(tiny, data, contrast, progress=lambda at, done, total: steps.append((at, done)))
    order = list(dict.fromkeys(name for name, _ in STAGES))
    asked = [done for at, done in steps if at == "asking the model"]
    reached = n // 32 * 32 if stage == "asking the model" and n < N else N if order.index(stage) > 0 or n == N else 0
    assert asked == list(range(reached + 1, N + 1))
    for block, size in (("reading answers", 3 * N), ("reading prompts", N + N_CONTRAST)):
        if order.index(block) < order.index(stage):
            assert [done for at, done in steps if at == block] == [size]  # from the cache, at once
    same(resumed, whole)


def test_a_finished_run_is_not_done_again(tiny: Path, data: Path, contrast: Path, whole: Profile) -> None:
    run(tiny, data, contrast)
    steps: list[tuple[str, int]] = []
    again = run(tiny, data, contrast, progress=lambda at, done, total: steps.append((at, done)))
    assert not {"measuring this machine", "asking the model"} & {at for at, _ in steps}
    assert [done for at, done in steps if at == "reading prompts"] == [N + N_CONTRAST]
    same(again, whole)


def test_who_gives_too_few_minutes_is_told(
    tiny: Path, data: Path, contrast: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny, data, contrast, minutes=0.01)
    [told] = [record.getMessage() for record in caplog.records if record.name == "finesteer_local"]
    assert re.fullmatch(r"with this model, training takes \d+\.\d minutes here at the least", told)


def test_a_longer_run_goes_on_from_a_shorter_one(
    tiny: Path, data: Path, contrast: Path, whole: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it needs more of is all that is read, though the shorter run chose to do less."""
    monkeypatch.setattr(gate_data, "PORTION", 10)
    monkeypatch.setattr(gate_data, "MIN_PROMPTS", 30)
    monkeypatch.setattr(effort, "FIT_SECONDS", 1e6)
    short = run(tiny, data, contrast, minutes=5)
    assert short.training["prompts_for_gate"] == 30
    assert short.training["minutes"] == 5 and short.training["quality"] is None
    monkeypatch.setattr(effort, "FIT_SECONDS", 0.0)
    steps: list[tuple[str, int]] = []
    longer = run(tiny, data, contrast, minutes=50, progress=lambda at, done, total: steps.append((at, done)))
    assert longer.training["prompts_for_gate"] == N + N_CONTRAST
    read = [done for at, done in steps if at == "reading prompts"]
    assert read[:3] == [10, 20, 30] and read[3:] == list(range(31, N + N_CONTRAST + 1))


def test_an_interruption_leaves_a_profile_where_that_is_wanted(tiny: Path, data: Path, contrast: Path) -> None:
    reached: list[str] = []

    def interrupt(at: str, done: int, total: int) -> None:
        if at == "tuning" and done == total - 2 and "tuning" not in reached:
            reached.append(at)
            raise KeyboardInterrupt

    profile = run(tiny, data, contrast, keep=True, progress=interrupt)
    assert reached == ["tuning"] and profile.gate.kind == "contrastive"
    assert len(profile.training["trials"]) >= 1


def test_interrupted_at_every_stage_in_turn(tiny: Path, data: Path, contrast: Path, whole: Profile) -> None:
    for stage, n in STAGES:

        def interrupt(at: str, done: int, total: int, stage: str = stage, n: int = n) -> None:
            if (at, done) == (stage, n):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tiny, data, contrast, progress=interrupt)
    same(run(tiny, data, contrast), whole)


def test_what_was_optimised_is_not_optimised_again(
    tiny: Path, data: Path, contrast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny, data, contrast, progress=stop_at_tuning, optimise=True)
    with monkeypatch.context() as patch:
        patch.setattr(learn, "likelier", None)
        patch.setattr(beginning, "weights_of", None)
        resumed = run(tiny, data, contrast, optimise=True)
    assert resumed.training["optimised"]
    same(resumed, run(tiny, data, contrast, optimise=True))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep enough for three layers apart."""
    return write_tiny_model(tmp_path_factory.mktemp("deep") / "deep.gguf", n_layer=12)


def refusing(**changes: Any) -> TrainingData:
    return replace(training_data(), judge="refusal", **changes)


def test_refusals_of_a_small_model_are_learnt_from_whole_answers(deep: Path, tmp_path: Path) -> None:
    """One vector a layer, all of them steered, and the gate at the lowest, so that one pass does."""
    steps: list[str] = []
    llama = open_model(deep, n_threads=1)
    profile = train(llama, refusing(), TrainingSettings(), lambda stage, done, total: steps.append(stage))
    assert [*dict.fromkeys(steps)] == [
        "measuring this machine",
        "asking the model",
        "learning through the model",
        "tuning",
        "reading prompts",
        "training the gate",
    ]
    assert profile.layers == [5, 7, 8] and profile.gate_layer == 5 and profile.gate.kind == "contrastive"
    assert all(len(e.prototypes) == 1 and not e.distinguishes and not e.labels for e in profile.experts.values())
    told = profile.training
    assert told["optimised"] and told["expert_shares"] == {} and told["pairs_for_experts"] == N
    assert told["figures"]["experts"].keys() == {"5", "7", "8"}
    assert told["figures"]["answers"]["layers"] == [5, 7, 8]
    assert profile.scope == "turn"
    profile.save(tmp_path / "profile.gguf")
    same(Profile.load(tmp_path / "profile.gguf"), profile)
    llama.set_profiles([profile])
    llama.create_chat_completion([{"role": "user", "content": "! alpha 3"}], max_tokens=2, temperature=0.0)
    [decision] = llama.last_decisions
    if decision.open:
        assert [*decision.vectors] == [5, 7, 8] and decision.leading_experts() == []


@pytest.mark.parametrize("stage", ["learning through the model", "tuning", "reading prompts"])
def test_an_interrupted_lesson_goes_on(deep: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What took minutes through the model is not learnt again."""

    def interrupt(at: str, done: int, total: int) -> None:
        if at == stage and done == min(total, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(open_model(deep, n_threads=1), refusing(), TrainingSettings(), interrupt)
    with monkeypatch.context() as patch:
        if stage != "learning through the model":
            patch.setattr(learn, "whole", None)
            patch.setattr(beginning, "weights_of", None)
        resumed = train(open_model(deep, n_threads=1), refusing(), TrainingSettings())
    same(resumed, train(open_model(deep, n_threads=1), refusing(), TrainingSettings()))


@pytest.fixture
def engine_wins(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """PyTorch answers, however small the model is; the weights that were opened."""
    weights: list[weakref.ref[Any]] = []
    opened = beginning.weights_of

    def weights_of(llama: Any) -> Any:
        found = opened(llama)
        weights.append(weakref.ref(found))
        return found

    monkeypatch.setattr(beginning, "weights_of", weights_of)
    monkeypatch.setattr(torch_engine, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr(torch_engine, "_seconds", lambda model, prompts: float(not isinstance(model, TorchEngine)))
    return weights


@pytest.mark.parametrize("optimise", [True, False])
def test_pytorch_answers_what_tuning_asks(
    deep: Path, optimise: bool, engine_wins: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run goes on to the same profile, and the weights are gone once nothing asks any more."""
    asked: list[int] = []
    answered = TorchEngine._answered
    monkeypatch.setattr(TorchEngine, "_answered", lambda self, some: (asked.append(len(some)), answered(self, some))[1])
    monkeypatch.setattr(SteeredLlama, "whole_answers", None)
    settings = TrainingSettings(optimise=optimise, quality="quick")
    alive: dict[str, bool] = {}

    def told(stage: str, done: int, total: int) -> None:
        alive[stage] = engine_wins[-1]() is not None

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "tuning" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(open_model(deep, n_threads=1), refusing(), settings, interrupt)
    n_asked = len(asked)
    resumed = train(open_model(deep, n_threads=1), refusing(), settings, told)
    assert len(engine_wins) == 2 and 0 < n_asked < len(asked)
    assert alive["tuning"] and not alive["reading prompts"]
    assert resumed.training["optimised"] == optimise
    shutil.rmtree(paths.work_dir())
    same(resumed, train(open_model(deep, n_threads=1), refusing(), settings))


def test_layers_and_ways_that_are_asked_for(deep: Path) -> None:
    one = train(open_model(deep, n_threads=1), refusing(), TrainingSettings(gate="always", layer=6))
    assert one.layers == [6] and one.training["optimised"]
    without = train(open_model(deep, n_threads=1), refusing(), TrainingSettings(gate="always", optimise=False))
    assert not without.training["optimised"] and without.layers[0] in (4, 5, 6) and len(without.layers) == 1


def test_a_model_that_cannot_be_learnt_through(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences of states do for it, unless more was asked for."""

    def weights_of(llama: Any) -> Any:
        raise ModelError("transformers cannot read it")

    monkeypatch.setattr(beginning, "weights_of", weights_of)
    profile = train(open_model(deep, n_threads=1), refusing(), TrainingSettings(gate="always"))
    assert not profile.training["optimised"] and len(profile.layers) == 1
    with pytest.raises(ModelError, match="transformers cannot read it"):
        train(open_model(deep, n_threads=1), refusing(), TrainingSettings(gate="always", optimise=True))


def test_the_gate_learns_from_as_many_prompts_as_the_quality_says(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data()
    n = len(data.positive) + len(data.contrast)
    monkeypatch.setitem(EFFORTS, "quick", replace(EFFORTS["full"], prompts=n - 12))
    profiles = [
        train(open_model(tiny, n_threads=1), data, TrainingSettings(quality=each)) for each in ("quick", "full")
    ]
    assert [each.training["quality"] for each in profiles] == ["quick", "full"]
    few, all_of_them = (each.training["prompts_for_gate"] for each in profiles)
    assert n - 24 < few < all_of_them == n
    assert profiles[0].gate.low != profiles[1].gate.low
    same_experts(*profiles)


def test_recipes_of_refusals_get_a_gate_on_the_answers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_gate, "LEAST", 16)
    monkeypatch.setattr(answer_gate, "USEFUL", 0.0)  # a random model's answers show nothing
    stages: list[str] = []
    llama = open_model(tiny, n_threads=1)
    settings = TrainingSettings(quality="quick", optimise=False, watch=True)
    profile = train(llama, refusing(), settings, lambda stage, done, total: stages.append(stage))
    assert stages[-1] == "training the answers' gate" and "watching answers" in stages
    gate, fit = profile.answer_gate, profile.training["figures"]["answer_gate"]
    assert gate is not None and gate.layer == profile.gate_layer and np.isfinite(gate.threshold)
    assert fit["complied"] >= 16 and fit["answers"] >= 2 * 16
    without = train(llama, refusing(), replace(settings, watch=False))
    assert without.answer_gate is None and "answer_gate" not in without.training["figures"]
    monkeypatch.setattr(answer_gate, "USEFUL", 1.1)
    useless = train(llama, refusing(), settings)
    assert useless.answer_gate is None and useless.training["figures"]["answer_gate"]["recall"] < 1.1
    monkeypatch.setattr(answer_gate, "LEAST", 1000)  # answers that all comply, or none that does, teach nothing
    assert train(llama, refusing(), settings).answer_gate is None


def test_recipes_that_margins_judge_get_none(whole: Profile) -> None:
    assert whole.answer_gate is None


def same_experts(first: Profile, second: Profile) -> None:
    """What steers was learnt from the same pairs, whatever the gate learnt from."""
    assert first.experts.keys() == second.experts.keys()
    for layer, experts in first.experts.items():
        assert np.array_equal(experts.prototypes, second.experts[layer].prototypes)


def test_pages_that_a_small_context_has_no_room_for_are_left_out(tiny: Path) -> None:
    """The recipe made them, and has others; whatever else is too long is still an error."""

    def page(n: int) -> Prompt:
        return Prompt([{"role": "user", "content": "z" * n}], "", "page z", PAGE)

    data = training_data()
    room, too_long = page(600), page(2000)
    data = replace(
        data,
        pairs=[*data.pairs, Pair(room, "no", "yes"), Pair(too_long, "no way", "yes")],
        contrast=[*data.contrast, too_long, room],
    )
    profile = train(open_model(tiny, n_threads=1), data, TrainingSettings())
    assert profile.training["pairs"] == N + 1
    assert profile.training["contrast_prompts"] == len(data.contrast) - 1
    assert profile.training["data_hash"] != data.hash
    assert profile.training["figures"]["gate"]["forms"].keys() == {"plain", "page"}
    long = replace(data, contrast=[replace(too_long, form="wrapped")])
    with pytest.raises(DataError, match="do not fit the context of 1024"):
        train(open_model(tiny, n_threads=1), long, TrainingSettings())


def test_another_run_does_not_go_on_with_it(tiny: Path, data: Path, contrast: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny, data, contrast, progress=stop_at_tuning)
    [left] = paths.work_dir().iterdir()
    before = sorted((path, path.stat().st_mtime_ns) for path in left.rglob("*"))
    run(tiny, data, contrast, seed=1)
    assert sorted((path, path.stat().st_mtime_ns) for path in left.rglob("*")) == before
    assert len(list(paths.work_dir().iterdir())) == 2


@pytest.mark.parametrize("gate", ["scs", "always"])
def test_other_gates(tiny: Path, data: Path, contrast: Path, gate: str, tmp_path: Path) -> None:
    profile = run(tiny, data, contrast, gate=gate)
    assert profile.gate.kind == gate
    assert (profile.training["figures"]["gate"] is None) == (gate == "always")
    profile.save(tmp_path / "profile.gguf")
    same(Profile.load(tmp_path / "profile.gguf"), profile)
    [states] = states_of(tiny, profile.gate_layer, "! alpha 0")
    assert profile.decide(states).open or gate == "scs"


def test_scs_holds_its_promise_on_the_held_out_pairs(tiny: Path, data: Path, contrast: Path) -> None:
    profile = run(tiny, data, contrast, gate="scs")
    held = len(profile.gate.calibration)  # type: ignore[attr-defined]
    assert 0.1 * N <= held <= 0.3 * N
    assert profile.training["figures"]["gate"]["recall"] >= 1 - 0.05 - 1 / held


def test_always_needs_no_contrast(tiny: Path, data: Path) -> None:
    loaded = replace(training_data(), contrast=[])
    llama = open_model(tiny, n_threads=1)
    assert train(llama, loaded, TrainingSettings(gate="always")).gate.kind == "always"
    for gate in ("contrastive", "scs"):
        with pytest.raises(DataError, match="no prompts that must stay untouched"):
            train(llama, loaded, TrainingSettings(gate=gate))


def test_what_is_asked_for_replaces_what_is_tuned(tiny: Path, data: Path, contrast: Path) -> None:
    profile = run(tiny, data, contrast, layer=1, strength=0.35, scope="response", name="mine", seed=5)
    assert (profile.layers, profile.gate_layer, profile.strength, profile.scope) == ([1], 1, 0.35, "response")
    assert (profile.name, profile.training["seed"]) == ("mine", 5)


def test_seeds(tiny: Path, data: Path, contrast: Path, whole: Profile) -> None:
    same(run(tiny, data, contrast), whole)
    other = run(tiny, data, contrast, seed=1)
    assert whole.training["data_hash"] == other.training["data_hash"]
    assert not np.array_equal(whole.gate.query, other.gate.query)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layer", [0, 3, 4, -1, 99])
def test_a_layer_out_of_range(tiny: Path, data: Path, contrast: Path, layer: int) -> None:
    with pytest.raises(DataError, match=f"^layer {layer} cannot be steered; this model allows 1 to 2$"):
        run(tiny, data, contrast, layer=layer)
    assert not paths.work_dir().exists()


def test_every_layer_that_is_allowed(tiny: Path, data: Path, contrast: Path) -> None:
    for layer in (1, 2):
        assert run(tiny, data, contrast, layer=layer, gate="always").layers == [layer]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"gate": "open"}, "gate 'open' is none of contrastive, scs, always"),
        ({"quality": "best"}, "quality 'best' is none of quick, standard, full"),
        ({"minutes": 0}, "nothing can be trained in 0 minutes"),
        ({"minutes": float("nan")}, "nothing can be trained in nan minutes"),
        ({"strength": -0.1}, r"strength -0.1 is not in \[0, 100\]"),
        ({"strength": float("nan")}, r"strength nan is not in \[0, 100\]"),
        ({"scope": "answer"}, "scope 'answer' is none of response, turn, prompt"),
    ],
)
def test_settings_out_of_range(tiny: Path, data: Path, contrast: Path, options: dict[str, Any], what: str) -> None:
    """Said at once, not after minutes of training."""
    with pytest.raises(ProfileError, match=what):
        run(tiny, data, contrast, **options)
    assert not paths.work_dir().exists()


@pytest.mark.parametrize(("judge", "n"), [("margin", 24), ("refusal", 8)])
def test_where_pairs_judge_language_is_not_judged_by_a_handful_of_answers(judge: str, n: int) -> None:
    prompts = [Prompt([{"role": "user", "content": str(i)}]) for i in range(40)]
    learnt = Learnt({}, prompts[:32], [], [], 32, {}, {})
    data = SimpleNamespace(positive=prompts, judge=judge)
    asked = module._asked(SimpleNamespace(data=data), learnt)  # type: ignore[arg-type]
    assert asked[:8] == prompts[32:] and len({prompt.text for prompt in asked}) == len(asked) == n


def test_too_few_pairs(tiny: Path, tmp_path: Path, contrast: Path) -> None:
    few = write(tmp_path / "few.jsonl", pair_rows(MIN_PAIRS - 1))
    with pytest.raises(DataError, match=f"{MIN_PAIRS - 1} pairs are too few to train on; give at least {MIN_PAIRS}"):
        run(tiny, few, contrast)
    just = write(tmp_path / "few.jsonl", pair_rows(MIN_PAIRS))
    assert run(tiny, just, contrast).training["pairs"] == MIN_PAIRS


@pytest.mark.parametrize("name", ["../up", "a b", "Capital"])
def test_a_name_that_cannot_be_a_profiles(tiny: Path, data: Path, contrast: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot name a profile"):
        run(tiny, data, contrast, name=name)


def test_no_contrast_prompts(tiny: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no prompts that must stay untouched"):
        run(tiny, data, tmp_path / "empty.jsonl")


@pytest.mark.parametrize("which", ["pairs", "contrast"])
def test_a_prompt_longer_than_the_context_is_found_first(
    tiny: Path, data: Path, contrast: Path, tmp_path: Path, which: str
) -> None:
    long = {"prompt": "z" * 2000, "chosen": "no", "rejected": "yes"}
    if which == "pairs":
        write(data, [*pair_rows(), long])
    else:
        write(contrast, [{"prompt": "hello"}, long])
    steps: list[str] = []
    with pytest.raises(DataError, match=r"2\d\d\d tokens and its answer do not fit the context of 1024.*'zzz"):
        run(tiny, data, contrast, progress=lambda stage, done, total: steps.append(stage))
    assert steps == []
    if which == "contrast":  # not read for a gate that is always open
        assert run(tiny, data, contrast, gate="always")


def test_a_prompt_that_just_fits(tiny: Path, data: Path, contrast: Path) -> None:
    n_template = len(chat_prompt(open_model(tiny, n_threads=1), [{"role": "user", "content": "z"}])) - 1
    room = 1024 - n_template - 32
    write(data, [{"prompt": "z" * room, "chosen": "no " * 40, "rejected": "yes " * 40}, *pair_rows()])
    assert run(tiny, data, contrast)


def test_answers_that_begin_alike(tiny: Path, data: Path, contrast: Path) -> None:
    start = "always the very same beginning, then "
    write(data, [{"prompt": f"do {i}", "chosen": start + "no", "rejected": start + "yes"} for i in range(N)])
    with pytest.raises(DataError, match="answers of every pair begin with the same"):
        run(tiny, data, contrast)


@pytest.mark.parametrize("gate", ["contrastive", "scs"])
def test_every_pair_of_a_kind_of_its_own(tiny: Path, data: Path, contrast: Path, gate: str) -> None:
    write(data, [{**row, "kind": f"kind_{i}"} for i, row in enumerate(pair_rows())])
    profile = run(tiny, data, contrast, gate=gate)
    assert profile.training["pairs"] == N


def test_answers_outside_ascii(tiny: Path, data: Path, contrast: Path) -> None:
    """The tiny tokenizer has a token a byte: letters are cut in the middle."""
    write(data, [{"prompt": f"où {i}", "chosen": f"日本語日本語 {i}", "rejected": f"été 🙂🙂🙂 {i}"} for i in range(N)])
    assert run(tiny, data, contrast).name == "my-pairs"


def test_a_model_without_a_chat_template(tmp_path: Path, data: Path, contrast: Path) -> None:
    model = write_tiny_model(tmp_path / "plain.gguf", chat_template=None)
    assert run(model, data, contrast).model == read_model_identity(model)


def test_a_missing_model(tmp_path: Path, data: Path, contrast: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.gguf"):
        run(tmp_path / "absent.gguf", data, contrast)


def test_no_right_to_keep_the_run(tiny: Path, data: Path, contrast: Path, home: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(StorageError, match="cannot create the folder"):
        run(tiny, data, contrast)


def test_an_unknown_recipe(tiny: Path) -> None:
    with pytest.raises(UnknownNameError, match="known: safety"):
        training.train_profile(tiny, recipe="saftey")


@pytest.mark.parametrize("missing", [["torch"], ["sklearn"], ["torch", "sklearn"]])
def test_the_extra_is_missing(tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    find = training.util.find_spec
    monkeypatch.setattr(training.util, "find_spec", lambda name: None if name in missing else find(name))
    what = rf"^training needs {' and '.join(missing)} \(extra train\); install with: .*$"
    for call in (training.require_extra, lambda: training.train_profile(tiny, data=data)):
        with pytest.raises(MissingExtraError, match=what):
            call()
    assert issubclass(MissingExtraError, ImportError)


def test_the_extra_is_there() -> None:
    training.require_extra()


def test_the_public_name() -> None:
    assert finesteer_local.train_profile is training.train_profile


def training_data(n: int = N, pooled: bool = False, chosen: int = 0, own_replies: bool = False) -> TrainingData:
    pairs = [
        Pair(
            Prompt([{"role": "user", "content": row["prompt"]}], row["kind"]),
            f"no {WORDS[i % chosen % 7]} {i % chosen}" if chosen else row["chosen"],
            row["rejected"],
        )
        for i, row in enumerate(pair_rows(n))
    ]
    contrast = [Prompt([{"role": "user", "content": f"what is {word}?"}]) for word in WORDS * 3]
    return TrainingData("some", pairs, contrast, pooled=pooled, own_replies=own_replies)


def trained_on(tiny: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """The pairs whose answers are read."""
    seen: list[Pair] = []
    deltas = ModelData.deltas
    monkeypatch.setattr(learn, "clipped", lambda llama, pair: pair)
    monkeypatch.setattr(
        ModelData,
        "deltas",
        lambda self, pairs, layers: (seen.extend(pairs), deltas(self, pairs, layers))[1],
    )
    train(open_model(tiny, n_threads=1), data, TrainingSettings(gate="always"))
    return seen


def test_a_users_answers_stay_with_their_prompts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the same few answers come back."""
    data = training_data(chosen=12)
    assert len({pair.chosen for pair in data.pairs}) == 12
    assert trained_on(tiny, data, monkeypatch) == list(data.pairs)


def test_of_a_recipes_pool_the_likeliest_answers_are_used(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data(pooled=True, chosen=12)
    used = trained_on(tiny, data, monkeypatch)
    assert [(pair.prompt, pair.rejected) for pair in used] == [(pair.prompt, pair.rejected) for pair in data.pairs]
    pool = {pair.chosen for pair in data.pairs}
    assert {pair.chosen for pair in used} < pool and len({pair.chosen for pair in used}) == preparing.NATURAL


def test_a_recipe_may_move_away_from_the_models_own_replies(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data(own_replies=True)
    used = trained_on(tiny, data, monkeypatch)
    llama = open_model(tiny, n_threads=1)
    wanted = ModelData(llama, data, paths.work_dir() / "x").replies(data.pairs[:3], learn.REPLY_TOKENS)
    assert [pair.rejected for pair in used[:3]] == wanted
    assert [pair.chosen for pair in used] == [pair.chosen for pair in data.pairs]


def test_replies_that_already_are_what_is_wanted_are_not_moved_away_from() -> None:
    pairs = training_data(n=24).pairs[:3]
    replies = ["I cannot help with that.", " \n", "Sure, here is how."]
    got = preparing.against_replies(pairs, replies, "refusal")
    assert [pair.rejected for pair in got] == [pairs[0].rejected, pairs[1].rejected, "Sure, here is how."]
    assert preparing.against_replies(pairs, replies, "margin")[0].rejected == replies[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kinds", [1, 10, 500, 900])
def test_many_pairs_are_sampled(seed: int, kinds: int) -> None:
    """Every kind with its share, however many kinds there are."""
    pairs = [Pair(Prompt([{"role": "user", "content": str(i)}], f"kind {i % kinds}"), "no", "yes") for i in range(900)]
    data = TrainingData("many", pairs, [], own_replies=True)
    got = preparing.sample(data, seed)
    assert preparing.MAX_PAIRS // 2 <= len(got) <= preparing.MAX_PAIRS
    numbers = [int(pair.prompt.text) for pair in got]
    assert numbers == sorted(set(numbers))
    assert max(numbers) > 700 and min(numbers) < 200
    if kinds == 10:
        assert {pair.prompt.kind for pair in got} == {f"kind {i}" for i in range(10)}
    assert preparing.sample(data, seed) == got
    assert preparing.sample(replace(data, pairs=pairs[:50]), seed) == pairs[:50]
    given = preparing.sample(replace(data, own_replies=False), seed)
    assert preparing.MAX_GIVEN_PAIRS // 2 <= len(given) <= preparing.MAX_GIVEN_PAIRS


def test_held_out_pairs_are_of_every_kind_or_every_fifth() -> None:
    prompts = [Prompt([{"role": "user", "content": str(i)}], f"kind {i % 3}") for i in range(30)]
    assert preparing.held_out(prompts, 4) == split(30, [prompt.kind for prompt in prompts], 4)
    learn, held = preparing.held_out([replace(prompt, kind=prompt.text) for prompt in prompts], 4)
    assert held == [0, 5, 10, 15, 20, 25]
    assert sorted(learn + held) == list(range(30))


def test_pairs_of_one_prompt_are_held_out_together() -> None:
    """Else a question would be tuned on that was trained on."""
    prompts = [Prompt([{"role": "user", "content": str(i % 20)}], f"kind {i % 20 % 2}") for i in range(50)]
    learn, held = preparing.held_out(prompts, 4)
    assert sorted(learn + held) == list(range(50))
    assert len({prompts[i].text for i in held}) == 4
    assert not {prompts[i].text for i in held} & {prompts[i].text for i in learn}


def test_the_gate_counts_a_question_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = training_data()
    twice = replace(data, pairs=[replace(pair, rejected=f"{i}") for pair in data.pairs for i in range(2)])
    read: list[int] = []
    turns = ModelData.turns
    monkeypatch.setattr(
        ModelData,
        "turns",
        lambda self, prompts, layer, **more: (read.append(len(prompts)), turns(self, prompts, layer, **more))[1],
    )
    profile = train(open_model(tiny, n_threads=1), twice, TrainingSettings())
    assert read == [N + len(data.contrast)]
    assert (profile.training["pairs"], profile.training["contrast_prompts"]) == (2 * N, len(data.contrast))


@pytest.mark.parametrize("most", [N, N // 2])
def test_settings_are_tried_on_prompts_that_taught_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """On those held out, and on all that were not drawn; a handful is filled up with what taught."""
    data = training_data(own_replies=True)
    taught: list[str] = []
    tried: list[str] = []
    fit, tune = learn.train_experts, module.tune
    monkeypatch.setattr(preparing, "MAX_PAIRS", most)

    def train_experts(states: Any, deltas: Any, kinds: Any, learnt: list[int], held: Any, **options: Any) -> Any:
        drawn = preparing.sample(data, 0)
        taught[:] = [drawn[i].prompt.text for i in learnt]
        return fit(states, deltas, kinds, learnt, held, **options)

    def watched(
        llama: Any, blank: Any, experts: Any, pairs: Any, prompts: list[Prompt], *rest: Any, **options: Any
    ) -> Any:
        tried[:] = [prompt.text for prompt in prompts]
        return tune(llama, blank, experts, pairs, prompts, *rest, **options)

    monkeypatch.setattr(learn, "train_experts", train_experts)
    monkeypatch.setattr(module, "tune", watched)
    train(open_model(tiny, n_threads=1), data, TrainingSettings(gate="always"))
    assert taught and len(taught) < most
    untaught = [pair.prompt.text for pair in data.pairs if pair.prompt.text not in taught]
    assert tried[: len(untaught)] == untaught and set(tried[len(untaught) :]) <= set(taught)
    assert len(tried) == max(len(untaught), FEWEST_ANSWERS)
