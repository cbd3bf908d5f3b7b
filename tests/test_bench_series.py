"""Samples in turns, and the ratios that follow from them."""

from __future__ import annotations

import pytest

from finesteer_local.bench.series import Series, alternate


def test_every_round_does_every_way_once() -> None:
    calls: list[str] = []
    values = {"a": iter(range(1, 100)), "b": iter(range(101, 200))}

    def way(name: str):
        def do() -> float:
            calls.append(name)
            return float(next(values[name]))

        return do

    series, steps = Series("part", "name", "ms"), []
    alternate(series, {"a": way("a"), "b": way("b")}, 6, lambda: steps.append(1))
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert all(sorted(each) == ["a", "b"] for each in rounds) and len(rounds) == 7  # the first warms up
    assert len({tuple(each) for each in rounds}) == 2, "the order changes"
    assert series.samples == {"a": [2.0, 3, 4, 5, 6, 7], "b": [102.0, 103, 104, 105, 106, 107]}
    assert len(steps) == 14
    cold = Series("part", "name", "ms")
    alternate(cold, {"a": way("a")}, 2, lambda: None, warm_up=False)
    assert cold.samples == {"a": [8.0, 9.0]}


def test_an_interrupted_round_counts_for_nothing() -> None:
    n = 0

    def stop() -> float:
        nonlocal n
        n += 1
        if n == 4:
            raise KeyboardInterrupt
        return 1.0

    series = Series("part", "name", "ms")
    with pytest.raises(KeyboardInterrupt):
        alternate(series, {"a": stop, "b": lambda: 2.0}, 5, lambda: None)
    assert series.samples == {"a": [1.0, 1.0], "b": [2.0, 2.0]} and series.n_rounds == 2


def test_a_ratio_is_that_of_a_round_not_of_the_medians() -> None:
    # the machine is ten times slower in the last rounds: it is so for both
    series = Series("part", "name", "ms", samples={"a": [1.0, 1, 10, 10, 30], "b": [2.0, 2, 20, 20, 20]})
    ratio = series.ratio("label", "a", "b")
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert series.median("a") == 10 and series.spread("a") == (1, 10)
    series.against("b")
    assert [r.label for r in series.ratios] == ["a / b"]
    assert Series("p", "n", "ms", samples={"a": [3.0]}).spread("a") == (3, 3)
    assert Series("p", "n", "ms", samples={"a": []}, pairs=[("x", "a", "a")]).ratios == []
    series.pairs = [("b to a", "b", "a")]
    assert [(r.label, r.value) for r in series.ratios] == [("a / b", 0.5), ("b to a", 2.0)]


def test_a_reference_that_was_measured_beside_each_way() -> None:
    series = Series("part", "name", "tokens/s")
    series.add({"native": 60.0})
    series.add({"a": 50.0, "b": 90.0}, {"a": 25.0, "b": 100.0})
    series.against("native")
    assert [(r.label, r.value) for r in series.ratios] == [("a / native", 2.0), ("b / native", 0.9)]
    assert Series.from_json(series.to_json()) == series


def test_json_and_back() -> None:
    series = Series("ttft", "name", "ms", 32, {"a": [1.0, 3.0], "b": [2.0, 2.0]})
    series.against("b")
    told = series.to_json()
    assert told["median"] == {"a": 2.0, "b": 2.0} and told["rounds"] == 2
    assert told["ratios"][0] == {"label": "a / b", "way": "a", "to": "b", "value": 1.0, "low": 0.75, "high": 1.25}
    assert Series.from_json(told) == series
