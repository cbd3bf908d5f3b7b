"""A GGUF model's weights for PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from finesteer_local.errors import MissingExtraError, ModelError
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import weights
from finesteer_local.training.weights import learns_by_itself, weights_of
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def llama(tiny: Path) -> SteeredLlama:
    return open_model(tiny, n_ctx=256, n_threads=1)


def test_by_itself_only_refusals_of_small_models(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    assert learns_by_itself(llama, "refusal") and not learns_by_itself(llama, "margin")
    monkeypatch.setattr(weights, "MAX_PARAMETERS", llama.n_parameters)
    assert learns_by_itself(llama, "refusal")
    monkeypatch.setattr(weights, "MAX_PARAMETERS", llama.n_parameters - 1)
    monkeypatch.setattr(weights, "MAX_FAST_PARAMETERS", llama.n_parameters - 1)
    assert not learns_by_itself(llama, "refusal")
    monkeypatch.undo()
    for missing in ("accelerate", "transformers"):
        monkeypatch.setattr(weights, "find_spec", lambda name, missing=missing: None if name == missing else name)
        assert not learns_by_itself(llama, "refusal")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_in_the_fast_precision(
    llama: SteeredLlama, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the frequencies of positions: bfloat16 would turn those of long prompts by a radian."""
    monkeypatch.setattr(weights, "fast_dtype", lambda: dtype)
    model = weights_of(llama)
    assert {parameter.dtype for parameter in model.parameters()} == {model.dtype} == {dtype}
    assert [*model.named_buffers()] and {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert torch.equal(model.get_input_embeddings().weight[5].float(), _embedding(llama, 5).to(dtype).float())


def _embedding(llama: SteeredLlama, token: int) -> torch.Tensor:
    [tensor] = [each for each in GGUFReader(llama.model_path).tensors if each.name == "token_embd.weight"]
    return torch.from_numpy(np.array(tensor.data[token]))


def test_logits_are_those_of_the_whole_model() -> None:
    """Of one that caps them, too."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=2, final_logit_softcapping=0.05)
    model, tokens = Gemma2ForCausalLM(config).eval(), torch.arange(8)[None]
    with torch.inference_mode():
        wanted = model(input_ids=tokens).logits[0]
        found = weights.logits_of(model, model.get_decoder()(input_ids=tokens).last_hidden_state[0])
    torch.testing.assert_close(found, wanted)
    assert 0.01 < found.abs().max() <= 0.05
    model.config.final_logit_softcapping = None
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=tokens).last_hidden_state[0]
        torch.testing.assert_close(weights.logits_of(model, hidden), model(input_ids=tokens).logits[0])


def test_weights_are_opened_by_themselves_where_they_are_few(
    llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.opens_by_itself(llama)
    monkeypatch.setattr(weights, "MAX_PARAMETERS", llama.n_parameters - 1)
    monkeypatch.setattr(weights, "MAX_FAST_PARAMETERS", llama.n_parameters - 1)
    assert not weights.opens_by_itself(llama)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_weights_are_those_of_llama_cpp(architecture: str, tmp_path: Path) -> None:
    llama = open_model(write_tiny_model(tmp_path / "tiny.gguf", architecture), n_ctx=256, n_threads=1)
    assert len(weights_of(llama).get_decoder().layers) == llama.n_layer


def test_weights_that_are_others(llama: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", seed=5)
    monkeypatch.setattr(llama, "model_path", str(other))
    with pytest.raises(ModelError, match=r"does not compute what llama.cpp does .*; train with --no-optimise"):
        weights_of(llama)


def test_a_file_that_transformers_cannot_read(
    llama: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "model_path", str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match=r"transformers cannot read .*none.gguf: .*; train with --no-optimise"):
        weights_of(llama)


@pytest.mark.parametrize("missing", ["accelerate", "transformers"])
def test_without_the_extra(missing: str, llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MissingExtraError, match=r"needs transformers and accelerate \(extra transformers\); install with: "
    ):
        weights_of(llama)


def test_they_are_read_without_the_vocabulary(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy gives the very weights, and where transformers does not take it, the file itself does."""
    read, real = [], weights._loaded

    def loaded(factory: object, path: Path) -> object:
        read.append(path)
        return real(factory, path)

    monkeypatch.setattr(weights, "_loaded", loaded)
    short = weights_of(llama).state_dict()
    original = Path(llama.model_path)
    assert len(read) == 1 and read[0] != original and not read[0].exists()
    monkeypatch.setattr(weights, "_write_part", lambda path, short, **_: short.write_text("nothing") > 0)
    whole = weights_of(llama).state_dict()
    assert read[2:] == [original] and [*short] == [*whole] and all(torch.equal(short[k], whole[k]) for k in whole)


def test_a_header_with_lists_of_its_own_is_not_copied(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    writer = weights.GGUFWriter(tmp_path / "lists.gguf", "llama")
    writer.add_key_value("llama.attention.head_count_kv", [1, 2], weights.GGUFValueType.ARRAY)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert weights._write_part(path, tmp_path / "short.gguf")
    assert not weights._write_part(tmp_path / "lists.gguf", tmp_path / "none.gguf")
    assert not (tmp_path / "none.gguf").exists()
