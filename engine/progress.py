"""Progress of work that takes long, on standard error: a bar on a terminal; elsewhere, as in a log, lines."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS = 60.0  # between two lines


class _Lines:
    """A file for ``tqdm`` that writes every state of a bar as a line of its own."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(state + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(*values: Any, **settings: Any) -> tqdm[Any]:
    """A bar, with the arguments of ``tqdm``. Where nobody watches it is a line every ``SECONDS``, and none for work
    that takes less.
    """
    if not sys.stderr.isatty():
        settings |= {"file": _Lines(), "mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS}
    return tqdm(*values, **settings)
