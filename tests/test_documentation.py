"""The documents against the code: links, sections, commands, targets, extras, variables, names and paths.

Every check is a function from a text to the list of its faults, so that a planted fault shows that it can fail.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from syncflow import Engine, cli
from syncflow.engine.settings import SETTINGS

ROOT = Path(__file__).parents[1]
THIS = "tests/test_documentation.py"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")))
OUTPUTS = ("benchmarks/gpu/results",)
SOURCES = {".py", ".cpp", ".h", ".txt", ".toml", ".json", ".in", "", ".yaml", ".service"}
PATH_SUFFIXES = (".py", ".cpp", ".h", ".md", ".toml", ".txt")
UsageError: Any = typer.BadParameter.__mro__[1]  # of click, or of the copy in typer
Check = Callable[[str, str], list[str]]


@cache
def tracked() -> tuple[str, ...]:
    """The files that git tracks, and those that would be added."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).is_file())


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


@cache
def sources() -> str:
    """All code and build files but the tests, as one text."""
    found = [n for n in tracked() if Path(n).suffix in SOURCES and not n.startswith(("tests/", "csrc/tests/", "docs/"))]
    return "\n".join(read(name) for name in found)


def without_code(text: str) -> str:
    """Prose and headings alone."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```|^(?: {4}|\t).*$", "", text, flags=re.M | re.S))


def code_lines(text: str) -> Iterator[str]:
    """The lines of code blocks."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S):
        yield from block.splitlines()
    yield from (line.strip() for line in re.findall(r"^(?: {4}|\t)\S.*$", text, re.M))


def spans(text: str) -> list[str]:
    """Inline code; a span may go on in the next line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        if number:
            found[f"{slug}-{number}"] = 1
    return set(found)


def links(page: str, text: str) -> list[str]:
    """Relative links and anchors that lead nowhere."""
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists():
            faults.append(f"{page}: the link {target} leads to no file")
        elif anchor and anchor not in anchors(text if not path else file.read_text(encoding="utf-8")):
            faults.append(f"{page}: the link {target} leads to no heading")
    return faults


def sections(page: str, text: str) -> list[str]:
    """References to numbered sections that are not there. A section of a paper has the paper's name before it."""
    faults = []
    pattern = r"(?:(\w+) )?(?:(?:docs/)?(\w+\.md)[`)\]]*(?:\([\w.]+\))?,? )?\bsection (\d+)(\.\d+)?\b"
    for word, other, number, part in re.findall(pattern, " ".join(text.split())):
        if word in ("SyncFlow", "Syncphony", "Harmony") and not other:
            continue
        file = f"docs/{other}" if other else page
        there = file in PAGES and re.search(rf"^#+ {number}\. ", text if file == page else read(file), re.M)
        if part or not there:
            faults.append(f"{page}: {file} has no section {number}{part}")
    return faults


def commands(page: str, text: str) -> list[str]:
    """``syncflow`` command lines whose command, option or value is unknown."""
    faults = []
    written = [(line, True) for line in code_lines(text)] + [(span, False) for span in spans(text)]
    for line, whole in written:
        if re.match(r"syncflow( [a-z…]|$)", line):
            try:
                parse(shlex.split(re.split(r" (?:[|>]|&&) ", line)[0], comments=True)[1:], whole)
            except (UsageError, ValueError) as error:
                said = error.format_message() if isinstance(error, UsageError) else error
                faults.append(f"{page}: {line}: {said}")
    return faults


def parse(arguments: list[str], whole: bool) -> None:
    """Raise what typer raises for arguments; nothing is run. ``whole``: what is required must be there."""
    command = typer.main.get_command(cli.app)
    context = command.context_class(command, info_name="syncflow")
    while hasattr(command, "commands") and arguments:
        name, *arguments = arguments
        if name in ("…", "COMMAND", "--help"):
            return
        found = command.get_command(context, name)
        if found is None:
            raise UsageError(f"no such command {name!r}")
        command, context = found, found.context_class(found, parent=context, info_name=name)
    if hasattr(command, "commands") or "--help" in arguments:
        return
    given = ["1" if argument in ("N", "S") else argument for argument in arguments if argument != "…"]
    try:
        command.make_context(command.name, given, parent=context.parent)
    except UsageError as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise


