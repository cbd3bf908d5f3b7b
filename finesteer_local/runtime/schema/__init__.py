"""JSON schemas of clients, in the keywords that llguidance has."""

from finesteer_local.runtime.schema.lowering import lowered

__all__ = ["lowered"]
