"""Files that are whole or not there: written beside their place, flushed to disk, then moved into it.

A sealed file carries the SHA-256 of its content in its first line: what was cut off, or changed on the disk, is not
read as if it were whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

LEFTOVER_SUFFIX = ".tmp"  # of what a killed writer leaves
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_SEAL = b"metagrad-bench sealed 1 "
_HEADER_BYTES = len(_SEAL) + 64 + 1


class DamagedFileError(Exception):
    """A sealed file whose content is not what was written; ``str(error)`` says in what."""


def write_whole(path: Path, data: bytes | Iterable[bytes], *, replace: bool = True) -> None:
    """Write a whole file or none.

    Args:
        path: in a folder that exists.
        data: the content, or its parts where it need not be in memory as a whole.
        replace: whether an existing file may be replaced; otherwise the first writer wins, also across processes.

    Raises:
        OSError: it cannot be written, or (``FileExistsError``) is there and must not be replaced; nothing is left.
    """
    temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}{LEFTOVER_SUFFIX}")
    try:
        with temporary.open("xb") as stream:
            stream.writelines([data] if isinstance(data, bytes) else data)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        else:
            _move_to_free_name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Delete what writers of a file left beside it when they were killed; only for whoever holds the file's lock."""
    for leftover in path.parent.glob(f".{path.name[:64]}.*{LEFTOVER_SUFFIX}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def write_sealed(path: Path, data: bytes) -> None:
    """Write a file with its SHA-256 in the first line; replaces an earlier one.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    write_whole(path, _SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def read_sealed(path: Path) -> bytes:
    """The content of a sealed file.

    Raises:
        DamagedFileError: it is no regular file, no sealed one, cut off or changed.
        OSError: it is not there or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedFileError("it is no regular file")
    data = path.read_bytes()
    header, content = data[:_HEADER_BYTES], data[_HEADER_BYTES:]
    if not header.startswith(_SEAL) or len(header) < _HEADER_BYTES:
        raise DamagedFileError("it is empty or not of metagrad-bench")
    if header[len(_SEAL) : -1] != hashlib.sha256(content).hexdigest().encode():
        raise DamagedFileError("its content does not have the SHA-256 that it was written with")
    return content


def _move_to_free_name(temporary: Path, path: Path) -> None:
    """Give a file its name only if that is free; a hard link decides this even between processes."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # A file system without hard links: the window between look and move is the price.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.rename(path)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a new name survives a power cut, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
