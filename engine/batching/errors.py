"""How a request ends without a result, other than by an error of its own."""

from __future__ import annotations


class Full(RuntimeError):
    """The queue has no room; nothing was taken, and a later attempt may succeed."""


class Closed(RuntimeError):
    """The batcher takes no more requests."""


class Cancelled(RuntimeError):
    """The request was cancelled, or the batcher was closed before it was done."""


class Expired(RuntimeError):
    """The request's deadline passed before its last step was done."""
