"""Measuring profiles: suites, methods, metrics and the report."""
