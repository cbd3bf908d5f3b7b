"""`/wrong` in a chat: keeps the last turn as a correction of a profile's decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finesteer_local import corrections
from finesteer_local.cli._view import one_line
from finesteer_local.corrections import LEAVE, SHOULD, STEER, Correction
from finesteer_local.errors import PromptError

if TYPE_CHECKING:
    from finesteer_local.cli._chat_commands import Screen
    from finesteer_local.profile import Profile
    from finesteer_local.steering import Decision

ARGUMENT = "[steer|leave] [PROFILE]"


def wrong(screen: Screen, argument: str) -> None:
    """Keep that the last decision was wrong; without a word for what should have been done, the other one.

    Raises:
        PromptError: there is no decision, or it is not clear of which profile.
        DataError, StorageError: the corrections cannot be read or written.
    """
    chat = screen.chat
    if chat.last is None or not chat.messages:
        raise PromptError("there is no answer yet to correct")
    profile, decision, said = _meant(chat.last.readings, argument.split())
    if profile.gate.kind == "always":
        raise PromptError(f"{profile.name!r} steers every prompt: it has no gate to correct; /profile off")
    should = said or (LEAVE if decision.g > 0 else STEER)
    if (should == STEER) == (decision.g > 0):
        screen.note(f"{profile.name} decided so: it {'steered' if decision.g > 0 else 'left the question alone'}.")
        return
    kept = corrections.keep(
        Correction(
            profile=profile.name,
            fingerprint=chat.llama.identity.fingerprint,
            messages=chat.asked,
            should=should,
            score=round(decision.score, 4),
            threshold=round(decision.threshold, 4),
            model_path=str(chat.llama.model_path),
        )
    )
    what = "should have been steered" if should == STEER else "should not have been steered"
    screen.note(
        f"kept as correction {kept.id}: {one_line(kept.text, 60)!r} {what} by {profile.name}. "
        f"Take it in with: finesteer-local profiles refit {profile.name}"
    )


def _meant(readings: tuple[tuple[Profile, Decision], ...], words: list[str]) -> tuple[Profile, Decision, str | None]:
    """Of which profile, what it decided, and what should have been done if the user says it."""
    said = next((word.lower() for word in words if word.lower() in SHOULD), None)
    names = [word for word in words if word.lower() not in SHOULD]
    if len(names) > 1 or len(words) > 2:
        raise PromptError(f"give /wrong {ARGUMENT}")
    if not readings:
        raise PromptError("no profile was active, so nothing was decided; /profile NAME")
    found = [(profile, decision) for profile, decision in readings if not names or profile.name == names[0]]
    if not found:
        raise PromptError(f"profile {names[0]!r} was not active; active: {', '.join(p.name for p, _ in readings)}")
    if len(found) > 1:
        raise PromptError(f"several profiles decided; say which: {', '.join(profile.name for profile, _ in readings)}")
    return *found[0], said