def options(page: str, text: str) -> list[str]:
    """Options in inline code, standing alone, that no command has."""
    known = {name for command in all_commands() for p in command.params for name in (*p.opts, *p.secondary_opts)}
    alone = [span for span in spans(text) if span.startswith("--")]
    mentioned = {part for span in alone for part in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)}
    return [f"{page}: no command has the option {option}" for option in sorted(mentioned - known - {"--help"})]


def all_commands() -> Iterator[Any]:
    left = [typer.main.get_command(cli.app)]
    while left:
        command = left.pop()
        left += getattr(command, "commands", {}).values()
        yield command


def targets(page: str, text: str) -> list[str]:
    """``make`` targets that the Makefile does not have."""
    known = set(re.findall(r"^([a-z][a-z0-9-]*):", read("Makefile"), re.M))
    written = [*code_lines(text), *spans(text)]
    named = {name for code in written for name in re.findall(r"(?:^(?:\w+=\S+ )*|[&;] *)make ([a-z][a-z0-9-]*)", code)}
    return [f"{page}: the Makefile has no target {name}" for name in sorted(named - known)]


def extras(page: str, text: str) -> list[str]:
    """Extras that ``pyproject.toml`` does not have."""
    known = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    named = re.findall(r"""(?:\bsyncflow|["' ]\.)\[([a-z0-9, -]+)\]""", text)
    return [
        f"{page}: there is no extra {e.strip()}" for group in named for e in group.split(",") if e.strip() not in known
    ]


def read_variables() -> set[str]:
    """The environment variables of syncflow that its code reads."""
    return set(re.findall(r"""(?:environ(?:\.get\(|\[)|getenv\(|envvar=)\s*["'](SYNCFLOW_\w+)["']""", sources()))


def variables(page: str, text: str) -> list[str]:
    """Environment variables and names of the C API that there are not, and build options that CMake does not have."""
    build_options = set(re.findall(r"-D(SYNCFLOW_\w+)", text))
    named = set(re.findall(r"\bSYNCFLOW_[A-Z_]*[A-Z]\b", text))
    of_c = set(re.findall(r"\bSYNCFLOW_[A-Z_]*[A-Z]\b", read("csrc/include/syncflow/syncflow.h")))
    faults = [f"{page}: nothing reads {name}" for name in sorted(named - build_options - of_c - read_variables())]
    cmake = set(re.findall(r"\b(?:option|set)\((SYNCFLOW_\w+)", read("CMakeLists.txt")))
    return faults + [f"{page}: CMake has no option {name}" for name in sorted(build_options - cmake)]


def names(page: str, text: str) -> list[str]:
    """Dotted names of the package that do not exist."""
    written = "\n".join([*code_lines(text), *spans(text)])
    dotted = set(re.findall(r"(?<![\w./-])syncflow(?!\.h(?:pp)?\b)(?:\.[A-Za-z_]\w*)+", written))
    for module, imported in re.findall(r"^from (syncflow[\w.]*) import ([\w, ]+)", written, re.M):
        dotted |= {f"{module}.{name.split(' as ')[0].strip()}" for name in imported.split(",")}
    return [f"{page}: there is no {name}" for name in sorted(dotted) if not exists(name)]


