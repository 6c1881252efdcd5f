"""Verification of exported graphs, for the commands that do it: progress bar, table, exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from . import options

if TYPE_CHECKING:
    from ..engine.components import Components
    from ..engine.exports import Device, Export, Precision, VerificationResult


def installed_runtimes(export: Export, device: Device, precision: Precision | None = None) -> list[str]:
    """The installed runtimes that can compute an export on this device, in this precision or its own."""
    from ..engine.runtime.selection.libraries import usable_runtimes

    return usable_runtimes(export, device, precision or export.precision)


def verify_export(
    components: Components, export: Export, runtimes: Sequence[str], device: Device, precision: Precision | None = None
) -> tuple[Export, list[VerificationResult]]:
    """Verify an export in some runtimes, under a progress bar: the export, and the new results."""
    from ..engine.progress import progress_bar
    from ..export.verification import verify_runtimes

    with progress_bar(desc="verifying", unit="graph", leave=False) as bar:

        def show(name: str) -> None:
            bar.set_description(f"verifying {name}")
            bar.update()

        return verify_runtimes(components, export, runtimes, device=device, precision=precision, progress=show)


def show(found: Sequence[tuple[Export, list[VerificationResult]]], *, json: bool) -> None:
    """A table of errors for every export, or one JSON object; then exit code 1 if one exceeds its bound."""
    if json:
        options.show_json({"exports": [_summary(export, results) for export, results in found]})
    else:
        print("\n\n".join(_table(export, results) for export, results in found))
    wrong = [
        (p.runtime, name) for _, results in found for p in results for name in p.errors if not p.within_bound([name])
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        print(f"syncflow: {wrong[0][0]} does not compute {wrong[0][1]} as PyTorch does{more}", file=sys.stderr)
        raise typer.Exit(1)


def _summary(export: Export, results: Sequence[VerificationResult]) -> dict[str, Any]:
    return {
        "path": str(export.path),
        "format": export.format,
        "precision": export.precision,
        "graphs": list(export.graphs),
        "missing": dict(export.missing),
        "runtimes": [asdict(result) for result in results],
    }


def _table(export: Export, results: Sequence[VerificationResult]) -> str:
    """Graphs down, runtimes across: the largest error, and how long a step and every codec took."""
    versions = ", ".join(f"{name} {version}" for name, version in export.versions.items())
    lines = [f"{export.path}: {len(export.graphs)} graphs in {export.precision}, written by {versions}"]
    lines += [f"not exported: {name} ({why})" for name, why in export.missing.items()]
    if results:
        rows = [["largest relative error", *(f"{p.runtime} {p.device} {p.precision}" for p in results)]]
        rows += [[name, *(_error(p.errors.get(name)) for p in results)] for name in export.graphs]
        rows.append(["allowed", *(f"{p.bound:.0e}" for p in results)])
        timed = dict.fromkeys(name for p in results for name in p.seconds)
        rows.append(["ms (in PyTorch)", *("" for _ in results)])
        rows += [[name, *(_time(p.seconds.get(name)) for p in results)] for name in timed]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _error(error: float | None) -> str:
    return "fails" if error is None else f"{error:.1e}"


def _time(seconds: Sequence[float] | None) -> str:
    return "" if seconds is None else f"{1000 * seconds[0]:.3g} ({1000 * seconds[1]:.3g})"
