"""What people see of decisions and answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from finesteer_local.cli._answers import INTERRUPTED, TimedAnswer
from finesteer_local.cli._wrap import WordWrap

if TYPE_CHECKING:
    from finesteer_local.profile import Profile
    from finesteer_local.steering import Decision
    from finesteer_local.steering.kinds import Probabilities

_BAR_WIDTH = 20
_SHOWN_KIND = 0.1


def output_console() -> Console:
    """A console on the stdout of this moment; piped tables are as wide as they like to be read."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=100)


def printable(text: str) -> str:
    """Drop control characters, so that neither a model nor a file can move the cursor or recolour the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0"))


class AnswerWriter:
    """Streams an answer to stdout; on a terminal without control characters and broken between words.

    Blank lines before the answer are left out, unless it is to be `exact`.
    """

    def __init__(self, exact: bool = False) -> None:
        self._wrap = WordWrap(output_console().width) if sys.stdout.isatty() else None
        self._begun = exact
        self._last = ""

    def write(self, text: str) -> None:
        """Show the next piece."""
        if not self._begun:
            text = text.lstrip("\n")
        self._begun = self._begun or bool(text)
        self._last = text or self._last
        self._show(self._wrap.feed(printable(text)) if self._wrap else text)

    def end(self) -> None:
        """Show what was held back, and end the line."""
        rest = self._wrap.flush() if self._wrap else ""
        self._show(rest if self._last.endswith("\n") else rest + "\n")

    @staticmethod
    def _show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def one_line(text: str, width: int = 200) -> str:
    """`text` on one line, cut at `width` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def number(value: float) -> str:
    """A score or strength with three significant digits, without an exponent."""
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text and abs(value) >= 1 else text


def share(weight: float) -> str:
    """A weight between 0 and 1 as `.61`."""
    return f"{weight:.2f}".removeprefix("0")


def gate_state(decision: Decision) -> str:
    """`gate 1.00 open`, `gate 0.00 closed`, or open with strength 0."""
    state = "open" if decision.g > 0 else "closed"
    note = ", strength 0" if decision.g > 0 and decision.strength == 0 else ""
    return f"gate {decision.g:.2f} {state}{note}"


def gate_colour(decision: Decision) -> str:
    """Yellow where the answer is steered, green where it is the model's own."""
    return "yellow" if decision.open else "green"


def leading(decision: Decision, n: int = 2) -> str:
    """`hacking .61, malware .22`."""
    return ", ".join(f"{one_line(name, 24)} {share(weight)}" for name, weight in decision.leading_experts(n))


def kinds_words(kinds: Probabilities, n: int = 2) -> str:
    """`cybercrime .81, fraud .22`: the likeliest kind, and further ones that are not next to nothing."""
    shown = [(name, p) for i, (name, p) in enumerate(kinds[:n]) if i == 0 or p >= _SHOWN_KIND]
    return ", ".join(f"{one_line(name, 24)} {share(p)}" for name, p in shown)


def action_words(decision: Decision) -> str:
    """What was done about a request that opened the gate, where that is not steering."""
    return {"refuse": "refused at once", "report": "reported only", "leave": "left alone"}.get(
        decision.action or "", ""
    )


def answer_words(decision: Decision) -> str:
    """What the answer has shown, and what was done about it; nothing where its gate stayed shut, or does not look."""
    found = decision.answer
    if found is None or found.opened_at is None:
        return ""
    tokens = f"{found.taken_back} token{'' if found.taken_back == 1 else 's'}"
    done = {
        "report": "reported only",
        "steer": "steered from there",
        "rewind": f"{tokens} taken back, steered from there" if found.taken_back else "steered from there",
        "stop": "ended",
    }[found.action]
    return f"shown by the answer at token {found.opened_at}, {done}"


def speed(answer: TimedAnswer) -> str:
    """`41 tok/s`, or nothing for an answer too short to time."""
    rate = answer.tokens_per_second
    return "" if rate is None else f"{rate:.0f} tok/s" if rate >= 10 else f"{rate:.1f} tok/s"


def quiet_line(answer: TimedAnswer) -> str:
    """One line about an answer: the gates' readings, the leading experts, the speed."""
    parts = []
    for profile, decision in answer.readings:
        scores = f" (score {number(decision.score)}, threshold {number(decision.threshold)})"
        parts.append(f"{decision.profile} · {gate_state(decision)}{'' if profile.gate.kind == 'always' else scores}")
        if decision.action and decision.kinds:
            parts.append(kinds_words(decision.kinds))
        if words := answer_words(decision) or action_words(decision):
            parts.append(words)
        if experts := leading(decision):
            parts.append(experts)
    if answer.n_answer and (rate := speed(answer)):
        parts.append(rate)
    if answer.finish == INTERRUPTED:
        parts.append("stopped")
    return " · ".join(parts)


