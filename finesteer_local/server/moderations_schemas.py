"""OpenAI's objects around moderation, and what ours add."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from finesteer_local.server.conversation_schemas import ContentPart, Message, joined
from finesteer_local.server.schemas import DecisionOut, Given, Many, SteeringField

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""OpenAI's, in the order of its reference. Those that no kind belongs to are never found."""


class ModerationRequest(Given):
    """`POST /v1/moderations`."""

    model: str | None = Field(
        None, description="This server's, or one of OpenAI's moderation models: all mean the same."
    )
    input: str | Annotated[Many[str] | Many[ContentPart] | Many[Message], Field(min_length=1)] = Field(
        description="A text; a list of texts, each by itself; the parts of one text; or one conversation's messages, "
        "whose last one may be the answer to be checked."
    )
    steering: SteeringField = None

    @model_validator(mode="after")
    def _says_something(self) -> ModerationRequest:
        if any(isinstance(each, str) and not each.strip() for each in self.prompts()):
            raise ValueError("an input is empty")
        return self

    def prompts(self) -> list[str | list[Message]]:
        """What is checked, each by itself."""
        if isinstance(self.input, str):
            return [self.input]
        messages = [each for each in self.input if isinstance(each, Message)]
        parts = [each for each in self.input if isinstance(each, ContentPart)]
        texts = [each for each in self.input if isinstance(each, str)]
        return [messages] if messages else [joined(part.text for part in parts)] if parts else [*texts]


class ModerationResult(BaseModel):
    """What one input was found to be."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    kinds: dict[str, float] = Field(description="The profile's own kinds of request, likeliest first.")
    likely_kinds: list[str] = Field(description="What a flagged one counts as; where its answer was, the request.")
    mlcommons: dict[str, float] = Field(description="The hazard categories of MLCommons' AILuminate.")
    decisions: list[DecisionOut]


class Moderation(BaseModel):
    """What the inputs were found to be, in their order."""

    id: str
    model: str
    results: list[ModerationResult]
