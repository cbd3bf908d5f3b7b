"""One model: whether it opens, where it lies, whether steering works on it, and what that costs."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesteer_local import catalog
from finesteer_local.doctor.finding import BROKEN, GOOD, NOTE, Finding
from finesteer_local.errors import FineSteerError, ProfileError
from finesteer_local.identity import ModelIdentity, read_model_identity
from finesteer_local.paths import size

if TYPE_CHECKING:
    from finesteer_local.runtime import SteeredLlama
    from finesteer_local.runtime.machine import Placement

ROUNDS, ANSWER = 5, 16
_NOISE = 0.05  # of the logits' spread: devices may add in another order
_SLOW = 0.9


def examine_model(path: Path, *, profiles: Sequence[Path] = (), **options: Any) -> Iterator[Finding]:
    """Open the model at `path` and try everything that a steered answer needs.

    Args:
        profiles: profile files that are to fit, beside those that have a name.
        options: as for `runtime.open_model`.
    """
    from finesteer_local.runtime import open_model
    from finesteer_local.runtime.machine import watch_placement

    try:
        identity = read_model_identity(path)
        yield _about(path, identity)
        started = time.perf_counter()
        with watch_placement() as placement:
            llama = open_model(path, **options)
        seconds = time.perf_counter() - started
    except FineSteerError as error:
        yield Finding("model", "opens", "no", BROKEN, str(error))
        return
    try:
        yield Finding("model", "opens", f"in {seconds:.2f} s", data={"seconds": seconds})
        yield from _placement(identity, placement)
        yield _template(llama)
        yield from _steering(llama)
        yield from _profiles(llama, identity, profiles)
    finally:
        llama.close()


def _about(path: Path, identity: ModelIdentity) -> Finding:
    says = (
        f"{identity.name}: {identity.architecture}, {identity.n_layer} layers of width {identity.n_embd}, "
        f"{identity.n_vocab:,} tokens, {size(path.stat().st_size)}"
    )
    return Finding("model", "file", says, data={"path": str(path), **vars(identity)})


def _placement(identity: ModelIdentity, placement: Placement) -> Iterator[Finding]:
    counts = Counter(device for layer, device in placement.layers.items() if layer < identity.n_layer)
    says = ", ".join(f"{n} of {identity.n_layer} on {device}" for device, n in counts.items())
    data = {"layers": {str(layer): device for layer, device in sorted(placement.layers.items())}}
    if says:
        yield Finding("model", "layers", says, data=data)
    else:
        yield Finding(
            "model", "layers", "llama.cpp's log does not tell", NOTE, "none needed: only this line is missing"
        )
    names = {"model": "weights", "KV": "keys and values", "RS": "recurrent state", "compute": "working space"}
    parts = [
        f"{names[kind]} {sum(places.values()):,.0f} MiB ({', '.join(places)})"
        for kind, places in placement.buffers.items()
        if kind in names
    ]
    if parts:
        yield Finding("model", "memory", ", ".join(parts), data={"MiB": placement.buffers})


def _template(llama: SteeredLlama) -> Finding:
    from finesteer_local.runtime import uses_plain_format
    from finesteer_local.runtime.prompt import chat_prompt, contents_stay_text

    own = not uses_plain_format(llama)
    try:
        chat_prompt(llama, [{"role": "user", "content": "Hello"}])
    except Exception as error:  # a template is a program that came with the model
        remedy = (
            "" if isinstance(error, FineSteerError) else "fetch the model again, or continue text without a template"
        )
        return Finding("model", "chat template", f"cannot be used: {error}", BROKEN, remedy, {"own": own})
    if not contents_stay_text(llama):
        return Finding(
            "model",
            "chat template",
            "changes what messages say: special tokens in them are read as the template's own",
            NOTE,
            "take such text from nobody whom you do not trust",
            {"own": own},
        )
    remedy = "chats need an instruction-tuned model; a file of one that lost its template should be fetched again"
    return Finding(
        "model",
        "chat template",
        "its own" if own else "none, a plain format stands in",
        GOOD if own else NOTE,
        "" if own else remedy,
        {"own": own},
    )


def _steering(llama: SteeredLlama) -> Iterator[Finding]:
    from finesteer_local.runtime.probe import tap_against_control_vector
    from finesteer_local.runtime.timing import controlled, generated, some_vector, token_seconds

    try:
        llama.check_steerable()
    except FineSteerError as error:
        remedy = "use a model of another architecture, or run this one without profiles"
        yield Finding("steering", "tap and control vector", str(error), BROKEN, remedy)
        return
    difference = tap_against_control_vector(llama)
    agree = difference <= _NOISE
    yield Finding(
        "steering",
        "tap and control vector",
        "the tap sees its layer, both move the logits, "
        + ("alike bit for bit" if difference == 0 else f"{difference:.1g} of their spread apart"),
        GOOD if agree else BROKEN,
        "" if agree else "the tap does not work on this device: try --gpu-layers 0, and report it with `doctor --json`",
        {"difference": difference},
    )
    prompt, vector = _prompt(llama), some_vector(llama)
    seconds: dict[str, list[float]] = {"unsteered": [], "steered": []}
    for i in range(-1, ROUNDS):
        for name, vectors in (("unsteered", {}), ("steered", vector)):
            with controlled(llama, vectors):
                [each] = token_seconds([generated(llama, prompt)], ANSWER)
            if i >= 0:  # the first of each warms up
                seconds[name].append(each)
    speeds = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    ratio = speeds["steered"] / speeds["unsteered"]
    yield Finding(
        "steering",
        "answers",
        f"{speeds['unsteered']:.0f} tokens a second unsteered, {speeds['steered']:.0f} steered ({ratio:.2f})",
        GOOD if ratio >= _SLOW else NOTE,
        "" if ratio >= _SLOW else "measure it when nothing else runs: finesteer-local bench MODEL --what decode",
        {"tokens_per_second": speeds, "ratio": ratio},
    )


def _profiles(llama: SteeredLlama, identity: ModelIdentity, given: Sequence[Path]) -> Iterator[Finding]:
    from finesteer_local.profile import layer_words

    named = [(ref.name, ref.path) for ref in catalog.available_profiles(identity.fingerprint) if not ref.problem]
    if not named and not given:
        remedy = "train one: finesteer-local train MODEL --recipe safety"
        yield Finding("steering", "profiles", "none for this model", NOTE, remedy, {"names": []})
    for name, path in [*named, *((path.name, path) for path in given if path not in dict(named).values())]:
        try:
            llama.set_profiles([path])
        except ProfileError as error:
            yield Finding("steering", f"profile {name}", "does not fit", BROKEN, str(error))
            continue
        profile, problem = llama.profiles[0], _decide(llama)
        steered = f"steers {layer_words(profile.layers)}, scope {profile.scope}"
        says = f"fits: {steered}; its gate reads layer {profile.gate_layer}"
        if problem:
            yield Finding("steering", f"profile {name}", str(problem), BROKEN, "train it again, or leave it out")
        else:
            yield Finding("steering", f"profile {name}", says, data={"name": profile.name, "path": str(path)})


def _decide(llama: SteeredLlama) -> FineSteerError | None:
    """Read a short prompt under the profile; what it decides does not matter."""
    try:
        next(llama.generate(_prompt(llama), temp=0.0))
    except FineSteerError as error:
        return error
    return None


def _prompt(llama: SteeredLlama) -> list[int]:
    return list(range(3, 3 + min(24, llama.n_vocab() - 3)))