def exists(name: str) -> bool:
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError as error:
            if error.name is not None and not name.startswith(error.name):
                return True  # a library that is not installed here
            continue
        for attribute in parts[split:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def paths(page: str, text: str) -> list[str]:
    """Paths of the repository in inline code that do not exist. The end of a path will do: ``model/video.py``."""
    folders = {parent.as_posix() for name in tracked() for parent in Path(name).parents}
    known = [f"/{name}" for name in (*tracked(), *folders)]
    tops = {folder for folder in folders if "/" not in folder and folder != "."}
    faults = []
    for span in spans(text):
        path = span.split("::")[0].removeprefix("./").rstrip("/")
        if not re.fullmatch(r"\.?\w[\w./-]*", path) or path in (*PATH_SUFFIXES, *OUTPUTS):
            continue
        ours = path.endswith(PATH_SUFFIXES) or ("/" in span and path.split("/")[0] in tops)
        if ours and not any(name.endswith(f"/{path}") for name in known):
            faults.append(f"{page}: there is no file or folder {path}")
    return faults


def identifiers(page: str, text: str) -> list[str]:
    """Names of functions, classes, settings and files' fields in inline code that are in no source file."""
    pattern = r"(?:\w+\.)*([A-Za-z]\w*_\w*[a-z]|[A-Z][a-z0-9]+(?:[A-Z]\w*)+)(?:\(\))?"
    named = {match[1] for span in spans(text) if (match := re.fullmatch(pattern, span))}
    return [f"{page}: no source has the name {name}" for name in sorted(named) if name not in words()]


@cache
def words() -> set[str]:
    return set(re.findall(r"\w+", sources()))


def conflicts(page: str, text: str) -> list[str]:
    """Lines that a merge left."""
    return [f"{page}: {line[:20]}" for line in re.findall(r"^(?:<{7}|>{7}|\|{7})(?: .*)?$", text, re.M)]


CHECKS: tuple[Check, ...] = (links, sections, commands, options, targets, extras, variables, names, paths, identifiers)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_documents(check, page):
    assert check(page, read(page)) == []


@pytest.mark.slow
@pytest.mark.parametrize("check", [sections, extras], ids=lambda check: check.__name__)
def test_references_in_code(check):
    """``docs/x.md`` with a section, and ``pip install syncflow[…]``, in docstrings, comments and messages."""
    files = [
        n for n in tracked() if n.endswith((".py", ".cpp", ".h", "Makefile")) and n != "tests/test_documentation.py"
    ]
    faults = [fault for name in files for fault in check(name, read(name))]
    assert faults == []


def test_every_variable_that_is_read_is_documented():
    documented = set(re.findall(r"SYNCFLOW_[A-Z_]*[A-Z]\b", "".join(read(page) for page in PAGES)))
    assert read_variables() - documented == set()
    assert len(read_variables()) >= 5


def test_every_setting_is_documented():
    """Of requests and of engines, in the first column of a table of ``docs/python.md``."""
    cells = re.findall(r"^\|([^|]*)\|", read("docs/python.md"), re.M)
    documented = set(re.findall(r"`(\w+)`", "".join(cells)))
    of_engine = set(inspect.signature(Engine).parameters) - {"components", "folder"}
    assert {*SETTINGS, *of_engine} - documented == set()


def test_no_file_has_conflict_markers():
    assert [fault for name in tracked() for fault in conflicts(name, read(name))] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (links, "[a](README.md) [b](#one-b)\n# One `b`\n", "[a](READMY.md)"),
        (links, "[a](docs/method.md#1-rectified-flow)", "[a](docs/method.md#no-such-heading)"),
        (sections, "[method.md](method.md) section 4, SyncFlow section 3.2", "`docs/method.md` section 77"),
        (sections, "## 2. Two\n\nsee\nsection 2", "## 2. Two\n\nsee section 3"),
        (commands, "`syncflow generate` and\n\n    syncflow generate x -o y.mp4  # z\n", "`syncflow generat x`"),
        (commands, "    syncflow generate x --steps 3\n", "    syncflow generate x --no-such-option 3\n"),
        (commands, "```\nsyncflow verify --device cpu\n```\n", "```\nsyncflow verify --device toaster\n```\n"),
        (commands, "    syncflow inspect a.mp4\n", "    syncflow inspect\n"),
        (options, "`--steps N`", "`--stepz N`"),
        (targets, "`make test`", "    make no-such-target"),
        (extras, 'pip install ".[train,export]"', 'pip install "syncflow[train,no-such-extra]"'),
        (variables, "`SYNCFLOW_CACHE`", "`SYNCFLOW_NO_SUCH`"),
        (variables, "`-DSYNCFLOW_LANES=8`", "`-DSYNCFLOW_NO_SUCH=8`"),
        (names, "`syncflow.engine.config.ModelConfig`", "`syncflow.engine.config.NoSuchName`"),
        (names, "```\nfrom syncflow import Engine\n```\n", "```\nfrom syncflow import Engin\n```\n"),
        (paths, "`engine/config.py`, `model/`, `config.py`", "`engine/no_such_file.py`"),
        (paths, "`docs/method.md`", "`docs/no_such_folder/`"),
        (identifiers, "`guided_euler_step` and `Pipeline.prepare`", "`no_such_function_name`"),
        (identifiers, "`GuidancePlan`", "`NoSuchClassName`"),
        (conflicts, "a\n=======\nb", "a\n" + "<" * 7 + " HEAD\nb"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_every_check_can_fail(check, right, wrong):
    page = "docs/python.md" if check is sections else "README.md"
    assert check(page, right) == []
    assert len(check(page, wrong)) == 1
