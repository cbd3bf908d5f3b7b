"""One profile, every quantisation: the fingerprint, and how the gate and the answers move.

    python benchmarks/quantisations.py MODEL --profile PROFILE --harmful FILE --benign FILE [--limit 100]

Requantises MODEL with llama.cpp's own quantiser (`llama_model_quantize`), checks that every file has the same
fingerprint and takes the profile, and measures AUROC of the gate's score, openings on both sets, and refusals on the
harmful one. Rows that a type cannot hold fall back as llama.cpp does (Q2_K needs 256 columns a row).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from finesteer_local.errors import ModelError
from finesteer_local.identity import read_model_identity
from finesteer_local.judges.phrases import is_refusal
from finesteer_local.judges.statistics import auroc
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.expand import requantise
from finesteer_local.runtime.prompt import greedy_answer
from finesteer_local.training.data import read_prompts

TYPES = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q2_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
}


def quantise(source: Path, target: Path, kind: str) -> Path:
    """Write `source` in another quantisation to `target`."""
    if not requantise(source, target, TYPES[kind]):
        raise ModelError(f"llama.cpp cannot quantise {source} to {kind}")
    return target


def measure(model: Path, profile: Profile, harmful: list, benign: list, max_tokens: int) -> dict[str, float]:
    llama = open_model(model, profiles=[profile])
    scores: dict[str, list[float]] = {"harmful": [], "benign": []}
    opened: dict[str, list[bool]] = {"harmful": [], "benign": []}
    refused = []
    for name, prompts in (("harmful", harmful), ("benign", benign)):
        for prompt in prompts:
            answer = greedy_answer(llama, prompt.messages, max_tokens if name == "harmful" else 1)
            decision = llama.last_decision
            assert decision is not None
            scores[name].append(decision.score)
            opened[name].append(decision.open)
            if name == "harmful":
                refused.append(is_refusal(answer))
    llama.close()
    return {
        "auroc": auroc(scores["harmful"], scores["benign"]) or 0.0,
        "open on harmful": float(np.mean(opened["harmful"])),
        "open on benign": float(np.mean(opened["benign"])),
        "refused": float(np.mean(refused)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--harmful", type=Path, required=True, help="JSONL with `prompt`")
    parser.add_argument("--benign", type=Path, required=True, help="JSONL with `prompt`")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    profile = Profile.load(options.profile)
    harmful, benign = (read_prompts(file)[: options.limit] for file in (options.harmful, options.benign))
    expected = read_model_identity(options.model).fingerprint
    print("| file | MB | fingerprint | AUROC | open on harmful | open on benign | refused |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("as it is", *TYPES):
            file = options.model if kind == "as it is" else quantise(options.model, Path(folder) / f"{kind}.gguf", kind)
            same = read_model_identity(file).fingerprint == expected
            found = measure(file, profile, harmful, benign, options.max_tokens)
            numbers = " | ".join(f"{value:.3f}" for value in found.values())
            print(
                f"| {kind} | {file.stat().st_size / 1e6:.0f} | {'equal' if same else 'DIFFERS'} | {numbers} |",
                flush=True,
            )
            if file != options.model:
                file.unlink()


if __name__ == "__main__":
    main()
