"""Reads media for another process; see :mod:`syncflow.engine.media.isolated`."""

import sys

from .isolated import main

main(sys.argv[1:])
