"""What steering costs a token of an answer, by the model's width: random models of several widths.

    python benchmarks/widths.py --plots docs [--json FILE]

The models are llamas of 8 layers with float16 weights and a small vocabulary; a stand-in profile steers them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

from finesteer_local.bench import Results, measure
from finesteer_local.bench.plots import draw
from finesteer_local.bench.series import Series

LAYERS, HEAD, CONTEXT = 8, 64, 1024


def write_model(path: Path, width: int) -> Path:
    rng = np.random.default_rng(width)
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # GPT-2's letters for the other bytes
    tokens, heads, inner = ["<|end|>", *letters], width // HEAD, round(8 * width / 3 / 64) * 64
    writer = GGUFWriter(path, "llama")
    writer.add_name(f"random, {width} wide")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * 256])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)

    def matrix(name: str, n_in: int, n_out: int) -> None:
        values = rng.standard_normal((n_out, n_in), np.float32) / np.sqrt(n_in)
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    matrix("token_embd", width, len(tokens))
    matrix("output", width, len(tokens))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}", width, width)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    everything = Results(complete=True)
    with tempfile.TemporaryDirectory() as folder:
        for width in arguments.widths:
            file, results = Path(folder) / f"{width}.gguf", Results()
            measure(write_model(file, width), [], results, what=["decode"], quick=True, rounds=arguments.rounds)
            file.unlink()
            series: Series = results.series[0]
            series.part, series.x, series.name = "width", width, f"decode, {width} wide"
            everything.series.append(series)
            everything.about = results.about
            print(width, *(f"{ratio.label} {ratio.value:.3f}" for ratio in series.ratios), sep="  ", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything.to_json(), indent=1))
    if arguments.plots:
        draw(everything, arguments.plots)


if __name__ == "__main__":
    main()
