"""``python -m syncflow``: the command line."""

from .cli import console

console()
