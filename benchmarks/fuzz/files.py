"""Coverage-guided fuzzing of everything that reads a file from elsewhere (atheris).

    pip install atheris
    python benchmarks/fuzz/files.py --runs 200000 --corpus /tmp/corpus

An input's first byte says how the rest becomes a file: as it is, as the pickle of a `.pt` archive, or as the array in a
`.npz`. Only a `FineSteerError` of one line may come out, within seconds and without filling the memory. What breaks
that is written to tests/data/findings, where tests/test_hostile.py reads it for ever.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["finesteer_local", "gguf", "pickletools", "zipfile"]):
    from finesteer_local import identity
    from finesteer_local.converters import cast, recognise
    from finesteer_local.converters.arrays import Hints
    from finesteer_local.errors import FineSteerError
    from finesteer_local.profile import Profile

import numpy as np

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "tests" / "data" / "findings"
PLAIN, PICKLE, ARRAY = b"\x00", b"\x01", b"\x02"
SECONDS, MEGABYTES = 5.0, 64
HINTS = Hints(n_layer=4, layer=2)

folder = Path(tempfile.mkdtemp(prefix="finesteer-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
counts = {"tried": 0, "read": 0, "refused": 0}


def as_file(data: bytes) -> bytes:
    """The file that an input stands for."""
    kind, rest = data[:1], data[1:]
    if kind not in (PICKLE, ARRAY):
        return rest
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        if kind == PICKLE:
            archive.writestr("a/data.pkl", rest)
            for key in range(4):
                archive.writestr(f"a/data/{key}", b"\x3f" * 256)
        else:
            archive.writestr("layer_1.npy", rest)
    return buffer.getvalue()


def read_all(path: Path, head: bytes) -> None:
    """Every reader that would be asked to read a file that begins so."""
    readers = [lambda: recognise.read(path, HINTS)]
    if head[:4] == b"GGUF":
        readers += [lambda: Profile.load(path), lambda: identity._read(path, [path])]
    if head[:1] == b"{":
        readers.append(lambda: cast.read_condition(path, 2, 0.1, opens_above=True, mean=True, n_embd=64))
    for reader in readers:
        try:
            reader()
            counts["read"] += 1
        except FineSteerError as error:
            assert "\n" not in str(error), "a message of several lines"
            counts["refused"] += 1


def test_one(data: bytes) -> None:
    file = as_file(data)
    path = folder / "file"
    path.write_bytes(file)
    counts["tried"] += 1
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    read_all(path, file[:16])
    assert time.process_time() - started < SECONDS, "slow"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES + 40 * len(file) / 2**20, f"{grown:.0f} MiB for {len(file):,} bytes"


def seeds(corpus: Path) -> None:
    """Whole files of every format, to begin with."""
    corpus.mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "tests" / "data").glob("*/*")):
        if file.suffix in (".gguf", ".safetensors", ".pt") and file.parent != FINDINGS:
            (corpus / file.name).write_bytes(PLAIN + file.read_bytes())
            if file.suffix == ".pt":
                with zipfile.ZipFile(file) as archive:
                    [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
                    (corpus / f"{file.name}.pkl").write_bytes(PICKLE + archive.read(name))
    buffer = io.BytesIO()
    np.save(buffer, np.ones((4, 8), np.float32))
    (corpus / "npy").write_bytes(PLAIN + buffer.getvalue())
    (corpus / "npz").write_bytes(ARRAY + buffer.getvalue())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, layer_1=np.ones(64, np.float32))
    (corpus / "npz.zip").write_bytes(PLAIN + buffer.getvalue())
    svec = {"model_type": "llama", "directions": {"2": [0.5] * 64, "3": [1.0] * 64}, "explained_variances": {"2": 0.5}}
    ours = {"format": "finesteer-vectors", "version": 1, "vectors": {"1": [0.5] * 8}}
    for name, value in (("svec", svec), ("ours", ours)):
        (corpus / name).write_bytes(PLAIN + json.dumps(value).encode())
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import write_tiny_model

    model = write_tiny_model(folder / "model.gguf", n_layer=1, n_embd=16)
    (corpus / "model").write_bytes(PLAIN + model.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--corpus", type=Path, default=Path("/tmp/finesteer-corpus"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seeds(options.corpus)
    FINDINGS.mkdir(exist_ok=True)
    flags = [f"-runs={options.runs}", f"-seed={options.seed}", "-max_len=16384", "-timeout=20", "-rss_limit_mb=2048"]
    flags += ["-reload=0", "-print_final_stats=1", f"-artifact_prefix={FINDINGS}/"]
    atheris.Setup([sys.argv[0], *flags, str(options.corpus)], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
