"""What steering costs a token of an answer, by the model's width: random models of several widths.

    python benchmarks/widths.py --plots docs [--json FILE]

The models are llamas of 8 layers with float16 weights and a small vocabulary; a stand-in profile steers them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from random_model import write_model

from finesteer_local.bench import Results, measure
from finesteer_local.bench.plots import draw
from finesteer_local.bench.series import Series

LAYERS, HEAD = 8, 64


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
            write_model(file, width=width, layers=LAYERS, heads=width // HEAD)
            measure(file, [], results, what=["decode"], quick=True, rounds=arguments.rounds)
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
