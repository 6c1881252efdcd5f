"""Files that are replaced as a whole: a process that dies while it writes one leaves the earlier file as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A file beside ``path``, under the same name each time, that is renamed to it when all went well."""
    part = path.with_name(f".{path.name}.part")
    yield part
    os.replace(part, path)
