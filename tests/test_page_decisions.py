"""What the page shows of a decision, and what it sends where one was wrong; in a real browser, as test_page.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from finesteer_local import corrections
from page_browser import (
    CRISIS,
    HARMFUL,
    HARMLESS,
    HIDDEN,
    Opener,
    Page,
    answers,
    ask,
    browser,
    done,
    expect,
    needs_chromium,
    one_server,
    opened,
    server,
)
from page_server import ANSWER, REFUSAL, WORDS, PageServer
from serving import served
from test_steered_watch import FIRST, watching

__all__ = ["browser", "one_server", "opened", "server"]  # fixtures
pytestmark = needs_chromium


def gate(page: Page) -> Any:
    return answers(page).last.locator("details").first


def facts(page: Page) -> dict[str, str]:
    """The last answer's decision, unfolded: what it says of each thing."""
    found = gate(page)
    if found.get_attribute("open") is None:
        found.locator("summary").click()
    rows = found.locator(".facts > div")
    return {row.locator("dt").inner_text(): row.locator("dd").inner_text() for row in rows.all()}


def test_the_likeliest_kinds_are_told_where_the_gate_opened(opened: Opener) -> None:
    page = opened()
    ask(page, HARMFUL)
    assert facts(page)["Kinds"] == "privacy 71 %, cybercrime 22 %"  # and not the next to nothing
    ask(page, HARMLESS)
    assert facts(page)["Kinds"] == "none"
    page.keyboard.press("Alt+s")
    page.get_by_label("Message", exact=True).fill(HARMFUL)
    page.get_by_role("button", name="Read the draft").click()
    expect(page.get_by_role("region", name="Try the gate").locator(".state")).to_contain_text("open: privacy 71 %")


def test_a_refusal_is_the_profiles_own_words(opened: Opener) -> None:
    page = opened()
    ask(page, CRISIS)
    expect(answers(page).locator(".text")).to_have_text(WORDS)
    expect(gate(page).locator("summary .state")).to_have_text("refused at once")
    found = facts(page)
    assert (found["Kinds"], found["Policy"]) == ("self harm 81 %", "refused at once")
    assert found["Steered"] == "nothing was generated: the answer is the profile's own words"
    expect(page.get_by_role("button", name="Wrong?")).to_have_count(0)  # its gate was shut all along
    page.keyboard.press("Alt+g")
    expect(page.get_by_role("region", name="Gate of safety").locator("tbody td").first).to_have_text("refused at once")


@pytest.mark.parametrize(("policy", "state"), [("leave", "open, left alone"), ("report", "open, reported")])
def test_what_policy_did_instead_of_steering(opened: Opener, server: PageServer, policy: str, state: str) -> None:
    server.mode.policy = policy
    page = opened()
    ask(page, HARMFUL)
    expect(gate(page).locator("summary .state")).to_have_text(state)
    found = facts(page)
    assert found["Policy"] == {"leave": "left alone", "report": "reported only"}[policy]
    assert found["Steered"] == "nothing: the answer is the model's own"


def test_an_answer_that_showed_what_its_question_hid(opened: Opener) -> None:
    page = opened()
    ask(page, HIDDEN)
    expect(answers(page).locator(".text")).to_have_text(REFUSAL)
    of_question, of_answer = gate(page).locator("summary .state").all()
    expect(of_question).to_have_text("closed")
    expect(of_answer).to_contain_text("open at token 24, 18 taken back")
    meters = gate(page).locator(".meter")
    assert meters.nth(1).locator(".meter-fill").evaluate("e => e.style.width").startswith("95.6")  # logistic(3.1)
    assert meters.nth(1).locator(".meter-threshold").evaluate("e => e.style.left").startswith("88.0")  # logistic(2)
    boxes = [meter.bounding_box() for meter in meters.all()]
    assert boxes[0] and boxes[1] and boxes[0]["y"] < boxes[1]["y"]
    assert [boxes[0][side] for side in ("x", "width")] == [boxes[1][side] for side in ("x", "width")]
    found = facts(page)
    assert found["Kinds"] == "cybercrime 22 %"
    shown = "shown at token 24, 18 tokens taken back, steered from there; score 3.10, opens above 2.00"
    assert found["Answer"] == shown
    assert found["Steered"] == "layer 13, scope turn"
    page.reload()
    expect(gate(page).locator("summary .state").last).to_contain_text("open at token 24")


