"""The command line: ``syncflow COMMAND``, one module per command. A user's mistake ends in one line and exit code 2."""

from __future__ import annotations

import gc
import sys
import warnings
from typing import Annotated

import typer

from .. import __version__
from . import bench, data, evaluate, export, generate, inspect, retake, train, verify

GC_THRESHOLD = 100_000  # objects made between two collections, of which imports and loading make none that can go


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
    warnings.showwarning = _one_line
    try:
        app(prog_name="syncflow")
    except ValueError as error:
        print(f"syncflow: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("syncflow: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # nothing is left to collect that the end of the process does not free anyway


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        print(f"syncflow: warning: {message}", file=sys.stderr)
