"""Where a data set's files lie or are to be fetched to, and how: folders, clear refusals, checked downloads."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bench.errors import DataError

APPLICATION = "metagrad-bench"
CONNECT_TIMEOUT_S = 30


def own_folders(root: Path | None, name: str) -> tuple[Path, ...]:
    """Folders that are ours to look in and to fill: ``root`` and ``root/name``, or the user's cache.

    Raises:
        DataError: ``root`` is a file or lies below one, or cannot be looked into.
    """
    if root is None:
        import platformdirs

        return (platformdirs.user_cache_path(APPLICATION) / name,)
    root = root.expanduser()
    try:
        obstacle = next((path for path in (root, *root.parents) if path.exists() and not path.is_dir()), None)
    except OSError as error:
        raise DataError(f"data.root={root} cannot be looked into: {reason(error)}.") from error
    if obstacle is not None:
        where = "is a file" if obstacle == root else f"lies below the file {obstacle}"
        raise DataError(f"data.root={root} {where}: name a folder.")
    return (root, root / name)


def check_writable(folder: Path) -> None:
    """Refuse a folder that a download could not be stored in, without making it.

    Raises:
        DataError: the nearest folder that exists is read-only.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"The data cannot be downloaded into {folder}: {nearest} is not writable; set data.root.")


def check_regular(path: Path) -> None:
    """Refuse what is no file: reading a named pipe would wait for ever.

    Raises:
        DataError: it is something else, or cannot be looked at.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no regular file; put the file there.")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error


def fetch(urls: Sequence[str], target: Path, checksum: str) -> None:
    """Download a file unless it is there, and keep it only with the right checksum; safe between processes.

    Args:
        urls: addresses of the same file, tried in turn.
        target: where the file goes; its folder is made.
        checksum: ``sha256:...`` or ``md5:...``.

    Raises:
        DataError: no address gave the file; says where to put it by hand.
    """
    import filelock
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_name(f"{target.name}.lock")):
            if target.exists():
                return
            for url in urls:
                try:
                    downloader = pooch.HTTPDownloader(timeout=CONNECT_TIMEOUT_S)
                    pooch.retrieve(url, checksum, fname=target.name, path=target.parent, downloader=downloader)
                except requests.RequestException as error:
                    failures.append(f"{url} ({type(error).__name__})")
                except ValueError:  # pooch's way to say that the checksum differs
                    failures.append(f"{url} (not the file with {checksum})")
                else:
                    return
    except OSError as error:
        raise DataError(f"{target} cannot be written: {reason(error)}; set data.root.") from error
    raise DataError(f"{target.name} could not be downloaded from {' or '.join(failures)}: put it into {target.parent}.")


def reason(error: BaseException) -> str:
    """What an exception says, on one line, without the path that the sentence names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