def test_on_a_phone(opened: Opener) -> None:
    page = opened(viewport={"width": 375, "height": 700}, is_mobile=True, has_touch=True)
    ask(page, HIDDEN)
    facts(page)
    page.get_by_role("button", name="Wrong?").click()
    page.get_by_role("button", name="Keep as a correction").click()
    expect(page.locator(".wrong")).to_contain_text("0badcafe")
    for place in [part.bounding_box() for part in answers(page).locator(".decision, .decision *:visible").all()]:
        assert place and place["x"] + place["width"] <= 375


def test_an_answer_that_was_only_reported(opened: Opener, server: PageServer) -> None:
    server.mode.on_answer = "report"
    page = opened()
    ask(page, HIDDEN)
    expect(answers(page).locator(".text")).to_contain_text("hash table")
    found = facts(page)
    assert found["Answer"] == "shown at token 24, reported only; score 3.10, opens above 2.00"
    assert found["Steered"] == "nothing: the answer is the model's own"


def test_an_answer_in_which_nothing_showed(opened: Opener, server: PageServer) -> None:
    server.mode.held = True
    page = opened()
    ask(page, HARMLESS, wait=False)
    expect(answers(page).locator(".text")).to_contain_text("hash")
    assert facts(page)["Answer"] == "read while it is written"
    page.keyboard.press("Escape")
    done(page)
    server.mode.held = False
    ask(page, HARMLESS)
    assert facts(page)["Answer"] == "read to its end, and nothing showed"
    expect(gate(page).locator(".meter")).to_have_count(1)  # there is no score to show


@pytest.mark.parametrize(
    ("question", "should", "words"),
    [
        (HARMLESS, "steer", "should have been steered"),
        (HARMFUL, "leave", "should not have been steered"),
        (HIDDEN, "steer", "should have been steered"),
    ],
)
def test_a_wrong_decision_is_kept_as_a_correction(
    opened: Opener, server: PageServer, question: str, should: str, words: str
) -> None:
    page = opened()
    ask(page, HARMLESS)
    ask(page, question)
    assert server.mode.corrections == {}
    button = answers(page).last.get_by_role("button", name="Wrong?")
    button.click()
    form = page.get_by_role("group", name="A correction of safety")
    expect(form).to_contain_text(f"This question {words}?")
    expect(form).to_contain_text("a file on the server's machine")
    form.get_by_role("button", name="Cancel").click()
    expect(form).to_have_count(0)
    assert server.mode.corrections == {}
    button.click()
    form.get_by_role("button", name="Keep as a correction").click()
    kept = answers(page).last.locator(".wrong")
    expect(kept).to_contain_text(f"Kept as correction 0badcafe: {words}. Take it in with")
    expect(kept.locator("code")).to_have_text("finesteer-local profiles refit safety")
    expect(button).to_have_count(0)
    [sent] = server.mode.corrections.values()
    assert (sent["profile"], sent["should"], sent["model"]) == ("safety", should, "smollm2")
    assert [m["content"] for m in sent["messages"]] == [HARMLESS, ANSWER, question]

    page.reload()
    expect(kept).to_contain_text("0badcafe")
    kept.get_by_role("button", name="Undo").click()
    expect(kept).to_have_count(0)
    assert server.mode.corrections == {}
    expect(button).to_be_visible()


def test_a_correction_that_the_server_does_not_take(opened: Opener, server: PageServer) -> None:
    page = opened(expected="status of (400|404)")
    ask(page, HARMFUL)
    server.mode.fail = (400, "safety leaves this question alone already; nothing was kept")
    page.get_by_role("button", name="Wrong?").click()
    keep = page.get_by_role("button", name="Keep as a correction")
    keep.click()
    expect(page.locator(".toast")).to_contain_text("nothing was kept")
    keep.click()
    expect(page.locator(".wrong")).to_contain_text("0badcafe")  # the server has it, before it loses it
    server.mode.corrections.clear()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".toast")).to_contain_text("no such correction")


