"""A Hugging Face model directory in the place of a GGUF model, for training on a machine whose GPU PyTorch knows.

It is a `TrainableModel`: prompts, hidden states through a tap, greedy answers and log-probabilities under profiles.
Nothing is cached between requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesteer_local.errors import PromptError
from finesteer_local.profile import Profile
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.prompt import (
    NOTHING,
    Message,
    Unsteered,
    _plain_format,
    chat_prompt,
    turn_start,
    unsteered_parts,
)
from finesteer_local.runtime.prompt_pass import Segment
from finesteer_local.runtime.steered_request import Steer, SteeredRequest, Steering, check_range, check_steer
from finesteer_local.runtime.trainable import Asked, WholeAnswer
from finesteer_local.training.transformers_folder import identity_of, load
from finesteer_local.training.transformers_tap import BlockReader, BlockTap, Stop, steered_rows, whole_plan

MAX_CONTEXT = 4096
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")


class TransformersModel:
    """See the module. `model_path` is the directory.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: the directory holds no model that it can load, or not the one that `gguf` is of.
    """

    chat_format = "transformers"
    plain_gguf = False
    settings_of_states: Sequence[Any] = ()
    _chat_handlers: Mapping[str, Any] = {}

    def __init__(self, folder: str | Path, *, gguf: str | Path | None = None, device: str | None = None) -> None:
        self.model_path = str(folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.steer: tuple[Steer, ...] = ()
        self.model, self.tokenizer = load(Path(folder), self.device)
        self._blocks = self.model.get_decoder().layers
        self.tap = BlockTap(self._blocks)
        self.identity = identity_of(Path(folder), self.model, self.tokenizer, gguf)
        ends = [self.tokenizer.convert_tokens_to_ids(text) for text in _TURN_ENDS if text in self.tokenizer.get_vocab()]
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends += configured if isinstance(configured, list) else [configured]
        ends.append(self.tokenizer.eos_token_id)
        self._ends = dict.fromkeys(int(token) for token in ends if token is not None)  # the likeliest first

    # --- what a Llama has

    @property
    def n_layer(self) -> int:
        return len(self._blocks)

    @property
    def n_parameters(self) -> int:
        return int(self.model.num_parameters())

    @property
    def weights(self) -> Any:
        """The model in PyTorch."""
        return self.model

    @property
    def turn_end(self) -> int:
        """The token with which the model ends its turn: the first of those that are known to."""
        return int(next(iter(self._ends)))

    def n_embd(self) -> int:
        return int(self.model.config.hidden_size)

    def n_ctx(self) -> int:
        return min(int(getattr(self.model.config, "max_position_embeddings", MAX_CONTEXT)), MAX_CONTEXT)

    def token_bos(self) -> int:
        bos = self.tokenizer.bos_token_id
        return -1 if bos is None else int(bos)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return list(self.tokenizer(text.decode("utf-8", "ignore"), add_special_tokens=add_bos)["input_ids"])

    def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> bytes:
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)).encode()

    def chat_handler(self, *, llama: Any, messages: Sequence[Any], **_: Any) -> Any:
        """Renders and tokenises as the model's own template says (see `runtime.prompt.chat_prompt`)."""
        if self.tokenizer.chat_template is None:
            prompt = _plain_format(list(messages)).prompt
            return llama.create_completion(prompt=self.tokenize(prompt.encode()))
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return llama.create_completion(prompt=self.tokenize(text.encode(), add_bos=False))

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self._blocks
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def decode_rows(self, tokens: Sequence[int], n_past: int, *, all_rows: bool = False) -> None:
        """Read `tokens` from scratch; the armed handlers see every block's output."""
        with suppress(Stop):
            self._forward(tokens)

    def reader(self, layers: Sequence[int]) -> Reader:
        """Reads hidden states, prompt by prompt."""
        return BlockReader(self, layers)

    # --- steering

    def set_profiles(
        self, profiles: Sequence[Profile] = (), *, strength: float | None = None, scope: str | None = None
    ) -> None:
        """Replace the active profiles."""
        steer = tuple(Steer(profile, strength, scope) for profile in profiles)
        check_range(strength, scope)
        check_steer(steer, self)
        self.steer = steer

    def check_steerable(self, layers: Iterable[int] = ()) -> None:
        """Every block's output is a module's: there is nothing to find out."""

    def decide(self, prompt: Sequence[int], turn: int, unsteered: Unsteered = NOTHING) -> SteeredRequest:
        """The request of a prompt, decided by the active profiles."""
        request = SteeredRequest(prompt, Steering(self.steer, turn, unsteered), self.n_layer)
        if self.steer:
            request.begin(0, steers=False)
            self.tap.arm(request.handlers)
            try:
                self.decode_rows(prompt, 0)
            finally:
                self.tap.disarm()
            request.decided()
        return request

    def create_chat_completion(self, messages: Any, *, max_tokens: int, **_: Any) -> dict[str, Any]:
        """As `Llama.create_chat_completion`, always greedy, as far as `runtime.prompt.greedy_answer` reads it."""
        text, ended = self._answer(messages, max_tokens)
        reason = "stop" if ended else "length"
        return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}

    def greedy_answers(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, *, at_most: int = 1
    ) -> Iterator[str]:
        """Greedy answers under the active profiles, in order, one at a time."""
        return (self._answer(messages, max_tokens).text for messages in conversations)

    def whole_answers(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        temperature: float,
        *,
        seed: int = 0,
        at_most: int = 1,
    ) -> Iterator[WholeAnswer]:
        """Answers under the active profiles, in order; greedy, whatever the temperature."""
        return (self._answer(messages, max_tokens) for messages in conversations)

    def _answer(self, messages: Sequence[Message], max_tokens: int) -> WholeAnswer:
        prompt = chat_prompt(self, messages)
        plan: list[Segment] = []
        if self.steer:
            turn = turn_start(self, messages, prompt)
            parts = unsteered_parts(self, messages, prompt, skip_thinking=False)
            plan = whole_plan(self.decide(prompt, turn, parts))
        answer: list[int] = []
        ended = False
        for token in self.generate(prompt, plan):
            ended = token in self._ends
            if ended or len(answer) == max_tokens:
                break
            answer.append(token)
        text = self.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return WholeAnswer(text, ended)

    def generate(self, prompt: Sequence[int], plan: Sequence[Segment] = ()) -> Iterator[int]:
        """Greedy tokens after `prompt`, steered by `plan`, until the context is full."""
        past, read, start = None, list(prompt), 0
        while start + len(read) < self.n_ctx():
            with self._steered(plan, start, len(read)):
                out = self._forward(read, past_key_values=past, use_cache=True)
            token = int(out.logits[0, -1].argmax())
            past, start, read = out.past_key_values, start + len(read), [token]
            yield token

    def answer_logprobs(
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], *, turn: int = 0
    ) -> list[NDArray[np.float64]]:
        """As `runtime.score.answer_logprobs`."""
        plan = whole_plan(self.decide(prompt, turn))
        results = []
        for answer in answers:
            tokens = [*prompt, *answer[:-1]]
            with self._steered(plan, 0, len(tokens)):
                logits = self._forward(tokens).logits[0, len(prompt) - 1 :].double()
            scores = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(list(answer))]
            results.append(np.asarray(scores.cpu().numpy(), np.float64))
        return results

    def many_logprobs(self, asked: Sequence[Asked]) -> list[list[NDArray[np.float64]]]:
        """Those of many prompts, one after the other."""
        return [self.answer_logprobs(prompt, answers, turn=turn) for prompt, answers, turn in asked]

    @contextmanager
    def _steered(self, plan: Sequence[Segment], start: int, n_rows: int) -> Iterator[None]:
        """Add the plan's vectors to the rows `start` to `start + n_rows` of the sequence."""
        self.tap.add(
            [
                (layer, first, last, vector)
                for first, last, vectors in steered_rows(plan, start, n_rows)
                for layer, vector in vectors.items()
            ]
        )
        try:
            yield
        finally:
            self.tap.disarm()

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int], **options: Any) -> Any:
        if not 0 < len(tokens) <= self.n_ctx():
            raise PromptError(f"a prompt of {len(tokens)} tokens does not fit the context ({self.n_ctx()})")
        options.setdefault("use_cache", False)
        return self.model(input_ids=torch.tensor([list(tokens)], device=self.device), **options)
