"""``syncflow`` and ``python -m syncflow``: the command line."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports end without a traceback; the command line catches it itself

from .cli import console

if __name__ == "__main__":
    console()
