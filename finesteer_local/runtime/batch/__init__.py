"""Many requests at once over one llama.cpp context, each with its own decision and steering."""

from finesteer_local.runtime.batch.answer import (
    Answer,
    AnswerStream,
    Decided,
    Event,
    Finished,
    Piece,
    Showed,
    TokenScore,
)
from finesteer_local.runtime.batch.engine import BatchEngine, Load
from finesteer_local.runtime.batch.many import answers, check_of, checks, greedy_answers
from finesteer_local.runtime.batch.pieces import Sizes
from finesteer_local.runtime.batch.request import (
    GREEDY,
    WHOLE,
    Request,
    Sampling,
    chat_request,
    check_request,
    completion_request,
)
from finesteer_local.runtime.steered_request import Steer

__all__ = [
    "GREEDY",
    "WHOLE",
    "Answer",
    "AnswerStream",
    "BatchEngine",
    "Decided",
    "Event",
    "Finished",
    "Load",
    "Piece",
    "Request",
    "Sampling",
    "Showed",
    "Sizes",
    "Steer",
    "TokenScore",
    "answers",
    "chat_request",
    "check_of",
    "check_request",
    "checks",
    "completion_request",
    "greedy_answers",
]
