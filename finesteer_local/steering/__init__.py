"""The maths of a decision: when to steer (gate) and how (experts). NumPy and nothing else."""

from finesteer_local.steering.answer_gate import OFF, ON_ANSWER, REWIND, STOP, AnswerGate, AnswerReading, AnswerWatch
from finesteer_local.steering.decision import LONG_PROMPT, SHORT_PROMPT, Decision, decide
from finesteer_local.steering.experts import Experts
from finesteer_local.steering.gate import AlwaysGate, ConditionGate, ContrastiveGate, Gate, SubspaceGate, spans
from finesteer_local.steering.kinds import ACTIONS, LEAVE, REFUSE, REPORT, STEER, Kind, Kinds, likely

__all__ = [
    "ACTIONS",
    "LEAVE",
    "LONG_PROMPT",
    "OFF",
    "ON_ANSWER",
    "REFUSE",
    "REPORT",
    "REWIND",
    "SHORT_PROMPT",
    "STEER",
    "STOP",
    "AlwaysGate",
    "AnswerGate",
    "AnswerReading",
    "AnswerWatch",
    "ConditionGate",
    "ContrastiveGate",
    "Decision",
    "Experts",
    "Gate",
    "Kind",
    "Kinds",
    "SubspaceGate",
    "decide",
    "likely",
    "spans",
]
