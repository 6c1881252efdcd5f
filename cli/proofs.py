"""What was found of exported graphs, for the commands that verify them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from . import options

if TYPE_CHECKING:
    from ..engine.components import Components
    from ..engine.exports import Device, Export, Precision, Proof


def installed(export: Export, device: Device, precision: Precision | None = None) -> list[str]:
    """The runtimes that can compute an export here, in this precision or its own."""
    from ..engine.runtime.choice import able

    return able(export, device, precision or export.precision)


def prove(
    components: Components, export: Export, runtimes: Sequence[str], device: Device, precision: Precision | None = None
) -> Export:
    """The export with what was found of the runtimes, under a progress bar."""
    from tqdm import tqdm

    from ..export.verifying import prove

    with tqdm(desc="verifying", unit="graph", file=sys.stderr, leave=False, disable=None) as bar:

        def show(name: str) -> None:
            bar.set_description(f"verifying {name}")
            bar.update()

        return prove(components, export, runtimes, device=device, precision=precision, progress=show)


def show(exports: Sequence[Export], *, json: bool) -> None:
    """A table of errors for every export, or one JSON object; then exit code 1 if one exceeds its bound."""
    if json:
        options.show_json({"exports": [{"path": str(one.path), **_summary(one)} for one in exports]})
    else:
        print("\n\n".join(map(_table, exports)))
    wrong = [(p, name) for one in exports for p in one.proofs for name in p.errors if not p.holds([name])]
    if wrong:
        proof, name = wrong[0]
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        print(f"syncflow: {proof.runtime} does not compute {name} rightly{more}", file=sys.stderr)
        raise typer.Exit(1)
