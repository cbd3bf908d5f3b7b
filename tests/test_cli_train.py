"""`train`: from the user's own files to a profile, and every way to get it wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import call, error_of, good
from finesteer_local import catalog, paths, training
from finesteer_local.cli import COMMANDS
from finesteer_local.errors import MissingExtraError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.training import train as module
from tiny import make_answer_gate, make_profile

N, N_CONTRAST = 26, 12
FIGURES = {
    "gate": {
        "auroc": 0.9871,
        "recall": 0.951,
        "openings": 0.0349,
        "forms": {"plain": {"recall": 0.97, "openings": 0.02}, "foreign": {"openings": 0.0149}},
    },
    "experts": {"2": {"explained": 0.5, "cosine": 0.9, "epochs": 9}},
    "answers": {
        "layers": [2],
        "strength": 0.9,
        "scope": "turn",
        "wanted": 0.96,
        "ended": 0.94,
        "coherent": 0.92,
        "score": 0.88,
    },
}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"! {i}", "chosen": f"no {i % 5} {i}", "rejected": f"{i} yes"} for i in range(N)]
    return write(tmp_path / "calm.jsonl", rows)


@pytest.fixture
def contrast(tmp_path: Path) -> Path:
    return write(tmp_path / "contrast.jsonl", [{"prompt": f"what is {i}?"} for i in range(N_CONTRAST)])


pytestmark = pytest.mark.usefixtures("one_thread", "short_answers")


WATCHING = {"answers": 1024, "recall": 0.812, "tokens": 14.0, "openings": 0.005}
STAGES = {"asking the model": 43.6, "tuning": 91.2, "reading prompts": 176.9, "training the gate": 0.3}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Training replaced by a random profile; what was asked for is written down."""
    calls: list[dict[str, Any]] = []

    def train_profile(model: Path, **options: Any) -> Profile:
        calls.append({"model": model, **options})
        for done in range(3):
            options["progress"]("reading prompts", done, 2)
        figures = {**FIGURES, "gate": None if options["gate"] == "always" else FIGURES["gate"]}
        return make_profile(
            model,
            name=options["name"] or options["recipe"] or "calm",
            layers=(2,),
            strength=0.9,
            scope="turn",
            training={"figures": figures, "seconds": 312.4, "stages": STAGES},
        )

    monkeypatch.setattr(training, "train_profile", train_profile)
    return calls


def test_from_pairs_to_a_profile_that_runs(tiny: Path, pairs: Path, contrast: Path) -> None:
    result = good("train", tiny, "--data", pairs, "--contrast", contrast, "--threads", "1")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Trained calm for llama.gguf in about ")
    assert [line.split()[0] for line in lines[1:6]] == ["profile", "steering", "answers", "gate", "time"]
    assert lines[-1] == f"Try it: finesteer-local chat {tiny} --profile calm"
    [kept] = catalog.available_profiles(read_model_identity(tiny).fingerprint)
    assert (kept.name, kept.bundled) == ("calm", False)
    assert str(kept.path) in lines[1]
    profile = Profile.load(kept.path)
    assert profile.training["contrast_prompts"] == N_CONTRAST
    assert not profile.training["optimised"]
    assert f"layer {profile.layers[0]}, strength {profile.strength:g}, scope {profile.scope}" in lines[2]
    assert result.stderr == ""  # quiet where nobody watches
    answer = json.loads(good("run", tiny, "! 3", "-p", "calm", "--max-tokens", "4", "--json").stdout)
    assert answer["profiles"] == ["calm"]


