"""Models that do not write text: embedding models, rerankers, encoders. Every command says so in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from cli import error_of
from finesteer_local.errors import ModelError
from finesteer_local.identity import read_model_identity
from finesteer_local.runtime import open_model
from tiny import add_tokenizer, write_tiny_model

BERT = ("token_types.weight", "blk.0.attn_output_norm.weight", "blk.0.layer_output_norm.weight")
KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "bert": ("bert", {"pooling_type": 2, "attention.causal": False}, BERT, "an embedding model"),
    "nomic": ("nomic-bert", {"pooling_type": 1, "attention.causal": False}, BERT, "an embedding model"),
    "jina": ("jina-bert-v2", {"pooling_type": 1}, BERT, "an embedding model"),
    "last token": ("qwen3", {"pooling_type": 3}, ("output_norm.weight",), "an embedding model"),
    "pooled reranker": ("qwen3", {"pooling_type": 4}, ("output_norm.weight",), "a reranking model"),
    "reranker": ("bert", {"pooling_type": 2}, (*BERT, "cls.output.weight"), "a reranking model"),
    "not pooled": ("bert", {"attention.causal": False}, BERT, "an encoder"),
    "old bert": ("bert", {}, BERT, "an encoder"),
    "T5's encoder": ("t5encoder", {}, ("enc.output_norm.weight", "enc.blk.0.attn_norm.weight"), "an encoder"),
    "T5": ("t5", {}, ("enc.output_norm.weight", "dec.output_norm.weight"), "an encoder-decoder"),
}


def write(path: Path, architecture: str, keys: dict[str, Any], tensors: tuple[str, ...]) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    for key, value in keys.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"{architecture}.{key}", value)
    add_tokenizer(writer, None)
    for tensor in tensors:
        writer.add_tensor(tensor, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named(kind: str, tmp_path: Path) -> None:
    architecture, keys, tensors, name = KINDS[kind]
    path = write(tmp_path / "model.gguf", architecture, keys, tensors)
    for read in (read_model_identity, open_model):
        with pytest.raises(ModelError, match=f"holds {name} .architecture '{architecture}'., which does not write"):
            read(path)


@pytest.mark.parametrize(
    "command",
    [
        ("chat",),
        ("run", "hello"),
        ("train", "--recipe", "safety"),
        ("eval", "--profile", "safety"),
        ("serve",),
        ("bench",),
        ("inspect",),
    ],
    ids=lambda command: command[0],
)
def test_every_command_says_it(command: tuple[str, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", *KINDS["bert"][:3])
    name, *rest = command
    message = error_of(name, path, *rest)
    assert "model.gguf holds an embedding model (architecture 'bert'), which does not write text" in message


def test_keys_that_say_nothing_of_the_kind(tmp_path: Path) -> None:
    path = write(
        tmp_path / "model.gguf", "qwen3", {"pooling_type": 0, "attention.causal": True}, ("output_norm.weight",)
    )
    assert read_model_identity(path).architecture == "qwen3"
    assert read_model_identity(write_tiny_model(tmp_path / "tiny.gguf")).architecture == "llama"
