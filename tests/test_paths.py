"""Where files live, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from finesteer_local import paths
from finesteer_local.errors import DownloadError, StorageError


def test_one_variable_moves_everything(home: Path) -> None:
    assert paths.cache_dir() == home / "cache"
    assert paths.data_dir() == home / "data"
    for folder in (paths.models_dir(), paths.profiles_dir(), paths.work_dir(), paths.history_file()):
        assert home in folder.parents
    assert not home.exists(), "asking for a path creates nothing"


def test_platform_folders_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINESTEER_HOME")
    assert paths.cache_dir().is_absolute()
    assert "finesteer-local" in str(paths.cache_dir())
    assert "finesteer-local" in str(paths.data_dir())


def test_the_variable_may_start_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESTEER_HOME", "~/steer")
    assert paths.data_dir() == Path.home() / "steer" / "data"


def test_atomic_write_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "file"
    with paths.atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError, DownloadError("x")])
def test_atomic_write_stopped_leaves_the_old_file(tmp_path: Path, stop: BaseException | type[BaseException]) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(stop if isinstance(stop, type) else type(stop)), paths.atomic_write(target) as temporary:
        temporary.write_text("half")
        raise stop
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for good in (tmp_path / "new", tmp_path / "a" / "b" / "new", tmp_path / "file"):
        paths.check_writable(good)
    for bad, reason in (
        (tmp_path, "it is a folder"),
        (Path("/dev/null"), "it is no plain file"),
        (tmp_path / "file" / "new", "not a directory"),
        (tmp_path / ("x" * 300) / "new", "file name too long"),
    ):
        with pytest.raises(StorageError, match=reason):
            paths.check_writable(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_no_space_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, paths.atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value) == f"cannot write {tmp_path / 'file'}: no space left on device"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_right(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"), paths.atomic_write(tmp_path / "file"):
        pass


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create the folder"):
        paths.ensure_dir(tmp_path / "file" / "sub")
    with pytest.raises(StorageError), paths.atomic_write(tmp_path / "file" / "sub"):
        pass


def test_a_folder_or_device_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="it is a folder"), paths.atomic_write(tmp_path / "folder"):
        pass
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="no plain file"), paths.atomic_write(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with paths.atomic_write(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_new_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with paths.atomic_write(tmp_path / "ours"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
