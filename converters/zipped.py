"""Zip archives that nobody vouches for: read into memory, in bounds, and never unpacked to a folder."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from finesteer_local.errors import ProfileError

from .foreign import refuse

_MAX_MEMBERS = 4096
_MAX_GROWTH = 16  # an archive may unpack to so many times its size, and a little more
_SLACK = 1 << 20


def unzip(path: Path) -> dict[str, bytes]:
    """The files in a zip archive by name, in memory; nothing is ever written, so their names can lead nowhere.

    Raises:
        ProfileError: it is damaged, encrypted, holds a name twice, or unpacks to far more than it is.
        OSError: it cannot be read.
    """
    limit = _MAX_GROWTH * path.stat().st_size + _SLACK
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise refuse(path, f"it holds {len(members):,} files")
            if sum(member.file_size for member in members) > limit:
                raise refuse(path, "it unpacks to far more than its size; save it without compression")
            for member in members:
                if member.flag_bits & 1 or member.filename in files:
                    raise refuse(path, f"{member.filename[:60]!r} in it is encrypted or there twice")
                with archive.open(member) as source:
                    # One byte more than it says: a file that lies about its size is not read to its end.
                    data = source.read(member.file_size + 1)
                if len(data) != member.file_size:
                    raise refuse(path, f"{member.filename[:60]!r} in it is not as long as the archive says")
                files[member.filename] = data
    except ProfileError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, IndexError) as error:
        raise refuse(path, f"the archive is damaged ({' '.join(str(error).split())[:80]})") from error
    return files
