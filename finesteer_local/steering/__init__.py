"""The maths of a decision: when to steer (gate) and how (experts). NumPy and nothing else."""

from finesteer_local.steering.decision import LONG_PROMPT, SHORT_PROMPT, Decision, decide
from finesteer_local.steering.experts import Experts
from finesteer_local.steering.gate import AlwaysGate, ConditionGate, ContrastiveGate, Gate, SubspaceGate, spans

__all__ = [
    "LONG_PROMPT",
    "SHORT_PROMPT",
    "AlwaysGate",
    "ConditionGate",
    "ContrastiveGate",
    "Decision",
    "Experts",
    "Gate",
    "SubspaceGate",
    "decide",
    "spans",
]
