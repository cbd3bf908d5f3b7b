"""The folders of other programs, laid out as these lay them out, with tiny models in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

LLAMA_CPP_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_ollama(
    folder: Path,
    data: bytes,
    name: str = "registry.ollama.ai/library/llama3.2/1b",
    *,
    layers: list[dict[str, Any]] | None = None,
    file_type: str = "Q8_0",
) -> Path:
    """A model as `ollama pull` leaves it; returns the path of its blob."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        return {
            "mediaType": f"application/vnd.ollama.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    config = {"model_format": "gguf", "model_family": "llama", "model_type": "1.2B", "file_type": file_type}
    made = [blob(data, "model"), blob(b"{{ .Prompt }}", "template"), blob(b"MIT", "license")]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            **blob(json.dumps(config).encode(), "x"),
            "mediaType": "application/vnd.docker.container.image.v1+json",
        },
        "layers": made if layers is None else layers,
    }
    path = folder / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return blobs / f"sha256-{hashlib.sha256(data).hexdigest()}"


def write_hub_cache(cache: Path, repo: str, files: dict[str, bytes], commit: str = LLAMA_CPP_COMMIT) -> Path:
    """A repository as huggingface_hub and llama.cpp's `-hf` keep it; returns its snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for place in (folder / "blobs", folder / "refs", snapshot):
        place.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for name, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def write_jan(data: Path, name: str, model_path: str, size: int) -> None:
    """A model as Jan describes it; `model_path` as it stands in its file."""
    folder = data / "llamacpp" / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yml").write_text(
        f"model_path: {model_path}\nname: {name}\nsize_bytes: {size}\nembedding: false\nmmproj_sha256: null\n"
    )


def write_header(path: Path, n_bytes: int, *, n_tokens: int = 32_000, file_type: int = 15, name: str = "Large") -> Path:
    """A model of `n_bytes` with a vocabulary of a real one's size and no weights: what is not written is not there."""
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(8192)
    writer.add_embedding_length(4096)
    writer.add_block_count(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{i}" for i in range(n_tokens)])
    writer.add_token_types([TokenType.NORMAL] * n_tokens)
    writer.add_token_merges([f"to ken{i}" for i in range(n_tokens)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(n_bytes)  # sparse
    return path
