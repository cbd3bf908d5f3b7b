"""A plugin of pytest: what was skipped, and how to run it, in one line at the end; a failure where it must run.

`MUST_RUN=tests/test_page.py` names files, separated by blanks, of which no test may be skipped (.ci/run sets it).
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and _unwanted(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reasons = Counter(_reason(report) for report in _skipped(config))
    if reasons:
        told = "; ".join(f"{n} {'tests' if n > 1 else 'test'}, {why}" for why, n in reasons.most_common())
        terminalreporter.write_line(f"Not run: {told}")
    if files := _unwanted(config):
        terminalreporter.write_line(f"Must be run here, and was skipped: {', '.join(files)}", red=True)


def _skipped(config: pytest.Config) -> list[Any]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")  # a process of xdist has none
    return list(reporter.stats.get("skipped", ())) if reporter else []


def _unwanted(config: pytest.Config) -> list[str]:
    needed = os.environ.get("MUST_RUN", "").split()
    skipped = {report.nodeid.split("::")[0] for report in _skipped(config)}
    return sorted(skipped.intersection(needed))


def _reason(report: Any) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ")