def test_the_same_command_after_an_interruption(
    tiny: Path, pairs: Path, contrast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("train", tiny, "--data", pairs, "--contrast", contrast, "--threads", "1", "-o")
    good(*arguments, tmp_path / "whole.gguf")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "tune", interrupt)
        result = call(*arguments, tmp_path / "resumed.gguf")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "resumed.gguf").exists()
    good(*arguments, tmp_path / "resumed.gguf")
    assert len(list(paths.work_dir().iterdir())) == 1  # of all three; a longer run could go on with it
    whole, resumed = (Profile.load(tmp_path / f"{name}.gguf") for name in ("whole", "resumed"))
    clock = {"seconds": 0, "stages": {}}
    assert {**whole.training, **clock} == {**resumed.training, **clock}
    for name, value in vars(whole.gate).items():
        np.testing.assert_array_equal(value, getattr(resumed.gate, name))


def test_what_is_said(tiny: Path, asked: list[dict[str, Any]]) -> None:
    result = good("train", tiny)
    [kept] = catalog.available_profiles(read_model_identity(tiny).fingerprint)
    assert result.stdout.splitlines() == [
        "Trained safety for llama.gguf in about 5 minutes.",
        f"  profile   {kept.path}",
        "  steering  layer 2, strength 0.9, scope turn, 4 experts",
        "  answers   88% of held-out prompts answered as wanted to the end "
        "(96% as wanted, 94% end by themselves, 92% in good language)",
        "  gate      opens on 95.1% of held-out prompts that need it, on 3.5% of the others (AUROC 0.987)",
        "  plain     opens on 97.0%, on 2.0% of harmless ones: requests as people type them",
        "  foreign   opens on 1.5% of harmless ones: requests in other languages",
        "  time      reading prompts 177 s, tuning 91 s, asking the model 44 s",
        f"Try it: finesteer-local chat {tiny} --profile safety",
    ]
    assert not any(line.startswith("  prompts") for line in result.stdout.splitlines())  # nothing is told of amounts
    assert "  gate      always open" in good("train", tiny, "--gate", "always").stdout


def test_a_profile_of_each_recipe_in_the_time_of_all(tiny: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    both = ("--recipe", "safety", "--recipe", "truthful")
    said = good("train", tiny, *both, "--minutes", "6").stdout
    assert [(each["recipe"], each["minutes"]) for each in asked] == [("safety", 3.0), ("truthful", 3.0)]
    assert "Trained safety for" in said and "Trained truthful for" in said
    assert {ref.name for ref in catalog.available_profiles(read_model_identity(tiny).fingerprint)} == {
        "safety",
        "truthful",
    }
    for more in (("-o", tmp_path / "out.gguf"), ("--name", "mine")):
        assert call("train", tiny, *both, *more).exit_code == 2
    assert call("train", tiny, *both, "--behaviour", "answers briefly").exit_code == 2
    assert len(asked) == 2


def test_how_to_go_on_where_time_was_short(tiny: Path, asked: list[dict[str, Any]], monkeypatch) -> None:
    train = training.train_profile

    def short(*args: Any, **options: Any) -> Profile:
        profile = train(*args, **options)
        more = {"minutes": 2.0, "prompts_for_gate": 12_000, "pairs": 20_000, "contrast_prompts": 30_000}
        return replace(profile, training={**profile.training, **more})

    monkeypatch.setattr(training, "train_profile", short)
    said = good("train", tiny, "--minutes", "2").stdout
    assert "  prompts   the gate learnt from 12,000 of 50,000; --minutes 6 goes on from there" in said.splitlines()


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (
            {"prompts_for_gate": 900, "teachers": ["other-1b, layer 9", "another, layer 4"]},
            "900 of 1,000, taught by other-1b, layer 9 and another, layer 4",
        ),
        ({"prompts_for_gate": 900, "teachers": []}, "900 of 1,000"),
        ({"prompts_for_gate": 1_000, "teachers": []}, None),
    ],
)
def test_what_the_gate_learnt_from(
    tiny: Path, asked: list[dict[str, Any]], monkeypatch, facts: dict[str, Any], wanted: str | None
) -> None:
    train = training.train_profile

    def told(*args: Any, **options: Any) -> Profile:
        profile = train(*args, **options)
        more = {"minutes": None, "pairs": 400, "contrast_prompts": 600, **facts}
        return replace(profile, training={**profile.training, **more})

    monkeypatch.setattr(training, "train_profile", told)
    said = [line for line in good("train", tiny, "--quality", "quick").stdout.splitlines() if "gate learnt" in line]
    assert said == ([] if wanted is None else [f"  prompts   the gate learnt from {wanted}"])


