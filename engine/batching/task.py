"""A request on its way through the worker."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass
from typing import Any

from .entry import Entry
from .handle import Handle


@dataclass(eq=False, kw_only=True)
class Task(Entry):
    """What the scheduler knows of a request, and what it does not: the request, its job once prepared, its handle."""

    request: Any
    handle: Handle[Any]
    job: Any = None
    first_step: float = math.nan


def without_frames(error: BaseException) -> BaseException:
    """The error with its traceback as text, in a note.

    A traceback holds its frames and those of their callers, with jobs and latents, and somebody may hold the error for
    long.
    """
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]
    return error
