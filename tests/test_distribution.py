"""The commands that the program tells people to run hold where it was installed from."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from finesteer_local import distribution
from finesteer_local.errors import MissingExtraError

METADATA = f"""Metadata-Version: 2.4
Name: finesteer-local
Version: 1.0
Requires-Dist: click>=8.1
Requires-Dist: tomli; python_version < "3"
Provides-Extra: serve
Requires-Dist: fastapi[all]>=0.140; extra == "serve"
Requires-Dist: uvicorn; extra == "serve" and python_version >= "{sys.version_info[0]}"
Requires-Dist: old; extra == "serve" and python_version < "3"
"""


class Installed:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "METADATA").write_text(METADATA)
        found = PathDistribution(folder)
        monkeypatch.setattr(metadata, "distribution", lambda name: found)
        monkeypatch.setattr(metadata, "requires", lambda name: found.requires)
        # No checkout lies around it.
        monkeypatch.setattr(distribution, "__file__", str(folder / "site-packages" / "finesteer_local" / "x.py"))

    def came_from(self, url: str, **more: object) -> None:
        (self.folder / "direct_url.json").write_text(json.dumps({"url": url, **more}))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path / "finesteer_local-1.0.dist-info", monkeypatch)


def test_requirements(installed: Installed) -> None:
    assert [str(each) for each in distribution.requirements()] == ["click>=8.1"]
    assert [each.name for each in distribution.requirements("serve")] == ["fastapi", "uvicorn"]
    assert distribution.requirements("none") == []


def test_an_editable_checkout(installed: Installed, tmp_path: Path) -> None:
    source = tmp_path / "the source"
    source.mkdir()
    installed.came_from(source.as_uri(), dir_info={"editable": True})
    assert distribution.install_extra("serve") == f"pip install -e '{source}[serve]'"
    assert distribution.reinstall() == f"pip install --force-reinstall --no-deps --no-cache-dir -e '{source}'"


def test_a_folder(installed: Installed, tmp_path: Path) -> None:
    installed.came_from(tmp_path.as_uri(), dir_info={})
    assert distribution.install_extra("serve") == f"pip install '{tmp_path}[serve]'"


def test_a_wheel(installed: Installed, tmp_path: Path) -> None:
    wheel = tmp_path / "finesteer_local-1.0-py3-none-any.whl"
    wheel.touch()
    installed.came_from(wheel.as_uri(), archive_info={})
    assert distribution.install_extra("serve") == f"pip install '{wheel}[serve]'"
    wheel.unlink()
    assert distribution.install_extra("serve") == "pip install 'fastapi[all]>=0.140' uvicorn"


@pytest.mark.parametrize(
    ("url", "more", "source"),
    [
        (
            "https://example.org/repo.git",
            {"vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "0123"}},
            "git+https://example.org/repo.git@main",
        ),
        ("https://example.org/f.whl", {"archive_info": {}}, "https://example.org/f.whl"),
    ],
    ids=["repository", "file on the web"],
)
def test_from_elsewhere(installed: Installed, url: str, more: dict, source: str) -> None:
    installed.came_from(url, **more)
    assert distribution.install_extra("serve") == f"pip install 'finesteer-local[serve] @ {source}'"


@pytest.mark.parametrize("noted", [None, "{}", "{", "[]"])
def test_where_it_came_from_is_unknown(installed: Installed, noted: str | None) -> None:
    if noted is not None:
        (installed.folder / "direct_url.json").write_text(noted)
    assert distribution.install_extra("serve") == "pip install 'fastapi[all]>=0.140' uvicorn"
    assert distribution.reinstall().endswith(" finesteer-local")


def test_a_checkout_on_the_path(installed: Installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    monkeypatch.setattr(metadata, "requires", nothing)
    monkeypatch.setattr(distribution, "__file__", str(tmp_path / "finesteer_local" / "distribution.py"))
    (tmp_path / "setup.py").touch()
    assert distribution.install_extra("serve") == f"pip install -e '{tmp_path}[serve]'"
    assert distribution.requirements() == []


def test_an_environment_without_pip(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution.util, "find_spec", lambda name: None)
    assert distribution.install("rich") == "uv pip install rich"
    error = distribution.missing_extra("serve", "the server needs fastapi")
    assert isinstance(error, MissingExtraError)
    assert str(error) == (
        "the server needs fastapi (extra serve); install with: uv pip install 'fastapi[all]>=0.140' uvicorn"
    )