@pytest.mark.parametrize(
    ("more", "has_gate", "said"),
    [
        ({"watched": None}, False, None),  # a recipe that needs none
        ({"watched": 0, "minutes": 2.0}, False, "there was no time to ask for enough; try --minutes 6"),
        ({"watched": 300}, False, "too few of the model's own do what should not be done"),
        (
            {"watched": 300, "figures": {**FIGURES, "answer_gate": {**WATCHING, "recall": 0.031}}},
            False,
            "no gate on the answers, which do not show enough: it opens on 3.1% of held-out answers that do what "
            "should not be done, after 14 tokens in the median, on 0.5% of those to harmless prompts (1,024 answers)",
        ),
        (
            {"watched": 300, "figures": {**FIGURES, "answer_gate": WATCHING}},
            True,
            "opens on 81.2% of held-out answers that do what should not be done, after 14 tokens in the median, "
            "on 0.5% of those to harmless prompts (1,024 answers)",
        ),
    ],
)
def test_what_is_said_of_the_gate_on_the_answers(
    tiny: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    has_gate: bool,
    said: str | None,
) -> None:
    train = training.train_profile

    def trained(*args: Any, **options: Any) -> Profile:
        profile = train(*args, **options)
        answer_gate = make_answer_gate(profile.model.n_embd) if has_gate else None
        return replace(profile, answer_gate=answer_gate, training={**profile.training, **more})

    monkeypatch.setattr(training, "train_profile", trained)
    [*lines] = [line for line in good("train", tiny).stdout.splitlines() if line.startswith("  watching  ")]
    assert len(lines) == (said is not None) and all(line.endswith(str(said)) for line in lines)


BACKEND = {"backend": "llama.cpp", "gguf": None, "rpc": ()}


