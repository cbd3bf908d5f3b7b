"""The benchmark's parts on a tiny model: what is measured, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.bench import PARTS, Results, Series, answers, batch, measure, reading, run, startup
from finesteer_local.errors import FineSteerError, ProfileMismatchError, UnknownNameError
from finesteer_local.runtime.harvest import Harvester
from reference import steered_llama
from tiny import make_profile, write_tiny_model


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that is read in no time."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{"prompt": f"Question {i} about the sea?", "kind": "k"} for i in range(60)]
    for name in ("positive", "contrast"):
        text = "\n".join(json.dumps({**row, "prompt": f"{name}: {row['prompt']}"}) for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    for name in ("chosen", "rejected"):
        (folder / f"{name}.jsonl").write_text('{"text": "An answer."}\n{"text": "Another."}')
    about = {
        "name": "sea", "description": "for tests", "license": "Apache-2.0", "judge": "margin",
        "positive": ["positive.jsonl"], "contrast": ["contrast.jsonl"],
        "chosen": "chosen.jsonl", "rejected": "rejected.jsonl",
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(about))
    return folder


def measured(path: Path, *what: str, **options) -> Results:
    results = Results()
    measure(path, options.pop("profiles", []), results, what=what, quick=True, rounds=2, n_threads=1, **options)
    return results


def test_decode_and_first_token(tiny: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    results = measured(tiny, "decode", "ttft", progress=lambda *step: stages.append(step))
    assert results.complete and [series.part for series in results.series] == ["decode", "ttft", "ttft"]
    ways = {answers.NATIVE, answers.BARE, answers.VECTOR, answers.CLOSED, answers.OPEN, answers.TWO}
    for series in results.series:
        assert {*series.samples} == ways
        assert all(len(values) == 2 and min(values) > 0 for values in series.samples.values())
        assert {(r.way, r.to) for r in series.ratios} == {(way, answers.NATIVE) for way in ways - {answers.NATIVE}}
    assert [series.unit for series in results.series] == ["tokens/s", "ms", "ms"]
    assert [series.x for series in results.of("ttft")] == [32, 256]
    assert results.about["model"] == "Tiny" and results.about["threads"] == 1
    assert results.about["profiles"] == ["stand-in"]
    for name in {stage for stage, _, _ in stages}:
        steps = [(done, total) for stage, done, total in stages if stage == name]
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] and steps == sorted(steps)
    again = Results.from_json(json.loads(json.dumps(results.to_json())))
    assert again == results


def test_what_is_compared_is_steered_as_it_is_called(tiny: Path) -> None:
    plain, steered = steered_llama(tiny), steered_llama(tiny)
    profile = make_profile(tiny, gate="selective")
    prompt = answers.prompt_tokens(plain, 32)
    seen = {}
    for name, start in answers.ways(plain, steered, [profile]).items():
        next(start(prompt))
        seen[name] = [decision.open for decision in steered.last_decisions]
    assert (seen[answers.CLOSED], seen[answers.OPEN], seen[answers.TWO]) == ([False], [True], [True, True])
    assert plain.last_decisions == ()
    both = [profile, make_profile(tiny, name="other", gate="closed")]
    next(answers.ways(plain, steered, both)[answers.TWO](prompt))
    assert [decision.profile for decision in steered.last_decisions] == ["test", "other"]
    for n in (1, 32, 300):
        assert len(answers.prompt_tokens(plain, n)) == n


def test_decode_is_measured_beside_native_token_by_token(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def start(name: str) -> answers.Start:
        def stream(prompt):
            while True:
                seen.append(name)
                yield 0

        return stream

    series = Series("decode", "name", "tokens/s")
    answers.decode_series(series, start("n"), {"way": start("w")}, [1] * 20, 3, 2, lambda: None)
    warm_up = "nnww"
    assert "".join(seen) == 3 * (warm_up + "nw" + "nw" + "wn" + "nw")
    assert list(series.samples) == [answers.NATIVE, "way"] and list(series.beside) == ["way"]
    assert series.samples[answers.NATIVE] == series.beside["way"]
    [ratio] = series.ratios
    assert ratio.value == pytest.approx(np.median(np.array(series.samples["way"]) / series.beside["way"]))


def test_prompts_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    results = measured(write_tiny_model(tmp_path / "short.gguf", context_length=200), "ttft")
    assert [series.x for series in results.series] == [32]
    assert results.notes == ["a prompt of 256 tokens does not fit the context (256)"] and results.complete


def test_numbers_of_profiles(tiny: Path) -> None:
    decode, first = measured(tiny, "profiles", profiles=[make_profile(tiny)]).series
    assert list(decode.samples) == list(first.samples) == [answers.NATIVE, "1 open", "4 open"]


def test_reading_a_recipe(tiny: Path, recipe: Path) -> None:
    [series] = measured(tiny, "harvest", recipe=str(recipe)).series
    assert list(series.samples)[:3] == [reading.NATIVE, reading.ALONE, reading.PACKED]
    assert "layer 2 of 4" in series.name and series.n_rounds == 2
    with pytest.raises(UnknownNameError):
        measured(tiny, "harvest", recipe="no-such")


def test_every_way_of_a_round_reads_the_same_prompts(tiny: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    bench = reading.ReadingBench(llama, str(recipe), 1)
    assert len(bench.parts) > 1
    read = sorted(tuple(map(int, request.tokens)) for part in bench.parts for request in part)
    assert read == sorted(tuple(map(int, request.tokens)) for request in bench.requests)
    seen: list[int] = []
    real = Harvester.harvest

    def harvested(self, requests, *rest):
        seen.append(len(requests))
        return real(self, requests, *rest)

    monkeypatch.setattr(Harvester, "harvest", harvested)
    bench.ways()[reading.PACKED]()
    bench.next_round()
    bench.ways()[reading.PACKED]()
    assert seen == [len(bench.parts[0]), len(bench.parts[1])]
    bench.close()


def test_batches(tiny: Path) -> None:
    one, four = measured(tiny, "batch", profiles=[make_profile(tiny, strength=0.1)]).series
    assert (one.x, four.x) == (1, 4)
    assert len(four.samples) == 6 and len(four.ratios) == 5
    assert {ratio.label for ratio in four.ratios} >= {*batch.GAIN.values(), batch.COST}


def test_every_way_of_a_batch_does_the_same_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny, n_ctx=1024)
    bench = batch.BatchBench(llama, make_profile(tiny, strength=0.1), n=3, n_answer=10, look_at=5)
    n_tokens: list[tuple[int, bool]] = []
    submit, complete, bare = bench.engine.submit, llama.create_chat_completion, batch.bare_tokens

    def submitted(request):
        answer = submit(request).result()
        n_tokens.append((answer.finished.n_answer, any(decision.open for decision in answer.decisions)))
        return submit(request)

    def completed(*args, **kwargs):
        answer = complete(*args, **kwargs)
        n_tokens.append((answer["usage"]["completion_tokens"], any(d.open for d in llama.last_decisions)))
        return answer

    def decoded(*args, **kwargs):
        answers = bare(*args, **kwargs)
        n_tokens.extend((len(answer), False) for answer in answers)

    monkeypatch.setattr(bench.engine, "submit", submitted)
    monkeypatch.setattr(llama, "create_chat_completion", completed)
    monkeypatch.setattr(batch, "bare_tokens", decoded)
    for lengths in (None, [4, 10, 7]):
        for name, way in bench.ways(3, lengths).items():
            n_tokens.clear()
            assert way() > 0
            steered = name.startswith(batch.STEERED)
            assert n_tokens == [(n, steered) for n in lengths or [10, 10, 10]], name
    bench.close()


def test_a_model_that_ends_its_answers_early(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesteer_local.runtime.batch.scheduler.Scheduler._ends", lambda self, token: True)
    results = measured(tiny, "batch")
    assert results.series == [] and "leave out --what batch" in results.notes[0]


def test_starts_and_memory(tiny: Path) -> None:
    help_, ready, memory = measured(tiny, "start").series
    assert list(help_.samples) == [startup.HELP] and list(ready.samples) == [startup.OURS]
    assert memory.unit == "MB" and list(memory.samples) == [startup.NATIVE, startup.OURS, startup.BEYOND]
    for native, ours, beyond in zip(*memory.samples.values(), strict=True):
        assert beyond == ours - native and native > 20


def test_a_process_that_fails(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_OURS", "raise ValueError('no luck')\n")
    with pytest.raises(FineSteerError, match=r"code 1: ValueError: no luck; leave out --what start"):
        measured(tiny, "start")


def test_beside_transformers(tiny: Path, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from finesteer_local.bench import hooks
    from hugging_face import write_directory

    results = measured(tiny, transformers=write_directory(tiny, tmp_path / "hf"), recipe=str(recipe))
    decode, read = results.series
    assert list(decode.samples) == [answers.OPEN, hooks.HOOKS] and hooks.HOOKS in read.samples
    assert decode.ratios[0].label == f"{answers.OPEN} / {hooks.HOOKS}"
    assert any("at a time" in note for note in results.notes)


def test_transformers_reads_what_the_tap_sees(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from finesteer_local.training.transformers_model import TransformersModel
    from finesteer_local.training.transformers_timing import read_batches
    from hugging_face import write_directory

    model = TransformersModel(write_directory(tiny, tmp_path / "hf"), gguf=tiny)
    prompts = [answers.prompt_tokens(steered_llama(tiny), n) for n in (9, 30, 17, 4)]
    wanted = np.stack([Harvester(steered_llama(tiny), [2]).prompt_state(prompt)[0] for prompt in prompts])
    for n, stop in ((1, False), (3, False), (3, True)):
        np.testing.assert_allclose(read_batches(model, prompts, 2, n, stop=stop), wanted, atol=2e-3, rtol=1e-2)


def test_what_is_measured_stays_when_it_is_interrupted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results()

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("time to first token") and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny, [], results, what=["decode", "ttft"], quick=True, rounds=2, n_threads=1, progress=stop)
    assert not results.complete and len(results.of("decode")) == 1
    assert [series["part"] for series in results.to_json()["series"]] == ["decode"]


def test_a_profile_of_another_model(tiny: Path, tmp_path: Path) -> None:
    other = make_profile(write_tiny_model(tmp_path / "other.gguf", nudge=0.5))
    with pytest.raises(ProfileMismatchError):
        measured(tiny, "decode", profiles=[other])


def test_parts_are_known_to_the_command() -> None:
    from finesteer_local.cli import bench as command

    assert command.PARTS == PARTS
    assert run.QUICK.rounds < run.FULL.rounds and {1, 2, 4, 8} == {*run.FULL.batch_sizes}
    assert set(run.FULL.prompts) == {32, 256, 1024, 4096}
