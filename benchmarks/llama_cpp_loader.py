"""Whether llama.cpp's own control-vector loader takes what `export` writes.

The loader is in llama.cpp's `common` library, which llama-cpp-python does not ship. This cuts
`common_control_vector_load` and its helper out of a source tree, compiles them against the shipped libggml-base, loads
a file, and compares the numbers with ours; then it sets what was loaded and compares logits.

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-*.tar.gz
    python benchmarks/llama_cpp_loader.py SOURCE MODEL PROFILE "a prompt that opens the gate"
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from finesteer_local.converters import controlvector
from finesteer_local.runtime import open_model
from finesteer_local.runtime.amx import PlainLlama
from finesteer_local.runtime.prompt import chat_prompt

PROGRAM = """
#include "ggml.h"
#include "gguf.h"
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>
#define COM_ERR(...) fprintf(stderr, __VA_ARGS__)
#define COM_WRN(...) fprintf(stderr, __VA_ARGS__)
struct common_control_vector_data { int n_embd; std::vector<float> data; };
struct common_control_vector_load_info { float strength; std::string fname; };
%s
int main(int, char ** argv) {
    const auto loaded = common_control_vector_load({{1.0f, argv[1]}});
    if (loaded.n_embd < 0) return 1;
    fwrite(loaded.data.data(), sizeof(float), loaded.data.size(), stdout);
    return 0;
}
"""


def cut(source: str, start: str) -> str:
    """A function's text, to the closing brace at the start of a line."""
    begin = source.index(start)
    return source[begin : source.index("\n}\n", begin) + 3]


def build(llama: Path, folder: Path) -> Path:
    source = (llama / "common" / "common.cpp").read_text("utf-8")
    functions = cut(source, "static common_control_vector_data common_control_vector_load_one(") + cut(
        source, "common_control_vector_data common_control_vector_load("
    )
    (folder / "loader.cpp").write_text(PROGRAM % functions)
    library = Path(llama_cpp.__file__).parent / "lib"
    command = ["c++", "-std=c++17", "-O1", "-o", "loader", "loader.cpp", f"-I{llama}/ggml/include", f"-L{library}"]
    subprocess.run([*command, "-lggml-base", f"-Wl,-rpath,{library}"], cwd=folder, check=True)
    return folder / "loader"


def logits(llama: llama_cpp.Llama, prompt: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(prompt)
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama.ctx, -1), (llama.n_vocab(),)).copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="llama.cpp's source, or that of llama-cpp-python")
    parser.add_argument("model", type=Path)
    parser.add_argument("profile", type=Path)
    parser.add_argument("prompt")
    options = parser.parse_args()
    vendored = options.source / "vendor" / "llama.cpp"
    steered = open_model(options.model, profiles=[options.profile], scope="prompt")
    prompt = chat_prompt(steered, [{"role": "user", "content": options.prompt}])
    ours = logits(steered, prompt)
    decision = steered.last_decision
    assert decision is not None and decision.open, "the gate is closed for this prompt"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loader = build(vendored if vendored.is_dir() else options.source, folder)
        controlvector.write(folder / "out.gguf", decision.vectors, model_hint=steered.identity.architecture)
        done = subprocess.run([loader, folder / "out.gguf"], check=True, capture_output=True)
    rows = np.frombuffer(done.stdout, np.float32).reshape(-1, steered.n_embd())
    for layer, vector in decision.vectors.items():
        assert np.array_equal(rows[layer - 1], vector), f"layer {layer} differs"
    plain = PlainLlama(
        str(options.model), n_ctx=steered.n_ctx(), n_threads=steered.n_threads, n_threads_batch=steered.n_threads_batch,
        verbose=False,
    )  # fmt: skip
    data = np.zeros((steered.n_layer - 1, steered.n_embd()), np.float32)
    data[: len(rows)] = rows
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(plain.ctx, pointer, data.size, data.shape[1], 1, len(data)) == 0
    theirs = logits(plain, prompt)
    print(f"llama.cpp's loader read {len(decision.vectors)} vectors, equal to ours bit for bit")
    print(
        "logits: " + ("bit-equal" if np.array_equal(ours, theirs) else f"differ by {np.abs(ours - theirs).max():.3g}")
    )


if __name__ == "__main__":
    main()
