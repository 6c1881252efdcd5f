"""The command line, ``syncflow COMMAND``: one module per command. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import gc
import sys
import warnings

import typer

from . import bench, data, evaluate, export, generate, inspect, retake, train, verify

GC_THRESHOLD = 100_000  # allocations between two collections; imports and loading create no garbage

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
    warnings.showwarning = _one_line
    try:
        app()
    except ValueError as error:
        print(f"syncflow: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("syncflow: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # the exit of the process frees everything


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, UserWarning):
        print(f"syncflow: warning: {message}", file=sys.stderr)
