"""Fields of other servers that clients send here: those that change nothing are taken, every other is refused.

OpenAI's own server refuses unknown fields, too. To drop a field that would change the answer elsewhere would be to give
an answer that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator

from finesteer_local.server.schemas import GivenExactly

ANY = object()
"""Stands for every value: the field changes nothing here, whatever its value."""

_ACCOUNT = ("user", "metadata", "store", "service_tier", "safety_identifier", "session_id", "chat_id")
_CACHE = ("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_prompt", "id_slot", "keep_alive")
_PACE = ("parallel_tool_calls", "prediction", "priority", "request_id", "timings_per_token", "return_progress")

OPENAI: Mapping[str, Any] = {
    **dict.fromkeys((*_ACCOUNT, *_CACHE, *_PACE), ANY),
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "continue_final_message": (False,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n_keep": (0,),
    "n_probs": (0,),
    "repeat_last_n": (64,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "tfs_z": (1,),
    "top_a": (0,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "xtc_probability": (0,),
}
"""By name, the values at which a field of OpenAI's, vLLM's or llama.cpp's server changes nothing here."""

OLLAMA_OPTIONS: Mapping[str, Any] = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram"), ANY),
    **dict.fromkeys(("use_mmap", "use_mlock", "vocab_only", "f16_kv", "logits_all", "embedding_only"), ANY),
    **dict.fromkeys(("num_keep", "penalize_newline", "draft_num_predict"), ANY),  # Ollama itself reads them no more
    "repeat_last_n": (64,),
    "tfs_z": (1,),
}
"""The same of Ollama's options: how a model is loaded is the server's."""


class GivenAsKnown(GivenExactly):
    """As `GivenExactly`, but fields of `neutral` are taken where they change nothing, and null is left out."""

    neutral: ClassVar[Mapping[str, Any]] = {}

    model_config = ConfigDict(json_schema_extra=lambda schema, model: _tell(schema, model))

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        names = cls.field_names()
        return {k: v for k, v in data.items() if k in names or not (v is None or changes_nothing(cls.neutral, k, v))}


def changes_nothing(neutral: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether a field at this value is one that may be left out."""
    values = neutral.get(name, ())
    return values is ANY or any(_same(value, one) for one in values)


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _tell(schema: dict[str, Any], model: type[Any]) -> None:
    """Write into the OpenAPI document what is taken beside the fields."""
    told = "Taken as other servers have it; it changes nothing here."
    for name, values in model.neutral.items():
        allowed = {} if values is ANY else {"enum": [*values, None]}
        schema["properties"].setdefault(name, {**allowed, "description": told})
    schema["additionalProperties"] = {"type": "null"}
