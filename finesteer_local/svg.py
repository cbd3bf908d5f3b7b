"""Small drawings as SVG text: a plot area with axes and marks.

Colours are CSS classes: of the page that a drawing stands in, or of a style that it brings along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

import numpy as np

SHAPES = ("circle", "square", "diamond", "triangle", "down", "cross")


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """`<name a="b">content</name>`; `_` in an attribute's name is `-`, and a trailing one is dropped (`class_`)."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(x: float, y: float, content: str, **attributes: object) -> str:
    """Text at a point; the content is escaped."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About `n` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / n
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [float(round(i * step, 10)) + 0.0 for i in np.arange(first, last + 1)]


@dataclass
class Plot:
    """A plot area of a drawing `width` by `height`, whose axes go over `x` and `y` (each low, high)."""

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 44
    right: float = 12
    top: float = 12
    bottom: float = 40
    marks: list[str] = field(default_factory=list)

    def px(self, x: float) -> float:
        low, high = self.x
        return self.left + (x - low) / ((high - low) or 1) * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        low, high = self.y
        return self.height - self.bottom - (y - low) / ((high - low) or 1) * (self.height - self.top - self.bottom)

    def axes(
        self,
        x_title: str,
        y_title: str,
        *,
        x_format: str = "{:g}",
        y_format: str = "{:g}",
        n: int = 5,
        x_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """Grid lines, tick labels and titles; `x_ticks` are places and labels instead of round numbers."""
        floor, ceiling = self.height - self.bottom, self.top
        for tick, label in x_ticks or [(tick, x_format.format(tick)) for tick in ticks(*self.x, n)]:
            at = self.px(tick)
            self.marks.append(tag("line", x1=at, x2=at, y1=floor, y2=ceiling, class_="grid"))
            self.marks.append(text(at, floor + 15, label, text_anchor="middle", class_="tick"))
        for tick in ticks(*self.y, n) if y_format else []:
            at = self.py(tick)
            self.marks.append(tag("line", x1=self.left, x2=self.width - self.right, y1=at, y2=at, class_="grid"))
            self.marks.append(text(self.left - 6, at + 4, y_format.format(tick), text_anchor="end", class_="tick"))
        if x_title:
            middle = (self.left + self.width - self.right) / 2
            self.marks.append(text(middle, self.height - 6, x_title, text_anchor="middle", class_="axis"))
        if y_title:
            middle = (self.top + self.height - self.bottom) / 2
            turned = f"rotate(-90 12 {_short(middle)})"
            self.marks.append(text(12, middle, y_title, text_anchor="middle", class_="axis", transform=turned))

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> None:
        """A polyline through points in the axes' units."""
        path = " ".join(f"{_short(float(self.px(x)))},{_short(float(self.py(y)))}" for x, y in points)
        self.marks.append(tag("polyline", points=path, class_=class_, fill="none"))

    def bar(self, x0: float, x1: float, height: float, class_: str, title: str = "") -> None:
        """A bar from the floor up; there is a hair of space between neighbours."""
        left, right, top, floor = self.px(x0), self.px(x1), self.py(height), self.py(self.y[0])
        inner = tag("title", escape(title)) if title else ""
        self.marks.append(
            tag("rect", inner, x=left + 0.5, y=top, width=max(right - left - 1, 0.5), height=floor - top, class_=class_)
        )

    def marker(
        self, x: float, y: float, shape: str, class_: str, *, size: float = 5, hollow: bool = False, title: str = ""
    ) -> None:
        """A mark of one of SHAPES; its title shows under the pointer."""
        self.mark(self.px(x), self.py(y), shape, class_, size=size, hollow=hollow, title=title)

    def mark(
        self, px: float, py: float, shape: str, class_: str, *, size: float = 5, hollow: bool = False, title: str = ""
    ) -> None:
        """As `marker`, at a point of the drawing."""
        at = f"translate({_short(float(px))} {_short(float(py))})"
        inner = tag("title", escape(title)) if title else ""
        classes = f"{class_} {'hollow' if hollow else 'filled'}"
        self.marks.append(tag("path", inner, d=_outline(shape, size), transform=at, class_=classes))

    def whisker(self, x: tuple[float, float], y: tuple[float, float], class_: str) -> None:
        """A line between two points, for an interval."""
        self.line([(x[0], y[0]), (x[1], y[1])], class_)

    def labels(self, wanted: Sequence[tuple[float, float, str, str]]) -> None:
        """Texts (x, y, text, class) beside their points, moved apart where they would lie on each other."""
        # left, right, y of what must not be covered: the points, then the texts
        boxes = [(self.px(x) - 7, self.px(x) + 7, self.py(y) + 4) for x, y, _, _ in wanted]
        for x, y, content, class_ in sorted(wanted, key=lambda item: (-item[1], item[0])):
            px, py, wide = self.px(x), self.py(y), 6.6 * len(content)
            right = px + 10 + wide <= self.width
            left = px + 10 if right else px - 10 - wide
            top = py + 4
            while any(start < left + wide and left < end and abs(top - other) < 13 for start, end, other in boxes):
                top += 1
            boxes.append((left, left + wide, top))
            if top - py > 14:
                self.marks.append(tag("line", x1=px, y1=py, x2=left, y2=top - 4, class_="leader"))
            self.marks.append(text(left, top, content, class_=f"label {class_}"))

    def svg(self, title: str, *, style: str = "") -> str:
        """The drawing; `title` is what it shows, for those who cannot see it.

        With `style`, CSS of its own, it can be a file: it has a size.
        """
        view = f"0 0 {_short(self.width)} {_short(self.height)}"
        inner = (tag("style", style) if style else "") + "".join(self.marks)
        size = {"width": self.width, "height": self.height} if style else {}
        return tag("svg", inner, viewBox=view, role="img", aria_label=title, xmlns="http://www.w3.org/2000/svg", **size)


def _outline(shape: str, size: float) -> str:
    if shape == "circle":
        return f"M{-size} 0a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    s = size * 0.95
    corners = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)],
        "triangle": [(0, -1.2 * s), (1.2 * s, s), (-1.2 * s, s)],
        "down": [(0, 1.2 * s), (1.2 * s, -s), (-1.2 * s, -s)],
    }
    if shape in corners:
        return "M" + "L".join(f"{_short(float(x))} {_short(float(y))}" for x, y in corners[shape]) + "z"
    a, b = _short(s * 1.2), _short(s * 0.35)
    return (
        f"M-{b} -{a}L{b} -{a}L{b} -{b}L{a} -{b}L{a} {b}L{b} {b}L{b} {a}L-{b} {a}L-{b} {b}L-{a} {b}L-{a} -{b}L-{b} -{b}z"
    )


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A staircase through points: level, then up."""
    corners = list(points[:1])
    for (_, y0), (x1, y1) in pairwise(points):
        corners += [(x1, y0), (x1, y1)]
    return corners