def test_no_control_where_the_server_keeps_none(opened: Opener, server: PageServer) -> None:
    server.mode.profiles = [{"name": "safety", "strength": 1.15}, {"name": "brief", "strength": 0.8}]
    page = opened()
    ask(page, HARMFUL)
    expect(answers(page).locator("details")).to_have_count(2)
    expect(page.get_by_role("button", name="Wrong?")).to_have_count(1)  # `brief` has no gate to correct
    server.mode.keeps_corrections = False
    page.reload()
    expect(answers(page).locator("details")).to_have_count(2)
    expect(page.get_by_role("button", name="Wrong?")).to_have_count(0)


def test_only_one_side_of_a_comparison_is_corrected(opened: Opener) -> None:
    page = opened()
    ask(page, HARMFUL)
    page.keyboard.press("Alt+c")
    done(page)
    steered = page.get_by_role("region", name="Steered", exact=True)
    steered.get_by_role("button", name="Wrong?").click()
    steered.get_by_role("button", name="Keep as a correction").click()
    expect(steered.locator(".wrong")).to_contain_text("0badcafe")
    expect(page.get_by_role("region", name="Unsteered").locator(".wrong, .wrong-ask")).to_have_count(0)


def test_an_older_conversation_and_a_bad_one(opened: Opener, tmp_path: Path) -> None:
    """Exported before decisions told kinds, or with what no server says."""
    page = opened()
    ask(page, HARMFUL)
    with page.expect_download() as download:
        page.get_by_role("button", name="Actions for").click()
        page.get_by_role("button", name="Export as JSON").click()
    text = Path(download.value.path()).read_text("utf-8")
    old = re.sub(r'"(action|kinds|answer)": ?(null|"steer"|\[[^\]]*\]),?(?=\s*["}])', "", text)
    old = re.sub(r",(\s*\})", r"\1", old)
    assert old != text and '"probability"' not in old
    for name, changed, said in (
        ("old.json", old, ""),
        ("kinds.json", re.sub(r'"probability": ?0?\.71', '"probability": "much"', text), "No conversation"),
        ("wrong.json", text.replace('"kinds": {', '"wrong": {"safety": {"id": 5}}, "kinds": {'), "No conversation"),
    ):
        assert changed != text, name
        file = tmp_path / name
        file.write_text(changed, "utf-8")
        page.reload()
        page.keyboard.press("Alt+Comma")
        page.locator("input[type=file]").set_input_files(file)
        if said:
            expect(page.locator(".toast")).to_contain_text(said)
        expect(page.locator(".list li")).to_have_count(2)


def test_over_the_real_server(opened: Opener, tiny: Path) -> None:
    """What the server without a model says is what the real one says."""
    with served(tiny, profiles=(watching(tiny),)) as real:
        page = opened(f"{real.url}/")
        page.keyboard.press("Alt+Comma")
        for label, value in (("Temperature", "0"), ("Max tokens", "8")):
            page.get_by_label(label).fill(value)
        ask(page, "Hello there")
        expect(gate(page).locator("summary .state").last).to_contain_text(f"open at token {FIRST}, {FIRST} taken back")
        assert f"shown at token {FIRST}, {FIRST} tokens taken back, steered from there" in facts(page)["Answer"]
        page.get_by_role("button", name="Wrong?").click()
        page.get_by_role("button", name="Keep as a correction").click()
        kept = page.locator("p.wrong")
        expect(kept).to_contain_text("should have been steered")
        [row] = corrections.kept()
        assert (row.should, row.messages) == ("steer", [{"role": "user", "content": "Hello there"}])
        expect(kept).to_contain_text(row.id)
        kept.get_by_role("button", name="Undo").click()
        expect(kept).to_have_count(0)
        assert corrections.kept() == []
