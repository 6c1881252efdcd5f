"""The command line, ``syncflow COMMAND``: one module per command. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from . import batch, bench, data, evaluate, export, generate, import_, inspect, retake, serve, train, verify

# Wrong arguments, of the click that typer brings or imports.
CommandError: Any = next(kind for kind in typer.BadParameter.mro() if kind.__name__ == "ClickException")
GC_THRESHOLD = 100_000  # allocations between two collections; imports and loading create no garbage


def _version(asked: bool) -> None:
    if asked:
        print(f"syncflow {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="syncflow",
    help="Run, train, export and embed joint audio-video diffusion transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options of ``syncflow`` itself."""


app.command("generate")(generate.generate)
app.command("retake")(retake.retake)
app.command("batch")(batch.batch)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.command("serve")(serve.serve)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("import")(import_.import_)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def console() -> NoReturn:
    """Entry point of a process: :func:`main`, and then a quick end."""
    _restore(signal.SIG_DFL, signal.default_int_handler)
    try:
        main()
    except SystemExit as ended:
        _restore(signal.default_int_handler, signal.SIG_DFL)  # what is left to do needs no clean end
        end_process(ended.code if isinstance(ended.code, int) else 1)


def _restore(found: Any, handler: Any) -> None:
    """Handle SIGINT by ``handler`` where it is handled by ``found``; a caller may have set it to be ignored."""
    if signal.getsignal(signal.SIGINT) is found:
        signal.signal(signal.SIGINT, handler)


def end_process(code: int) -> NoReturn:
    """End the process without the teardown of the interpreter, which takes a quarter of a second after PyTorch.

    Where threads are still at work, the interpreter ends as usual and waits for them.
    """
    main_thread = threading.main_thread()
    if any(thread is not main_thread and not thread.daemon for thread in threading.enumerate()):
        gc.freeze()  # the exit of the process frees everything
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Run the command that the arguments name; ``SystemExit`` with its exit code."""
    gc.set_threshold(GC_THRESHOLD)
    warnings.showwarning = _one_line
    try:
        with _ending_cleanly_on(signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            code = _run()
            sys.stdout.flush()
    except OSError as error:  # of standard output too, which may be full
        code = _failed(error)
    except KeyboardInterrupt:  # after the command has ended
        code = 130
    except _Terminated as error:
        code = 128 + error.number
    sys.exit(code)


def _run() -> int:
    """Run the command that the arguments name. -> the exit code."""
    try:
        code = app(prog_name="syncflow", standalone_mode=False) or 0
    except CommandError as error:
        return _refused(error)
    except typer.Abort:
        code = 130
    except ValueError as error:
        _say(str(error))
        return 2
    except _Terminated as error:
        _say(f"ended by {signal.Signals(error.number).name}")
        return 128 + error.number
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    if code == 130:
        _say("interrupted")
    return code


def _refused(error: Any) -> int:
    """One line for arguments that are none; without any, the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "syncflow"
        _say(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    return error.exit_code


def _failed(error: OSError) -> int:
    """One line for what the system could not do, none where nobody reads standard output any more."""
    if error.errno != errno.EPIPE:
        with suppress(OSError):
            _say(f"{error.filename or 'the output'} cannot be written or read ({error.strerror or error})")
    with suppress(OSError, ValueError):  # Python flushes once more at its end, into what can be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _say(text: str) -> None:
    print(f"syncflow: {' '.join(text.split())}", file=sys.stderr)


class _Terminated(BaseException):
    """A signal asks the process to end: what is half-written is removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _ending_cleanly_on(*signals: signal.Signals) -> Iterator[None]:
    """Signals that would end the process raise :class:`_Terminated` within the block."""

    def end(number: int, _: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise _Terminated(number)

    on_main_thread = threading.current_thread() is threading.main_thread()
    handled = [each for each in signals if on_main_thread and signal.getsignal(each) == signal.SIG_DFL]
    for each in handled:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        print(f"syncflow: warning: {message}", file=sys.stderr)
