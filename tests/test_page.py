"""The page in a real browser, over a server without a model (tests/page_server.py)."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from page_browser import (
    CRISIS,
    HARMFUL,
    HARMLESS,
    HIDDEN,
    Opener,
    Page,
    answers,
    ask,
    box,
    browser,
    done,
    expect,
    needs_chromium,
    one_server,
    opened,
    server,
    wait_until,
)
from page_server import ANSWER, REFUSAL, PageServer

__all__ = ["browser", "one_server", "opened", "server"]  # fixtures
pytestmark = needs_chromium


def test_an_answer_streams_and_shows_how_it_was_decided(opened: Opener, server: PageServer) -> None:
    server.mode.held = True
    page = opened()
    ask(page, HARMLESS, wait=False)
    text = answers(page).locator(".text")
    expect(text).to_contain_text("hash table")
    server.mode.held = False
    done(page)
    expect(text.locator("strong").first).to_have_text("hash table")
    expect(text.locator("pre code .hljs-keyword").first).to_have_text("def")
    expect(text.locator("td")).to_have_count(6)
    gate = answers(page).locator("details")
    expect(gate.locator("summary")).to_contain_text("safety")
    expect(gate.locator("summary .state")).to_have_text("closed")
    assert gate.locator(".meter-threshold").evaluate("e => e.style.left").startswith("66.2")  # 1 / (1 + exp(-.673))
    gate.locator("summary").click()
    expect(gate).to_contain_text("nothing: the model answered as if the profile were not there")
    expect(gate.locator(".experts")).to_have_count(0)

    ask(page, HARMFUL)
    gate = answers(page).last.locator("details")
    expect(answers(page).last.locator(".text")).to_have_text(REFUSAL)
    expect(gate.locator("summary .state")).to_have_text("open")
    gate.locator("summary").click()
    rows = gate.locator(".experts tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_have_text(re.compile(r"confidential/bias\s*46 %"))
    assert rows.first.locator(".bar-fill").evaluate("e => e.style.width") == "46%"
    expect(gate).to_contain_text("1.15 on the prompt, × 0.50 on the answer")
    expect(gate).to_contain_text("layer 13, scope turn")
    body = server.mode.asked[-1]
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == ANSWER
    assert body["steering"] == {"profiles": [{"name": "safety", "strength": 1.15}], "scope": None, "explain": True}
    assert body["stream_options"] == {"include_usage": True}
    assert not {"temperature", "top_p", "max_tokens", "seed"} & body.keys()


def test_stop_keeps_what_is_there_and_frees_the_server(opened: Opener, server: PageServer) -> None:
    server.mode.held = True
    page = opened()
    ask(page, HARMLESS, wait=False)
    expect(answers(page).locator(".text")).to_contain_text("hash")
    page.keyboard.press("Escape")
    done(page)
    expect(answers(page)).to_contain_text("stopped")
    assert "worst" not in answers(page).inner_text()
    wait_until(lambda: server.mode.given_up == 1)  # else the server would go on for nobody
    server.mode.held = False
    page.get_by_role("button", name="Answer again").click()
    done(page)
    expect(answers(page)).to_contain_text("worst")
    expect(answers(page).locator(".versions")).to_have_text("2/2")
    page.get_by_role("button", name="Previous version").click()
    expect(answers(page)).to_contain_text("stopped")


def test_edit_and_resend_keeps_the_first_question(opened: Opener, server: PageServer) -> None:
    page = opened()
    ask(page, HARMLESS)
    ask(page, "And a tree?")
    box(page).press("ArrowUp")  # edits the last question
    editor = page.get_by_label("Edit the question")
    expect(editor).to_be_focused()
    editor.fill("And a graph?")
    editor.press("Enter")
    done(page)
    expect(page.locator("article.question")).to_have_count(2)
    expect(page.locator(".bubble").last).to_have_text("And a graph?")
    assert [m["content"] for m in server.mode.asked[-1]["messages"]] == [HARMLESS, ANSWER, "And a graph?"]
    page.locator("article.question").last.hover()
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".bubble").last).to_have_text("And a tree?")
    expect(answers(page)).to_have_count(2)


def test_compare_streams_both_and_goes_on_with_the_chosen_one(opened: Opener, server: PageServer) -> None:
    page = opened()
    ask(page, HARMFUL)
    server.mode.held = True
    page.get_by_role("button", name="Compare steered and unsteered").click()
    steered, plain = (
        page.get_by_role("region", name="Steered", exact=True),
        page.get_by_role("region", name="Unsteered"),
    )
    expect(steered.locator(".streaming .prose")).to_be_visible()
    expect(plain.locator(".streaming .prose")).to_be_visible()
    server.mode.held = False
    done(page)
    expect(steered).to_contain_text("I can't help with that")
    expect(plain).to_contain_text("hash table")
    expect(plain).to_contain_text("Answered without steering")
    left, right = server.mode.asked[-2:]
    assert {json.dumps(b["steering"]) for b in (left, right)} >= {"false"}
    assert left["seed"] == right["seed"], "answers can be compared only if they draw the same numbers"
    boxes = steered.bounding_box(), plain.bounding_box()
    assert boxes[0] and boxes[1] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]

    plain.get_by_role("button", name="Go on with this").click()
    ask(page, "Thanks")
    assert server.mode.asked[-1]["messages"][1]["content"] == ANSWER


def test_asked_before_the_profiles_are_known(opened: Opener, server: PageServer) -> None:
    """What is set in this browser holds for the first question, too, which may be quicker than the server."""
    page = opened()
    page.get_by_role("button", name="Steering", exact=True).click()
    page.get_by_role("switch", name="Steer with safety").click()
    server.mode.untold = True
    page.reload()
    ask(page, HARMFUL, wait=False)
    page.get_by_role("button", name="Stop").click()
    done(page)
    expect(answers(page)).to_contain_text("stopped")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert server.mode.asked == []
    server.mode.untold = False
    done(page)
    [sent] = server.mode.asked
    assert sent["steering"] is False


def test_slider_switch_and_scope_reach_the_next_request(opened: Opener, server: PageServer) -> None:
    page = opened()
    page.get_by_role("button", name="Steering", exact=True).click()
    slider = page.get_by_role("region", name="Profile safety").get_by_role("slider")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    page.get_by_role("switch", name="Steer with brief").click()
    page.get_by_label("Scope").select_option("prompt")
    ask(page, HARMLESS)
    sent = server.mode.asked[-1]["steering"]
    assert sent["scope"] == "prompt"
    assert {p["name"]: pytest.approx(p["strength"]) for p in sent["profiles"]} == {"safety": 1.3, "brief": 0.8}
    expect(answers(page).locator("details")).to_have_count(2)

    page.get_by_role("button", name="Use its own").click()
    page.get_by_role("switch", name="Steer with brief").click()
    ask(page, HARMLESS)
    assert server.mode.asked[-1]["steering"]["profiles"] == [{"name": "safety", "strength": 1.15}]
    page.get_by_role("switch", name="Steer with safety").click()
    page.reload()
    ask(page, HARMFUL)
    assert server.mode.asked[-1]["steering"] is False
    expect(answers(page).last).to_contain_text("Answered without steering")
    page.get_by_role("button", name="Steering", exact=True).click()
    page.get_by_role("button", name="Use the server's defaults").click()
    expect(page.get_by_role("switch", name="Steer with safety")).to_be_checked()


def test_the_gate_can_be_asked_about_a_draft(opened: Opener, server: PageServer) -> None:
    page = opened()
    page.keyboard.press("Alt+s")
    box(page).fill(HARMFUL)
    page.get_by_role("button", name="Read the draft").click()
    found = page.get_by_role("region", name="Try the gate")
    expect(found.locator(".state")).to_contain_text("open")
    assert server.mode.asked == [], "an answer was generated"


def test_the_servers_defaults_can_be_set(opened: Opener, server: PageServer) -> None:
    page = opened()
    page.keyboard.press("Alt+s")
    page.get_by_role("switch", name="Steer with brief").click()
    page.get_by_role("button", name="Save as the server's defaults").click()
    expect(page.locator(".toast")).to_contain_text("server's defaults now")
    assert [p["name"] for p in server.mode.profiles] == ["safety", "brief"]


def test_a_required_profile_can_only_be_strengthened(opened: Opener, server: PageServer) -> None:
    server.mode.required = ("safety",)
    page = opened()
    page.keyboard.press("Alt+s")
    card = page.get_by_role("region", name="Profile safety")
    expect(card.get_by_role("switch")).to_be_disabled()
    expect(card.get_by_role("switch")).to_be_checked()
    expect(card).to_contain_text("Required by this server: it cannot be switched off, nor set under 1.15")
    slider = card.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    ask(page, HARMFUL)
    assert server.mode.asked[-1]["steering"]["profiles"] == [{"name": "safety", "strength": 1.15}]
    page.keyboard.press("Alt+c")
    expect(page.locator(".toast")).to_contain_text("Nothing to compare")
    done(page)
    slider.focus()
    slider.press("ArrowRight")
    page.keyboard.press("Alt+c")
    expect(page.get_by_role("region", name="Least steered")).to_contain_text("safety 1.15")
    done(page)
    assert all(body["steering"] for body in server.mode.asked)


def test_settings_and_system_prompt_reach_the_request(opened: Opener, server: PageServer) -> None:
    page = opened()
    page.keyboard.press("Alt+Comma")
    page.get_by_label("System prompt of this conversation").fill("Answer in rhyme.")
    for label, value in (("Temperature", "0"), ("Top-p", "0.9"), ("Max tokens", "5"), ("Seed", "7")):
        page.get_by_label(label).fill(value)
    ask(page, HARMLESS)
    body = server.mode.asked[-1]
    assert body["messages"][0] == {"role": "system", "content": "Answer in rhyme."}
    assert {k: body[k] for k in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 7,
    }
    expect(answers(page)).to_contain_text("cut at the token limit")
    page.get_by_label("Temperature").fill("9")  # out of range: the server's default
    page.get_by_label("Max tokens").fill("")
    ask(page, HARMLESS)
    assert not {"temperature", "max_tokens"} & server.mode.asked[-1].keys()


def test_a_reload_keeps_everything(opened: Opener, server: PageServer) -> None:
    page = opened()
    ask(page, HARMFUL)
    page.keyboard.press("Alt+n")
    ask(page, HARMLESS)
    box(page).fill("not sent yet")
    page.reload()
    expect(box(page)).to_have_value("not sent yet")
    expect(page.locator(".bubble")).to_have_text(HARMLESS)
    expect(answers(page).locator("summary .state")).to_have_text("closed")
    page.keyboard.press("Alt+ArrowDown")
    expect(page.locator(".bubble")).to_have_text(HARMFUL)
    expect(answers(page).locator("summary .state")).to_have_text("open")
    expect(page).to_have_title(f"{HARMFUL} · FineSteer Local")


def test_an_answer_under_way_survives_a_reload_in_part(opened: Opener, server: PageServer) -> None:
    server.mode.held = True
    page = opened()
    ask(page, HARMLESS, wait=False)
    expect(answers(page).locator(".text")).to_contain_text("keeps pairs")
    page.reload()
    expect(answers(page).locator(".text")).to_contain_text("keeps pairs")
    expect(answers(page)).to_contain_text("Interrupted")
    server.mode.held = False
    page.get_by_role("button", name="Retry").click()
    done(page)
    expect(answers(page)).to_contain_text("worst")


def test_rename_export_delete_and_undo(opened: Opener, server: PageServer, tmp_path: Path) -> None:
    page = opened()
    ask(page, HARMFUL)
    actions, list_ = page.get_by_role("button", name="Actions for"), page.get_by_role("navigation")
    place, around = actions.bounding_box(), list_.bounding_box()
    assert place and around and place["x"] + place["width"] <= around["x"] + around["width"], "a long title hides them"
    actions.click()
    page.get_by_role("button", name="Rename").click()
    page.keyboard.type("Mail")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Mail")
    with page.expect_download() as download:
        page.get_by_role("button", name="Actions for").click()
        page.get_by_role("button", name="Export as Markdown").click()
    text = Path(download.value.path()).read_text("utf-8")
    assert download.value.suggested_filename == "Mail.md"
    assert HARMFUL in text and REFUSAL in text and "safety open" in text
    with page.expect_download() as download:
        page.get_by_role("button", name="Actions for").click()
        page.get_by_role("button", name="Export as JSON").click()
    exported = tmp_path / "mail.json"
    download.value.save_as(exported)

    page.get_by_role("button", name="Actions for").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(answers(page)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".bubble")).to_have_text(HARMFUL)
    page.reload()
    expect(page.locator(".bubble")).to_have_text(HARMFUL)

    page.keyboard.press("Alt+Comma")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator(".list li")).to_have_count(0)
    page.locator("input[type=file]").set_input_files(exported)
    expect(page.locator(".list li")).to_have_count(1)
    broken = tmp_path / "broken.json"
    broken.write_text('{"conversations": [{"id": "x", "title": 1}, 5, {"nodes": {"a": {}}}]}')
    page.locator("input[type=file]").set_input_files(broken)
    expect(page.locator(".toast")).to_contain_text("No conversation in this file")
    page.get_by_role("button", name="Mail", exact=True).click()
    expect(answers(page).locator(".text")).to_have_text(REFUSAL)


def test_the_drawer_plots_the_gate_and_says_it_in_a_table(opened: Opener, server: PageServer) -> None:
    page = opened()
    for question in (HARMLESS, HARMFUL, "And a haiku?", "Another secret"):
        ask(page, question)
    page.get_by_role("button", name="Gate over the conversation").click()
    gate = page.get_by_role("region", name="Gate of safety")
    expect(gate.locator("svg")).to_have_attribute("aria-label", re.compile("open for 2 of 4 questions"))
    kinds = gate.locator("circle").evaluate_all("list => list.map(c => c.getAttribute('class'))")
    assert kinds == ["closed", "open", "closed", "open"]
    line = float(gate.locator("line.threshold").get_attribute("y1") or 0)
    heights = [float(y) for y in gate.locator("circle").evaluate_all("list => list.map(c => c.getAttribute('cy'))")]
    assert [y < line for y in heights] == [False, True, False, True], "open gates lie above the threshold"
    rows = gate.locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text("2.40")
    rows.first.get_by_role("button").click()
    expect(answers(page).first).to_be_in_viewport()


def test_by_keyboard_alone(opened: Opener, server: PageServer) -> None:
    page = opened()
    expect(box(page)).to_be_focused()
    page.keyboard.type("First line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line?")
    page.keyboard.press("Enter")
    done(page)
    assert server.mode.asked[-1]["messages"][0]["content"] == "First line\nsecond line?"
    page.keyboard.press("Alt+r")
    done(page)
    assert len(server.mode.asked) == 2
    page.keyboard.type("secret")
    page.keyboard.press("Control+Enter")  # send and compare
    done(page)
    expect(page.get_by_role("region", name="Unsteered")).to_be_visible()

    # every stop of the Tab key can be seen
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        state = page.evaluate(
            """() => {
                const e = document.activeElement;
                if (!e || e === document.body) return null;
                const field = e.closest(".field") && e.matches("textarea");
                const style = getComputedStyle(field ? e.closest(".field") : e);
                const shown = style.outlineStyle !== "none" || style.boxShadow !== "none";
                return [e.tagName + ":" + (e.getAttribute("aria-label") || e.textContent).slice(0, 40), shown];
            }"""
        )
        if state:
            assert state[1], f"no visible focus on {state[0]}"
            seen.add(state[0])
    assert len(seen) > 12

    page.keyboard.press("Alt+s")
    expect(page.get_by_role("heading", name="Steering")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("switch", name="Steer with safety")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("switch", name="Steer with safety")).not_to_be_checked()
    page.keyboard.press("Escape")
    expect(page.get_by_role("complementary")).to_have_count(0)
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    shortcuts = page.get_by_role("dialog", name="Shortcuts")
    expect(shortcuts).to_contain_text("Send and compare")
    page.keyboard.press("Escape")
    expect(shortcuts).to_have_count(0)
    page.keyboard.press("/")
    expect(box(page)).to_be_focused()


def test_on_a_phone(opened: Opener, server: PageServer) -> None:
    page = opened(viewport={"width": 375, "height": 700}, is_mobile=True, has_touch=True)
    ask(page, HARMLESS)
    ask(page, HARMFUL)
    page.get_by_role("button", name="Compare steered and unsteered").click()
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for answer in answers(page).all():
        place = answer.bounding_box()
        assert place and place["x"] >= 0 and place["x"] + place["width"] <= 375
    upper, lower = page.get_by_role("region", name="Steered", exact=True), page.get_by_role("region", name="Unsteered")
    assert (upper.bounding_box() or {})["y"] < (lower.bounding_box() or {})["y"], "columns lie below each other"
    expect(page.get_by_role("navigation")).to_have_count(0)
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("navigation", name="Conversations")).to_be_visible()
    page.get_by_role("navigation").get_by_role("button", name=HARMLESS, exact=True).click()
    expect(page.get_by_role("navigation")).to_have_count(0)
    page.get_by_role("button", name="Steering", exact=True).click()
    panel = page.get_by_role("complementary", name="Steering")
    assert (panel.bounding_box() or {})["width"] == 375
    panel.get_by_role("button", name="Close steering").click()
    expect(panel).to_have_count(0)


def test_the_end_stays_in_view_unless_the_reader_leaves_it(opened: Opener, server: PageServer) -> None:
    page = opened()
    end = page.get_by_role("button", name="Compare steered and unsteered")
    latest = page.get_by_role("button", name="Latest")
    ask(page, HARMLESS)
    ask(page, HARMLESS)
    expect(end).to_be_in_viewport()
    page.keyboard.press("Alt+g")  # the text gets narrower, thus longer
    expect(page.get_by_role("complementary")).to_be_visible()
    expect(end).to_be_in_viewport()
    expect(latest).to_have_count(0)
    page.mouse.move(500, 300)
    page.mouse.wheel(0, -700)
    expect(latest).to_be_visible()
    server.mode.held = True
    page.keyboard.press("Alt+r")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.mouse.wheel(0, -700)  # away from what is being written
    server.mode.held = False
    done(page)
    expect(end).not_to_be_in_viewport()
    latest.click()
    expect(end).to_be_in_viewport()


def test_dark_follows_the_system_and_can_be_set(opened: Opener, server: PageServer) -> None:
    def ground(page: Page) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(x) for x in re.findall(r"\d+", colour)[:3])

    page = opened(color_scheme="dark")
    assert ground(page) < 120
    page.keyboard.press("Alt+Comma")
    page.get_by_text("Light", exact=True).click()
    assert ground(page) > 700
    page.reload()
    assert ground(page) > 700
    assert ground(opened(color_scheme="light")) > 700


ATTACKS = """<script>window.hit = 1</script><img src=x onerror="window.hit = 2"><svg onload="window.hit = 3"></svg>

