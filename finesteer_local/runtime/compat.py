"""All that we use of llama-cpp-python beyond its documented interface, and whether a release has it.

The other modules get it here and never by its private name (a test holds that). A release may rename any of it, and
most of that would pass without a word: ctypes takes a field that a structure does not have, Python an attribute that
nobody reads. So everything has its entry in `_NAMES`, `_USED` or `_FIELDS`, and `check` compares these with the release
that is installed before anything is opened. `tests/newest_llama_cpp.py` tries a new release.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp
from llama_cpp import llama_chat_format, llama_grammar
from llama_cpp import llama_cpp as _api

from finesteer_local import distribution
from finesteer_local.errors import SteeringError
from finesteer_local.runtime.amx import PlainLlama

GET_SCHEDULER = "_ZNK13llama_context9get_schedEv"
"""`llama_context::get_sched`, as GCC and Clang name it. Not every library shows it; `Tap` can do without."""

_NAMES = {  # module of llama_cpp -> what we take from it
    "_ctypes_extensions": ("load_shared_library",),
    "_ggml": ("libggml",),
    "_internals": (
        "LlamaBatch.set_batch",
        "LlamaContext.decode",
        "LlamaModel",
        "LlamaSampler.add_dist",
    ),
    "_logger": ("llama_log_callback",),
    "llama_chat_format": ("Jinja2ChatFormatter.IgnoreGenerationTags", "get_chat_completion_handler", "llama_grammar"),
    "llama_cpp": ("_lib",),
    "llama_grammar": ("LLAMA_GRAMMAR_DEFAULT_ROOT", "LlamaGrammar.from_json_schema", "LlamaGrammar.from_string"),
}
_USED = {  # function of llama_cpp -> names that its code has to mention, for what we do with them to have an effect
    "llama.Llama.__init__": (
        *("context_params", "model_params", "_batch", "_chat_handlers", "_ctx", "_lora_adapter", "_logits_all"),
        *("_model", "_requires_eval", "input_ids", "n_tokens", "scores"),
    ),
    "llama.Llama.create_chat_completion": ("_chat_handlers", "chat_format", "chat_handler"),
    "llama.Llama.eval": ("_batch", "_ctx", "_requires_eval", "n_tokens"),
    "llama.Llama.generate": ("_init_sampler", "_requires_eval", "eval", "n_tokens", "reset", "sample"),
    "llama.Llama.tokenize": ("tokenizer_",),
    "llama_grammar.LlamaGrammar.__init__": ("_grammar", "_root"),
}
_FIELDS = {  # structure -> fields that we set
    "llama_batch": ("logits", "n_seq_id", "n_tokens", "pos", "seq_id", "token"),
    "llama_context_params": (
        *("cb_eval", "cb_eval_user_data", "embeddings", "flash_attn_type", "kv_unified", "n_batch", "n_ctx"),
        *("n_outputs_max", "n_seq_max", "n_ubatch", "swa_full"),
    ),
    "llama_model_params": ("load_mode", "n_gpu_layers", "use_extra_bufts"),
    "llama_model_quantize_params": ("allow_requantize", "ftype"),
}
_PACKAGE = "llama-cpp-python"

S = TypeVar("S", bound=ctypes.Structure)


# --- is it all there?


def missing() -> list[str]:
    """What the installed release of llama-cpp-python lacks of what we use."""
    wanted = [f"{module}.{name}" for module, names in _NAMES.items() for name in names]
    lacks = [name for name in wanted if _found(name) is None]
    for function, names in _USED.items():
        code = getattr(_found(function), "__code__", None)
        mentioned = code.co_names + code.co_varnames if code else ()
        lacks += [f"{name} in {function}" for name in names if name not in mentioned]
    for structure, names in _FIELDS.items():
        has = _fields(getattr(_api, structure, None))
        lacks += [f"{structure}.{name}" for name in names if name not in has]
    return lacks


def check() -> None:
    """Make sure that the installed release of llama-cpp-python has all that we use.

    Raises:
        SteeringError: it does not; the message names what is missing.
    """
    if lacks := missing():
        raise _unfit(lacks)


def tested() -> str:
    """The releases of llama-cpp-python that this one of ours was tested with, as in `>=0.3.36,<0.3.37`."""
    return next((str(each.specifier) for each in distribution.requirements() if each.name == _PACKAGE), "")


def _unfit(lacks: Sequence[str]) -> SteeringError:
    install = distribution.install(_PACKAGE + tested())
    return SteeringError(
        f"{_PACKAGE} {llama_cpp.__version__} has no {', '.join(lacks)}; install a release that was tested: {install}"
    )


def _found(name: str) -> Any:
    """Something of llama_cpp, `module.attribute...`; None where there is none."""
    module, *rest = name.split(".")
    try:
        found = importlib.import_module(f"llama_cpp.{module}")
        for part in rest:
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


# --- structures


def set_fields(structure: S, **values: Any) -> S:
    """Set fields of a structure, and return it.

    Raises:
        SteeringError: it has no such field. ctypes itself would take the value without a word.
    """
    has = _fields(type(structure))
    for name, value in values.items():
        if name not in has:
            raise _unfit([f"{type(structure).__name__}.{name}"])
        setattr(structure, name, value)
    return structure


@cache
def _fields(structure: type[ctypes.Structure] | None) -> frozenset[str]:
    return frozenset(field[0] for field in getattr(structure, "_fields_", ()))


# --- llama.cpp's objects


def new_model(path: Path, params: Any) -> Any:
    """A model, as `Llama` holds it (`model_of`)."""
    return _internals().LlamaModel(path_model=str(path), params=params, verbose=False)


def new_context(model: Any, params: Any, *, verbose: bool) -> Any:
    """A context of such a model; it goes when the model is closed.

    Raises:
        ValueError: llama.cpp cannot make it.
    """
    return _internals().LlamaContext(model=model, params=params, verbose=verbose)


def new_batch(n_tokens: int, *, verbose: bool) -> Any:
    """A batch of tokens that belong to one sequence each; its `llama_batch` is `batch`."""
    return _internals().LlamaBatch(n_tokens=n_tokens, embd=0, n_seq_max=1, verbose=verbose)


def new_sampler() -> Any:
    """An empty chain of samplers."""
    return _internals().LlamaSampler()


def _internals() -> Any:
    return importlib.import_module("llama_cpp._internals")


def libraries() -> Iterator[Any]:
    """The shared libraries of llama-cpp-python that may export functions of ggml."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    yield from (_api._lib, _found("_ggml.libggml"))
    with suppress(OSError, RuntimeError):
        yield _found("_ctypes_extensions.load_shared_library")("ggml-base", folder)


