"""The small drawings."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from finesteer_local.svg import SHAPES, Plot, steps, tag, text, ticks


def test_tags_are_escaped() -> None:
    assert tag("a", "x", class_="b c", data_x='"<&', y=1.50, none=None) == (
        '<a class="b c" data-x="&quot;&lt;&amp;" y="1.5">x</a>'
    )
    assert tag("br") == "<br/>"
    assert text(1, 2, "<b>&") == '<text x="1" y="2">&lt;b&gt;&amp;</text>'


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.1, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (-0.02, 0.45, [0, 0.1, 0.2, 0.3, 0.4]),
        (-7, 7, [-5, -2.5, 0, 2.5, 5]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    found = ticks(low, high)
    assert all(low <= tick <= high for tick in found)
    assert found == pytest.approx(wanted) or (len(wanted) == 5 and found[0] >= low)


def plot() -> Plot:
    return Plot(200, 100, x=(0, 10), y=(0, 1), left=20, right=10, top=5, bottom=15)


def test_points_lie_where_the_axes_say() -> None:
    made = plot()
    assert (made.px(0), made.px(10), made.px(5)) == (20, 190, 105)
    assert (made.py(0), made.py(1)) == (85, 5)
    flat = Plot(200, 100, x=(3, 3), y=(1, 1))
    assert flat.px(3) == flat.left  # no division by nothing


def test_a_drawing_is_sound_xml() -> None:
    made = plot()
    made.axes("across <", "up &", x_format="{:.0%}")
    made.line([(0, 0), (10, 1)], "curve")
    made.bar(1, 2, 0.5, "open", "5 < 6")
    for i, shape in enumerate(SHAPES):
        made.marker(i, 0.5, shape, "ours", hollow=i % 2 == 0, title="<b>")
    made.whisker((1, 2), (0.5, 0.5), "w")
    made.labels([(1, 0.5, "a <name>", "ours")])
    root = ET.fromstring(made.svg('a "title"'))
    assert root.attrib["viewBox"] == "0 0 200 100" and root.attrib["aria-label"] == 'a "title"'
    assert len([e for e in root if e.tag.endswith("path")]) == len(SHAPES)
    assert len({e.attrib["d"] for e in root if e.tag.endswith("path")}) == len(SHAPES)
    [bar] = [e for e in root if e.tag.endswith("rect")]
    assert (float(bar.attrib["y"]), float(bar.attrib["height"])) == (45, 40)


def test_a_drawing_that_is_a_file() -> None:
    made = plot()
    made.axes("", "", x_ticks=[(2, "two"), (8, "eight")])
    root = ET.fromstring(made.svg("t", style=".a{fill:#fff}"))
    assert (root.attrib["width"], root.attrib["height"]) == ("200", "100")
    assert [e.text for e in root if e.tag.endswith("style")] == [".a{fill:#fff}"]
    assert [e.text for e in root if e.tag.endswith("text")][:2] == ["two", "eight"]
    assert "width" not in ET.fromstring(made.svg("t")).attrib


def test_labels_do_not_lie_on_each_other() -> None:
    made = plot()
    made.labels([(5, 0.5, f"name {i}", "x") for i in range(4)] + [(9.9, 0.5, "at the edge", "x")])
    found = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', "".join(made.marks))]
    heights = sorted(y for x, y in found if x > 100)
    assert all(b - a >= 12 for a, b in pairwise(heights))
    edge = found[["at the edge" in mark for mark in made.marks if "<text" in mark].index(True)]
    assert edge[0] < made.px(9.9)  # to the left, where there is room


def test_steps() -> None:
    assert steps([(0, 1), (2, 3)]) == [(0, 1), (2, 1), (2, 3)]
    assert steps([(0, 1)]) == [(0, 1)] and steps([]) == []
