"""FineSteer Local: steering for GGUF models that decides, prompt by prompt, when and how to steer.

    from finesteer_local import SteeredLlama                             # llama_cpp.Llama, steered
    from finesteer_local import BatchEngine, Profile, Steer, open_model  # many requests at once

Names are imported when they are first used, so that importing the package loads neither numpy nor llama.cpp nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        ContextLengthError,
        DataError,
        DownloadError,
        EngineClosedError,
        EngineError,
        FineSteerError,
        JudgeError,
        MissingExtraError,
        ModelError,
        OptionError,
        ProfileError,
        ProfileMismatchError,
        PromptError,
        QueueFullError,
        StalledError,
        SteeringError,
        StorageError,
        UnknownNameError,
        WorkerError,
    )
    from .profile import Profile
    from .runtime import SteeredLlama, open_model
    from .runtime.batch import BatchEngine, Steer
    from .runtime.check import Check
    from .steering import Decision
    from .training import train_profile

__version__ = "0.1.0"

__all__ = [
    "BatchEngine",
    "Check",
    "ContextLengthError",
    "DataError",
    "Decision",
    "DownloadError",
    "EngineClosedError",
    "EngineError",
    "FineSteerError",
    "JudgeError",
    "MissingExtraError",
    "ModelError",
    "OptionError",
    "Profile",
    "ProfileError",
    "ProfileMismatchError",
    "PromptError",
    "QueueFullError",
    "StalledError",
    "Steer",
    "SteeredLlama",
    "SteeringError",
    "StorageError",
    "UnknownNameError",
    "WorkerError",
    "__version__",
    "open_model",
    "train_profile",
]

# Where a name comes from; the errors, which are all the others, from `.errors`.
_HOME = {
    "BatchEngine": ".runtime.batch",
    "Check": ".runtime.check",
    "Decision": ".steering",
    "Profile": ".profile",
    "Steer": ".runtime.batch",
    "SteeredLlama": ".runtime",
    "open_model": ".runtime",
    "train_profile": ".training",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME.get(name, ".errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
