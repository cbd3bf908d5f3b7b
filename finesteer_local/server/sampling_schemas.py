"""How tokens are chosen, as clients of all interfaces ask for it, and what a chat's template reads beside messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from finesteer_local.server.conversation_schemas import JsonObject
from finesteer_local.server.known_fields import OPENAI, GivenAsKnown
from finesteer_local.server.schemas import Given, Many

MAX_CHOICES = 8
MAX_STOPS = 128
_MAX_SEED = (1 << 63) - 1


Word = Annotated[str, Field(max_length=1024)]
MaxTokens = Annotated[int, Field(ge=-1)] | None
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
_MAX_BIASES = 1024
Token = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


def _few(value: Any) -> Any:
    """Each of a million entries would be told of otherwise."""
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"has {len(value):,} tokens, and at most {_MAX_BIASES:,} can be biased")
    return value


class StreamOptions(Given):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class CommonSampling(GivenAsKnown):
    """How tokens are chosen, as OpenAI's and Ollama's clients both write it. Null is the same as left out."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0.8 unless given; 0 is greedy."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_MAX_SEED - 1, le=_MAX_SEED)] | None = Field(None, description="-1 draws one.")
    stop: Word | Annotated[Many[Word], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Empty words are none."
    )

    def stops(self) -> list[str]:
        """The stop words, each once."""
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return list(dict.fromkeys(word for word in words if word))


class SamplingFields(CommonSampling):
    """How tokens are chosen: llama.cpp's own defaults unless given."""

    neutral: ClassVar[Mapping[str, Any]] = OPENAI

    mirostat_mode: Literal[0, 1, 2] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], BeforeValidator(_few)] | None = Field(None, max_length=_MAX_BIASES)
    grammar: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = Field(
        None, description="GBNF, llama.cpp's grammar format."
    )

    def options(self) -> dict[str, Any]:
        """As llama-cpp-python takes them."""
        names = SamplingFields.model_fields.keys() - {"grammar", "seed", "stop"}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        # llama.cpp draws a seed itself where it is -1 or 2^32 - 1.
        seed = None if self.seed in (None, -1) else self.seed % ((1 << 32) - 1)
        defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
        return {**defaults, **given, "seed": seed, "stop": self.stops()}


class TemplateFields(Given):
    """What a chat's template reads beside the messages."""

    chat_template_kwargs: JsonObject | None = Field(
        None,
        description="The template's own variables, such as `enable_thinking`; those that it does not read are refused.",
    )
    reasoning_effort: ReasoningEffort = Field(
        None,
        description="As far as the template has it: as a grade, or `none` as no thoughts and any other as thoughts.",
    )
