"""A Hugging Face model directory in the place of a GGUF model, for training on a machine whose GPU PyTorch knows.

It offers what training asks of a `SteeredLlama`: prompts, hidden states through a tap, greedy answers and
log-probabilities under profiles. Nothing is cached between requests. The profile is for the GGUF file of the same
model: its fingerprint is computed here as it is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesteer_local.distribution import missing_extra
from finesteer_local.errors import ModelError, PromptError, SteeringError
from finesteer_local.identity import ModelIdentity, fingerprint, read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.packing import Request
from finesteer_local.runtime.prompt import _plain_format, chat_prompt, turn_start
from finesteer_local.runtime.prompt_pass import Segment, first_in_scope, segments
from finesteer_local.runtime.tap import Handler, Rows
from finesteer_local.steering import Decision

Array = NDArray[np.float32]

MAX_CONTEXT = 4096
# transformers' model_type -> llama.cpp's architecture, where the norms are the same numbers but for `_OFFSET`.
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
_OFFSET = {"gemma": 1.0, "gemma2": 1.0, "gemma3": 1.0}  # conversion adds it to every norm weight
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")


class _Rows(Rows):
    """A block's output, (n_rows, n_embd), as the tap shows it."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._hidden, self.n_rows = hidden, len(hidden)

    def read(self, start: int, stop: int) -> Array:
        return np.asarray(self._hidden[start:stop].float().cpu().numpy(), np.float32)

    def write(self, start: int, rows: Array) -> None:
        self._hidden[start : start + len(rows)] = torch.from_numpy(rows).to(self._hidden)


class _Tap:
    """Armed with handlers by layer; a handler that returns False ends the pass."""

    def __init__(self) -> None:
        self.handlers: Mapping[int, Handler] = {}

    def arm(self, handlers: Mapping[int, Handler]) -> None:
        self.handlers = handlers

    def disarm(self) -> None:
        self.handlers = {}

    def check(self) -> None:
        """Errors of handlers pass through PyTorch by themselves."""


class _Stop(Exception):
    """The rest of the pass is not needed."""


class _Reader(Reader):
    def __init__(self, model: TransformersModel, layers: Sequence[int]) -> None:
        self.model, self.layers = model, sorted(set(layers))

    def harvest(
        self, requests: Sequence[Request], known: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, Array]]:
        """Read the requests one after the other; see `Reader`."""
        for i, (tokens, first) in enumerate(requests):
            if known(i):
                continue
            if not 0 <= first < len(tokens):
                raise PromptError("an empty prompt or answer has no hidden states")
            states: dict[int, Array] = {}

            def look(layer: int, rows: Rows, states: dict[int, Array] = states, first: int = first) -> bool:
                states[layer] = rows.read(first, rows.n_rows)
                return layer != self.layers[-1]

            self.model.tap.arm(dict.fromkeys(self.layers, look))
            try:
                self.model.decode_rows([int(token) for token in tokens], 0)
            finally:
                self.model.tap.disarm()
            found = np.stack([states[layer] for layer in self.layers])
            if not np.isfinite(found).all():
                raise SteeringError("the model's hidden state is not finite; this model cannot be steered")
            yield i, found

    def close(self) -> None:
        """Nothing is held."""


