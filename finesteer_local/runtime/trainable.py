"""What others ask of a model: a chat's prompt, and all that training and its judges need.

`SteeredLlama` is one `TrainableModel`, `training.transformers_model.TransformersModel` another, and
`training.torch_engine.TorchEngine` the first one answering by means of the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy import float64
from numpy.typing import NDArray

if TYPE_CHECKING:
    from finesteer_local.identity import ModelIdentity
    from finesteer_local.profile import Profile
    from finesteer_local.runtime.harvest import Reader
    from finesteer_local.runtime.prompt import Message


class ChatModel(Protocol):
    """What the prompt of a chat is made with; every `llama_cpp.Llama` is one."""

    @property
    def chat_format(self) -> str | None: ...

    @property
    def chat_handler(self) -> Any: ...

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]: ...

    def detokenize(self, tokens: list[int], *, special: bool = False) -> bytes: ...


class WholeAnswer(NamedTuple):
    """An answer, and whether the model ended it by itself."""

    text: str
    ended: bool


class Asked(NamedTuple):
    """Tokens of a prompt and of answers that are compared after it, and the index at which its last turn starts."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    turn: int = 0


class TrainableModel(ChatModel, Protocol):
    """What training asks of a model.

    Attributes:
        model_path: the file, or the folder, that it was opened from.
        turn_end: the token with which it ends its turn.
        weights: the model in PyTorch, where it runs there; None for llama.cpp.
        plain_gguf: whether it computes what its GGUF file says, alone and on this machine's processor: what else can
            read the file then gives the same.
        settings_of_states: what decides its hidden states besides its files, for JSON.
    """

    @property
    def model_path(self) -> str: ...

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def n_layer(self) -> int: ...

    @property
    def n_parameters(self) -> int: ...

    @property
    def turn_end(self) -> int: ...

    @property
    def weights(self) -> Any: ...

    @property
    def plain_gguf(self) -> bool: ...

    @property
    def settings_of_states(self) -> Sequence[Any]: ...

    def n_embd(self) -> int: ...

    def n_ctx(self) -> int: ...

    def token_bos(self) -> int: ...

    def set_profiles(
        self, profiles: Sequence[Profile] = (), *, strength: float | None = None, scope: str | None = None
    ) -> None:
        """Replace the active profiles; without arguments, steer nothing."""

    def check_steerable(self, layers: Iterable[int] = ()) -> None:
        """Raise `SteeringError` where a layer's output cannot be reached."""

    def reader(self, layers: Sequence[int]) -> Reader:
        """What reads its hidden states at `layers`."""

    def greedy_answers(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, *, at_most: int
    ) -> Iterator[str]:
        """Greedy answers under the active profiles, in order; up to `at_most` at a time."""

    def whole_answers(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        temperature: float,
        *,
        seed: int,
        at_most: int,
    ) -> Iterator[WholeAnswer]:
        """Answers under the active profiles, in order, sampled as in a chat; the i-th one's seed is `seed + i`."""

    def answer_logprobs(
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], *, turn: int = 0
    ) -> list[NDArray[float64]]:
        """Log-probability of each token of each answer after `prompt`, steered as the active profiles decide.

        Arguments and result as of `runtime.score.answer_logprobs`.
        """

    def many_logprobs(self, asked: Sequence[Asked]) -> list[list[NDArray[float64]]]:
        """What `answer_logprobs` gives for each of many prompts, in order."""
