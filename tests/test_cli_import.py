"""`finesteer-local import`: from another program's file to logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli import error_of, good
from finesteer_local.profile import Profile
from finesteer_local.runtime.prompt import chat_prompt
from foreign import DATA, VECTORS
from reference import control, logits, plain_llama, read, steered_llama
from test_cast import svec
from tiny import write_tiny_model


def imported(file: Path, model: Path, out: Path, *options: str | Path) -> Profile:
    good("import", file, "--model", model, "-o", out, "--force", *options)
    return Profile.load(out)


def load_control_vector(path: Path) -> dict[int, np.ndarray]:
    """As llama.cpp's common_control_vector_load does: `direction.N` is layer N's."""
    from gguf import GGUFReader

    return {int(t.name.split(".")[1]): np.array(t.data) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize("name", ["repeng.gguf", "saklas.gguf"])
def test_a_control_vector_gives_llama_cpps_logits_bit_for_bit(tiny_model: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "p.gguf"
    assert imported(DATA / name, tiny_model, out).layers == [1, 2, 3]
    steered = steered_llama(tiny_model, profiles=[out])
    prompt = chat_prompt(steered, [{"role": "user", "content": "hello"}])
    ours = read(steered, prompt)
    plain = plain_llama(tiny_model)
    expected = read(plain, prompt, [(0, load_control_vector(DATA / name))])
    assert np.array_equal(ours, expected)
    for token in (5, 6):  # and the answer's
        for llama in (steered, plain):
            llama.eval([token])
        assert np.array_equal(logits(steered), logits(plain))
    control(plain, {})
    assert not np.array_equal(ours, read(plain, prompt))


def test_what_it_says_and_keeps(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "calm.gguf"
    said = good("import", DATA / "repeng.gguf", "--model", tiny, "-o", out, "--layers", "2-3", "--name", "calm")
    assert "Imported calm for" in said.stdout and "llama.cpp control vector" in said.stdout
    assert "layers 2, 3, strength 1, scope prompt" in said.stdout
    assert "always on: it steers every prompt" in said.stdout
    profile = Profile.load(out)
    assert (profile.name, profile.gate.kind, profile.layers) == ("calm", "always", [2, 3])
    source = profile.training["imported"]
    assert source["file"] == "repeng.gguf" and len(source["sha256"]) == 64 and source["layers"] == [2, 3]
    assert "exists; choose another name" in error_of("import", DATA / "repeng.gguf", "--model", tiny, "-o", out)
    good("import", DATA / "repeng.gguf", "--model", tiny)
    assert "repeng" in good("profiles").stdout
    assert good("run", tiny, "hello", "-p", "repeng", "--max-tokens", "2").stdout


def test_strength(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.gguf"
    turned = imported(DATA / "repeng.gguf", tiny, out, "--strength", "-0.5", "--scope", "response")
    assert (turned.strength, turned.scope) == (0.5, "response")
    np.testing.assert_array_equal(turned.experts[2].prototypes[0], -VECTORS[2])


def test_a_mixture(tiny: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from test_mose import Mixture

    torch.save({"state_dict": Mixture(value=True).state_dict()}, tmp_path / "MoSE_layer2.pt")
    profile = imported(tmp_path / "MoSE_layer2.pt", tiny, tmp_path / "p.gguf")
    assert (profile.gate_layer, profile.layers, profile.strength) == (1, [2], 2.5)
    assert profile.name == "mose_layer2"


def test_a_condition(tiny: Path, tmp_path: Path) -> None:
    behaviour, condition = svec(tmp_path / "b.svec"), svec(tmp_path / "c.svec")
    tail = ("--condition", condition, "--condition-layer", "2", "--threshold", "0.05", "--opens", "above")
    profile = imported(behaviour, tiny, tmp_path / "p.gguf", *tail, "--layers", "2-3")
    assert (profile.gate.kind, profile.gate_layer, profile.gate.pools) == ("cast", 1, True)
    assert profile.gate.threshold == 0.05
    last = imported(behaviour, tiny, tmp_path / "p.gguf", *tail, "--layers", "2-3", "--over", "last")
    assert not last.gate.pools
    message = error_of(
        "import", behaviour, "--model", tiny, "-o", tmp_path / "q.gguf", "--condition", condition,
        "--condition-layer", "4", "--threshold", "0.05", "--opens", "below",
    )  # fmt: skip
    assert "the gate reads layer 3, above the steered layer 1" in message
    assert not (tmp_path / "q.gguf").exists()
    run = json.loads(good("run", tiny, "hello", "-p", tmp_path / "p.gguf", "--max-tokens", "2", "--json").stdout)
    assert run["gates"][0]["open"] in (True, False) if "gates" in run else run


@pytest.mark.parametrize("kind", ["contrastive", "scs"])
def test_a_trained_gate(tiny: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("sklearn")
    wanted, others = tmp_path / "wanted.jsonl", tmp_path / "others.jsonl"
    wanted.write_text("".join(json.dumps({"prompt": f"zzz zzz {i} zzzz qqq"}) + "\n" for i in range(24)))
    others.write_text("".join(json.dumps({"prompt": f"the user and the other {i}"}) + "\n" for i in range(24)))
    out = tmp_path / "p.gguf"
    said = good(
        "import", DATA / "repeng.gguf", "--model", tiny, "-o", out, "--layers", "2", "--gate-data", wanted,
        "--contrast", others, "--gate", kind,
    )  # fmt: skip
    assert f"{kind}, layer 2: opens on" in said.stdout
    profile = Profile.load(out)
    assert (profile.gate.kind, profile.gate_layer) == (kind, 2)
    assert profile.training["imported"]["gate"]["auroc"] > 0.9
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a"}\n')
    assert "1 prompts are too few" in error_of(
        "import", DATA / "repeng.gguf", "--model", tiny, "-o", out, "--force", "--gate-data", few
    )


def test_mistakes(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.gguf"
    head = ("import", DATA / "repeng.gguf", "--model", tiny, "-o", out)
    assert "--condition needs" in error_of(*head, "--condition", "c.svec", code=2)
    assert "go with --condition" in error_of(*head, "--threshold", "0.1", code=2)
    assert "goes with --gate-data" in error_of(*head, "--contrast", "c.jsonl", code=2)
    assert "'3-1' is no layer or range" in error_of(*head, "--layers", "3-1", code=2)
    assert "it has no vector for layer 9; it has 1, 2, 3" in error_of(*head, "--layers", "2,9")
    wide = write_tiny_model(tmp_path / "wide.gguf", n_embd=96)
    assert "are 64 wide, the model Tiny is 96 wide" in error_of(
        "import", DATA / "repeng.gguf", "--model", wide, "-o", out
    )
    short = write_tiny_model(tmp_path / "short.gguf", n_layer=3)
    assert "the model has the layers 1 to 2); leave it out with --layers" in error_of(
        "import", DATA / "repeng.gguf", "--model", short, "-o", out
    )
    np.save(tmp_path / "v.npy", np.ones((4, 64), np.float32))
    assert "layer 0 cannot be steered (llama.cpp steers from layer 1 on)" in error_of(
        "import", tmp_path / "v.npy", "--model", tiny, "-o", out
    )
    np.save(tmp_path / "v.npy", np.ones((5, 64), np.float32))
    assert "hidden_states[0] is the embeddings" in error_of("import", tmp_path / "v.npy", "--model", tiny, "-o", out)
    assert imported(tmp_path / "v.npy", tiny, out, "--layers", "1-2").layers == [1, 2]
    assert "final norm" in error_of(
        "import", tmp_path / "v.npy", "--model", tiny, "-o", out, "--force", "--layers", "3"
    )
    assert (
        "the file says it was made for 'llama', this model is 'qwen2'"
        in good(
            "import",
            DATA / "repeng.gguf",
            "--model",
            write_tiny_model(tmp_path / "q.gguf", "qwen2"),
            "-o",
            out,
            "--force",
        ).stderr
    )


def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "nothing"
    message = error_of("import", nowhere, "--model", nowhere, "-o", tmp_path / "file" / "out.gguf")
    assert "cannot write" in message and "not a directory" in message
