"""The whole benchmark, part by part. What was measured stays when it is interrupted."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finesteer_local import __version__
from finesteer_local.bench import answers, batch, hooks, reading, startup
from finesteer_local.bench.profiles import stand_in
from finesteer_local.bench.series import Series
from finesteer_local.errors import DataError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, machine, open_model
from finesteer_local.runtime.cores import default_threads
from finesteer_local.runtime.rpc import use_workers
from finesteer_local.runtime.timing import open_plain
from finesteer_local.training.progress import Progress, quiet

PARTS = ("decode", "ttft", "profiles", "harvest", "batch", "start")
_ROOM = 256  # tokens of the context beside the longest prompt


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    n_answer: int  # tokens decoded a round
    prompts: dict[int, int]  # tokens -> rounds
    counts: tuple[int, ...]  # of profiles
    harvest_batches: int
    batch_sizes: tuple[int, ...]
    batch_answer: int
    look_at: int  # questions from which a batch is chosen


FULL = Size(15, 96, {32: 15, 256: 9, 1024: 5, 4096: 3}, (1, 2, 4, 8), 6, (1, 2, 4, 8), 64, 32)
QUICK = Size(3, 16, {32: 3, 256: 2}, (1, 4), 1, (1, 4), 16, 12)
MIXED = (16, 64, 24, 48, 16, 40, 56, 32)
"""Lengths of answers that end at different times, of `batch_answer`'s 64."""


@dataclass
class Results:
    """What was measured so far."""

    about: dict[str, Any] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    def of(self, part: str) -> list[Series]:
        """The series of one part that have at least one round."""
        return [series for series in self.series if series.part == part and series.n_rounds]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        series = [each.to_json() for each in self.series if each.n_rounds]
        return {"about": self.about, "complete": self.complete, "notes": self.notes, "series": series}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """The inverse of `to_json`."""
        return cls(data["about"], [Series.from_json(each) for each in data["series"]], data["notes"], data["complete"])


def measure(
    path: Path,
    profiles: Sequence[Profile],
    results: Results,
    *,
    what: Sequence[str] = PARTS,
    quick: bool = False,
    rounds: int | None = None,
    recipe: str = "safety",
    transformers: Path | None = None,
    n_ctx: int = 0,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    rpc: Sequence[str] = (),
    progress: Progress = quiet,
) -> None:
    """Measure the model at `path` and fill `results`, series by series.

    Args:
        profiles: what steers; none takes a random stand-in of the usual kind and size.
        what: of `PARTS`.
        rounds: instead of each part's own number.
        recipe: whose prompts are read for `harvest`.
        rpc: workers that the model is spread over, as for `runtime.open_model`.
        transformers: a Hugging Face directory of the same model, to be measured beside it.

    Raises:
        FineSteerError: the model, a profile, the recipe or the directory cannot be used.
    """
    run = _Run(path, profiles, results, QUICK if quick else FULL, rounds, progress)
    use_workers(rpc)
    run.open(n_ctx, n_threads, n_gpu_layers, rpc)
    try:
        parts = {
            "decode": run.decode,
            "ttft": run.first_token,
            "profiles": run.number_of_profiles,
            "harvest": lambda: run.harvest(recipe),
            "batch": run.batch,
            "start": run.start,
        }
        for part in PARTS:
            if part in what:
                parts[part]()
        if transformers is not None:  # last: PyTorch brings threads of its own
            run.beside_transformers(transformers, recipe)
    finally:
        run.close()
    results.complete = True