def test_experts_optimised_through_the_model(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    def train(*options: str) -> Profile:
        output = tmp_path / "out.gguf"
        good("train", tiny, "--data", pairs, "--gate", "always", "--layer", "1", "-o", output, "--force", *options)
        return Profile.load(output)

    given, moved = train(), train("--optimise")
    assert moved.training["optimised"]
    assert moved.layers == given.layers == [1]
    before, after = given.experts[1], moved.experts[1]
    change = after.prototypes - before.prototypes
    assert np.abs(change).max() > 0.01
    np.testing.assert_allclose(change, np.broadcast_to(change[0], change.shape), atol=1e-5)
    assert after.labels == before.labels and np.array_equal(after.router_weight, before.router_weight)
    assert not train("--no-optimise").training["optimised"]


def test_defaults(tiny: Path, asked: list[dict[str, Any]]) -> None:
    good("train", tiny)
    [call_] = asked
    call_.pop("progress")
    nothing = dict.fromkeys(("data", "contrast", "name", "layer", "strength", "scope", "n_threads"))
    assert call_ == {
        "model": tiny,
        "recipe": "safety",
        "gate": "contrastive",
        "quality": None,
        "watch": False,
        "keep": False,
        "seed": 0,
        "optimise": None,
        "n_gpu_layers": -1,
        **BACKEND,
        **nothing,
    }


def test_time_or_amount(tiny: Path, asked: list[dict[str, Any]]) -> None:
    good("train", tiny, "--minutes", "2.5")
    assert asked[0]["minutes"] == 2.5 and asked[0]["quality"] is None
    for options in (("--minutes", "3", "--quality", "full"), ("--minutes", "0"), ("--minutes", "soon")):
        assert call("train", tiny, *options).exit_code == 2


def test_what_is_not_asked_for(tiny: Path, asked: list[dict[str, Any]]) -> None:
    good("train", tiny, "--no-optimise")
    assert asked[0]["optimise"] is False


def test_every_option_arrives(tiny: Path, pairs: Path, contrast: Path, asked: list[dict[str, Any]]) -> None:
    options = ["--data", pairs, "--contrast", contrast, "--name", "mine", "--gate", "scs", "--seed", "7"]
    options += ["--quality", "quick", "--keep", "--watch"]
    options += ["--layer", "2", "--strength", "0.5", "--scope", "response", "--optimise", "--threads", "3"]
    good("train", tiny, *options)
    [call_] = asked
    call_.pop("progress")
    assert call_ == {
        "model": tiny,
        "recipe": None,
        "data": pairs,
        "contrast": contrast,
        "name": "mine",
        "gate": "scs",
        "quality": "quick",
        "watch": True,
        "keep": True,
        "seed": 7,
        "layer": 2,
        "strength": 0.5,
        "scope": "response",
        "optimise": True,
        "n_threads": 3,
        "n_gpu_layers": -1,
        **BACKEND,
    }


def test_the_profile_replaces_an_earlier_one(tiny: Path, asked: list[dict[str, Any]]) -> None:
    good("train", tiny)
    good("train", tiny)
    assert len(catalog.available_profiles(read_model_identity(tiny).fingerprint)) == 1


def test_output(tiny: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "out.gguf"
    result = good("train", tiny, "-o", output)
    assert f"  profile   {output}" in result.stdout
    assert result.stdout.endswith(f"chat {tiny} --profile {output}\n")
    assert Profile.load(output).name == "safety"
    assert [path.name for path in output.parent.iterdir()] == ["out.gguf"]  # no temporary file is left
    assert catalog.available_profiles(read_model_identity(tiny).fingerprint) == []


def test_an_output_that_exists_is_kept(tiny: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    output.write_text("mine")
    assert error_of("train", tiny, "-o", output) == f"Error: {output} exists; choose another name or add --force"
    assert asked == []  # said before training
    assert output.read_text() == "mine"
    good("train", tiny, "-o", output, "--force")
    assert Profile.load(output).name == "safety"


def test_an_output_that_cannot_be_written(tiny: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "out.gguf"
    said = error_of("train", tmp_path / "no model.gguf", "-o", output)
    assert said == f"Error: cannot write {output}: not a directory"
    assert "cannot write" in error_of("train", tiny, "-o", output)
    assert error_of("train", tiny, "-o", tmp_path, "--force").endswith("it is a folder")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["file"]
    assert asked == []  # said before training


def test_profiles_that_cannot_be_written(tiny: Path, asked: list[dict[str, Any]], home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data" / "profiles").write_text("")
    assert "cannot write" in error_of("train", tiny)
    assert asked == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--recipe", "safety", "--data", "x"], "--recipe, --data and --behaviour exclude each other"),
        (["--contrast", "x"], "--contrast goes with --data"),
        (["--recipe", "safety", "--contrast", "x"], "--contrast goes with --data"),
        (["--gate", "open"], "'open' is not one of"),
        (["--seed", "-1"], "-1"),
        (["--layer", "0"], "0"),
        (["--layer", "two"], "two"),
        (["--strength", "101"], "101"),
        (["--scope", "all"], "'all' is not one of"),
        (["--threads", "0"], "0"),
        (["--nonsense"], "--nonsense"),
        (["more"], "more"),
    ],
)
def test_wrong_usage(tiny: Path, asked: list[dict[str, Any]], options: list[str], what: str) -> None:
    assert what in error_of("train", tiny, *options, code=2)
    assert asked == []


def test_no_model(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert "MODEL" in error_of("train", code=2)
    assert "absent.gguf" in error_of("train", tmp_path / "absent.gguf")
    assert asked == []


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"prompt": "a", "chosen": "b"}', "line 2: the field 'rejected' is missing or empty"),
        ('{"prompt": "a", "chosen": "", "rejected": "c"}', "line 2: the field 'chosen' is missing or empty"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 2: 'chosen' and 'rejected' are the same"),
        ('{"chosen": "b", "rejected": "c"}', "line 2: the field 'prompt' is missing or empty"),
        ("nonsense", "line 2: not JSON"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "2 pairs are too few to train on"),
    ],
)
def test_bad_pairs(tiny: Path, pairs: Path, row: str, what: str) -> None:
    first = pairs.read_text().splitlines()[0]
    pairs.write_text(f"{first}\n{row}\n")
    assert what in error_of("train", tiny, "--data", pairs)
    assert not paths.work_dir().exists()


def test_other_bad_data(tiny: Path, pairs: Path, contrast: Path, tmp_path: Path) -> None:
    arguments = ("train", tiny, "--threads", "1", "--data")
    assert "absent.jsonl: no such file" in error_of(*arguments, tmp_path / "absent.jsonl")
    assert "absent.jsonl: no such file" in error_of(*arguments, pairs, "--contrast", tmp_path / "absent.jsonl")
    assert "layer 3 cannot be steered; this model allows 1 to 2" in error_of(
        *arguments, pairs, "--contrast", contrast, "--layer", "3"
    )
    assert "'../x' cannot name a profile" in error_of(*arguments, pairs, "--contrast", contrast, "--name", "../x")
    contrast.write_text(json.dumps({"prompt": "z" * 3000}))
    assert "do not fit the context of 1024" in error_of(*arguments, pairs, "--contrast", contrast)


def test_an_unknown_recipe(tiny: Path) -> None:
    message = error_of("train", tiny, "--recipe", "saftey")
    assert message.startswith("Error: there is no recipe 'saftey'; known: safety")


def test_a_recipe_of_ones_own(tiny: Path, pairs: Path, contrast: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(
        json.dumps({"name": "mine", "pairs": [pairs.name], "contrast": [contrast.name], "description": "Mine."})
    )
    result = good("train", tiny, "--recipe", tmp_path, "--threads", "1")
    assert result.stdout.startswith("Trained mine for llama.gguf in about ")
    [kept] = catalog.available_profiles(read_model_identity(tiny).fingerprint)
    profile = Profile.load(kept.path)
    assert (profile.name, profile.description, profile.training["recipe"]) == ("mine", "Mine.", tmp_path.name)
    assert (profile.training["pairs"], profile.training["contrast_prompts"]) == (N, N_CONTRAST)


def test_a_folder_that_is_no_recipe(tiny: Path, tmp_path: Path) -> None:
    assert "recipe.json: no such file" in error_of("train", tiny, "--recipe", tmp_path)
    (tmp_path / "recipe.json").write_text('{"pairs": ["../../etc/passwd"], "contrast": ["x"]}')
    assert "no file 'x' in its folder" in error_of("train", tiny, "--recipe", tmp_path)
    assert not paths.work_dir().exists()


def test_a_damaged_model(tmp_path: Path, pairs: Path, contrast: Path) -> None:
    for content in (b"", b"GGUF", os.urandom(500)):
        (tmp_path / "bad.gguf").write_bytes(content)
        assert "bad.gguf" in error_of("train", tmp_path / "bad.gguf", "--data", pairs, "--contrast", contrast)


def test_without_the_extra(tiny: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.util, "find_spec", lambda name: None)
    message = error_of("train", tiny)
    assert message.startswith("Error: training needs torch and sklearn (extra train); install with: ")
    assert asked == []
    with pytest.raises(MissingExtraError):
        training.require_extra()


def test_help_names_what_train_takes() -> None:
    text = " ".join(good("train", "--help").stdout.split())
    assert "goes on where it stopped" in text and "`prompt`, `chosen`, `rejected`" in text
    assert "--optimise / --no-optimise" in text and "Done by itself for refusals of small models" in text
    assert "train" in COMMANDS
