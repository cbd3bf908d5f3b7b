"""The report: one HTML page that needs nothing else, light and dark, with pictures drawn as inline SVG."""

from finesteer_local.evaluation.report.page import render

__all__ = ["render"]
