"""The machine: versions, processor, devices, the tap, and the folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement

from finesteer_local import __version__, catalog, distribution, paths, state_cache
from finesteer_local.doctor.finding import BROKEN, GOOD, NOTE, Finding
from finesteer_local.errors import FineSteerError, WorkerError
from finesteer_local.paths import size

REINSTALL = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
EXTRAS = {
    "train": "training profiles",
    "serve": "the HTTP server",
    "hub": "models and profiles from Hugging Face (hf:owner/repo)",
    "sign": "signed profiles of an index (profiles get, profiles pack --key)",
    "transformers": "training from a Hugging Face directory",
}
"""What the optional parts are for; which packages each needs stands in the package's metadata."""
_LITTLE = 1 << 30  # bytes of free disk space
_SLOW_TAP = "answers are as fast, a prompt's one pass is a little slower"


def examine_installation(n_threads: int | None = None, *, rpc: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at everything but a model. llama.cpp is loaded, no model is.

    `rpc` are workers to look at, too (`runtime.rpc.use_workers`).
    """
    yield from _versions()
    try:
        import finesteer_local.runtime.machine  # noqa: F401
    except Exception as error:  # whatever a library that does not fit this machine raises
        reason = " ".join(str(error).split())
        remedy = f"install it for this machine: {REINSTALL}"
        if isinstance(error, FineSteerError):  # a release that lacks something (`runtime.compat.check`)
            reason, _, remedy = reason.partition("; ")
        yield Finding("llama.cpp", "loads", f"no: {reason}", BROKEN, remedy)
    else:
        yield from _llama_cpp(n_threads, rpc)
    yield from _files()


# --- versions


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("versions", distribution.NAME, __version__)
    for requirement in distribution.requirements():
        yield _package(requirement)
    for extra, purpose in EXTRAS.items():
        if packages := distribution.requirements(extra):
            yield _extra(extra, purpose, [each.name for each in packages])


def _package(requirement: Requirement) -> Finding:
    name, version = requirement.name, _version(requirement.name)
    remedy = distribution.install(requirement)
    if not version:
        return Finding("versions", name, "not installed", BROKEN, remedy)
    data = {"version": version}
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("versions", name, f"{version}, needed is {requirement.specifier}", BROKEN, remedy, data)
    return Finding("versions", name, version, data=data)


def _extra(extra: str, purpose: str, packages: list[str]) -> Finding:
    versions = {name: _version(name) for name in packages}
    missing = [name for name, version in versions.items() if not version]
    name, data = f"extra {extra}", {"versions": versions, "installed": not missing}
    if not missing:
        says = ", ".join(f"{name} {version}" for name, version in versions.items())
        return Finding("versions", name, says, data=data)
    says = f"not installed: {', '.join(missing)}"
    return Finding("versions", name, says, NOTE, f"for {purpose}: {distribution.install_extra(extra)}", data)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- llama.cpp


def _llama_cpp(n_threads: int | None, workers: Sequence[str]) -> Iterator[Finding]:
    from finesteer_local.runtime import machine
    from finesteer_local.runtime.amx import has_amx
    from finesteer_local.runtime.compat import tested
    from finesteer_local.runtime.cores import default_threads
    from finesteer_local.runtime.rpc import use_workers
    from finesteer_local.runtime.tap import native_filter

    threads, cores = n_threads or default_threads(), os.cpu_count() or 1
    used = f"{threads} of {cores} logical processors are used"
    if threads > cores:
        more = "more threads than processors wait for each other; give --threads fewer"
        yield Finding("llama.cpp", "threads", used, NOTE, more, {"threads": threads, "processors": cores})
    else:
        yield Finding("llama.cpp", "threads", used, data={"threads": threads, "processors": cores})
    info = machine.system_info()
    features = [name for name, value in re.findall(r"(\w+) = (\d+)", info) if value != "0"]
    note = ""
    if platform.machine() in ("x86_64", "AMD64") and "AVX2" not in features:
        note = f"this build uses no AVX2 and is slow; where the processor has it: {REINSTALL}"
    elif has_amx():
        note = "AMX is left alone: compiled by GCC 12 or older, llama.cpp crashes with it (its issue 20824)"
    yield Finding(
        "llama.cpp",
        "processor features",
        " ".join(features) or "none reported",
        NOTE if note else GOOD,
        note,
        {"llama_print_system_info": info},
    )
    try:
        use_workers(workers)
    except WorkerError as error:
        yield Finding("llama.cpp", "workers", ", ".join(workers), BROKEN, str(error))
    gpu, devices = machine.supports_gpu(), machine.devices()
    yield Finding(
        "llama.cpp",
        "GPU offload",
        "yes" if gpu else "this build runs on the processor only",
        GOOD if gpu else NOTE,
        "" if gpu else f'for an NVIDIA GPU: CMAKE_ARGS="-DGGML_CUDA=on" {REINSTALL} (Vulkan, HIP: -DGGML_VULKAN, _HIP)',
        {"supported": gpu},
    )
    says = f"all that we use of {machine.version()} is there; tested releases: {tested() or 'not known'}"
    yield Finding("llama.cpp", "private parts", says, data={"version": machine.version(), "tested": tested()})
    rpc = machine.supports_rpc()
    yield Finding(
        "llama.cpp",
        "other machines (RPC)",
        "yes" if rpc else "not in this build",
        GOOD if rpc else NOTE,
        "" if rpc else f'to spread a model over several: CMAKE_ARGS="-DGGML_RPC=on" {REINSTALL}',
        {"supported": rpc},
    )
    for device in devices:
        memory = f", {size(device.free)} of {size(device.total)} free" if device.total else ""
        yield Finding(
            "llama.cpp", f"device {device.name}", f"{device.kind}: {device.description}{memory}", data=vars(device)
        )
    if gpu and not any("GPU" in device.kind for device in devices):
        remedy = "install its driver, or make it visible (CUDA_VISIBLE_DEVICES)"
        yield Finding("llama.cpp", "GPU", "this build could use one, and none is there", NOTE, remedy)
    compiled, reason = native_filter()
    native = {"native": compiled is not None}
    if compiled is not None:
        yield Finding("llama.cpp", "tap", "compiled", data=native)
    else:
        remedy = f"with a C compiler: {distribution.reinstall()}"
        yield Finding("llama.cpp", "tap", f"in Python, because {reason}; {_SLOW_TAP}", NOTE, remedy, native)


# --- folders


def _files() -> Iterator[Finding]:
    for name, folder, holds in (("cache", paths.cache_dir(), "models"), ("data", paths.data_dir(), "profiles")):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(there).free
        data = {"path": str(folder), "free": free}
        says = f"{folder}, {size(free)} free"
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            remedy = f"make {there} writable, or set FINESTEER_HOME to a folder that is"
            yield Finding("files", name, f"{folder} cannot be written", BROKEN, remedy, data)
        elif free < _LITTLE:
            remedy = f"make room for {holds}: finesteer-local cache clear, or set FINESTEER_HOME to another disk"
            yield Finding("files", name, says, NOTE, remedy, data)
        else:
            yield Finding("files", name, says, data=data)
    models = catalog.installed_models()
    total = sum(model.size for model in models)
    says = f"{len(models)} in {paths.models_dir()}, {size(total)}"
    yield Finding("files", "models", says, data={"names": [model.name for model in models], "bytes": total})
    yield from _profiles()
    try:
        kept, limit = sum(row.n_bytes for row in state_cache.kept()), state_cache.limit()
    except FineSteerError as error:
        yield Finding("files", "kept hidden states", str(error), BROKEN, f"unset {state_cache.LIMIT_VARIABLE}")
    else:
        says = f"{size(kept)} of at most {size(limit)} in {state_cache.folder()}"
        yield Finding("files", "kept hidden states", says, data={"bytes": kept, "limit": limit})
    for name, folder in (("kept evaluations", paths.evaluations_dir()), ("interrupted trainings", paths.work_dir())):
        total = _folder_size(folder)
        yield Finding("files", name, f"{size(total)} in {folder}", data={"path": str(folder), "bytes": total})


def _profiles() -> Iterator[Finding]:
    refs = catalog.available_profiles()
    own = [ref for ref in refs if not ref.bundled]
    says = f"{len(refs) - len(own)} with the package, {len(own)} in {paths.profiles_dir()}"
    yield Finding("files", "profiles", says, data={"names": [ref.name for ref in refs]})
    for ref in refs:
        if ref.problem:
            # Only whoever asks for it by name is hurt.
            remedy = distribution.reinstall() if ref.bundled else f"train it again, or remove {ref.path}"
            yield Finding("files", f"profile {ref.name}", ref.problem, NOTE, remedy)


def _folder_size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
