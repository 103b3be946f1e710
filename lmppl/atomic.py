"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lmppl.errors import DataError


def write_atomic(path: str | os.PathLike[str], chunks: Iterable[bytes]) -> None:
    """Write a file that is whole or not there: a temporary one, synced, then renamed.

    Raises:
        DataError: it cannot be written, with the cure.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        fix = (
            f"make the folder {str(target.parent)!r} first" if not target.parent.is_dir() else None
        )
        raise DataError(
            f"cannot write {str(target)!r}: {error.strerror or error}",
            fix=fix or "give another path, or make room",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    try:
        folder = os.open(target.parent, os.O_RDONLY)
    except OSError:
        return  # a system whose folders cannot be opened cannot sync them either
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