class _Run:
    def __init__(
        self,
        path: Path,
        profiles: Sequence[Profile],
        results: Results,
        size: Size,
        rounds: int | None,
        progress: Progress,
    ) -> None:
        self.path, self.results, self.size, self.progress = path, results, size, progress
        self.identity = read_model_identity(path)
        self.profiles = list(profiles) or [stand_in(self.identity)]
        for profile in self.profiles:
            profile.check_model(self.identity)
        self.rounds = rounds

    def open(self, n_ctx: int, n_threads: int | None, n_gpu_layers: int, rpc: Sequence[str]) -> None:
        threads = n_threads or default_threads()
        longest = max(*self.size.prompts, reading.N_NATIVE) + _ROOM
        n_ctx = n_ctx or min(self.identity.context_length or longest, longest)
        self.options: dict[str, Any] = {"n_ctx": n_ctx, "n_threads": threads, "n_gpu_layers": n_gpu_layers}
        self.steered: SteeredLlama = open_model(self.path, **self.options)
        self.steered.check_steerable()
        self.plain = open_plain(self.path, **self.options)
        self.results.about.update(
            {
                "finesteer_local": __version__,
                "llama_cpp": machine.version(),
                "python": platform.python_version(),
                "machine": platform.platform(),
                "processor": ", ".join(device.description for device in machine.devices()),
                "threads": threads,
                "rpc": list(rpc),
                "model": self.identity.name,
                "file": self.path.name,
                "n_layer": self.identity.n_layer,
                "n_embd": self.identity.n_embd,
                "profiles": [profile.name for profile in self.profiles],
                "native_tap": self.steered.tap.native,
                "date": time.strftime("%Y-%m-%d %H:%M"),
            }
        )
        if not self.steered.tap.native:
            self.results.notes.append("the tap runs in Python: finesteer-local doctor says why")

    def close(self) -> None:
        self.steered.close()
        self.plain.close()

    def _rounds(self, usual: int) -> int:
        return self.rounds or usual

    @contextmanager
    def _series(self, part: str, name: str, unit: str, total: int, x: int | None = None) -> Iterator[Any]:
        """A series that is part of the results from its first round on, and what counts its progress."""
        series, done = Series(part, name, unit, x), 0
        self.results.series.append(series)

        def advance() -> None:
            nonlocal done
            done += 1
            self.progress(name, min(done, total), total)

        self.progress(name, 0, total)
        yield series, advance
        self.progress(name, total, total)

    # --- one request

    def decode(self) -> None:
        name = f"decode, {self.size.n_answer} tokens after a prompt of {answers.SHORT}"
        with closing(open_plain(self.path, **self.options)) as other, ExitStack() as stack:
            ways = answers.ways(other, self.steered, self.profiles)
            if self.results.about["rpc"]:
                here = stack.enter_context(closing(open_plain(self.path, **{**self.options, "n_gpu_layers": 0})))
                ways[answers.HERE] = answers.native(here)
            self._decode("decode", name, ways)

    def first_token(self) -> None:
        ways = answers.ways(self.plain, self.steered, self.profiles)
        for n, usual in self.size.prompts.items():
            if n + 1 > self.plain.n_ctx():
                self.results.notes.append(f"a prompt of {n:,} tokens does not fit the context ({self.plain.n_ctx():,})")
                continue
            self._first_token("ttft", f"time to first token, prompt of {n:,} tokens", ways, n, self._rounds(usual), n)

    def number_of_profiles(self) -> None:
        ways = answers.numbers_of_profiles(self.steered, self.profiles, self.size.counts)
        self._decode("profiles", "decode with so many profiles", ways)
        n = sorted(self.size.prompts)[1]
        name = f"time to first token with so many profiles, prompt of {n} tokens"
        self._first_token("profiles", name, ways, n, self._rounds(self.size.prompts[n]))

    def _decode(self, part: str, name: str, ways: dict[str, answers.Start]) -> None:
        rounds, prompt = self._rounds(self.size.rounds), answers.prompt_tokens(self.plain, answers.SHORT)
        with self._series(part, name, "tokens/s", len(ways) * (rounds + 1)) as (series, advance):
            native = answers.native(self.plain)
            answers.decode_series(series, native, ways, prompt, self.size.n_answer, rounds, advance)

    def _first_token(
        self, part: str, name: str, ways: dict[str, answers.Start], n: int, rounds: int, x: int | None = None
    ) -> None:
        prompt = answers.prompt_tokens(self.plain, n)
        with self._series(part, name, "ms", (len(ways) + 1) * (rounds + 1), x) as (series, advance):
            answers.first_token_series(series, answers.native(self.plain), ways, prompt, rounds, advance)

    # --- many

    def harvest(self, recipe: str) -> None:
        self.progress("preparing prompts", 0, 1)
        bench = reading.ReadingBench(self.steered, recipe, self.size.harvest_batches)
        self.progress("preparing prompts", 1, 1)
        rounds = self._rounds(self.size.prompts[256])
        name = f"reading the prompts of `{recipe}` up to layer {bench.layer} of {self.identity.n_layer}"
        with closing(bench), self._series("harvest", name, "tokens/s", 4 * (rounds + 1)) as (series, advance):
            reading.reading_series(series, bench, rounds, advance)

    def batch(self) -> None:
        sizes, n_answer = self.size.batch_sizes, self.size.batch_answer
        self.progress("choosing questions", 0, 1)
        try:
            bench = batch.BatchBench(
                self.steered, self.profiles[0], n=max(sizes), n_answer=n_answer, look_at=self.size.look_at
            )
        except DataError as error:
            self.results.notes.append(str(error))
            return
        self.progress("choosing questions", 1, 1)
        rounds = self._rounds(max(self.size.rounds // 3, 1))
        with closing(bench):
            for n in sizes:
                name = f"{n} request{'s' * (n > 1)}, answers of {n_answer} tokens"
                self._batch(name, bench.ways(n), rounds, n)
            if n == len(MIXED):
                lengths = [length * n_answer // max(MIXED) for length in MIXED]
                name = f"{n} requests, answers of {min(lengths)} to {max(lengths)} tokens"
                self._batch(name, bench.ways(n, lengths), rounds)

    def _batch(self, name: str, ways: dict[str, Any], rounds: int, x: int | None = None) -> None:
        with self._series("batch", name, "tokens/s", len(ways) * (rounds + 1), x) as (series, advance):
            batch.batch_series(series, ways, rounds, advance)

    # --- starts

    def start(self) -> None:
        if self.results.about["rpc"]:
            self.results.notes.append("starts are not measured with --rpc: a worker serves one program at a time")
            return
        rounds = self._rounds(max(self.size.rounds // 3, 2))
        options = {
            "n_ctx": 1024,
            "n_threads": self.options["n_threads"],
            "n_threads_batch": self.options["n_threads"],
            "n_gpu_layers": self.options["n_gpu_layers"],
            "verbose": False,
        }
        options["n_ctx"] = min(options["n_ctx"], self.plain.n_ctx())
        series = [
            Series("start", startup.HELP, "s"),
            Series("start", "from the loaded model to the first prompt, one profile", "s"),
            Series("start", "peak memory of a process that answers a chat", "MB"),
        ]
        self.results.series += series
        total, done = 3 * (rounds + 1), 0

        def advance() -> None:
            nonlocal done
            done += 1
            self.progress("starts", done, total)

        self.progress("starts", 0, total)
        with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
            file = Path(folder) / "profile.gguf"
            self.profiles[0].save(file)
            startup.start_series(series, self.path, file, options, rounds, advance)

    # --- the others

    def beside_transformers(self, folder: Path, recipe: str) -> None:
        self.progress("opening the Hugging Face directory", 0, 1)
        model = hooks.open_directory(folder, self.path)
        self.progress("opening the Hugging Face directory", 1, 1)
        rounds = self._rounds(max(self.size.rounds // 3, 1))
        with closing(model):
            ours = answers.ways(self.plain, self.steered, self.profiles)[answers.OPEN]
            with self._series("transformers", "decode, steered", "tokens/s", 2 * (rounds + 1)) as (series, advance):
                hooks.decode_series(series, model, self.steered, ours, rounds, advance)
            bench = reading.ReadingBench(self.steered, recipe, self.size.harvest_batches)
            name = f"reading the prompts of `{recipe}` for layer {bench.layer}"
            with closing(bench), self._series("transformers", name, "tokens/s", 3 * (rounds + 1)) as (series, advance):
                n = hooks.reading_series(series, model, bench, rounds, advance)
                self.results.notes.append(f"transformers reads prompts fastest {n} at a time")
