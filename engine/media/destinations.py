"""Where files are written: beside their destination and then renamed, through links, and into pipes."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".syncflow-"  # and random letters: as short whatever the name of the file is


def check_destination(path: Path) -> None:
    """Raise ``ValueError`` for a file that cannot be written, before there is anything to write."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):  # making its folder says what is wrong with that
        return
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = path.name if len(path.name) < 60 else f"{path.name[:40]}…"
            size = len(os.fsencode(path.name))
            raise ValueError(f"cannot write {name}: the name has {size} bytes, more than the folder takes") from error
        raise ValueError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"cannot write {path}: it is a folder")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise ValueError(f"cannot write {path}: it is neither a file nor a pipe")


@contextmanager
def destination(path: Path) -> Iterator[Path]:
    """A temporary file that replaces the one that ``path`` is or links to when all went well, and is removed otherwise.

    What is written to a pipe or a device is written there as a whole.
    """
    check_destination(path)
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
            whole = Path(folder) / f"clip{path.suffix}"
            yield whole
            with whole.open("rb") as source, target.open("wb") as pipe:
                shutil.copyfileobj(source, pipe)
        return
    with temporary(target.parent, path.suffix[:8]) as beside:
        yield beside
        os.replace(beside, target)


@contextmanager
def temporary(folder: Path, suffix: str = "") -> Iterator[Path]:
    """A free path in ``folder`` to make a file or a folder at, perhaps to rename it; what is still there is removed.

    The name is known before there is anything of that name, so a signal at any moment leaves nothing behind.
    """
    path = folder / f"{TEMPORARY}{secrets.token_hex(4)}{suffix}"
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
