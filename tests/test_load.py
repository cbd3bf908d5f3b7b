"""Opening a model for a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from finesteer_local.errors import ModelError, ProfileError, ProfileMismatchError
from finesteer_local.runtime import load, open_model, uses_plain_format
from finesteer_local.runtime.prompt import PLAIN_FORMAT
from reference import answer, logits, plain_llama
from tiny import make_profile, write_tiny_model

PROMPT = list(range(40, 60))


def test_the_models_own_context_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = write_tiny_model(tmp_path / "short.gguf", context_length=512)
    long = write_tiny_model(tmp_path / "long.gguf", context_length=100_000)
    assert open_model(short).n_ctx() == 512
    assert open_model(long).n_ctx() == load.DEFAULT_CONTEXT == 4096
    assert open_model(long, n_ctx=768).n_ctx() == 768
    assert open_model(short, n_ctx=1024).n_ctx() == 1024


def test_a_model_that_does_not_tell_its_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    from dataclasses import replace

    identity = load.read_model_identity(tiny)
    monkeypatch.setattr(load, "read_model_identity", lambda path: replace(identity, context_length=0))
    assert open_model(tiny).n_ctx() == 4096


def test_threads_are_for_reading_and_writing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "default_threads", lambda: 2)
    llama = open_model(tiny)
    assert (llama.n_threads, llama.n_threads_batch) == (2, 2)
    llama = open_model(tiny, n_threads=1)
    assert (llama.n_threads, llama.n_threads_batch) == (1, 1)


def test_profiles_strength_and_scope(tiny: Path, tmp_path: Path) -> None:
    profile = make_profile(tiny)
    profile.save(tmp_path / "p.gguf")
    llama = open_model(tiny, profiles=[tmp_path / "p.gguf"], strength=0.5, scope="response", n_ctx=512)
    answer(llama, PROMPT, 1)
    assert (llama.last_decision.profile, llama.last_decision.strength) == ("test", 0.5)
    assert llama.last_decision.scope == "response"
    assert llama.last_decision.open


def test_without_profiles_it_is_the_plain_model(tiny: Path) -> None:
    llama, plain = open_model(tiny, n_ctx=512, n_threads=1), plain_llama(tiny)
    assert answer(llama, PROMPT) == answer(plain, PROMPT)
    np.testing.assert_array_equal(logits(llama), logits(plain))
    assert llama.last_decision is None
    assert llama.last_decisions == ()


def test_further_arguments_are_llama_cpp_pythons(tiny: Path) -> None:
    llama = open_model(tiny, n_ctx=512, n_batch=32, logits_all=True, native_tap=False)
    assert (llama.n_batch, llama._logits_all, llama.tap.native) == (32, True, False)


def test_the_log_is_silent(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_model(tiny, n_ctx=512)
    assert capfd.readouterr().err == ""
    open_model(tiny, n_ctx=512, verbose=True)
    assert "llama" in capfd.readouterr().err


class TestPlainFormat:
    def test_a_model_with_a_template(self, tiny: Path) -> None:
        llama = open_model(tiny, n_ctx=512)
        assert not uses_plain_format(llama)
        assert llama.chat_format == "chat_template.default"

    def test_a_model_without_one(self, tmp_path: Path) -> None:
        path = write_tiny_model(tmp_path / "base.gguf", chat_template=None)
        llama = open_model(path, n_ctx=512)
        assert uses_plain_format(llama)
        assert llama.chat_format == PLAIN_FORMAT
        text = llama.create_chat_completion([{"role": "user", "content": "Hello"}], max_tokens=3, temperature=0.0)
        raw = llama.create_completion("User: Hello\n\nAssistant:", max_tokens=3, temperature=0.0)
        assert text["choices"][0]["message"]["content"] == raw["choices"][0]["text"]

    def test_the_users_own_choice_stays(self, tmp_path: Path) -> None:
        path = write_tiny_model(tmp_path / "base.gguf", chat_template=None)
        assert open_model(path, n_ctx=512, chat_format="chatml").chat_format == "chatml"


def refused(path: Path, *names: str, **arguments) -> None:
    with pytest.raises(ModelError) as error:
        open_model(path, n_ctx=512, **arguments)
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    for name in names:
        assert name in message, message


class TestRefused:
    def test_files_that_are_no_models(self, tmp_path: Path, tiny: Path) -> None:
        refused(tmp_path / "none.gguf", "cannot read the model")
        (tmp_path / "x.gguf").write_bytes(b"hello, world")
        refused(tmp_path / "x.gguf", "is not a GGUF model file")
        (tmp_path / "x.gguf").write_bytes(tiny.read_bytes()[:-5000])
        refused(tmp_path / "x.gguf", "damaged or cut short; fetch it again")

    def test_an_architecture_llama_cpp_does_not_know(self, tmp_path: Path) -> None:
        path = tmp_path / "new.gguf"
        writer = GGUFWriter(path, "brand-new")
        writer.add_uint32("brand-new.embedding_length", 4)
        writer.add_uint32("brand-new.block_count", 2)
        writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused(path, "llama.cpp cannot load", "architecture 'brand-new'", "update llama-cpp-python")

    def test_a_model_with_a_tensor_missing(self, tmp_path: Path, tiny: Path) -> None:
        reader = GGUFReader(tiny)
        path = tmp_path / "holes.gguf"
        writer = GGUFWriter(path, "llama")
        for key, field in reader.fields.items():
            if not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), *field.types[:2])
        for tensor in reader.tensors:
            if tensor.name != "blk.2.ffn_up.weight":
                writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused(path, "llama.cpp cannot load")

    def test_profiles_that_do_not_fit_close_the_model(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = []
        close = load.SteeredLlama.close
        monkeypatch.setattr(load.SteeredLlama, "close", lambda self: (closed.append(self), close(self)))
        tuned = write_tiny_model(tmp_path / "tuned.gguf", nudge=0.01)
        with pytest.raises(ProfileMismatchError):
            open_model(tuned, profiles=[make_profile(tiny)], n_ctx=512)
        assert len(closed) >= 1
        with pytest.raises(ProfileError):
            open_model(tiny, scope="all", n_ctx=512)
        with pytest.raises(ProfileError):
            open_model(tiny, profiles=[tmp_path / "none.gguf"], n_ctx=512)
