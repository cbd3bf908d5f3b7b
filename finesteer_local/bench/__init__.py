"""What steering costs: every way of doing one thing measured in turns, in one run, on this machine."""

from finesteer_local.bench.run import PARTS, Results, measure
from finesteer_local.bench.series import Ratio, Series

__all__ = ["PARTS", "Ratio", "Results", "Series", "measure"]
