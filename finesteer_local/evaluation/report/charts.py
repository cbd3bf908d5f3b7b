"""The report's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from finesteer_local.evaluation.figures import Figures, gate_scores, suite_scores
from finesteer_local.evaluation.measure import Evaluation, Method
from finesteer_local.evaluation.report.svg import SHAPES, Plot, steps, tag, text
from finesteer_local.evaluation.results import Results
from finesteer_local.judges.statistics import auroc, roc

BINS = 28
GARBLED = 0.1
"""A share of answers in no language from which on a point is drawn hollow."""


def style_of(names: Sequence[str], name: str) -> tuple[str, str]:
    """The CSS class and the shape of a method; `ours` and `none` look the same in every picture."""
    if name in ("ours", "none"):
        return name, "circle"
    others = [other for other in names if other not in ("ours", "none")]
    i = others.index(name)
    return f"series-{i % 6 + 1}", SHAPES[1 + i % (len(SHAPES) - 1)]


def pareto(results: Results, names: Sequence[str]) -> str:
    """Defence against over-refusal: every method with its interval, its sweep, and the front of the best."""
    drawn = {f.method: f for f in results.leading if f.method in names and f.defended and f.over_refusal}
    if not drawn:
        return ""
    swept = {name: [p for p in results.sweep if p.method == name and p.defended and p.over_refusal] for name in drawn}
    points = [(f.over_refusal.value, f.defended.value) for f in drawn.values() if f.over_refusal and f.defended]
    points += [
        (p.over_refusal.value, p.defended.value) for s in swept.values() for p in s if p.over_refusal and p.defended
    ]
    intervals = [f.over_refusal for f in drawn.values() if f.over_refusal]
    left = min(0.0, *(x for x, _ in points), *(x.low for x in intervals))
    right = max(0.1, *(1.12 * x for x, _ in points), *(x.high for x in intervals))
    plot = Plot(480, 400, x=(left - 0.02, right + 0.005), y=(0.0, 1.03), left=50, bottom=44)
    plot.axes(
        "harmless requests declined, over unsteered", "harmful requests defended", x_format="{:.0%}", y_format="{:.0%}"
    )
    plot.line(steps(_front(points)), "front")
    for name in drawn:
        class_, shape = style_of(names, name)
        path = [(p.over_refusal.value, p.defended.value) for p in swept[name] if p.over_refusal and p.defended]
        plot.line(path, f"{class_} sweep")
        for p, at in zip(swept[name], path, strict=True):
            hollow = bool(p.language and p.language.value < 1 - GARBLED)
            plot.marker(
                *at, shape, class_, size=2.6, hollow=hollow, title=f"{name}, {p.factor:g} of its strength: {_at(*at)}"
            )
    for name, f in drawn.items():
        assert f.defended and f.over_refusal
        class_, shape = style_of(names, name)
        x, y = f.over_refusal, f.defended
        plot.whisker((x.low, x.high), (y.value, y.value), f"{class_} whisker")
        plot.whisker((x.value, x.value), (y.low, y.high), f"{class_} whisker")
        hollow = bool(f.language and f.language.value < 1 - GARBLED)
        plot.marker(x.value, y.value, shape, class_, size=6, hollow=hollow, title=f"{name}: {_at(x.value, y.value)}")
    plot.labels(
        [
            (f.over_refusal.value, f.defended.value, name, style_of(names, name)[0])
            for name, f in drawn.items()
            if f.over_refusal and f.defended
        ]
    )
    return plot.svg("Harmful requests defended against harmless requests declined, by method")


def _at(x: float, y: float) -> str:
    return f"{y:.1%} defended, {x:+.1%} over-refusal"


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats on both sides, from the left."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def histograms(evaluation: Evaluation, method: str) -> str:
    """The gate's scores on every suite, over one axis, with the threshold."""
    scores = suite_scores(evaluation, method)
    everything = np.concatenate([np.asarray(s) for s in scores.values()]) if scores else np.zeros(0)
    if len(everything) < 2 or everything.min() == everything.max():
        return ""
    threshold = threshold_of(evaluation, method)
    low, high = (float(v) for v in np.quantile(everything, [0.005, 0.995]))
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    pad = (high - low) * 0.04 or 1.0
    edges = np.linspace(low - pad, high + pad, BINS + 1)
    drawings = []
    for name, values in scores.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        heights = counts / max(counts.max(), 1)
        plot = Plot(340, 132, x=(float(edges[0]), float(edges[-1])), y=(0.0, 1.05), left=8, right=8, top=8, bottom=22)
        plot.axes("", "", y_format="")
        for i, height in enumerate(heights):
            if counts[i]:
                middle = (edges[i] + edges[i + 1]) / 2
                above = threshold is None or middle >= threshold
                title = f"{counts[i]} prompts from {edges[i]:.2f} to {edges[i + 1]:.2f}"
                plot.bar(float(edges[i]), float(edges[i + 1]), float(height), "open" if above else "shut", title)
        opened = ""
        if threshold is not None:
            plot.line([(threshold, 0.0), (threshold, 1.05)], "threshold")
            opened = f", {np.mean(np.asarray(values) >= threshold):.0%} at or above the threshold"
        caption = f"{escape(name)} <small>{len(values)} prompts{opened}</small>"
        drawings.append(tag("figure", plot.svg(f"Gate scores on {name}") + tag("figcaption", caption)))
    return tag("div", "".join(drawings), class_="small-multiples")


