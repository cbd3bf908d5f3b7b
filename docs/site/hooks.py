"""Pages of the docs site that lie elsewhere in the repository, and the links between them.

mkdocs calls the functions whose names begin with `on_`.

The site shows README.md, CONTRIBUTING.md, CHANGELOG.md and examples/ too. Their links, like those of docs/, are written
for readers of the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""File of the repository -> page of the site."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text("utf-8")
        if source.startswith("examples/"):
            text += "".join(_program(file) for file in sorted((ROOT / "examples").glob("*.py")))
        files.append(File.generated(config, page, content=_linked(text, source, page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links out of docs/ to the pages that stand for these files."""
    path = page.file.src_uri
    return markdown if path in ELSEWHERE.values() else _linked(markdown, f"docs/{path}", path)


def _program(file: Path) -> str:
    return f"\n## {file.name}\n\n```python\n{file.read_text('utf-8')}```\n"


def _linked(text: str, source: str, page: str) -> str:
    """The text of `source` with links that hold on `page`."""

    def target(match: re.Match[str]) -> str:
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if found.startswith("examples/") and found.endswith(".py"):
            return "examples.md#" + posixpath.basename(found).replace(".", "")
        to = ELSEWHERE.get(found) or found.removeprefix("docs/")
        return posixpath.relpath(to, posixpath.dirname(page) or ".")

    return _LINK.sub(target, text)
