"""How this package was installed, and so the commands that install an extra or the package again from there."""

from __future__ import annotations

import json
import shlex
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finesteer_local.errors import MissingExtraError

if TYPE_CHECKING:  # asked for at every start, and needed at few: these take 30 ms
    from packaging.requirements import Requirement

NAME = "finesteer-local"


def requirements(extra: str = "") -> list[Requirement]:
    """What the package needs here, or what an extra needs beside that; empty where it is not installed.

    Markers are evaluated: what only another Python or system needs is left out.
    """
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    if not extra:
        return [each for each in found if not each.marker or each.marker.evaluate({"extra": ""})]
    wanted = [each for each in found if each.marker and each.marker.evaluate({"extra": extra})]
    return [each for each in wanted if not (each.marker and each.marker.evaluate({"extra": ""}))]


def install_extra(extra: str) -> str:
    """The command that adds an extra to this installation.

    It names the folder, the file or the repository that the package came from, as pip noted it (PEP 610). Where that
    is unknown or gone, it names the packages of the extra themselves, so that no index has to know us.
    """
    return _install(*(_from(f"[{extra}]") or (_plain(each) for each in requirements(extra))))


def reinstall() -> str:
    """The command that installs the package itself once more, from where it came."""
    return _install("--force-reinstall", "--no-deps", "--no-cache-dir", *(_from("") or [NAME]))


def install(requirement: Requirement | str) -> str:
    """The command that installs another package."""
    return _install(requirement if isinstance(requirement, str) else _plain(requirement))


def missing_extra(extra: str, needs: str) -> MissingExtraError:
    """The error of an extra that is not installed; `needs` says what needs which packages of it."""
    return MissingExtraError(f"{needs} (extra {extra}); install with: {install_extra(extra)}")


def _install(*arguments: str) -> str:
    program = "pip" if util.find_spec("pip") else "uv pip"  # uv's environments have no pip
    return f"{program} install {' '.join(map(shlex.quote, arguments))}"


def _plain(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _from(extra: str) -> list[str]:
    """What stands for this package with an extra in a pip command; empty where it came from is unknown or gone."""
    from urllib.request import url2pathname

    try:
        noted = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
        url = str(noted.get("url", ""))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        noted, url = {}, ""
    if repository := noted.get("vcs_info"):
        revision = repository.get("requested_revision") or repository.get("commit_id")
        return [f"{NAME}{extra} @ {repository['vcs']}+{url}" + (f"@{revision}" if revision else "")]
    if urlsplit(url).scheme == "file":
        path = Path(url2pathname(urlsplit(url).path))
    elif url:
        return [f"{NAME}{extra} @ {url}"]
    else:  # nothing noted: a checkout that is on the path, or an index
        path, noted = Path(__file__).parents[1], {"dir_info": {"editable": True}}
        if not (path / "setup.py").is_file():
            return []
    if not path.exists():
        return []
    editable = noted.get("dir_info", {}).get("editable", False)
    return [*(["-e"] if editable else []), f"{path}{extra}"]