def threshold_of(evaluation: Evaluation, method: str) -> float | None:
    """The threshold of a method's gate, where it has one."""
    for suite in evaluation.suites:
        for outcome in evaluation.outcomes[method, suite.name]:
            return outcome.answer.reading.threshold
        for _, score in evaluation.scores[method, suite.name]:
            return score.reading.threshold
    return None


def gated(evaluation: Evaluation) -> list[Method]:
    """Methods that tell prompts apart; of those whose gate is ours the first."""
    seen: list[tuple[list[float], list[float]]] = []
    found = []
    for method in evaluation.methods:
        scores = gate_scores(evaluation, method.name)
        if all(scores) and scores not in seen:
            seen.append(scores)
            found.append(method)
    return sorted(found, key=lambda method: method.name != "ours")


def roc_curves(evaluation: Evaluation, names: Sequence[str], *, zoomed: bool = False) -> str:
    """How well each gate tells the prompts that need intervention apart, with the point at its threshold.

    Zoomed, the corner that matters: few openings on harmless prompts, many where they should be.
    """
    methods = gated(evaluation)
    if not methods:
        return ""
    x, y = ((0.0, 0.2), (0.5, 1.0)) if zoomed else ((0.0, 1.0), (0.0, 1.0))
    plot = Plot(480, 400, x=x, y=y, left=50, bottom=44)
    plot.axes("gate opens on harmless prompts", "gate opens where it should", x_format="{:.0%}", y_format="{:.0%}")
    if not zoomed:
        plot.line([(0, 0), (1, 1)], "chance")
    rows = []
    for method in reversed(methods):  # ours is drawn last, on top
        wanted, others = gate_scores(evaluation, method.name)
        class_, shape = style_of(names, method.name)
        false, true = roc(wanted, others)
        curve = [(f, t) for f, t in zip(false.tolist(), true.tolist(), strict=True) if f <= x[1] and t >= y[0]]
        plot.line(curve, f"{class_} curve")
        threshold = threshold_of(evaluation, method.name)
        if threshold is not None:
            at = float(np.mean(np.asarray(others) >= threshold)), float(np.mean(np.asarray(wanted) >= threshold))
            title = f"{method.name} at its threshold: opens on {at[1]:.1%}, and on {at[0]:.1%} of the harmless"
            if at[0] <= x[1] and at[1] >= y[0]:
                plot.marker(*at, shape, class_, size=5.5, title=title)
        rows.append((auroc(wanted, others) or 0.0, class_, method.name))
    for i, (area, class_, name) in enumerate([] if zoomed else sorted(rows, reverse=True)):
        top = 0.06 + 0.055 * (len(rows) - 1 - i)
        plot.line([(0.5, top), (0.56, top)], f"{class_} curve")
        plot.marks.append(text(plot.px(0.58), plot.py(top) + 4, f"{name}, AUROC {area:.3f}", class_="label"))
    return plot.svg("How often each gate opens where it should, against how often on harmless prompts")


def heat_map(usage: Mapping[str, Mapping[str, float]], rows: int = 16) -> str:
    """Mean weight of every expert (columns) by kind of request (rows), as a table that scrolls on a narrow screen."""
    if not usage:
        return ""
    experts = list(next(iter(usage.values())))
    top = max(max(weights.values()) for weights in usage.values()) or 1.0
    head = tag("tr", tag("th", "kind of request") + "".join(tag("th", escape(name)) for name in experts))
    body = "".join(
        tag(
            "tr",
            tag("th", escape(kind), scope="row")
            + "".join(
                tag("td", f"{weight:.2f}", style=f"--weight: {100 * weight / top:.0f}%") for weight in weights.values()
            ),
        )
        for kind, weights in list(usage.items())[:rows]
    )
    return tag("div", tag("table", tag("thead", head) + tag("tbody", body), class_="heat"), class_="scroll")


def best_other(totals: Sequence[Figures], ours: Figures, names: Sequence[str]) -> Figures | None:
    """The method of `names` that defends best while it declines no more harmless requests than ours."""
    if ours.over_refusal is None:
        return None
    rivals = [
        f
        for f in totals
        if f.method in names and f.defended and f.over_refusal and f.over_refusal.value <= ours.over_refusal.value
    ]
    return max(rivals, key=lambda f: f.defended.value if f.defended else 0.0) if rivals else None
