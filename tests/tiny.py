"""Models and profiles small enough to load in milliseconds: random weights, a byte-level tokenizer, a ChatML template.

Greedy text from them is printable ASCII and never ends by itself: the output weights of every other token are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType

from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.steering import AlwaysGate, AnswerGate, ContrastiveGate, Experts, Gate, Kind, Kinds, SubspaceGate

ARCHITECTURES = ("llama", "qwen2", "gemma3")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
INFILL = {"pre": "he", "suf": "user", "mid": "on"}  # prefix, suffix and middle of models written with `infill`
PLACEHOLDER = "~"  # the one character for which `nan_token` models compute NaN
_MERGES = ("Ġ t", "h e", "Ġt he", "i n", "e r", "u s", "us er", "Ċ Ċ", "ï ¿", "Ġ a", "o n")
_HEADS, _HEADS_KV, _HEAD, _FEED_FORWARD = 4, 2, 16, 96
_CONVOLUTION, _STATE, _TIME = 4, 8, 4


def _byte_letters() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def vocabulary() -> list[str]:
    return [*SPECIAL, *_byte_letters().values(), *(merge.replace(" ", "") for merge in _MERGES)]


def printable_tokens() -> np.ndarray:
    """Which tokens are one printable ASCII letter, (n_vocab,)."""
    return np.array([len(token) == 1 and token.isascii() and token.isprintable() for token in vocabulary()])


def add_tokenizer(
    writer: GGUFWriter, chat_template: str | None, pre: str = "smollm", user_defined: Sequence[str] = ()
) -> None:
    tokens = [*vocabulary(), *user_defined]
    kinds = {**dict.fromkeys(SPECIAL, TokenType.CONTROL), **dict.fromkeys(user_defined, TokenType.USER_DEFINED)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def add_infill(writer: GGUFWriter) -> None:
    """Make three words the tokens for filling in the middle."""
    for name, token in INFILL.items():
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", vocabulary().index(token))


def write_tiny_model(
    path: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    chat_template: str | None = CHATML,
    n_layer: int = 4,
    n_embd: int = 64,
    context_length: int = 1024,
    sliding_window: int = 16,
    weight_type: type[np.floating[Any]] = np.float32,
    nudge: float = 0.0,
    nan_tensor: str | None = None,
    nan_token: bool = False,
    infill: bool = False,
    name: str = "Tiny",
    pre: str = "smollm",
    user_defined: Sequence[str] = (),
) -> Path:
    """Write a random model to `path`; `architecture` is one of `ARCHITECTURES` or the recurrent `mamba`.

    Args:
        weight_type: of the matrices; the norms stay float32, as in every quantisation of a real model.
        nudge: added to the norm weights, as a fine-tune does.
        nan_tensor: this tensor's first value is NaN.
        nan_token: the embedding of `PLACEHOLDER` is NaN.
        infill: it has tokens for filling in the middle (`INFILL`).
        pre: how llama.cpp splits text before BPE.
        user_defined: further tokens, which llama.cpp looks for in text before anything else.
    """
    rng = np.random.default_rng(seed)
    tokens = [*vocabulary(), *user_defined]
    writer = GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_context_length(context_length)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture == "mamba":
        writer.add_ssm_conv_kernel(_CONVOLUTION)
        writer.add_ssm_inner_size(2 * n_embd)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_TIME)
    else:
        writer.add_feed_forward_length(_FEED_FORWARD)
        writer.add_head_count(_HEADS)
        writer.add_head_count_kv(_HEADS_KV)
        writer.add_key_length(_HEAD)
        writer.add_value_length(_HEAD)
        writer.add_rope_dimension_count(_HEAD)
    if architecture == "gemma3":
        writer.add_sliding_window(sliding_window)
    add_tokenizer(writer, chat_template, pre, user_defined)
    if infill:
        add_infill(writer)

    def add(tensor: str, array: np.ndarray) -> None:
        if tensor == nan_tensor:
            array.flat[0] = np.nan
        writer.add_tensor(tensor, array)

    def norm(tensor: str, width: int) -> None:
        add(tensor, (1 + 0.1 * rng.standard_normal(width) + nudge).astype(np.float32))

    def matrix(tensor: str, n_in: int, n_out: int, bias: bool = False) -> None:
        add(f"{tensor}.weight", (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(weight_type))
        if bias:
            add(f"{tensor}.bias", (0.1 * rng.standard_normal(n_out)).astype(np.float32))

    embeddings = rng.standard_normal((len(tokens), n_embd)).astype(weight_type)
    if nan_token:
        embeddings[tokens.index(PLACEHOLDER)] = np.nan
    add("token_embd.weight", embeddings)
    printable = np.append(printable_tokens(), np.zeros(len(user_defined), bool))
    output = rng.standard_normal((len(tokens), n_embd)) * printable[:, None]
    add("output.weight", output.astype(weight_type))
    norm("output_norm.weight", n_embd)
    for i in range(n_layer):
        block = f"blk.{i}"
        bias = architecture == "qwen2"
        norm(f"{block}.attn_norm.weight", n_embd)
        if architecture == "mamba":
            inner = 2 * n_embd
            matrix(f"{block}.ssm_in", n_embd, 2 * inner)
            add(f"{block}.ssm_conv1d.weight", rng.standard_normal((inner, _CONVOLUTION)).astype(np.float32))
            add(f"{block}.ssm_conv1d.bias", np.zeros(inner, np.float32))
            matrix(f"{block}.ssm_x", inner, _TIME + 2 * _STATE)
            matrix(f"{block}.ssm_dt", _TIME, inner, bias=True)
            add(f"{block}.ssm_a", -np.exp(rng.standard_normal((inner, _STATE))).astype(np.float32))
            add(f"{block}.ssm_d", np.ones(inner, np.float32))
            matrix(f"{block}.ssm_out", inner, n_embd)
            continue
        matrix(f"{block}.attn_q", n_embd, _HEADS * _HEAD, bias)
        matrix(f"{block}.attn_k", n_embd, _HEADS_KV * _HEAD, bias)
        matrix(f"{block}.attn_v", n_embd, _HEADS_KV * _HEAD, bias)
        matrix(f"{block}.attn_output", _HEADS * _HEAD, n_embd)
        norm(f"{block}.ffn_norm.weight", n_embd)
        matrix(f"{block}.ffn_gate", n_embd, _FEED_FORWARD)
        matrix(f"{block}.ffn_up", n_embd, _FEED_FORWARD)
        matrix(f"{block}.ffn_down", _FEED_FORWARD, n_embd)
        if architecture == "gemma3":
            norm(f"{block}.attn_q_norm.weight", _HEAD)
            norm(f"{block}.attn_k_norm.weight", _HEAD)
            norm(f"{block}.post_attention_norm.weight", n_embd)
            norm(f"{block}.post_ffw_norm.weight", n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def make_gate(kind: str, n_embd: int, rng: np.random.Generator) -> Gate:
    """A gate by what it does: `open`, `closed`, `partly` open for every prompt, or `selective`: open for some.

    Those that pool read the whole last user turn, with `windowed` in the name also by stretches of 6 tokens; with `last
    token` in its name, a gate reads that one alone.
    """

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    if kind == "open":
        return AlwaysGate()
    if "last token" in kind:
        basis = np.linalg.qr(normal(n_embd, n_embd))[0][:, : n_embd // 2]
        calibration = np.sort(rng.uniform(0.4, 0.6, 40)).astype(np.float32)
        if kind.startswith("closed"):
            calibration += 1
        return SubspaceGate(normal(n_embd) / 10, basis, calibration, eps=0.5)
    window = 6 if "windowed" in kind else 0
    kind = kind.removesuffix(", windowed")
    low, high = {"closed": (1e6, 2e6), "partly": (-1e3, 1e3), "selective": (0.0, 0.0)}[kind]
    query, value_weight, last_weight = normal(n_embd, 3) / 4, normal(n_embd, 3), normal(n_embd) / 4
    scale = 1 + np.abs(normal(n_embd))
    mean = normal(n_embd) / 10
    return ContrastiveGate(mean, scale, query, value_weight, last_weight, bias=0.1, low=low, high=high, window=window)


def make_kinds(
    n_embd: int, rng: np.random.Generator, *, names: Sequence[str] = ("fraud", "hate", "drugs"), width: int = 0
) -> Kinds:
    """A random head that tells these kinds apart, with a hidden layer of `width` units."""
    kinds = tuple(
        Kind(name, f"what is {name}", (f"No {name} here.",), mlcommons=(f"{name} crimes",), openai=("illicit",))
        for name in names
    )
    weight = (rng.standard_normal((width or n_embd, len(names))) / 4).astype(np.float32)
    made = Kinds(kinds, weight, rng.standard_normal(len(names)).astype(np.float32), slope=0.7, offset=0.2)
    if not width:
        return made
    hidden = rng.standard_normal((n_embd, width)).astype(np.float32), rng.standard_normal(width).astype(np.float32)
    return replace(made, hidden_weight=hidden[0], hidden_bias=hidden[1])


def make_answer_gate(n_embd: int, *, layer: int = 2, seed: int = 0, **changes: Any) -> AnswerGate:
    """A random gate on answers, which opens sooner or later; a `threshold` of 1e6 never does, one of -1e6 at once."""
    weight = (np.random.default_rng(seed).standard_normal(n_embd) / np.sqrt(n_embd)).astype(np.float32)
    settings: dict[str, Any] = {"bias": 0.0, "decay": 0.7, "threshold": 0.0, "first": 4, "every": 1}
    return AnswerGate(layer, weight, **{**settings, **changes})


def make_experts(
    n_embd: int, rng: np.random.Generator, *, n_experts: int = 4, rank: int = 2, width: int = 8
) -> Experts:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    small = np.float32(0.1)
    return Experts(
        prototypes=normal(n_experts, n_embd),
        router_weight=small * normal(n_embd, n_experts),
        router_bias=normal(n_experts),
        residual_basis=np.linalg.qr(normal(n_embd, n_embd))[0][:, :rank].astype(np.float32),
        hidden_weight=small * normal(n_embd, width),
        hidden_bias=normal(width),
        output_weight=normal(width, rank),
        output_bias=normal(rank),
        labels=tuple(f"expert {'abcd'[i]}" for i in range(n_experts)),
    )


def make_profile(
    model_path: Path,
    *,
    name: str = "test",
    gate: str | Gate = "open",
    layers: Sequence[int] = (2,),
    gate_layer: int = 1,
    scope: str = "prompt",
    strength: float = 1.0,
    seed: int = 0,
    rank: int = 2,
    **changes: Any,
) -> Profile:
    """A profile with random experts for the model at `model_path`; `gate` as for `make_gate`."""
    rng = np.random.default_rng(seed)
    model = read_model_identity(model_path)
    parts: dict[str, Any] = {
        "name": name,
        "model": model,
        "gate": make_gate(gate, model.n_embd, rng) if isinstance(gate, str) else gate,
        "gate_layer": gate_layer,
        "experts": {layer: make_experts(model.n_embd, rng, rank=rank, width=8 if rank else 0) for layer in layers},
        "strength": strength,
        "scope": scope,
    }
    return Profile(**{**parts, **changes})