class TransformersModel:
    """See the module. `model_path` is the directory.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: the directory holds no model that it can load, or not the one that `gguf` is of.
    """

    n_batch = 512
    chat_format = "transformers"
    _chat_handlers: Mapping[str, Any] = {}

    def __init__(self, folder: str | Path, *, gguf: str | Path | None = None, device: str | None = None) -> None:
        self.model_path = str(folder)
        self.tap = _Tap()
        self.n_tokens = 0
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._profiles: tuple[Profile, ...] = ()
        self._strength: float | None = None
        self._scope: str | None = None
        self._adding: dict[int, list[tuple[int, int, torch.Tensor]]] = {}
        self.model, self.tokenizer = _load(Path(folder), self.device)
        self._blocks = self.model.get_decoder().layers
        for layer, block in enumerate(self._blocks):
            block.register_forward_hook(self._hook(layer))
        self.identity = _identity(Path(folder), self.model, self.tokenizer, gguf)
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

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return str(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)).encode()

    def chat_handler(self, *, llama: Any, messages: Sequence[Any], **_: Any) -> Any:
        """Renders and tokenises as the model's own template says (see `runtime.prompt.chat_prompt`)."""
        if self.tokenizer.chat_template is None:
            prompt = _plain_format(list(messages)).prompt
            return llama.create_completion(prompt=self.tokenize(prompt.encode()))
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return llama.create_completion(prompt=self.tokenize(text.encode(), add_bos=False))

    def forget(self) -> None:
        """Nothing is cached."""

    def keep(self, n_tokens: int) -> int:
        """No token is cached."""
        return 0

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        return 0

    def close(self) -> None:
        """Give the memory back."""
        del self.model, self._blocks
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def decode_rows(self, tokens: Sequence[int], n_past: int, *, all_rows: bool = False) -> None:
        """Read `tokens` from scratch; the armed handlers see every block's output."""
        with suppress(_Stop):
            self._forward(tokens)

    def reader(self, layers: Sequence[int]) -> Reader:
        """Reads hidden states, prompt by prompt (see `runtime.harvest.reader_of`)."""
        return _Reader(self, layers)

    # --- steering

    def set_profiles(
        self, profiles: Sequence[Profile] = (), *, strength: float | None = None, scope: str | None = None
    ) -> None:
        """Replace the active profiles."""
        for profile in profiles:
            profile.check_model(self.identity)
        self._profiles, self._strength, self._scope = tuple(profiles), strength, scope

    def check_steerable(self, layers: Iterable[int] = ()) -> None:
        """Every block's output is a module's: there is nothing to find out."""

    def decide(self, prompt: Sequence[int], turn: int) -> list[Decision]:
        """The decisions of the active profiles for a prompt."""
        layers = sorted({profile.gate_layer for profile in self._profiles})
        states: dict[int, Array] = {}

        def look(layer: int, rows: Rows) -> bool:
            states[layer] = rows.read(0, rows.n_rows)
            return layer != layers[-1]

        self.tap.arm(dict.fromkeys(layers, look))
        try:
            self.decode_rows(prompt, 0)
        finally:
            self.tap.disarm()
        return [
            profile.decide(
                states[profile.gate_layer][0 if profile.gate.whole else turn :],
                strength=self._strength,
                scope=self._scope,
                n_tokens=len(prompt) - first_in_scope(self._scope or profile.scope, len(prompt), turn),
            )
            for profile in self._profiles
        ]

    def create_chat_completion(self, messages: Any, *, max_tokens: int, **_: Any) -> dict[str, Any]:
        """The greedy answer, as far as training reads it."""
        prompt = chat_prompt(self, messages)  # type: ignore[arg-type]
        plan = self._plan(prompt, messages)
        answer: list[int] = []
        reason = "length"
        for token in self.generate(prompt, plan):
            if token in self._ends:
                reason = "stop"
            if token in self._ends or len(answer) == max_tokens:
                break
            answer.append(token)
        text = self.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}

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
        self, prompt: Sequence[int], answers: Sequence[Sequence[int]], turn: int
    ) -> list[NDArray[np.float64]]:
        """As `runtime.score.answer_logprobs`."""
        plan = self._segments(self.decide(prompt, turn), len(prompt), turn) if self._profiles else []
        results = []
        for answer in answers:
            tokens = [*prompt, *answer[:-1]]
            with self._steered(plan, 0, len(tokens)):
                logits = self._forward(tokens).logits[0, len(prompt) - 1 :].double()
            scores = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(list(answer))]
            results.append(np.asarray(scores.cpu().numpy(), np.float64))
        return results

    def _plan(self, prompt: Sequence[int], messages: Sequence[Any]) -> list[Segment]:
        if not self._profiles:
            return []
        turn = turn_start(self, messages, prompt)  # type: ignore[arg-type]
        return self._segments(self.decide(prompt, turn), len(prompt), turn)

    def _segments(self, decisions: Sequence[Decision], n_prompt: int, turn: int) -> list[Segment]:
        return segments(decisions, [first_in_scope(decision.scope, n_prompt, turn) for decision in decisions])

    @contextmanager
    def _steered(self, plan: Sequence[Segment], start: int, n_rows: int) -> Iterator[None]:
        """Add the plan's vectors to the rows `start` to `start + n_rows` of the sequence."""
        stops = [segment.start for segment in plan[1:]] + [start + n_rows]
        for segment, stop in zip(plan, stops, strict=False):  # no plan, no segment
            begin, end = max(segment.start - start, 0), min(stop - start, n_rows)
            if begin < end:
                for layer, vector in segment.vectors.items():
                    self._adding.setdefault(layer, []).append((begin, end, _tensor(vector)))
        try:
            yield
        finally:
            self._adding = {}

    def _hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output)[0]  # (n_rows, n_embd)
            handler = self.tap.handlers.get(layer)
            if handler and not handler(layer, _Rows(hidden)):
                raise _Stop
            for begin, stop, vector in self._adding.get(layer, ()):
                hidden[begin:stop] += vector.to(hidden)

        return hook

    @torch.inference_mode()
    def _forward(self, tokens: Sequence[int], **options: Any) -> Any:
        if not 0 < len(tokens) <= self.n_ctx():
            raise PromptError(f"a prompt of {len(tokens)} tokens does not fit the context ({self.n_ctx()})")
        options.setdefault("use_cache", False)
        return self.model(input_ids=torch.tensor([list(tokens)], device=self.device), **options)


