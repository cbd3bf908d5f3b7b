"""What works on this machine, with this model, and what to do about what does not."""

from finesteer_local.doctor.finding import BROKEN, GOOD, NOTE, Finding
from finesteer_local.doctor.installation import examine_installation
from finesteer_local.doctor.model import examine_model

__all__ = ["BROKEN", "GOOD", "NOTE", "Finding", "examine_installation", "examine_model"]
