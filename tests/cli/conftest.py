"""The commands, called in this process."""

from __future__ import annotations

import sys

import pytest

from syncflow.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Call ``syncflow`` with arguments: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["syncflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
