"""A tiny random model of every model family that the tests know: what llama.cpp wants of each, as a table.

The tensors and keys are those that `load_arch_hparams` and `load_arch_tensors` of llama.cpp's src/models/*.cpp ask for.
All have the vocabulary and the template of `tiny`, and load in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from tiny import CHATML, add_tokenizer, printable_tokens, vocabulary

N_LAYER, N_CONTEXT, WINDOW = 4, 512, 16
E, H, KV, D = 64, 4, 2, 16  # n_embd; heads, those of keys and values, and their width
F, X, XF = 96, 4, 32  # feed-forward; experts and their feed-forward
Q_RANK, KV_RANK, ROPE, NOPE, V_HEAD = 24, 16, 8, 8, 16  # multi-head latent attention
CONVOLUTION, INNER, STATE, SSM_HEADS, GROUPS = 4, 128, 16, 8, 1  # state space models
DT_RANK = 4
STREAMS, PER_LAYER, LAUREL_RANK = 4, 256, 64  # Gemma 3n: constants of llama.cpp

Shape = tuple[int, ...]
Tensors = dict[str, Shape]  # name within its block, with its suffix -> shape as NumPy has it: (n_out, n_in)


def norms(*names: str, width: int = E, bias: bool = False) -> Tensors:
    found = {f"{name}_norm.weight": (width,) for name in names}
    return found | ({f"{name}_norm.bias": (width,) for name in names} if bias else {})


def linear(bias: bool = False, **shapes: Shape) -> Tensors:
    found: Tensors = {f"{name}.weight": shape for name, shape in shapes.items()}
    return found | ({f"{name}.bias": shape[:-1] for name, shape in shapes.items()} if bias else {})


def attention(*, bias: bool = False, out_bias: bool = False) -> Tensors:
    return linear(bias, attn_q=(H * D, E), attn_k=(KV * D, E), attn_v=(KV * D, E)) | linear(
        out_bias, attn_output=(E, H * D)
    )


def fused_attention(*, bias: bool = False) -> Tensors:
    return linear(bias, attn_qkv=((H + 2 * KV) * D, E), attn_output=(E, H * D))


def head_norms() -> Tensors:
    return norms("attn_q", "attn_k", width=D)


def gated() -> Tensors:
    return linear(ffn_gate=(F, E), ffn_up=(F, E), ffn_down=(E, F))


def plain(*, bias: bool = False) -> Tensors:
    return linear(bias, ffn_up=(F, E), ffn_down=(E, F))


def mixture(width: int = XF, *, bias: bool = False) -> Tensors:
    return linear(
        bias, ffn_gate_inp=(X, E), ffn_gate_exps=(X, width, E), ffn_up_exps=(X, width, E), ffn_down_exps=(X, E, width)
    )


def shared_expert(width: int = XF) -> Tensors:
    return linear(ffn_gate_shexp=(width, E), ffn_up_shexp=(width, E), ffn_down_shexp=(E, width))


def latent_attention() -> Tensors:
    return (
        norms("attn_q_a", width=Q_RANK)
        | norms("attn_kv_a", width=KV_RANK)
        | linear(
            attn_q_a=(Q_RANK, E),
            attn_q_b=(H * (NOPE + ROPE), Q_RANK),
            attn_kv_a_mqa=(KV_RANK + ROPE, E),
            attn_k_b=(H, KV_RANK, NOPE),
            attn_v_b=(H, V_HEAD, KV_RANK),
            attn_output=(E, H * V_HEAD),
        )
    )


def mamba1() -> Tensors:
    return linear(
        ssm_in=(2 * INNER, E), ssm_x=(DT_RANK + 2 * STATE, INNER), ssm_dt=(INNER, DT_RANK), ssm_out=(E, INNER)
    ) | {
        "ssm_conv1d.weight": (INNER, CONVOLUTION),
        "ssm_conv1d.bias": (INNER,),
        "ssm_dt.bias": (INNER,),
        "ssm_a": (INNER, STATE),
        "ssm_d": (INNER,),
    }


def mamba2() -> Tensors:
    convolved = INNER + 2 * GROUPS * STATE
    return linear(ssm_in=(INNER + convolved + SSM_HEADS, E), ssm_out=(E, INNER)) | {
        "ssm_conv1d.weight": (convolved, CONVOLUTION),
        "ssm_conv1d.bias": (convolved,),
        "ssm_dt.bias": (SSM_HEADS,),
        "ssm_a": (SSM_HEADS, 1),
        "ssm_d": (SSM_HEADS, 1),
        "ssm_norm.weight": (GROUPS, INNER // GROUPS),
    }


def plamo2_mamba() -> Tensors:
    rank = 64  # llama.cpp: max(64, n_embd / 16)
    return linear(
        ssm_in=(2 * INNER, E), ssm_x=(rank + 2 * STATE, INNER), ssm_dt=(SSM_HEADS, rank), ssm_out=(E, INNER)
    ) | {
        "ssm_conv1d.weight": (INNER, CONVOLUTION),
        "ssm_dt.bias": (SSM_HEADS,),
        "ssm_a": (SSM_HEADS,),
        "ssm_d": (SSM_HEADS,),
        "ssm_dt_norm": (rank,),
        "ssm_b_norm": (STATE,),
        "ssm_c_norm": (STATE,),
    }


def streams() -> Tensors:
    return norms("post", "altup_router", "laurel_post") | linear(
        inp_gate=(PER_LAYER, E),
        proj=(E, PER_LAYER),
        altup_correct_coef=(STREAMS, STREAMS),
        altup_correct_scale=(E,),
        altup_predict_coef=(STREAMS * STREAMS, STREAMS),
        altup_router=(STREAMS, E),
        laurel_l=(LAUREL_RANK, E),
        laurel_r=(E, LAUREL_RANK),
    )


HEADS: dict[str, Any] = {
    "attention.head_count": H,
    "attention.head_count_kv": KV,
    "attention.key_length": D,
    "attention.value_length": D,
    "rope.dimension_count": D,
}
RMS: dict[str, Any] = {"attention.layer_norm_rms_epsilon": 1e-5}
LAYER_NORM: dict[str, Any] = {"attention.layer_norm_epsilon": 1e-5}
FEED_FORWARD: dict[str, Any] = {"feed_forward_length": F}
MIXTURE: dict[str, Any] = {"expert_count": X, "expert_used_count": 2, "expert_feed_forward_length": XF}
SLIDING: dict[str, Any] = {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2}
SSM: dict[str, Any] = {
    "ssm.conv_kernel": CONVOLUTION,
    "ssm.inner_size": INNER,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": SSM_HEADS,
    "ssm.group_count": GROUPS,
}
LATENT: dict[str, Any] = {
    "attention.head_count": H,
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": Q_RANK,
    "attention.kv_lora_rank": KV_RANK,
    "attention.key_length": KV_RANK + ROPE,
    "attention.value_length": KV_RANK,
    "attention.key_length_mla": NOPE + ROPE,
    "attention.value_length_mla": V_HEAD,
    "rope.dimension_count": ROPE,
}
TRANSFORMER = HEADS | RMS | FEED_FORWARD
GPT = HEADS | LAYER_NORM | FEED_FORWARD


@dataclass(frozen=True)
class Family:
    """What a model of one kind consists of.

    Attributes:
        architecture: `general.architecture`.
        kind: what is special about it, for the table.
        keys: metadata below the architecture's name.
        block: tensors of layer i.
        head: tensors outside of the layers, besides the token embeddings.
    """

    architecture: str
    kind: str
    keys: Mapping[str, Any]
    block: Callable[[int], Tensors]
    head: Tensors = field(default_factory=lambda: norms("output"))
    tied: bool = False  # without an output matrix of its own


def _same(tensors: Tensors) -> Callable[[int], Tensors]:
    return lambda _: tensors


BOTH = norms("attn", "ffn")
BOTH_BIAS = norms("attn", "ffn", bias=True)
AFTER = norms("post_attention", "post_ffw")
OUTPUT_BIAS = norms("output", bias=True)
LLAMA = BOTH | attention() | gated()

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "dense", TRANSFORMER, _same(LLAMA)),
    "mixtral": Family("llama", "mixture of experts", TRANSFORMER | MIXTURE, _same(BOTH | attention() | mixture(F))),
    "mistral3": Family("mistral3", "dense", TRANSFORMER, _same(LLAMA)),
    "smollm3": Family("smollm3", "dense, some layers without positions", TRANSFORMER, _same(LLAMA)),
    "qwen2": Family("qwen2", "dense", TRANSFORMER, _same(BOTH | attention(bias=True) | gated())),
    "qwen2moe": Family(
        "qwen2moe",
        "mixture of experts, one shared",
        TRANSFORMER | MIXTURE | {"expert_shared_feed_forward_length": XF},
        _same(BOTH | attention(bias=True) | mixture() | shared_expert() | {"ffn_gate_inp_shexp.weight": (E,)}),
    ),
    "qwen3": Family("qwen3", "dense, reasoning", TRANSFORMER, _same(LLAMA | head_norms())),
    "qwen3moe": Family(
        "qwen3moe", "mixture of experts", TRANSFORMER | MIXTURE, _same(BOTH | attention() | head_norms() | mixture())
    ),
    "gemma": Family("gemma", "dense", TRANSFORMER, _same(LLAMA), tied=True),
    "gemma2": Family("gemma2", "sliding window", TRANSFORMER | SLIDING, _same(LLAMA | AFTER), tied=True),
    "gemma3": Family("gemma3", "sliding window", TRANSFORMER | SLIDING, _same(LLAMA | AFTER | head_norms())),
    "gpt-oss": Family(
        "gpt-oss",
        "sliding window, mixture of experts",
        HEADS | RMS | MIXTURE | SLIDING,
        _same(
            norms("attn", "post_attention")
            | attention(bias=True, out_bias=True)
            | {"attn_sinks.weight": (H,)}
            | mixture(bias=True)
        ),
    ),
    "phi3": Family(
        "phi3", "dense", TRANSFORMER, _same(BOTH | fused_attention() | linear(ffn_up=(2 * F, E), ffn_down=(E, F)))
    ),
    "olmo2": Family(
        "olmo2",
        "sliding window (OLMo 3)",
        TRANSFORMER | SLIDING,
        _same(AFTER | attention() | norms("attn_q") | norms("attn_k", width=KV * D) | gated()),
    ),
    "olmoe": Family(
        "olmoe",
        "mixture of experts",
        TRANSFORMER | {"attention.head_count_kv": H} | MIXTURE,
        _same(
            BOTH
            | linear(attn_q=(E, E), attn_k=(E, E), attn_v=(E, E), attn_output=(E, E))
            | norms("attn_q", "attn_k")
            | mixture(F)
        ),
    ),
    "granite": Family("granite", "dense", TRANSFORMER | {"logit_scale": 4.0, "residual_scale": 0.5}, _same(LLAMA)),
    "command-r": Family(
        "command-r",
        "parallel attention",
        GPT | {"logit_scale": 0.25},
        _same(norms("attn") | attention() | gated()),
        tied=True,
    ),
    "cohere2": Family(
        "cohere2",
        "parallel attention, sliding window",
        GPT | SLIDING | {"logit_scale": 0.25},
        _same(norms("attn") | attention() | gated()),
        tied=True,
    ),
    "stablelm": Family("stablelm", "dense", GPT, _same(BOTH_BIAS | attention() | gated()), OUTPUT_BIAS),
    "gpt2": Family(
        "gpt2",
        "dense, learned positions",
        GPT,
        _same(BOTH_BIAS | fused_attention(bias=True) | plain(bias=True)),
        OUTPUT_BIAS | {"position_embd.weight": (N_CONTEXT, E)},
    ),
    "gptneox": Family(
        "gptneox",
        "parallel attention",
        GPT | {"use_parallel_residual": True},
        _same(BOTH_BIAS | fused_attention(bias=True) | plain(bias=True)),
        OUTPUT_BIAS,
    ),
    "falcon": Family(
        "falcon", "parallel attention", GPT, _same(norms("attn", bias=True) | fused_attention() | plain()), OUTPUT_BIAS
    ),
    "starcoder2": Family(
        "starcoder2",
        "dense",
        GPT,
        _same(BOTH_BIAS | attention(bias=True, out_bias=True) | plain(bias=True)),
        OUTPUT_BIAS,
    ),
    "deepseek2": Family(
        "deepseek2",
        "latent attention, mixture of experts",
        RMS | FEED_FORWARD | LATENT | MIXTURE | {"leading_dense_block_count": 1, "expert_shared_count": 1},
        lambda i: BOTH | latent_attention() | (mixture() | shared_expert() if i else gated()),
    ),
    "lfm2": Family(
        "lfm2",
        "hybrid: convolution and attention",
        TRANSFORMER | {"shortconv.l_cache": 3, "attention.head_count_kv": [0, KV] * (N_LAYER // 2)},
        lambda i: (
            BOTH
            | gated()
            | (
                attention() | head_norms()
                if i % 2
                else {
                    "shortconv.conv.weight": (E, 3),
                    **linear(**{"shortconv.in_proj": (3 * E, E), "shortconv.out_proj": (E, E)}),
                }
            )
        ),
        norms("token_embd"),
    ),
    "falcon-h1": Family(
        "falcon-h1",
        "hybrid: state space and attention",
        TRANSFORMER | SSM,
        _same(norms("attn") | {"ffn_norm": (E,)} | attention() | gated() | mamba2()),
    ),
    "mamba": Family("mamba", "recurrent", RMS | SSM | {"ssm.time_step_rank": DT_RANK}, _same(norms("attn") | mamba1())),
    "mamba2": Family("mamba2", "recurrent", RMS | SSM, _same(norms("attn") | mamba2())),
    "plamo2": Family(
        "plamo2",
        "hybrid: state space and attention",
        TRANSFORMER | SSM | {"ssm.group_count": 0, "attention.head_count_kv": [0, KV] * (N_LAYER // 2)},
        lambda i: (
            norms("ffn")
            | norms("attn")
            | {"post_attention_norm": (E,), "post_ffw_norm": (E,)}
            | linear(ffn_up=(2 * F, E), ffn_down=(E, F))
            | (
                linear(attn_qkv=((H + 2 * KV) * D, E), attn_output=(E, H * D))
                | {"attn_q_norm.weight": (H, D), "attn_k_norm.weight": (KV, D)}
                if i % 2
                else plamo2_mamba()
            )
        ),
    ),
    "gemma3n": Family(
        "gemma3n",
        "four residual streams",
        TRANSFORMER | SLIDING,
        _same(LLAMA | AFTER | head_norms() | streams()),
        norms("output")
        | norms("per_layer_proj", width=PER_LAYER)
        | linear(
            altup_proj=(STREAMS - 1, E, E),
            altup_unembd_proj=(STREAMS - 1, E, E),
            per_layer_token_embd=(len(vocabulary()), PER_LAYER * N_LAYER),
            per_layer_model_proj=(PER_LAYER * N_LAYER, E),
        ),
    ),
}


def write_family(path: Path, name: str, *, seed: int = 0, chat_template: str | None = CHATML) -> Path:
    """Write a random model of `FAMILIES[name]` to `path`."""
    family, rng = FAMILIES[name], np.random.default_rng(seed)
    writer = GGUFWriter(path, family.architecture)
    writer.add_name("Tiny")  # a name with "phi3" in it would ask for tokens of that tokenizer
    keys = {"context_length": N_CONTEXT, "embedding_length": E, "block_count": N_LAYER, **family.keys}
    for key, value in keys.items():
        add: dict[type, Callable[..., None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            list: writer.add_array,
        }
        add[type(value)](f"{family.architecture}.{key}", value)
    add_tokenizer(writer, chat_template)
    n_tokens = len(vocabulary())
    tensors = {"token_embd.weight": (n_tokens, E), **family.head}
    if not family.tied:
        tensors["output.weight"] = (n_tokens, E)
    for i in range(N_LAYER):
        tensors |= {f"blk.{i}.{tensor}": shape for tensor, shape in family.block(i).items()}
    for tensor, shape in tensors.items():
        writer.add_tensor(tensor, _values(tensor, shape, rng).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _values(tensor: str, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if tensor.endswith(".ssm_a"):
        return -np.exp(noise)
    if tensor.endswith(".ssm_d"):
        return np.ones(shape)
    if "norm" in tensor and not tensor.endswith(".bias"):
        return 1 + 0.1 * noise
    if tensor.endswith(".bias") or len(shape) == 1:
        return 0.1 * noise
    if tensor == "output.weight":
        return noise * printable_tokens()[:, None]
    return noise if tensor.endswith("_embd.weight") else noise / np.sqrt(shape[-1])
