"""Reads media for another process; see :mod:`syncflow.engine.media.isolated`."""

from .isolated import main

main()
