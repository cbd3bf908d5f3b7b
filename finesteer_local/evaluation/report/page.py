"""The report's page: its sections, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from finesteer_local.evaluation.figures import QUESTIONS, SAMPLED, Figures, expert_usage
from finesteer_local.evaluation.methods import BASELINES, OURS
from finesteer_local.evaluation.report import charts
from finesteer_local.evaluation.report.examples import examples
from finesteer_local.evaluation.report.words import MEANINGS, interval, summary
from finesteer_local.evaluation.results import Results
from finesteer_local.judges.statistics import Rate
from finesteer_local.svg import tag

_CSS = Path(__file__).with_name("style.css")
# No script, nothing from elsewhere: a page of other people's prompts and a model's answers must be able to do nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_YARDSTICK = {
    "defended": "defended",
    "declined": "declined",
    "ends": "ends",
    "tokens": "tokens",
    "circles": "in circles",
    "language": "good language",
    "over_refusal": "over-refusal",
}
_BESIDE = {
    "identical": "identical",
    "steered_ends": "gate open: ends",
    "steered_tokens": "gate open: tokens",
    "steered_circles": "gate open: in circles",
    "phrases": "refused, phrases",
    "auroc": "AUROC",
    "accuracy": "maths solved",
    "mc1": "MC1",
    "mc2": "MC2",
    "seconds": "seconds a prompt",
}
_WATCHED = {
    "by_prompt": "by the prompt's gate",
    "by_answer": "by the answer's gate",
    "let_out": "tokens let out",
    "touched": "harmless touched",
}
_BY_SUITE = {
    "n": "n",
    **_YARDSTICK,
    "opened": "gate open",
    **_WATCHED,
    "identical": "identical",
    "phrases": "refused, phrases",
    "accuracy": "maths solved",
    "mc1": "MC1",
    "mc2": "MC2",
}


def render(results: Results) -> str:
    """The whole page."""
    setting = results.setting
    title = f"{setting.model}: {'; '.join(setting.profiles) or 'unsteered'}"
    sections = [
        _head(results),
        _section("All methods", _overall(results, _YARDSTICK), _REMARK_TABLE),
        _section("Beside it", _overall(results, _BESIDE)),
        _trade_off(results),
        _gates(results),
        _experts(results),
        _examples(results),
        _section("Suite by suite", _by_suite(results)),
        _methods(results),
        _how(results),
    ]
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title>"
        f"<style>\n{_CSS.read_text(encoding='utf-8')}</style>"
    )
    body = tag("main", "\n".join(filter(None, sections)))
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


_REMARK_TABLE = (
    "All methods answered the same prompts, and whole answers are judged: those to harmful requests, but for "
    "over-refusal. The small print is the 95 % interval: two figures whose intervals overlap widely are not told apart "
    "by this run."
)


def _section(title: str, content: str, lead: str = "") -> str:
    if not content:
        return ""
    return tag("section", tag("h2", escape(title)) + (tag("p", lead, class_="quiet") if lead else "") + content)


def _head(results: Results) -> str:
    setting = results.setting
    names = "; ".join(setting.profiles) or "no profile"
    n = sum(len(suite.cases) for suite in results.evaluation.suites)
    facts = f"{names} · {n} prompts in {len(results.evaluation.suites)} suites · {setting.date}"
    found = "".join(tag("p", sentence) for sentence in summary(results, list(BASELINES)))
    return (
        tag("h1", f"How {escape(setting.model)} answers, steered and unsteered")
        + tag("p", escape(facts), class_="quiet")
        + (tag("div", found, class_="summary") if found else "")
        + "".join(tag("p", escape(remark), class_="quiet") for remark in setting.remarks)
    )


def _overall(results: Results, titles: Mapping[str, str]) -> str:
    rows = results.totals
    columns = {name: title for name, title in titles.items() if any(getattr(f, name) is not None for f in rows)}
    body = "".join(_row(f, columns) for f in rows)
    return _table(["method", *columns.values()], body) if columns else ""


def _row(f: Figures, columns: Mapping[str, str]) -> str:
    name = f"{f.method}, {f.decoding}" if f.decoding else f.method
    cells = "".join(_cell(getattr(f, column), column) for column in columns)
    return tag("tr", tag("th", escape(name), scope="row") + cells, class_=f.method)


def _by_suite(results: Results) -> str:
    rows = results.suites
    columns = {name: title for name, title in _BY_SUITE.items() if any(getattr(f, name) is not None for f in rows)}
    body, heading = "", None
    for f in rows:
        if heading != (f.suite, f.label):
            heading = (f.suite, f.label)
            words = f"{f.suite} ({'questions' if f.label == QUESTIONS else f.label})"
            body += tag("tr", tag("th", escape(words), colspan=len(columns) + 1), class_="group")
        body += _row(f, columns)
    return _table(["method", *columns.values()], body)


def _table(titles: Sequence[str], body: str, class_: str | None = None) -> str:
    head = tag("thead", tag("tr", "".join(tag("th", escape(title)) for title in titles)))
    return tag("div", tag("table", head + tag("tbody", body), class_=class_), class_="scroll")


def _cell(value: Rate | float | int | None, name: str) -> str:
    if value is None:
        return tag("td", "&nbsp;")
    if isinstance(value, Rate):
        if name in ("mc1", "mc2"):
            return tag("td", f"{value.value:.3f}<small>{value.low:.3f} to {value.high:.3f}</small>")
        signed = "+" if name == "over_refusal" else ""
        small = tag("small", interval(value, signed=bool(signed)))
        return tag("td", f"{100 * value.value:{signed}.1f} %{small}")
    if isinstance(value, int):
        return tag("td", str(value))
    return tag("td", f"{value:{_DIGITS[name]}}")


_DIGITS = {"seconds": ".2f", "auroc": ".3f", "tokens": ".0f", "steered_tokens": ".0f", "let_out": ".0f"}


def _trade_off(results: Results) -> str:
    names = [m.name for m in results.evaluation.methods]
    beside = [name for name in names if name in BASELINES or name in ("none", OURS)]
    apart = [name for name in names if name not in BASELINES and name != "none"]
    pictures = []
    for title, chosen in (("Beside other methods", beside), ("Ours with a part taken out", apart)):
        drawing = charts.pareto(results, chosen) if len(chosen) > 1 else ""
        if drawing:
            pictures.append(tag("figure", drawing + tag("figcaption", title)))
    lead = (
        "Up and to the left is better. The dotted line is the front: no point beats those on it on both sides. "
        "Lines across a mark are 95 % intervals; a hollow mark means that more than a tenth of the answers to harmful "
        "requests are no good language."
    )
    if any(f.decoding == SAMPLED for f in results.totals):
        lead += " Answers are the sampled ones."
    if results.sweep:
        lead += (
            " Small marks are the same method at 0.4 to 1.6 of its strength, on a part of the prompts; "
            "point at one to read it."
        )
    return _section(
        "Defence against over-refusal", tag("div", "".join(pictures), class_="pair") if pictures else "", lead
    )


def _gates(results: Results) -> str:
    evaluation = results.evaluation
    methods = charts.gated(evaluation)
    if not methods:
        return ""
    names = [m.name for m in evaluation.methods]
    first, *others = methods
    content = tag("h3", f"Scores of {escape(first.name)}") + charts.histograms(evaluation, first.name)
    for method in others:
        drawn = charts.histograms(evaluation, method.name)
        content += tag("details", tag("summary", f"Scores of {escape(method.name)}") + drawn) if drawn else ""
    curves = [charts.roc_curves(evaluation, names, zoomed=zoomed) for zoomed in (False, True)]
    figures = tag("figure", curves[0]) + tag("figure", curves[1] + tag("figcaption", "The corner that matters"))
    content += tag("h3", "Telling prompts apart") + tag("div", figures, class_="pair")
    lead = (
        "A gate gives every prompt a score, and steers from the threshold (dashed) on. Every suite has its own height; "
        "all share one axis. In the curves a mark is the threshold that is in use."
    )
    return _section("When it steers", content, lead)


def _experts(results: Results) -> str:
    usage = expert_usage(results.evaluation, OURS) if OURS in {m.name for m in results.evaluation.methods} else {}
    lead = "Mean weight of every expert over the prompts that are steered, by kind of request; rows add up to 1."
    return _section("Which experts answer to what", charts.heat_map(usage), lead)


def _examples(results: Results) -> str:
    names = [m.name for m in results.evaluation.methods if m.name in BASELINES or m.name in ("none", OURS)]
    lead = "Cases on which the methods differ most and, where there is one, a case that ours gets wrong."
    return _section("Examples", examples(results.evaluation, names), lead)


def _methods(results: Results) -> str:
    body = ""
    for method in results.evaluation.methods:
        cells = [method.name, method.source, method.intervention.summary, _notes(method.notes)]
        body += tag("tr", "".join(tag("td", escape(cell) or "&nbsp;") for cell in cells))
    lead = (
        "The other methods are trained on the profile's own recipe. What their papers leave open, and their strength, "
        "is chosen by answers to the same held-out prompts, as ours is."
    )
    table = _table(["method", "from", "steers", "chosen on validation prompts"], body, "wrap")
    return _section("What the methods are", table, lead)


def _notes(notes: Mapping[str, Any]) -> str:
    if not notes:
        return ""
    found = notes["validation"]
    settings = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in notes.items()
        if key not in ("validation", "trials", "candidates", "strength", "layers")
    ]
    return (
        f"{found['wanted']:.0%} as wanted, {found['kept']:.0%} of harmless ones left in order, "
        f"best of {notes['candidates']} settings" + (f"; {', '.join(settings)}" if settings else "")
    )


def _how(results: Results) -> str:
    setting, coherence = results.setting, results.evaluation.coherence
    terms = "".join(tag("dt", escape(name)) + tag("dd", escape(meaning)) for name, meaning in MEANINGS.items())
    language = (
        f"Good language: at most {coherence.limit:.2f} nats a token under the unsteered model and at most "
        f"{coherence.repeated:.0%} repeated trigrams, in every window of an answer; 95 % of the unsteered answers of "
        "this run stay well under both."
    )
    seeds = ", ".join(map(str, setting.seeds))
    drawn = f", and sampled at temperature {setting.temperature:g} with the seeds {seeds}" if seeds else ""
    asked = (
        f"Answers have up to {setting.max_tokens} tokens (maths more) and are greedy{drawn}. "
        f"What declines is said by {results.evaluation.judge}."
    )
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    content = (
        tag("dl", terms)
        + tag("p", escape(language))
        + tag("p", escape(asked))
        + tag("h3", "To reproduce")
        + (tag("pre", escape(setting.command)) if setting.command else "")
        + tag("p", escape(f"{versions}. Fingerprint of the model: {setting.fingerprint}."), class_="quiet")
    )
    return _section("How it was measured", content)
