"""``python -m syncflow``: the command line."""

from .cli import main

main()
