"""What must be set before the first import of a library.

Every process of the tests computes with one thread, since there is one for each core. Without a GPU the Triton kernels
run in their interpreter. Exports in the user's cache do not count, and runtimes are not timed: the tests choose theirs,
and those of the timing switch it on.

Hypothesis has two profiles: `fast`, the default, runs at most five examples of each property; `ci`, which ``make test``
selects where ``CI`` is set, runs all of them. Both run the same examples every time.
"""

from __future__ import annotations

import os
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

import syncflow

from .library_caches import prepare_triton_language_once

# pytest imports the __init__.py of the root too, under this name where that of the folder is no identifier (a clone in
# "syncflow-main"), and outside of its package.
sys.modules.setdefault("__init__", syncflow)

_cache = tempfile.TemporaryDirectory(prefix="syncflow-")
os.environ["SYNCFLOW_CACHE"] = _cache.name
os.environ["SYNCFLOW_CALIBRATION"] = "off"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    prepare_triton_language_once()

settings.register_profile("fast", settings.get_profile("ci"), max_examples=5)
settings.load_profile("fast")


@pytest.fixture
def run(monkeypatch, capsys):
    """Call ``syncflow`` in this process: exit code, standard output, standard error."""
    from syncflow.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["syncflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files, skip what needs a GPU, and limit examples.

    Files that are slow as a whole come first, so that none is left to one process at the end.
    """
    items.sort(key=lambda item: _file_marker(item, "slow") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if settings.get_current_profile_name() == "fast":
        for item in items:
            _limit_examples(item)


def _file_marker(item: pytest.Item, name: str) -> pytest.Mark | None:
    file = item.getparent(pytest.Module)
    return None if file is None else file.get_closest_marker(name)


def _limit_examples(item: pytest.Item) -> None:
    """As few examples as the profile has, also where a test or a state machine states their number."""
    function = getattr(item, "obj", None)
    function = getattr(function, "__func__", function)
    for owner, name in ((function, "_hypothesis_internal_use_settings"), (getattr(item, "cls", None), "settings")):
        own = getattr(owner, name, None)
        if isinstance(own, settings):
            setattr(owner, name, settings(own, max_examples=min(own.max_examples, settings().max_examples)))
