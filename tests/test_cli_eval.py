"""`eval`: profiles measured on suites beside other methods, as tables, as JSON, as a report, and answer by answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli import call, error_of, good
from finesteer_local import paths
from finesteer_local.evaluation import answers
from finesteer_local.evaluation import suites as suites_module
from tiny import make_profile, write_tiny_model


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = [{"prompt": f"question {i} é", "label": "harmful" if i % 2 else "benign"} for i in range(6)]
    return write(tmp_path / "mine.jsonl", rows)


@pytest.fixture
def conversation(tmp_path: Path) -> Path:
    roles = ("user", "assistant", "user")
    return write(tmp_path / "talk.jsonl", [{"messages": [{"role": role, "content": "hm"} for role in roles]}])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "truthfulqa.csv"
    path.write_text("Question,Best Answer,Correct Answers,Incorrect Answers\nWhy?,Because,Because; So,No; Never\n")
    return path


@pytest.fixture(params=["open", "closed"])
def gate(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def profile(model: Path, folder: Path, gate: str = "open", **options: Any) -> Path:
    path = folder / f"{gate}.gguf"
    make_profile(model, name=gate, gate=gate, strength=3, **options).save(path)
    return path


def evaluated(model: Path, *arguments: str | Path) -> Any:
    return json.loads(good("eval", model, "--max-tokens", "4", "--samples", "0", "--json", *arguments).stdout)


def answers_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_json(tiny: Path, suite: Path, conversation: Path, tmp_path: Path, gate: str) -> None:
    made = evaluated(tiny, "-p", profile(tiny, tmp_path, gate), "--suite", suite, "--suite", conversation)
    assert [m["name"] for m in made["methods"]] == ["none", "ours"]
    assert made["setting"]["model"] == tiny.name and made["setting"]["command"].startswith("finesteer-local")
    assert {(f["suite"], f["label"], f["n"]) for f in made["suites"]} == {
        ("mine", "harmful", 3),
        ("mine", "benign", 3),
        ("talk", "benign", 1),
    }
    none, ours = made["totals"]
    assert ours["opened"]["value"] == (gate == "open") and ours["identical"]["value"] == (gate == "closed")
    assert none["opened"]["value"] == 0 and none["identical"]["value"] == 1
    assert none["defended"]["value"] == ours["defended"]["value"] == 0  # random letters refuse nothing
    assert ours["over_refusal"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}


def test_answers_are_greedy_and_sampled(tiny: Path, suite: Path, tmp_path: Path) -> None:
    path, arguments = tmp_path / "answers.jsonl", ("eval", tiny, "--max-tokens", "4", "--json", "--suite", suite)
    steering = ("-p", profile(tiny, tmp_path))
    made = json.loads(good(*arguments, *steering, "--answers", path).stdout)
    assert [(f["method"], f["decoding"], f["n"]) for f in made["totals"]] == [
        (method, decoding, 6) for method in ("none", "ours") for decoding in ("greedy", "sampled")
    ]
    assert (made["setting"]["temperature"], made["setting"]["seeds"]) == (0.8, [0, 1, 2])
    rows = answers_of(path)
    assert [row["decoding"] for row in rows].count("sampled") == 3 * 2 * 6
    one = next(row for row in rows if row["method"] == "ours" and row["decoding"] == "sampled")
    asked = ("run", tiny, one["messages"][0]["content"], "--max-tokens", "4", *steering, "--json")
    own = json.loads(good(*asked, "--temperature", "0.8", "--seed", str(one["seed"])).stdout)
    assert own["answer"] == one["answer"]
    made = json.loads(good(*arguments, *steering, "--samples", "2", "--first-seed", "1", "--answers", path).stdout)
    again = [row for row in answers_of(path) if row["decoding"] == "sampled"]
    assert made["setting"]["seeds"] == [1, 2]
    assert {row["seed"] for row in again} < {row["seed"] for row in rows if row["seed"] is not None}
    made = json.loads(good(*arguments, *steering, "--samples", "1", "--temperature", "3", "--answers", path).stdout)
    assert made["setting"]["temperature"] == 3
    assert [r["answer"] for r in answers_of(path)] != [r["answer"] for r in rows if r["seed"] != rows[-1]["seed"]]


def tables(model: Path, folder: Path, *suites: Path, options: tuple[str, ...] = ()) -> list[str]:
    named = [argument for suite in suites for argument in ("--suite", suite)]
    return good("eval", model, "--max-tokens", "4", "-p", profile(model, folder), *named, *options).stdout.splitlines()


def test_tables(
    tiny: Path,
    suite: Path,
    conversation: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # a busy machine's seconds take more room
    lines = tables(tiny, tmp_path, suite, conversation, questions)
    text = "\n".join(lines)
    overall, by_suite, beside, others, solved, notes = text.split("\n\n")
    for word in ("defended", "declined", "ends", "tokens", "circles", "language", "refusal"):
        assert word in overall
    assert "identical" in beside and "phrases" in beside and "AUROC" not in beside  # the gate is always open
    rows = ["none, greedy", "none, sampled", "ours, greedy", "ours, sampled"]
    for table in (overall, beside):
        assert [" ".join(line.split()[:2]) for line in table.splitlines()[-4:]] == rows
    assert "gate" in others and "phrases" in others
    heads = [line.strip() for line in by_suite.splitlines() if "." not in line]
    assert heads[-3:] == ["mine, harmful (3)", "mine, benign (3)", "talk (1)"]
    rows = [line.split() for line in by_suite.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows if row[0] in ("none,", "ours,")] == ["none,", "none,", "ours,", "ours,"] * 3
    assert "MC1" in solved and "truthfulqa" in solved and "mine" not in solved
    assert "whole answers" in notes and "nats a token" in notes and "temperature 0.8" in notes


@pytest.mark.parametrize("width", ["80", None])
def test_nothing_of_the_tables_is_cut(
    tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: str | None
) -> None:
    monkeypatch.setattr(answers, "TIMED", 1)
    name = "a-suite-with-a-name-that-is-longer-than-most-of-them-are"
    rows = [{"prompt": "hello", "label": label} for label in ("harmful", "benign")]
    long = write(tmp_path / f"{name}.jsonl", rows)
    maths = write(tmp_path / "maths.jsonl", [{"prompt": "1+1?", "answer": "2"}])
    if width:
        monkeypatch.setenv("COLUMNS", width)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    lines = tables(tiny, tmp_path, long, maths, questions, options=("--method", "ablations", "--method", "ours"))
    text = "\n".join(lines)
    for word in ("language", "identical", "refusal", "defended", "phrases", "no-residual", "prompt", "solved", "MC2"):
        assert word in text
    assert "…" not in text
    shown = lines[: next(i for i, line in enumerate(lines) if line.startswith("defended: "))]
    assert not width or all(len(line) <= int(width) for line in shown)
    figures = [cell for line in shown for cell in line.split() if "." in cell]
    assert figures and all(re.fullmatch(r"\d+\.\d\d|\d\.\d\d\d", cell) for cell in figures)
    assert name in "".join(line.strip() for line in lines) or name in "".join(line.split()[0] for line in lines if line)


def test_a_names_brackets_are_no_markup(tiny: Path, tmp_path: Path) -> None:
    suite = write(tmp_path / "[red]x[bold].jsonl", [{"prompt": "hello"}])
    assert any(line.startswith("[red]x[bold]") for line in tables(tiny, tmp_path, suite))


def test_answers(tiny: Path, suite: Path, conversation: Path, questions: Path, tmp_path: Path, gate: str) -> None:
    path, steering = tmp_path / "new" / "answers.jsonl", profile(tiny, tmp_path, gate)
    named = [argument for file in (suite, conversation, questions) for argument in ("--suite", file)]
    evaluated(tiny, "-p", steering, *named, "--answers", path)
    text = path.read_text(encoding="utf-8")
    rows = answers_of(path)
    assert "é" in text and text.endswith("}\n")
    assert [row["suite"] for row in rows] == ["mine"] * 12 + ["talk"] * 2 + ["truthfulqa"] * 2
    assert [row["method"] for row in rows] == ["none", "ours"] * 8
    assert rows[2]["messages"] == [{"role": "user", "content": "question 1 é"}] and rows[2]["label"] == "harmful"
    for plain, steered in zip(rows[:14:2], rows[1:14:2], strict=True):
        assert (plain["answer"] == steered["answer"]) == steered["identical"] == (gate == "closed")
        assert steered["g"] == (gate == "open") and len(plain["answer"]) >= 4
    plain = json.loads(good("run", tiny, "question 1 é", "--max-tokens", "4", "--json").stdout)["answer"]
    steered = json.loads(good("run", tiny, "question 1 é", "--max-tokens", "4", "-p", steering, "--json").stdout)
    assert (rows[2]["answer"], rows[3]["answer"]) == (plain, steered["answer"])
    assert 0 <= rows[-1]["mc2"] <= 1 and isinstance(rows[-1]["mc1"], bool)
    assert [p.name for p in path.parent.iterdir()] == ["answers.jsonl"]


def test_limit(tiny: Path, suite: Path, tmp_path: Path) -> None:
    path, steering = tmp_path / "answers.jsonl", profile(tiny, tmp_path)
    evaluated(tiny, "-p", steering, "--suite", suite, "--limit", "2", "--answers", path)
    asked = [row["messages"][0]["content"] for row in answers_of(path) if row["method"] == "ours"]
    assert asked == ["question 0 é", "question 3 é"]
    made = evaluated(tiny, "-p", steering, "--suite", suite, "--limit", "99")
    assert sum(f["n"] for f in made["suites"] if f["method"] == "ours") == 6


def test_max_tokens(tiny: Path, suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    good("eval", tiny, "-p", profile(tiny, tmp_path), "--suite", suite, "--answers", path, "--max-tokens", "7")
    assert {len(row["answer"]) for row in answers_of(path)} == {7}


def test_options_of_the_model_arrive(tiny: Path, suite: Path, tmp_path: Path) -> None:
    steering = profile(tiny, tmp_path)
    _, ours = evaluated(tiny, "-p", steering, "--suite", suite, "--strength", "0")["totals"]
    assert (ours["opened"]["value"], ours["identical"]["value"]) == (1, 1)
    texts = []
    for scope in ("prompt", "response"):
        path = tmp_path / f"{scope}.jsonl"
        evaluated(tiny, "-p", steering, "--suite", suite, "--scope", scope, "--answers", path)
        texts.append([row["answer"] for row in answers_of(path)])
    assert texts[0] != texts[1]


def test_several_profiles(tiny: Path, suite: Path, tmp_path: Path) -> None:
    shut, wide = profile(tiny, tmp_path, "closed"), profile(tiny, tmp_path, "open")
    made = evaluated(tiny, "-p", shut, "-p", wide, "--suite", suite)
    assert made["totals"][1]["opened"]["value"] == 1
    assert len(made["setting"]["profiles"]) == 2


def test_methods_are_chosen(tiny: Path, suite: Path, tmp_path: Path) -> None:
    arguments = ("--suite", suite, "-p", profile(tiny, tmp_path))
    for given, names in (
        (["none"], ["none"]),
        (["no-gate"], ["none", "no-gate"]),
        (["ablations", "ours"], ["none", "ours", "no-gate", "no-experts", "no-residual", "hard-gate"]),
    ):
        options = [option for name in given for option in ("--method", name)]
        assert [m["name"] for m in evaluated(tiny, *arguments, *options)["methods"]] == names
    alone = evaluated(tiny, "--suite", suite, "--method", "none")  # no profile needed
    assert [m["name"] for m in alone["methods"]] == ["none"]


def test_a_sweep(tiny: Path, suite: Path, tmp_path: Path) -> None:
    made = evaluated(tiny, "--suite", suite, "-p", profile(tiny, tmp_path), "--sweep")
    assert [(p["method"], p["factor"]) for p in made["sweep"]] == [
        ("ours", factor) for factor in (0.4, 0.6, 0.8, 1.0, 1.25, 1.6)
    ]


def test_a_report(tiny: Path, suite: Path, questions: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    arguments = ("-p", profile(tiny, tmp_path), "--suite", suite, "--suite", questions, "--report", path)
    result = good("eval", tiny, "--max-tokens", "4", *arguments)
    assert f"The report is {path}" in result.stderr
    html = path.read_text("utf-8")
    assert html.startswith("<!doctype html>") and "question" in html and " é" in html and "truthfulqa" in html
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_built_in_suites(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "builtin"
    for name in ("harmful", "benign"):
        write(folder / f"{name}.jsonl", [{"prompt": f"a {name} one", "label": name}])
    monkeypatch.setattr(suites_module, "BUILTIN", folder)
    steering = profile(tiny, tmp_path)
    assert {f["suite"] for f in evaluated(tiny, "-p", steering)["suites"]} == {"harmful", "benign"}
    assert {f["suite"] for f in evaluated(tiny, "-p", steering, "--suite", "benign")["suites"]} == {"benign"}
    assert "one of: harmful, benign" in error_of("eval", tiny, "-p", steering, "--suite", "harmfull")


def test_what_was_answered_is_kept_and_can_be_forgotten(tiny: Path, suite: Path, tmp_path: Path) -> None:
    arguments = ("-p", profile(tiny, tmp_path), "--suite", suite)
    first = evaluated(tiny, *arguments)
    [journal] = paths.evaluations_dir().glob("*/journal.jsonl")
    kept = journal.read_text("utf-8")
    again = evaluated(tiny, *arguments)
    assert journal.read_text("utf-8") == kept and again["totals"] == first["totals"]
    evaluated(tiny, *arguments, "--fresh")
    fresh = journal.read_text("utf-8")
    assert len(fresh.splitlines()) == len(kept.splitlines()) and fresh != kept  # at least the seconds differ


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--suite", "x.jsonl"], "name at least one profile with --profile"),
        (["--suite", "x.jsonl", "--method", "no-gate"], "name at least one profile with --profile"),
        (["--suite", "x.jsonl", "--method", "all"], "name at least one profile with --profile"),
        (["-p", "safety", "--method", "magic"], "'magic' is not one of"),
        (["-p", "safety", "--suite", "x", "--limit", "0"], "0"),
        (["-p", "safety", "--suite", "x", "--max-tokens", "0"], "0"),
        (["-p", "safety", "--suite", "x", "--scope", "all"], "'all' is not one of"),
        (["-p", "safety", "--suite", "x", "--samples", "-1"], "-1"),
        (["-p", "safety", "--suite", "x", "--temperature", "0"], "0"),
        (["-p", "safety", "--judge", "somebody"], "`whole`, `phrases` or a URL, not 'somebody'"),
        (["-p", "safety", "--judge", "http://x/v1"], "--judge URL and --judge-model go together"),
        (["-p", "safety", "--judge-model", "m"], "--judge URL and --judge-model go together"),
    ],
)
def test_wrong_usage(tiny: Path, arguments: list[str], what: str) -> None:
    assert what in error_of("eval", tiny, *arguments, code=2)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": ""}', "line 2: the field 'prompt' is missing or empty"),
        ('{"prompt": "a", "label": "bad"}', "line 2: label 'bad' is none of harmful, benign"),
    ],
)
def test_a_bad_suite(tiny: Path, tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n' + line)
    answers = tmp_path / "answers.jsonl"
    message = error_of(
        "eval", tiny, "-p", profile(tiny, tmp_path), "--suite", tmp_path / "bad.jsonl", "--answers", answers
    )
    assert what in message
    assert not answers.exists()


def test_other_bad_input(tiny: Path, suite: Path, tmp_path: Path) -> None:
    steering = profile(tiny, tmp_path)
    assert "absent.jsonl: no such file" in error_of("eval", tiny, "-p", steering, "--suite", tmp_path / "absent.jsonl")
    assert "absent.gguf" in error_of("eval", tmp_path / "absent.gguf", "-p", steering, "--suite", suite)
    assert "xyzzy" in error_of("eval", tiny, "-p", "xyzzy", "--suite", suite)
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.1)
    assert "was trained for" in error_of("eval", other, "-p", steering, "--suite", suite)
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "empty.jsonl holds no cases" in error_of("eval", tiny, "-p", steering, "--suite", tmp_path / "empty.jsonl")
    message = error_of("eval", tiny, "-p", steering, "--suite", suite, "--method", "pca")
    assert "name its recipe with --recipe" in message  # this profile does not say what it was trained on


def test_a_prompt_longer_than_the_context(tiny: Path, suite: Path, tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{"prompt": "hello"}, {"prompt": "x" * 300}])
    steering, answers = profile(tiny, tmp_path), tmp_path / "answers.jsonl"
    answers.write_text("mine")
    arguments = ("eval", tiny, "-p", steering, "--suite", suite, "--suite", long, "--answers", answers)
    message = error_of(*arguments, "--ctx", "200")
    assert "suite long, 'xxx" in message and "do not fit the context of" in message
    assert answers.read_text() == "mine"
    good(*arguments, "--ctx", "600", "--max-tokens", "4")
    assert answers.read_text() != "mine"


@pytest.mark.parametrize("option", ["--answers", "--report"])
def test_what_cannot_be_written_is_said_at_once(tiny: Path, suite: Path, tmp_path: Path, option: str) -> None:
    for output, reason in ((tmp_path, "it is a folder"), (suite / "out", "not a directory")):
        result = call("eval", tiny, "-p", profile(tiny, tmp_path), "--suite", suite, option, output)
        assert result.exit_code == 1
        assert f"cannot write {output}: {reason}" in result.stderr
    assert not paths.evaluations_dir().exists()  # nothing was computed first