def _tensor(vector: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(vector))


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "this backend needs transformers") from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no Hugging Face model directory: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors; other weight files are pickles and are not loaded")
    # Nothing is fetched, and no code that came with the model is run.
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **safe)
        dtype = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, dtype=dtype, **safe)
    except Exception as error:  # whatever the directory's files make of it
        raise ModelError(f"transformers cannot load {folder}: {' '.join(str(error).split())[:200]}") from error
    if not hasattr(model.get_decoder(), "layers"):
        raise SteeringError(f"the blocks of {type(model).__name__} cannot be found: no training with this backend")
    return model.to(device).eval(), tokenizer


def _identity(folder: Path, model: Any, tokenizer: Any, gguf: str | Path | None) -> ModelIdentity:
    """What the GGUF file of this model would say of itself, or what `gguf` says, if it is of this model."""
    config = model.config
    known = None if gguf is None else read_model_identity(gguf)
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None and known is None:
        raise ModelError(
            f"the fingerprint of a {config.model_type!r} model cannot be computed from its directory; "
            "give its GGUF file with --gguf"
        )
    n_layer, n_embd = len(model.get_decoder().layers), int(config.hidden_size)
    computed = fingerprint(norms(model, architecture, n_layer)) if architecture else None
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    if known is not None:
        if (computed or known.fingerprint, n_layer, n_embd) != (known.fingerprint, known.n_layer, known.n_embd):
            raise ModelError(f"{gguf} is not of the model in {folder}: its norm weights or sizes differ")
        return known
    return ModelIdentity(
        fingerprint=str(computed),
        name=folder.name,
        architecture=str(architecture),
        n_embd=n_embd,
        n_layer=n_layer,
        n_vocab=int(config.vocab_size),
        template_hash=hashlib.sha256(template.encode()).hexdigest() if template else "",
        context_length=int(getattr(config, "max_position_embeddings", 0)),
    )


def norms(model: Any, architecture: str, n_layer: int) -> dict[str, bytes]:
    """The norm weights as convert_hf_to_gguf.py writes them, by their names in GGUF."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    kind = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[architecture]
    assert isinstance(kind, MODEL_ARCH)
    names = get_tensor_name_map(kind, n_layer)
    found = {}
    for name, tensor in model.state_dict().items():
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped and mapped.endswith("_norm.weight"):
            weight = tensor.detach().float().cpu() + _OFFSET.get(architecture, 0.0)
            found[mapped] = np.ascontiguousarray(weight.numpy(), "<f4").tobytes()
    return found
