"""`bench`: tables, JSON, plots, Ctrl-C, wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import call, error_of, good, terminal
from finesteer_local import bench
from tiny import make_profile

QUICK = ("--quick", "--rounds", "1", "--threads", "1")


def test_tables_json_and_plots(tiny: Path, tmp_path: Path) -> None:
    make_profile(tiny).save(tmp_path / "p.gguf")
    file, plots = tmp_path / "out.json", tmp_path / "plots"
    result = good(
        "bench", tiny, "-p", tmp_path / "p.gguf", "--what", "decode, ttft", *QUICK, "--json", file, "--plots", plots
    )
    assert "Tiny (llama.gguf), 1 threads" in result.output and "profiles: test" in result.output
    assert "decode, 16 tokens after a prompt of 32 (1 round)" in result.output
    for way in ("llama-cpp-python", "llama_decode alone", "control vector", "gate closed", "gate open", "two profiles"):
        assert result.output.count(f"\n{way} ") == 3
    told = json.loads(file.read_text())
    assert told["complete"] is True and [series["part"] for series in told["series"]] == ["decode", "ttft", "ttft"]
    assert [path.name for path in plots.iterdir()] == ["prompt-length.svg"]
    assert f"plot: {plots / 'prompt-length.svg'}" in result.stderr


def test_ratios_of_pairs(tiny: Path) -> None:
    text = good("bench", tiny, "--what", "batch", *QUICK).output
    assert "steered: together / one after the other" in text
    assert "together: each with its own decision / unsteered" in text


def test_ctrl_c_shows_what_was_measured(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.measure

    def interrupted(*args, **kwargs):
        real(*args, **kwargs)
        args[2].complete = False
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", interrupted)
    result = call("bench", tiny, "--what", "decode", *QUICK, "--json", tmp_path / "out.json")
    assert result.exit_code == 130 and result.stderr.split() == ["Stopped."]
    assert "gate open" in result.output and "stopped before the end" in result.output
    assert json.loads((tmp_path / "out.json").read_text())["complete"] is False


def test_ctrl_c_at_a_terminal(tiny: Path) -> None:
    with terminal("bench", tiny, "--what", "decode,ttft", "--quick", "--rounds", "400", "--threads", "1") as screen:
        screen.wait_for("decode, 16 tokens")
        screen.wait_for_more(2000)  # some rounds of its bar
        screen.interrupt()
        screen.wait_for("stopped before the end")
        assert screen.exit_code() == 130


def test_an_error_half_way_shows_what_was_measured(tiny: Path) -> None:
    result = call("bench", tiny, "--what", "decode,harvest", "--recipe", "no-such", *QUICK)
    assert result.exit_code == 1 and "gate open" in result.output
    assert "there is no recipe 'no-such'" in result.stderr


def test_wrong_usage(tiny: Path, tmp_path: Path) -> None:
    assert "'nothing' is none of decode, ttft" in error_of("bench", tiny, "--what", "decode,nothing", code=2)
    assert "unknown profile 'nobody'" in error_of("bench", tiny, "-p", "nobody", *QUICK)
    assert "it is a folder" in error_of("bench", tiny, "--json", tmp_path, *QUICK)
    (tmp_path / "file").write_text("")
    assert "cannot create the folder" in error_of("bench", tiny, "--plots", tmp_path / "file", *QUICK)
    assert "no config.json" in error_of("bench", tiny, "--what", "ttft", "--transformers", tmp_path, *QUICK)
    assert "did you mean smollm2" in error_of("bench", "smolm", *QUICK)
