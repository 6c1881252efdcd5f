"""No two modules need each other when they are imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import syncflow

ROOT = Path(syncflow.__file__).parent
PACKAGES = ("benchmarks", "cli", "engine", "export", "kernels", "training")
FILES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
MODULES = {".".join(("syncflow", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}


def file_of(module: str) -> str | None:
    return next((name for name in (module, f"{module}.__init__") if name in MODULES), None)


def import_time(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
    """The imports from modules that run when the module itself is imported."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, (ast.If, ast.Try)) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node)):
            yield from import_time([*node.body, *node.orelse])


def imported(name: str) -> set[str]:
    found: set[str | None] = set()
    for node in import_time(ast.parse(MODULES[name].read_text()).body):
        package = name.split(".")[: -node.level] if node.level else []
        source = ".".join([*package, *([node.module] if node.module else [])])
        found |= {file_of(f"{source}.{alias.name}") or file_of(source) for alias in node.names}
    return {module for module in found if module is not None}


def test_no_import_cycles() -> None:
    graph = {name: imported(name) - {name} for name in MODULES}
    assert sum(map(len, graph.values())) > len(MODULES)
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError
