"""What clients set in a chat template: its own variables, and thoughts on or off in the words of each interface."""

from __future__ import annotations

from typing import Any

from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.template import template_text, template_variables
from finesteer_local.runtime.thinking import TAGS
from finesteer_local.server.errors import ApiError
from finesteer_local.server.sampling_schemas import TemplateFields

_SWITCHES = ("enable_thinking", "thinking")  # Qwen3, GLM, SmolLM3 and most others; DeepSeek V3.1, Granite
_GRADE = "reasoning_effort"  # gpt-oss


def variables(llama: SteeredLlama, wanted: TemplateFields) -> dict[str, Any]:
    """The template's variables as a request sets them.

    Raises:
        ApiError: the template does not read one of them.
    """
    known = template_variables(llama)
    found = _effort(known, wanted.reasoning_effort)
    for name, value in (wanted.chat_template_kwargs or {}).items():
        if name in known:
            found[name] = value
        elif value is not None and value is not False:  # what there is not need not be switched off
            there = f"it reads {', '.join(sorted(known))}" if known else "it reads none"
            raise ApiError(
                400, f"this model's chat template does not read {name!r}; {there}", param=f"chat_template_kwargs.{name}"
            )
    return found


def _effort(known: frozenset[str], effort: str | None) -> dict[str, Any]:
    if effort is None:
        return {}
    if _GRADE in known:
        return {_GRADE: effort}
    found = {name: effort != "none" for name in _SWITCHES if name in known}
    if not found and effort != "none":
        raise ApiError(
            400, "this model's chat template has no switch for thoughts; leave it out", param="reasoning_effort"
        )
    return found


def thinks(llama: SteeredLlama) -> bool:
    """Whether the model's chat template knows of thoughts."""
    text = template_text(llama) or ""
    return any(opening.decode() in text or closing.decode() in text for opening, closing in TAGS) or bool(
        template_variables(llama) & {*_SWITCHES, _GRADE}
    )


def thinking_effort(llama: SteeredLlama, think: bool | str | None) -> str | None:
    """Ollama's `think` as a `reasoning_effort`.

    Raises:
        ApiError: the model does not think, or cannot be stopped from it.
    """
    known = template_variables(llama)
    if think is None or (think is False and not thinks(llama)):
        return None
    if not thinks(llama):
        raise ApiError(400, "this model does not support thinking; leave think out", param="think")
    if not known & {*_SWITCHES, _GRADE}:
        if think is False:
            raise ApiError(400, "this model's thoughts cannot be switched off; leave think out", param="think")
        return None  # it thinks anyway
    if isinstance(think, str):
        return think
    if _GRADE in known:
        return "medium" if think else "low"  # as Ollama does: such a model always thinks
    return "high" if think else "none"