def log_callback() -> Any:
    """The function that prints llama.cpp's log unless another one was set (`llama_log_set`)."""
    return _found("_logger.llama_log_callback")


# --- `Llama`


def model_of(llama: Any) -> Any:
    """The model of a `Llama` (`new_model`)."""
    return llama._model


def chat_handlers(llama: Any) -> Mapping[str, Any]:
    """The chat handlers that a model brings: chat format -> handler."""
    handlers: Mapping[str, Any] = llama._chat_handlers
    return handlers


@cache
def _place_of_reset() -> int:
    return list(inspect.signature(llama_cpp.Llama.generate).parameters).index("reset") - 2  # after self and tokens


def asks_reset(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `Llama.generate(tokens, *args, **kwargs)` is to begin a new prompt."""
    at = _place_of_reset()
    return bool(kwargs.get("reset", args[at] if len(args) > at else True))


def without_reset(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of `Llama.generate(tokens, *args, **kwargs)` that go on from what is read."""
    at, given = _place_of_reset(), list(args)
    if len(given) > at:
        given[at] = False
        return given, dict(kwargs)
    return given, {**kwargs, "reset": False}


class OpenLlama(PlainLlama):
    """`llama_cpp.Llama`, with names of ours for what it keeps to itself.

    Attributes:
        accepted: tokens that the sampler of an answer that begins is to take for its own, as of one that goes on.
    """

    accepted: Sequence[int] = ()

    @property
    def stale(self) -> bool:
        """Whether the logits at hand are not those of the token read last; `generate` then reads before it samples."""
        return bool(self._requires_eval)

    @stale.setter
    def stale(self, stale: bool) -> None:
        self._requires_eval = stale

    @property
    def adapter(self) -> Any:
        """The LoRA adapter that the model was opened with, or None."""
        return self._lora_adapter

    @property
    def keeps_all_logits(self) -> bool:
        """Whether `scores` has a row for every token."""
        return bool(self._logits_all)

    def decode_batch(self, tokens: Sequence[int], n_past: int, *, all_rows: bool) -> None:
        """One `llama_decode` of at most `n_batch` tokens; logits of the last of them, or of all."""
        self._batch.set_batch(batch=tokens, n_past=n_past, logits_all=all_rows)
        self._ctx.decode(self._batch)

    def processors(self, grammar: Any, processors: Any) -> Any:
        """The logits processors of an answer that is about to begin, given what the caller wants of it."""
        return processors

    def _init_sampler(  # type: ignore[override]
        self, *, grammar: Any = None, logits_processor: Any = None, **options: Any
    ) -> Any:
        sampler = super()._init_sampler(logits_processor=self.processors(grammar, logits_processor), **options)
        for token in self.accepted:
            sampler.accept(token)
        return sampler


# --- grammars


class OwnGrammar(llama_grammar.LlamaGrammar):
    """A grammar whose GBNF is made once llama_cpp asks for it."""

    def __init__(self, gbnf: Callable[[], str]) -> None:
        self._gbnf, self._root = gbnf, llama_grammar.LLAMA_GRAMMAR_DEFAULT_ROOT

    @property
    def _grammar(self) -> str:  # type: ignore[override]
        return self._gbnf()


def gbnf_of(grammar: Any) -> str:
    """The GBNF of a `LlamaGrammar`."""
    return str(grammar._grammar)


def use_grammars(module: Any) -> None:
    """Let the chat handlers make their grammars by `module` instead of `llama_cpp.llama_grammar`."""
    vars(llama_chat_format)["llama_grammar"] = module


check()  # whoever imports this needs it all
