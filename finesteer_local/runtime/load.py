"""Opening a model for a person: one clear line instead of llama.cpp's log, and sensible defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finesteer_local.errors import FineSteerError, ModelError
from finesteer_local.identity import ModelIdentity, check_first_part, read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime.cores import default_threads
from finesteer_local.runtime.prompt import PLAIN_FORMAT
from finesteer_local.runtime.rpc import use_workers
from finesteer_local.runtime.steered import SteeredLlama

DEFAULT_CONTEXT = 4096


def open_model(
    path: str | Path,
    *,
    profiles: Iterable[Profile | str | Path] = (),
    strength: float | None = None,
    scope: str | None = None,
    policy: Mapping[str, str] | None = None,
    on_answer: str | None = None,
    n_ctx: int = 0,
    n_threads: int | None = None,
    rpc: Sequence[str] = (),
    identity: ModelIdentity | None = None,
    verbose: bool = False,
    **kwargs: Any,
) -> SteeredLlama:
    """Load the GGUF model at `path` as a `SteeredLlama`.

    A model without a chat template gets the plain format of `prompt.PLAIN_FORMAT` (see `uses_plain_format`).

    Args:
        path: a GGUF file; `catalog.resolve_model` gives that of a name.
        profiles, strength, scope, policy, on_answer: as for `SteeredLlama`; `catalog.resolve_profile` gives the file of
            a profile's name.
        n_ctx: context in tokens; 0 takes the model's own, at most `DEFAULT_CONTEXT`.
        n_threads: for prefill and decode; None asks `default_threads`.
        rpc: workers, `host:port`, whose devices llama.cpp may put layers on, this model's and every later one's
            (`runtime.rpc`); `n_gpu_layers` counts layers there too.
        identity: what `read_model_identity(path)` gave, where that was read before.
        verbose: let llama.cpp write its log to stderr.
        kwargs: everything else that `SteeredLlama` and `llama_cpp.Llama` take.

    Raises:
        ModelError: the file is missing, damaged, no language model, or llama.cpp cannot load it.
        ProfileError, SteeringError: as for `SteeredLlama`.
        WorkerError: a worker cannot be used, or llama.cpp was built without RPC.
    """
    identity = identity or read_model_identity(path)  # catches what llama.cpp would abort on
    check_first_part(Path(path))
    use_workers(rpc)
    threads = n_threads or default_threads()
    try:
        llama = SteeredLlama(
            str(path),
            identity=identity,
            n_ctx=n_ctx or min(identity.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT),
            n_threads=threads,
            n_threads_batch=threads,
            verbose=verbose,
            **kwargs,
        )
    except FineSteerError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(
            f"llama.cpp cannot load {path} (architecture {identity.architecture!r}): {error}; "
            "update llama-cpp-python, or fetch the file again"
        ) from error
    try:
        if uses_plain_format(llama) and "chat_format" not in kwargs and "chat_handler" not in kwargs:
            llama.chat_format = PLAIN_FORMAT
        llama.set_profiles(profiles, strength=strength, scope=scope, policy=policy, on_answer=on_answer)
    except BaseException:
        llama.close()
        raise
    return llama


def uses_plain_format(llama: SteeredLlama) -> bool:
    """Whether the model brings no chat template of its own."""
    return not any(key.startswith("tokenizer.chat_template") for key in llama.metadata)
