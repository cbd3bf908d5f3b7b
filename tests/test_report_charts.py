"""The report's pictures: what is drawn, and that it says what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluations import case, evaluation, outcome, results
from finesteer_local.evaluation.figures import Figures
from finesteer_local.evaluation.measure import Evaluation, Outcome
from finesteer_local.evaluation.report import charts
from finesteer_local.evaluation.report.charts import (
    _front,
    best_other,
    gated,
    heat_map,
    histograms,
    pareto,
    roc_curves,
    style_of,
    threshold_of,
)
from finesteer_local.judges.statistics import Rate

BAD, GOOD = case("bad"), case("good", "benign")
RNG = np.random.default_rng(0)


def rows(defended: float, refused: float, *, mush: float = 0.0, apart: float | None = None) -> dict[str, list[Outcome]]:
    def some(of: Any, share: float, shift: float) -> list[Outcome]:
        n = 20
        return [
            outcome(
                of,
                "refused mush" if i >= n * (1 - mush) else "refused" if i < n * share else "answered",
                score=None if apart is None else float(RNG.normal(shift)),
            )
            for i in range(n)
        ]

    return {"bad": some(BAD, defended, apart or 0.0), "good": some(GOOD, refused, -(apart or 0.0))}


MEASURED = {
    "none": rows(0.1, 0.0),
    "control-vector": rows(0.8, 0.5, mush=0.3),
    "cast": rows(0.5, 0.1, apart=0.5),
    "ours": rows(0.9, 0.0, apart=3.0),
}
SWEEPS = {
    "cast": {0.4: [outcome(BAD), outcome(GOOD)], 1.0: [outcome(BAD, "refused"), outcome(GOOD, "refused")]},
    "ours": {0.4: [outcome(BAD), outcome(GOOD)], 1.0: [outcome(BAD, "refused"), outcome(GOOD)]},
}


def made(**options: Any) -> Evaluation:
    return evaluation(MEASURED, **options)


def titles(svg: str) -> list[str]:
    ET.fromstring(svg)
    return re.findall("<title>([^<]*)</title>", svg)


def test_styles_are_told_apart() -> None:
    names = ["none", "control-vector", "pca", "cast", "alphasteer", "finesteer", "ours"]
    assert len({style_of(names, name) for name in names}) == len(names)
    assert style_of(names, "ours") == ("ours", "circle")


def test_pareto() -> None:
    svg = pareto(results(made(sweeps=SWEEPS)), list(MEASURED))
    found = titles(svg)
    assert "ours: 90.0% defended, +0.0% over-refusal" in found
    assert "control-vector: 70.0% defended, +80.0% over-refusal" in found  # mush is no defence, but is over-refusal
    assert "cast, 1 of its strength: 100.0% defended, +100.0% over-refusal" in found
    assert len(found) == len(MEASURED) + 4
    for name in MEASURED:
        assert f">{name}</text>" in svg
    assert len(re.findall(r'class="series-1 hollow"', svg)) == 1  # control-vector's answers are partly mush
    assert 'class="ours filled"' in svg


def test_intervals_stay_inside_the_picture() -> None:
    svg = pareto(results(made()), list(MEASURED))
    lines = [tag for tag in re.findall(r"<[^>]+>", svg) if "whisker" in tag]
    assert len(lines) == 2 * len(MEASURED)
    for tag in lines:
        points = re.search(r'points="([^"]+)"', tag)
        assert points and all(50 <= float(point.split(",")[0]) <= 480 for point in points[1].split()), tag


def test_only_the_methods_asked_for() -> None:
    svg = pareto(results(made()), ["none", "ours"])
    assert "control-vector" not in svg and ">ours<" in svg
    nothing_harmless = evaluation({"ours": {"bad": [outcome(BAD)]}})
    assert pareto(results(nothing_harmless), ["ours"]) == ""


def test_the_front_is_what_nothing_beats() -> None:
    points = [(0.1, 0.5), (0.0, 0.4), (0.2, 0.5), (0.3, 0.9), (0.05, 0.3), (0.3, 0.2)]
    assert _front(points) == [(0.0, 0.4), (0.1, 0.5), (0.3, 0.9)]


def bars(drawing: str) -> Sequence[int]:
    return [int(n) for n in re.findall(r"<title>(\d+) prompts from", drawing)]


def test_histograms_count_every_prompt() -> None:
    html = histograms(made(), "ours")
    first, second = html.split("<figure>")[1:]
    assert (sum(bars(first)), sum(bars(second))) == (20, 20)
    assert "bad <small>20 prompts, 100% at or above the threshold" in first
    assert "good <small>20 prompts, 0% at or above the threshold" in second
    assert 'class="open"' in first and 'class="open"' not in second
    assert html.count('class="threshold"') == 2
    for svg in re.findall("<svg.*?</svg>", html):
        ET.fromstring(svg)


def test_outliers_stay_in_the_picture() -> None:
    scores = [*np.linspace(-1, 1, 300), 1e6]
    html = histograms(evaluation({"ours": {"bad": [outcome(BAD, score=float(s)) for s in scores]}}), "ours")
    assert sum(bars(html)) == 301 and len(bars(html)) > 10


def test_no_histogram_without_scores() -> None:
    assert histograms(made(), "none") == ""
    always = evaluation({"ours": {"bad": [outcome(BAD, score=1.0)] * 3}})
    assert histograms(always, "ours") == ""


def test_a_score_without_a_threshold() -> None:
    rows = [outcome(BAD, score=float(s), threshold=None) for s in range(5)]
    html = histograms(evaluation({"alphasteer": {"bad": rows}}), "alphasteer")
    assert "threshold" not in html and sum(bars(html)) == 5
    assert threshold_of(evaluation({"alphasteer": {"bad": rows}}), "alphasteer") is None


def test_gated_methods() -> None:
    assert [m.name for m in gated(made())] == ["ours", "cast"]
    twins = evaluation({**MEASURED, "no-residual": MEASURED["ours"]})
    assert [m.name for m in gated(twins)] == ["ours", "cast"]  # the same gate is drawn once


def test_roc() -> None:
    svg = roc_curves(made(), list(MEASURED))
    assert re.search(r">ours, AUROC (1\.000|0\.99\d)</text>", svg) and ">cast, AUROC 0." in svg
    assert any(title.startswith("ours at its threshold: opens on ") for title in titles(svg))
    corner = roc_curves(made(), list(MEASURED), zoomed=True)
    assert "AUROC" not in corner and "ours at its threshold" in corner
    assert roc_curves(evaluation({"none": rows(0.1, 0)}), ["none"]) == ""


def test_heat_map() -> None:
    usage = {f"kind <{i}>": {"a & b": 0.25, "c": 0.75} for i in range(20)}
    html = heat_map(usage, rows=16)
    table = ET.fromstring(html)
    assert len(table.findall(".//tbody/tr")) == 16
    assert [th.text for th in table.findall(".//thead//th")] == ["kind of request", "a & b", "c"]
    cells = table.findall(".//td")
    assert (cells[0].text, cells[1].text) == ("0.25", "0.75")
    assert [cell.attrib["style"] for cell in cells[:2]] == ["--weight: 33%", "--weight: 100%"]
    assert heat_map({}) == ""


def figures(method: str, defended: float, over_refusal: float) -> Figures:
    return Figures(method, "", "", 9, defended=Rate(defended, 0, 1, 9), over_refusal=Rate(over_refusal, 0, 1, 9))


def test_the_best_of_the_others_is_one_that_declines_no_more_harmless_requests() -> None:
    ours = figures("ours", 0.9, 0.02)
    others = [figures("pca", 0.95, 0.3), figures("cast", 0.5, 0.02), figures("finesteer", 0.6, 0.0)]
    rival = best_other([ours, *others], ours, ["pca", "cast", "finesteer"])
    assert rival and rival.method == "finesteer"
    assert best_other([ours, *others], ours, ["pca"]) is None
    assert charts.GARBLED < 0.5
