"""The Hugging Face directory of a GGUF model: the same weights in float32, tokenizer and template.

    python tests/hugging_face.py MODEL.gguf DIR

writes one for `bench --transformers` (byte-level BPE as SmolLM2's, architectures llama and qwen2).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGUFReader, TokenType, get_tensor_name_map
from gguf.quants import dequantize


def write_directory(gguf: Path, folder: Path) -> Path:
    """Write `folder` from a model of the architecture llama or qwen2."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    reader = GGUFReader(gguf)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    architecture = keys["general.architecture"]
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    heads = keys[f"{architecture}.attention.head_count"]
    heads_kv = keys[f"{architecture}.attention.head_count_kv"]
    tokens, merges = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"]
    sizes = {
        "hidden_size": keys[f"{architecture}.embedding_length"],
        "num_hidden_layers": keys[f"{architecture}.block_count"],
        "intermediate_size": keys[f"{architecture}.feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads_kv,
        "vocab_size": len(tokens),
        "max_position_embeddings": keys[f"{architecture}.context_length"],
        "rms_norm_eps": keys[f"{architecture}.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": keys.get(f"{architecture}.rope.freq_base", 10000.0),
        },
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
    }
    kind = {
        "llama": (LlamaConfig, LlamaForCausalLM, MODEL_ARCH.LLAMA),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, MODEL_ARCH.QWEN2),
    }[architecture]
    model = kind[1](kind[0](**sizes))
    names, state = get_tensor_name_map(kind[2], sizes["num_hidden_layers"]), {}
    for name in model.state_dict():
        given = names.get_name(name, (".weight", ".bias"))
        array = tensors["token_embd.weight" if given == "output.weight" and given not in tensors else given]
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            # convert_hf_to_gguf.py interleaves the two halves of every head; here they come apart again
            n = heads if name.endswith("q_proj.weight") else heads_kv
            array = array.reshape(n, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        state[name] = array
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})
    model.save_pretrained(folder)
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token
        for token, kind in zip(tokens, keys["tokenizer.ggml.token_type"], strict=True)
        if kind == TokenType.CONTROL
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos, eos = tokens[sizes["bos_token_id"]], tokens[sizes["eos_token_id"]]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = keys["tokenizer.chat_template"]
    fast.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_directory(Path(sys.argv[1]), Path(sys.argv[2]))
