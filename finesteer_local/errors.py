"""The errors a user can cause, as one family.

Every message is one line that says what is wrong and what to do about it. The command line prints it and exits with
code 1; a library user catches `FineSteerError`, or the built-in exception that each child also is.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` on one line, without control characters: texts from files may hold both."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class FineSteerError(Exception):
    """Base of every error that FineSteer Local raises on purpose."""


class ModelError(FineSteerError, ValueError):
    """A model file that is missing, damaged, not GGUF, or that llama.cpp cannot load."""


class ProfileError(FineSteerError, ValueError):
    """A profile file that is damaged or holds values outside their range; the message names the field."""


class ProfileMismatchError(ProfileError):
    """A sound profile, but for another model."""


class UnknownNameError(FineSteerError, LookupError):
    """A model, profile or recipe name that the catalogue does not have; the message offers the nearest ones."""


class DataError(FineSteerError, ValueError):
    """Training or evaluation data that cannot be used; the message names the file and the line."""


class PromptError(FineSteerError, ValueError):
    """A prompt that is empty, not UTF-8, or longer than the context."""


class ContextLengthError(PromptError):
    """A prompt of `n_prompt` tokens that leaves no room in the context of `n_ctx` for an answer, or for that of
    `n_answer` tokens which was given."""

    def __init__(
        self,
        n_prompt: int,
        n_ctx: int,
        remedy: str = "shorten it, or open the model with a larger context",
        n_answer: int = 0,
    ) -> None:
        super().__init__(n_prompt, n_ctx, remedy, n_answer)
        self.n_prompt, self.n_ctx, self.remedy, self.n_answer = n_prompt, n_ctx, remedy, n_answer

    def __str__(self) -> str:
        answer = f" and its answer {self.n_answer:,}" if self.n_answer else ""
        return f"the prompt has {self.n_prompt:,} tokens{answer}, the context only {self.n_ctx:,}; {self.remedy}"


class OptionError(PromptError):
    """An option of a request that is out of its range or cannot be had; `option` names it."""

    def __init__(self, message: str, option: str | None = None) -> None:
        self.option = option
        super().__init__(message)


class SteeringError(FineSteerError, RuntimeError):
    """Steering that cannot be applied: a non-finite hidden state, or an architecture llama.cpp cannot steer."""


class JudgeError(FineSteerError, RuntimeError):
    """A judge of answers that cannot be reached, or that does not answer as asked."""


class WorkerError(FineSteerError, ConnectionError):
    """A worker (llama.cpp's RPC) that cannot be reached, speaks another version, or has gone away."""


class QueueFullError(FineSteerError, RuntimeError):
    """More requests than may wait; ask again later."""


class EngineClosedError(FineSteerError, RuntimeError):
    """The engine that answers requests is being closed, or is: there is no later."""


class EngineError(FineSteerError, RuntimeError):
    """The engine that answers requests has failed at something that no request explains; it takes no others."""


class StalledError(EngineError, TimeoutError):
    """The engine has not moved for too long."""


class DownloadError(FineSteerError, OSError):
    """A download that failed, stopped half-way, or has the wrong hash."""


class StorageError(FineSteerError, OSError):
    """A file that cannot be written: no right, no space, or something is in the way."""


class MissingExtraError(FineSteerError, ImportError):
    """An optional part that is not installed; the message holds the command that installs it."""
