"""The command line: ``syncflow COMMAND``, one module per command. A user's mistake ends in one line and exit code 2."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import warnings

import typer

from . import bench, data, evaluate, export, generate, inspect, retake, train, verify

GC_THRESHOLD = 100_000  # objects made between two collections, of which imports and loading make none that can go

app = typer.Typer(
    name="syncflow",
    help="Run, train, export and embed joint audio-video diffusion transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("retake")(retake.retake)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of the console script."""
    gc.set_threshold(GC_THRESHOLD)
    _end_cleanly_on(signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    warnings.showwarning = _one_line
    try:
        app()
    except ValueError as error:
        print(f"syncflow: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except _Terminated as error:
        print(f"syncflow: ended by {signal.Signals(error.number).name}", file=sys.stderr)
        sys.exit(128 + error.number)
    except KeyboardInterrupt:
        print("syncflow: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # nothing is left to collect that the end of the process does not free anyway


class _Terminated(BaseException):
    """A signal asks the process to end: what is half-written is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end_cleanly_on(*signals: signal.Signals) -> None:
    def end(number: int, _: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise _Terminated(number)

    for each in signals:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(each) == signal.SIG_DFL:
            signal.signal(each, end)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        print(f"syncflow: warning: {message}", file=sys.stderr)
