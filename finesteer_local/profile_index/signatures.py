"""Signatures in minisign's format (jedisct1.github.io/minisign), by the package py-minisign (extra `sign`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finesteer_local.distribution import missing_extra
from finesteer_local.errors import DownloadError, StorageError, one_line
from finesteer_local.paths import atomic_write


def verify(file: Path, signature: Path, key: str, name: str) -> None:
    """Check that `signature` is that of `file` by the public key `key` (base64); `name` is for messages.

    Raises:
        DownloadError: it is not.
        MissingExtraError: without py-minisign.
    """
    minisign = _minisign(f"{name} is signed; checking that needs py-minisign")
    try:
        minisign.PublicKey.from_base64(key).verify_file(file, minisign.Signature.from_file(signature))
    except minisign.Error as error:
        raise DownloadError(
            f"the signature of {name} is not by its index's key ({one_line(str(error))}); it was not added"
        ) from error


def sign(file: Path, key_file: Path, password: str | None, comment: str) -> str:
    """Sign `file` with the secret key in `key_file`, into `file` + `.minisig`; return the public key (base64).

    Args:
        password: of the key, None where it has none.
        comment: signed with it, and shown by `minisign -V`.

    Raises:
        StorageError: the key cannot be read, or the password is wrong.
        MissingExtraError: without py-minisign.
    """
    minisign = _minisign("--key needs py-minisign")
    try:
        with minisign.SecretKey.from_file(key_file) as key:
            if password is not None:
                key.decrypt(password)
            signature = key.sign(file.read_bytes(), trusted_comment=comment)
            public = minisign.PublicKey.from_secret_key(key).to_base64().decode()
    except OSError as error:
        raise StorageError(f"cannot read the key {key_file}: {(error.strerror or str(error)).lower()}") from error
    except minisign.Error as error:
        raise StorageError(f"cannot sign with {key_file}: {one_line(str(error))}") from error
    with atomic_write(file.with_name(f"{file.name}.minisig")) as temporary:
        temporary.write_bytes(bytes(signature))
    return str(public)


def is_encrypted(key_file: Path) -> bool:
    """Whether a secret key asks for a password (`Sc` in place of two zeros, where it names its key derivation)."""
    import base64
    import binascii

    try:
        return base64.b64decode(key_file.read_bytes().splitlines()[1])[2:4] == b"Sc"
    except (OSError, IndexError, ValueError, binascii.Error):
        return False  # `sign` says what is wrong with it


def _minisign(needs: str) -> Any:
    try:
        import minisign
    except ImportError as error:
        raise missing_extra("sign", needs) from error
    return minisign
