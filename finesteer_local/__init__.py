"""FineSteer Local: steering for GGUF models that decides, prompt by prompt, when and how to steer.

    from finesteer_local import SteeredLlama

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
    from .runtime import SteeredLlama
    from .training import train_profile

__version__ = "0.1.0"

__all__ = [
    "ContextLengthError",
    "DataError",
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
    "SteeredLlama",
    "SteeringError",
    "StorageError",
    "UnknownNameError",
    "WorkerError",
    "__version__",
    "train_profile",
]

_HOME = {"Profile": ".profile", "SteeredLlama": ".runtime", "train_profile": ".training"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME.get(name, ".errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