<iframe srcdoc="<script>parent.hit = 4</script>"></iframe><style>* { display: none }</style>

[a](javascript:window.hit=5) [b](JaVaScRiPt:window.hit=6) [c](data:text/html,<script>window.hit=7</script>)
[d](java&#115;cript:window.hit=8) [e](&#106;avascript:window.hit=9) <javascript:window.hit=10> [f](vbscript:x)

![picture](https://example.org/pixel.png) ![x](data:text/html,x) [good](https://example.org/page "title\\" onclick=x")

`&lt;b&gt;` &lt;i&gt; &amp; &copy; **<b onclick=alert(1)>bold</b>**

```html"><script>window.hit=11</script>
<script>window.hit = 12</script>
```

| <img src=x onerror=window.hit=13> |
| --- |
| <a href="javascript:window.hit=14">x</a> |
"""


def test_markdown_cannot_do_anything(opened: Opener, server: PageServer) -> None:
    server.mode.text = ATTACKS
    page = opened()
    ask(page, "<img src=x onerror=window.hit=15>")
    text = answers(page).locator(".text")
    expect(text).to_contain_text("window.hit = 12")
    for link in text.locator("a").all():
        assert re.match(r"https?://", link.get_attribute("href") or "")
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert link.get_attribute("target") == "_blank"
    assert text.locator("a").all_inner_texts() == ["[image: picture]", "good"]
    expect(text).to_contain_text("<script>window.hit = 1</script>")
    expect(text).to_contain_text("<i> & ©")
    expect(text.locator("code").first).to_have_text("&lt;b&gt;")
    for name in ("script", "img", "iframe", "style", "svg:not(.icon)", "b", "[onclick]", "[onerror]"):
        expect(text.locator(name)).to_have_count(0)
    for link in text.locator("a").all():
        link.dispatch_event("mouseover")
    assert page.evaluate("window.hit") is None


def test_text_made_to_break_the_reader_is_still_shown(opened: Opener, server: PageServer) -> None:
    server.mode.text = ">" * 3000 + " deep\n\n" + "- " * 500 + "x\n\n" + "*a **b " * 500 + "[" * 2000 + "\n\nthe end"
    page = opened()
    ask(page, HARMLESS)
    expect(answers(page)).to_contain_text("the end")
    ask(page, "still there?")
    expect(answers(page)).to_have_count(2)


@pytest.mark.parametrize("levels", [100, 900])
def test_lists_within_lists_are_drawn_to_a_depth(opened: Opener, server: PageServer, levels: int) -> None:
    server.mode.text = "- " * levels + "x\n\nthe end"
    page = opened()
    ask(page, HARMLESS)
    expect(answers(page)).to_contain_text("the end")
    assert answers(page).locator("ul").count() <= 40  # DEEPEST in markdown.tsx


def test_errors_are_a_quiet_line_with_retry(opened: Opener, server: PageServer) -> None:
    page = opened(expected="status of (400|429)")
    server.mode.fail = (400, "temperature: must be at most 2")
    ask(page, HARMLESS)
    expect(answers(page).locator(".problem")).to_contain_text("temperature: must be at most 2")
    page.get_by_role("button", name="Retry").click()
    done(page)
    expect(answers(page)).to_have_count(1)
    expect(answers(page).locator(".problem")).to_have_count(0)

    server.mode.break_after = 5
    ask(page, HARMLESS)
    expect(answers(page).last.locator(".problem")).to_contain_text("The engine failed.")
    expect(answers(page).last.locator(".text")).to_contain_text("hash")

    server.mode.fail, server.mode.retry_after = (429, "The queue is full."), 1
    ask(page, HARMLESS, wait=False)
    expect(answers(page).last).to_contain_text("The queue is full. Trying again in 1 s.")
    done(page)
    expect(answers(page).last).to_contain_text("worst")
    expect(answers(page).last.locator(".problem")).to_have_count(0)


@pytest.mark.parametrize(
    ("word", "told"),
    [("loading", "is loading its model"), ("stalled", "model does not move"), ("failed", "model has failed")],
)
def test_a_server_that_cannot_answer_yet_or_no_more(opened: Opener, server: PageServer, word: str, told: str) -> None:
    server.mode.health = word
    page = opened(expected="status of 503")
    expect(page.locator(".banner")).to_contain_text(told)
    box(page).fill(HARMLESS)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    server.mode.health = "ok"
    expect(page.locator(".banner")).to_have_count(0)
    box(page).press("Enter")
    done(page)
    expect(answers(page)).to_contain_text("worst")


def test_a_key_is_asked_for_and_kept_for_the_tab(opened: Opener, server: PageServer) -> None:
    server.mode.key = "right-key"
    page = opened(expected="status of 401")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("did not accept")
    page.keyboard.type("right-key")
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.locator(".model")).to_have_text("smollm2")
    ask(page, HARMLESS)
    expect(answers(page)).to_contain_text("worst")
    page.reload()
    ask(page, HARMLESS)
    expect(answers(page)).to_have_count(2)
    assert page.evaluate("Object.values(localStorage).join()").find("right-key") == -1
    assert page.evaluate("sessionStorage.getItem('finesteer.key')") == "right-key"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(port: int, *options: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("page_server.py")
    process = subprocess.Popen([sys.executable, str(script), "--port", str(port), *options])

    def listening() -> bool:
        assert process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listening)
    return process


def test_a_killed_server_loses_nothing(opened: Opener) -> None:
    port = free_port()
    process = start(port, "--hold")
    try:
        page = opened(f"http://127.0.0.1:{port}/", expected="ERR_|Failed to load resource")
        ask(page, HARMLESS, wait=False)
        expect(answers(page).locator(".text")).to_contain_text("keeps pairs")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        expect(answers(page).locator(".problem")).to_contain_text("went away before the answer was complete")
        expect(page.locator(".banner")).to_contain_text("cannot be reached")
        expect(answers(page).locator(".text")).to_contain_text("keeps pairs")
        process = start(port)
        page.get_by_role("button", name="Try now").click()
        expect(page.locator(".banner")).to_have_count(0)
        page.reload()
        expect(answers(page).locator(".text")).to_contain_text("keeps pairs")
        page.get_by_role("button", name="Retry").click()
        done(page)
        expect(answers(page)).to_contain_text("worst")
    finally:
        process.kill()
        process.wait()


def test_two_tabs_show_the_same(opened: Opener, server: PageServer) -> None:
    page = opened()
    other = page.context.new_page()
    other.goto(server.url)
    ask(page, HARMLESS)
    other.get_by_role("button", name=HARMLESS, exact=True).click()
    expect(answers(other)).to_contain_text("worst")
    ask(other, HARMFUL)
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_contain_text("I can't help")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Opener, server: PageServer, scheme: str) -> None:
    axe_package = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python is not installed: the dependency group `dev` has it"
    )
    axe = (Path(axe_package.__file__).parent / "axe.min.js").read_text("utf-8")
    server.mode.required = ("safety",)
    page = opened(color_scheme=scheme, reduced_motion="reduce")

    def check(what: str) -> None:
        page.wait_for_timeout(50)  # colours in transition have no contrast yet
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            f"{v['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
            for v in found
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"]
        ]
        assert serious == [], what

    check("an empty page")
    ask(page, HARMLESS)
    ask(page, HARMFUL)
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_role("button", name="Wrong?").last.click()
    check("a correction")
    page.get_by_role("button", name="Keep as a correction").click()
    expect(page.locator(".wrong")).to_contain_text("Kept as correction")
    check("a kept correction")
    ask(page, HIDDEN)
    ask(page, CRISIS)
    check("an answer that was taken back, and a refusal")
    page.keyboard.press("Alt+s")
    page.get_by_role("switch", name="Steer with brief").click()
    check("steering")
    page.keyboard.press("Alt+c")
    done(page)
    check("comparison")
    page.keyboard.press("Alt+g")
    check("gate over the conversation")
    page.keyboard.press("Alt+Comma")
    check("settings")
    page.get_by_role("button", name="Actions for").click()
    check("menu")
    page.get_by_role("button", name="Shortcuts").click()
    check("shortcuts")