def why(profile: Profile, decision: Decision) -> RenderableType:
    """Why one profile steered an answer or did not: a small table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("profile", Text(profile.name, style="bold"))
    table.add_row("gate", Text(gate_state(decision).removeprefix("gate "), style=gate_colour(decision)))
    if profile.gate.kind == "always":
        table.add_row("", "opens for every prompt")
    else:
        relation = "at or above" if decision.score >= decision.threshold else "below"
        table.add_row("score", f"{number(decision.score)}, {relation} the threshold {number(decision.threshold)}")
    table.add_row("read at", f"layer {profile.gate_layer} of {profile.model.n_layer}, {gate_tokens(profile)}")
    if decision.kinds:
        table.add_row("kinds", kinds_words(decision.kinds, 4) if decision.action else "none")
    shown = answer_words(decision)
    if not shown and (words := action_words(decision)):
        table.add_row("policy", words)
    if decision.answer is not None:
        table.add_row("answer", shown or "read to its end, and nothing showed")
        if decision.answer.score is not None:
            values = number(decision.answer.score), number(decision.answer.threshold)
            table.add_row("", f"score {values[0]}, {'above the' if shown else 'the'} threshold {values[1]}")
    if decision.open:
        if experts := decision.leading_experts(256):
            table.add_row("experts", expert_bars(experts))
        table.add_row("layers", "steers " + ", ".join(map(str, profile.layers)))
    elif decision.refused:
        table.add_row("", "the answer is the profile's, and nothing was generated")
    elif decision.action == "leave" or (decision.g > 0 and decision.strength > 0):
        table.add_row("", "the answer is the model's own")
    elif decision.g > 0:
        table.add_row("", "strength 0: the answer is the model's own")
    else:
        table.add_row("", "closed: the answer is the model's own, token for token")
    table.add_row("strength", strength_words(decision.strength, decision.answer_strength))
    if decision.length_factor < 1:
        table.add_row("", f"{share(decision.length_factor)} of what a short question gets")
    table.add_row("scope", f"{decision.scope}: {SCOPE_MEANING[decision.scope]}")
    return table


def strength_words(strength: float, answer_strength: float) -> str:
    """The strength, and what of it the answer's tokens get where that is not all."""
    less = f", the answer {number(strength * answer_strength)}" if answer_strength != 1 else ""
    return number(strength) + less


def steering_words(profile: Profile) -> str:
    """Where and how a profile steers: `layer 13, strength 1.1, scope turn`."""
    from finesteer_local.profile import layer_words

    return f"{layer_words(profile.layers)}, strength {profile.strength:g}, scope {profile.scope}"


def answer_gate_words(fit: Mapping[str, Any]) -> str:
    """What the figures of a profile's training say of its answers' gate."""
    when = "" if fit["tokens"] is None else f", after {fit['tokens']:.0f} tokens in the median"
    return (
        f"opens on {fit['recall']:.1%} of held-out answers that do what should not be done{when}, "
        f"on {fit['openings']:.1%} of those to harmless prompts ({fit['answers']:,} answers)"
    )


def kinds_fit_words(fit: Mapping[str, Any]) -> str:
    """What the figures of a profile's training say of its kinds."""
    parts = ", ".join(f"{form} {share:.0%}" for form, share in fit["forms"].items())
    return (
        f"the right one is the likeliest for {fit['first']:.1%} of held-out prompts that need it ({parts}), "
        f"among two for {fit['among_two']:.1%}"
    )


def gate_tokens(profile: Profile) -> str:
    """Which tokens the gate looks at."""
    if profile.gate.whole:
        return "all tokens of the prompt"
    return "all tokens of the last question" if profile.gate.pools else "the prompt's last token"


SCOPE_MEANING = {
    "response": "from the prompt's last token on",
    "turn": "from the start of the last question on",
    "prompt": "every token",
}


def expert_bars(experts: Iterable[tuple[str, float]]) -> RenderableType:
    """One line an expert: name, weight, bar."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right")
    grid.add_column()
    for name, weight in experts:
        bar = "█" * round(_BAR_WIDTH * min(max(weight, 0.0), 1.0))
        grid.add_row(Text(one_line(name, 32)), share(weight), Text(bar or "▏", style="cyan"))
    return grid


def side_by_side(plain: str, steered: str, notes: Sequence[Text], width: int) -> RenderableType:
    """An unsteered and a steered answer in two columns of equal width; `notes` stand below the steered one."""
    half = max((width - 3) // 2, 10)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 3, 0, 0), border_style="dim", pad_edge=False, show_edge=False)
    table.add_column("unsteered", width=half, header_style="dim", overflow="fold")
    table.add_column("steered", width=half, header_style="dim", overflow="fold")
    below = [Text(""), *notes] if notes else []
    table.add_row(Text(printable(plain).strip()), Group(Text(printable(steered).strip()), *below))
    return table
