"""`/v1/steering/corrections`: what clients say was decided wrongly."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from finesteer_local.server.conversation_schemas import Message
from finesteer_local.server.schemas import GivenExactly, Many, ProfileName

Should = Literal["steer", "leave"]


class CorrectionRequest(GivenExactly):
    """`POST /v1/steering/corrections`: a conversation whose last question a profile decided wrongly."""

    model: str | None = None
    messages: Many[Message] = Field(
        min_length=1,
        description="Text of the roles system, user and assistant; what follows the last user's is not kept.",
    )
    profile: ProfileName
    should: Should = Field(description="What should have been done about the last question.")


class CorrectionOut(BaseModel):
    """A correction that this server has kept. What was said is in the file alone."""

    id: str
    profile: str
    should: Should
    score: float = Field(description="The gate's for the question, now.")
    threshold: float
    kept: float = Field(description="Seconds since 1970.")
    refit: str = Field(description="The command that takes it into the profile's gate, on the server's machine.")


class Corrections(BaseModel):
    """The corrections that this server has kept since it was started, oldest first."""

    corrections: list[CorrectionOut]


class CorrectionDeleted(BaseModel):
    """A correction that is not kept any more."""

    id: str
    deleted: Literal[True]
