"""``syncflow bench gate``: fail where something has become slow; and the instruction level of a process."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from . import options


def gate(
    instructions: Annotated[
        str | None, typer.Option(help="Instruction level to check; default: every level of this machine.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Commit, branch or tag: also compare the steps of the working tree with those of it."),
    ] = None,
    plant: Annotated[
        str | None,
        typer.Option(help="Fault to plant: step (10 % slower, with --against), or a level whose kernel is slowed."),
    ] = None,
    demonstrate: Annotated[
        int | None,
        typer.Option(min=1, help="Show that the gate passes so many runs without a fault, and fails with each fault."),
    ] = None,
    history: options.History = None,
    json: options.Json = False,
) -> None:
    """Check speed ratios; exit code 1 if one is too low.

    At every instruction level the linear kernel must reach 0.45 of the rate of a loop of multiply-adds, and a step of
    the runtime that `auto` takes must be no slower than in plain PyTorch. With --against, steps must not be slower than
    0.95 times those of the revision, with 95 % confidence.
    """
    if plant == "step" and against is None:
        raise ValueError("a slow step is found by comparison; give --against, for example --against HEAD")
    limit_instructions(instructions)
    from ..benchmarks import gate as gates

    check_instructions(instructions)
    if demonstrate is not None:
        shown = gates.demonstrate(demonstrate, lambda text: print(f"syncflow: {text}", file=sys.stderr))
        if json:
            options.show_json({"demonstrations": [one.to_dict() for one in shown]})
        else:
            print(gates.demonstrations_table(shown))
        if not all(one.holds for one in shown):
            raise typer.Exit(1)
        return
    slow_level = None if plant == "step" else plant
    if instructions is None:
        checks = gates.check_all_levels(slow_level)
    else:
        if slow_level not in (None, instructions):
            raise ValueError(f"the fault is planted at {slow_level}, and the gate checks {instructions} alone")
        checks = gates.check_level(slow_level is not None)
    if against is not None:
        checks += gates.check_revision(against, gates.SLOW_STEP if plant == "step" else 0.0)
    options.record(history, "bench gate", {f"{check.name}, {check.instructions}": check.ratio for check in checks})
    if json:
        options.show_json({"checks": [check.to_dict() for check in checks]})
    else:
        print(gates.table(checks))
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def limit_instructions(level: str | None) -> None:
    """Limit the instruction level of this process, which starts again if libraries were loaded already."""
    if level is not None:
        from ..benchmarks import instructions

        instructions.limit(level)


def check_instructions(level: str | None) -> None:
    """Check that the native part has the instruction level. Raises ``ValueError`` if not."""
    if level is not None:
        from ..benchmarks import instructions

        instructions.check(level)
