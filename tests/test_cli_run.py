"""`run`: one answer, many answers, and every way to get it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli import SPINNER_GONE, call, error_of, good, spawn, terminal
from finesteer_local.runtime import open_model
from finesteer_local.steering import Experts
from tiny import make_profile, write_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf")


@pytest.fixture
def profile(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "test.gguf"
    make_profile(model, gate="open").save(path)
    return path


def answer(model: Path, prompt: str, *profiles: Path, n: int = 8) -> str:
    llama = open_model(model, profiles=profiles, n_threads=1)
    reply = llama.create_chat_completion([{"role": "user", "content": prompt}], temperature=0, max_tokens=n)
    return str(reply["choices"][0]["message"]["content"])


def test_answer_is_the_runtimes(model: Path, profile: Path) -> None:
    plain = good("run", model, "hello", "--max-tokens", "8")
    assert plain.stdout == answer(model, "hello") + "\n"
    assert plain.stderr == "(stopped at 8 tokens; --max-tokens and --ctx raise the limit)\n"
    steered = good("run", model, "hello", "--max-tokens", "8", "-p", profile)
    assert steered.stdout == answer(model, "hello", profile) + "\n"
    assert steered.stdout != plain.stdout


def test_prompt_on_stdin(model: Path) -> None:
    assert good("run", model, "-", "--max-tokens", "8", stdin="hello").stdout == answer(model, "hello") + "\n"
    with_newlines = good("run", model, "-", "--max-tokens", "8", stdin="two\nlines é").stdout
    assert with_newlines == answer(model, "two\nlines é") + "\n"


def test_json(model: Path, profile: Path) -> None:
    result = json.loads(good("run", model, "hello", "--max-tokens", "8", "-p", profile, "--json").stdout)
    assert result["answer"] == answer(model, "hello", profile)
    assert result["finish_reason"] == "length"
    assert result["usage"]["completion_tokens"] == 8
    assert result["usage"]["total_tokens"] == result["usage"]["prompt_tokens"] + 8
    assert result["timings"]["predicted_per_second"] > 0
    assert result["profiles"] == ["test"]
    assert result["model"]["name"] == "Tiny"
    (decision,) = result["decisions"]
    assert (decision["profile"], decision["g"], decision["open"]) == ("test", 1.0, True)
    assert (decision["strength"], decision["scope"], decision["layers"]) == (1.0, "prompt", [2])
    assert sum(expert["weight"] for expert in decision["experts"]) == pytest.approx(1, abs=1e-5)
    assert {expert["name"] for expert in decision["experts"]} == {f"expert {c}" for c in "abcd"}


def test_strength_and_scope_replace_the_profiles_own(model: Path, profile: Path) -> None:
    arguments = ("run", model, "hello", "--max-tokens", "8", "-p", profile, "--json")
    result = json.loads(good(*arguments, "--strength", "0.5", "--scope", "turn").stdout)
    assert (result["decisions"][0]["strength"], result["decisions"][0]["scope"]) == (0.5, "turn")
    result = json.loads(good(*arguments, "--strength", "0").stdout)
    assert result["answer"] == answer(model, "hello")
    assert result["decisions"][0]["open"] is False


def test_vectors_that_do_not_differ_have_no_experts(model: Path, tmp_path: Path) -> None:
    """They steer, and nobody is told equal shares."""
    fixed = tmp_path / "fixed.gguf"
    make_profile(model, name="fixed", experts={2: Experts.fixed(np.ones(64, np.float32))}).save(fixed)
    arguments = ("run", model, "hello", "--max-tokens", "8", "-p", fixed)
    (decision,) = json.loads(good(*arguments, "--json").stdout)["decisions"]
    assert (decision["open"], decision["layers"], decision["experts"]) == (True, [2], [])
    line = good(*arguments, "--explain").stderr.splitlines()[0]
    assert line.startswith("fixed · gate 1.00 open · ") and "expert" not in line and line.endswith("tok/s")


def test_explain(model: Path, profile: Path, tmp_path: Path) -> None:
    line = good("run", model, "hello", "--max-tokens", "8", "-p", profile, "--explain").stderr.splitlines()[0]
    assert line.startswith("test · gate 1.00 open · expert ") and line.endswith("tok/s")
    closed = tmp_path / "closed.gguf"
    make_profile(model, name="other", gate="closed").save(closed)
    line = good("run", model, "hello", "--max-tokens", "8", "-p", closed, "--explain").stderr.splitlines()[0]
    assert line.startswith("other · gate 0.00 closed (score ") and ", threshold 1,000,000) · " in line
    assert good("run", model, "hello", "--max-tokens", "8", "--explain").stderr.startswith("no profile · ")


def test_system_prompt(model: Path) -> None:
    plain = json.loads(good("run", model, "hello", "--max-tokens", "8", "--json").stdout)
    system = json.loads(good("run", model, "hello", "--max-tokens", "8", "--json", "--system", "Be brief.").stdout)
    assert system["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_raw(model: Path) -> None:
    result = json.loads(good("run", model, "hello", "--max-tokens", "8", "--raw", "--json").stdout)
    assert result["usage"]["prompt_tokens"] == len("hello") - 1  # "he" is one token
    expected = open_model(model, n_threads=1).create_completion("hello", temperature=0, max_tokens=8)["choices"][0][
        "text"
    ]
    assert result["answer"] == expected
    assert "--system" in error_of("run", model, "hello", "--raw", "--system", "x", code=2)


def test_same_seed_same_answer(model: Path) -> None:
    arguments = ("run", model, "hello", "--max-tokens", "12", "--temperature", "1")
    first = good(*arguments, "--seed", "7").stdout
    assert good(*arguments, "--seed", "7").stdout == first
    others = {good(*arguments).stdout for _ in range(4)}
    assert len(others) > 1


def test_jsonl(model: Path, profile: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "id": 7},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    result = good("run", model, "--jsonl", source, "--max-tokens", "8", "-p", profile)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["input"] for row in answers] == rows
    assert answers[0]["answer"] == answer(model, "hello", profile)
    assert answers[1]["usage"]["prompt_tokens"] > answers[0]["usage"]["prompt_tokens"]
    assert answers[0]["decisions"][0]["g"] == 1.0
    assert result.stderr == ""

    out = tmp_path / "out.jsonl"
    good("run", model, "--jsonl", source, "--max-tokens", "8", "-p", profile, "-o", out, "--parallel", "1")
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in written] == [row["answer"] for row in answers]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "needs either `prompt` or `messages`"),
        (b'{"prompt": "a", "messages": []}', "needs either"),
        (b'{"prompt": " "}', "`prompt` is empty or not text"),
        (b'{"prompt": 5}', "`prompt` is empty or not text"),
        (b'{"prompt": "\\ud800"}', "`prompt` is empty or not text"),
        (b'{"messages": []}', "not a list of messages"),
        (b'{"messages": [{"role": "user"}]}', "a message needs"),
        (b'{"messages": [{"role": "tool", "content": "x"}]}', "a message needs"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_bad_rows_are_named_by_line_before_any_work(tmp_path: Path, line: bytes, what: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "fine"}\n\n' + line + b"\n")
    message = error_of("run", "smollm2-is-not-needed", "--jsonl", source)
    assert "in.jsonl, line 3: " in message and what in message


def test_many_rows_are_answered_as_one_by_one(model: Path, profile: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "word " * (1 + i % 4) + str(i)} for i in range(20)]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    for options in ((), ("--raw",), ("--temperature", "1", "--seed", "3")):
        result = good("run", model, "--jsonl", source, "--max-tokens", "8", "-p", profile, *options)
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["input"] for row in found] == rows
        for row in found[::7]:
            alone = good("run", model, row["input"]["prompt"], "--max-tokens", "8", "-p", profile, "--json", *options)
            one = json.loads(alone.stdout)
            for key in ("answer", "finish_reason", "decisions", "usage", "model", "profiles"):
                assert row[key] == one[key]


def test_parallel_is_for_rows(model: Path) -> None:
    assert "--parallel" in error_of("run", model, "hello", "--parallel", "2", code=2)


def test_jsonl_that_holds_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n")
    assert "holds no rows" in error_of("run", "m", "--jsonl", source)
    assert "cannot read" in error_of("run", "m", "--jsonl", tmp_path / "missing.jsonl")
    assert "PROMPT" in error_of("run", "m", code=2)
    assert "PROMPT" in error_of("run", "m", "hello", "--jsonl", source, code=2)


def test_bad_prompts(model: Path) -> None:
    assert error_of("run", model, "  ") == "Error: the prompt is empty"
    assert error_of("run", model, "-", stdin="") == "Error: the prompt on stdin is empty"
    assert "not UTF-8 text (byte 4)" in error_of("run", model, "-", stdin=b"abc\xff")
    assert "not UTF-8" in error_of("run", model, "a\udcff")
    result = spawn("run", model, b"a\xff".decode("utf-8", "surrogateescape"))
    assert result.returncode == 1 and b"not UTF-8" in result.stderr


def test_prompt_longer_than_the_context(model: Path, tmp_path: Path) -> None:
    message = error_of("run", model, "-", "--ctx", "256", stdin="x" * 1000)
    assert "the prompt has 1,0" in message and "the context only 256" in message
    message = error_of("run", model, "-", "--raw", "--ctx", "256", stdin="x" * 1000)
    assert "the prompt has 1,000 tokens, the context only 256" in message

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "hello"}) + "\n" + json.dumps({"prompt": "x" * 1000}))
    assert "row 2: the prompt has" in error_of("run", model, "--jsonl", source, "--ctx", "256", "-o", out)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".finesteer")) == []


def test_output_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    assert "a folder" in error_of("run", model, "hello", "--max-tokens", "4", "-o", tmp_path)


def test_bad_models(tmp_path: Path, model: Path) -> None:
    assert "no such file" in error_of("run", tmp_path / "none.gguf", "hello")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:5000])
    assert "damaged or cut short" in error_of("run", cut, "hello")
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    assert "not a GGUF" in error_of("run", text, "hello")


def test_bad_profiles(tmp_path: Path, model: Path, profile: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.01)
    assert "another model or a fine-tune" in error_of("run", other, "hello", "-p", profile)
    assert "unknown profile 'nope'" in error_of("run", model, "hello", "-p", "nope")
    message = error_of("run", model, "hello", "-p", "safety")
    assert message.endswith(f"there is no profile 'safety' for tiny.gguf yet; train it with: {train(model)}")
    profile.write_bytes(profile.read_bytes()[:500])
    assert "damaged or cut short" in error_of("run", model, "hello", "-p", profile)


def train(model: Path) -> str:
    return f"finesteer-local train {model} --recipe safety"


def test_model_without_a_template(tmp_path: Path) -> None:
    bare = write_tiny_model(tmp_path / "bare.gguf", chat_template=None)
    result = good("run", bare, "hello", "--max-tokens", "4")
    assert "has no chat template" in result.stderr
    assert "template" not in good("run", bare, "hello", "--max-tokens", "4", "--raw").stderr


def test_ctrl_c_ends_a_run(model: Path) -> None:
    with terminal("run", model, "hello", "--max-tokens", "100000", "--ctx", "60000", "--threads", "1") as screen:
        screen.wait_for(SPINNER_GONE)
        screen.wait_for(SPINNER_GONE)
        screen.wait_for_more(200)
        screen.interrupt()
        assert screen.exit_code() == 130
        assert "Stopped." in screen.seen and "Traceback" not in screen.seen


def test_ctrl_c_ends_many_rows(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"prompt": f"hello {i}"}) for i in range(60)))
    with terminal("run", model, "--jsonl", source, "--max-tokens", "100000", "--ctx", "20000") as screen:
        screen.wait_for("answering")
        screen.interrupt()
        assert screen.exit_code() == 130
        assert "Stopped." in screen.seen and "Traceback" not in screen.seen


def test_numbers_out_of_range() -> None:
    for option in (("--seed", "-1"), ("--strength", "-1"), ("--temperature", "-0.1"), ("--max-tokens", "0")):
        assert call("run", "m", "hello", *option).exit_code == 2
