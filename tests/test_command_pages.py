"""The pages of docs/commands/ are what the commands say of themselves."""

from __future__ import annotations

import os
import re

from command_pages import FOLDER, pages
from finesteer_local.cli import COMMANDS


def test_they_are_current() -> None:
    there = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.md")}
    assert there == pages(), "run: python tests/command_pages.py"


def test_every_command_has_one_with_all_its_options() -> None:
    wanted = pages()
    assert set(wanted) == {"README.md", *(f"{name}.md" for name in COMMANDS)}
    serve = wanted["serve.md"]
    assert serve.startswith("<!--") and "\n# finesteer-local serve\n" in serve
    assert "- `--port N`: 0 takes a free one. (default: 8080" in serve
    assert "```\nfinesteer-local serve smollm2 --profile safety\n```" in serve
    for command in ("list", "show", "add", "rm"):
        assert f"\n## finesteer-local profiles {command}\n" in wanted["profiles.md"]


def test_the_site_lists_them_in_the_commands_order() -> None:
    listed = re.findall(
        r"^ +- ([a-z]+): commands/\w+\.md$", (FOLDER.parents[1] / "mkdocs.yml").read_text("utf-8"), re.MULTILINE
    )
    assert listed == list(COMMANDS)


def test_they_say_nothing_of_this_machine() -> None:
    text = "".join(pages().values())
    assert os.path.expanduser("~") not in text
    assert not re.search(r"\b(root|home|tmp)/", text)
