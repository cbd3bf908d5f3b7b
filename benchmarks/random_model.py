"""Models of any size with random weights: what they say means nothing, what they cost is what a trained one costs.

    python benchmarks/random_model.py FILE.gguf [--width 4096 --layers 32 --inner 14336 --heads 32 --kv-heads 8]
    python benchmarks/random_model.py FILE.gguf --like qwen2.5-coder-0.5b.gguf --width 1536 --layers 28 --inner 8960 \
        --heads 12 --kv-heads 2

Llamas; without options, of the shape of Llama 3.1 8B, quantised to Q4_0. With `--like` they have the architecture, the
tokenizer and the template of another file, so that texts have as many tokens as with a trained model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType

_BLOCK = np.dtype([("d", "<f2"), ("qs", "u1", 16)])  # 32 weights of Q4_0


def write_model(
    path: Path,
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    inner: int | None = None,
    n_vocab: int = 257,
    n_ctx: int = 1024,
    quantised: bool = False,
    like: Path | None = None,
) -> Path:
    """Write a llama to `path`, in float16 or in Q4_0; what is not given follows from the width.

    Args:
        like: a GGUF file of which the model has the architecture (llama, or qwen2 with its biases) and the vocabulary.
    """
    rng = np.random.default_rng(width)
    kv_heads, inner, head = kv_heads or heads, inner or round(8 * width / 3 / 64) * 64, width // heads
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # GPT-2's letters for the other bytes
    tokens = ["<|end|>", *letters, *(f"word{i}" for i in range(n_vocab - 257))]
    other = None if like is None else GGUFReader(like)
    architecture = "llama" if other is None else str(other.fields["general.architecture"].contents())
    writer = GGUFWriter(path, architecture)
    writer.add_name(f"random, {width} wide")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    if other is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(tokens) - 1)])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(False)
    else:
        tokens = _take_tokenizer(writer, other, architecture)

    def matrix(name: str, n_in: int, n_out: int) -> None:
        if not quantised:
            values = rng.standard_normal((n_out, n_in), np.float32) / np.sqrt(n_in)
            writer.add_tensor(f"{name}.weight", values.astype(np.float16))
            return
        blocks = np.empty((n_out, n_in // 32), _BLOCK)
        blocks["d"] = 0.2 / np.sqrt(n_in)  # sixteen steps, of which five are a standard deviation
        blocks["qs"] = rng.integers(0, 256, blocks["qs"].shape, np.uint8)
        writer.add_tensor(
            f"{name}.weight", blocks.view(np.uint8).reshape(n_out, -1), raw_dtype=GGMLQuantizationType.Q4_0
        )

    matrix("token_embd", width, len(tokens))
    matrix("output", width, len(tokens))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(layers):
        for part, n_out in (("q", width), ("k", head * kv_heads), ("v", head * kv_heads), ("output", width)):
            matrix(f"blk.{i}.attn_{part}", width, n_out)
            if architecture == "qwen2" and part != "output":
                writer.add_tensor(f"blk.{i}.attn_{part}.bias", np.zeros(n_out, np.float32))
        matrix(f"blk.{i}.ffn_gate", width, inner)
        matrix(f"blk.{i}.ffn_up", width, inner)
        matrix(f"blk.{i}.ffn_down", inner, width)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{part}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _take_tokenizer(writer: GGUFWriter, other: GGUFReader, architecture: str) -> list[str]:
    """Give a model the tokenizer, the template and the rotations of another; returns its vocabulary."""
    for key, field in other.fields.items():
        if key.startswith("tokenizer.") or key == f"{architecture}.rope.freq_base":
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    return list(other.fields["tokenizer.ggml.tokens"].contents())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--inner", type=int, default=14336)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=128256, dest="n_vocab")
    parser.add_argument("--context", type=int, default=8192, dest="n_ctx")
    parser.add_argument("--like", type=Path, help="a GGUF file whose architecture and vocabulary the model has")
    options = vars(parser.parse_args())
    write_model(options.pop("file"), quantised=True, **options)


if __name__ == "__main__":
    main()
